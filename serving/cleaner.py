"""The thread of a server that deletes expired locks and old jobs."""

import logging
import threading
import time
from contextlib import suppress
from math import inf

from orchmgmt.errors import Unavailable
from orchmgmt.store import Figure, Store
from orchmgmt.values import write_second

log = logging.getLogger("orchmgmt")

#: How long `stop` waits for the current batch, in seconds. After that the batch is rolled back.
STOP_TIMEOUT = 10

#: Entries are deleted this long after they have expired, in seconds, so that a clock that is off by
#: less does no harm. A clock that moves by this much at once has jumped.
CLOCK_TOLERANCE = 5

#: How long nothing is deleted after the clock has jumped, in seconds.
STEADY_PERIOD = 60


class Cleaner:
    """Cleans a store in the background, at intervals, until it is stopped.

    When the database's clock jumps, forward or back, nothing is deleted for a while: the clock may
    be wrong, and deleted entries do not come back when it is right again. A clock that was passed
    to the store may jump.

    Args:
        store: the store to clean.
        interval: the pause between two rounds, in seconds.

    Attributes:
        rounds: the number of rounds.
        failures: the number of rounds that failed.
        locks: the number of expired locks deleted.
        jobs: the number of old jobs deleted.
    """

    def __init__(self, store: Store, interval: float) -> None:
        self._store = store
        self._interval = interval
        self.rounds = self.failures = self.locks = self.jobs = 0
        self._ahead: float | None = None
        self._steady_since = -inf
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="cleaner", daemon=True)
        store.figures += [
            Figure("cleaner_rounds", "Rounds of the cleaner", lambda: self.rounds),
            Figure("cleaner_failures", "Rounds of the cleaner that failed", lambda: self.failures),
            Figure("cleaner_locks_deleted", "Expired locks deleted", lambda: self.locks),
            Figure("cleaner_jobs_deleted", "Old jobs deleted", lambda: self.jobs),
        ]

    def start(self, url: str) -> None:
        """Start the thread, wherever the server listens."""
        self._thread.start()

    def stop(self) -> None:
        """Stop the thread, and wait for the end of its batch, up to `STOP_TIMEOUT`."""
        self._stopped.set()
        self._thread.join(STOP_TIMEOUT)

    def _run(self) -> None:
        with suppress(Unavailable):
            self._note_clock(self._present())
        while not self._stopped.wait(self._interval):
            self.rounds += 1
            try:
                self._round()
            except Exception as error:
                self.failures += 1
                fault = not isinstance(error, Unavailable)  # the database logs its own reason
                reason = "the cleaner's round failed: %s; the next one will try again"
                log.error(reason, error, exc_info=fault)

    def _round(self) -> None:
        present = self._present()
        if self._store.clock is None and not self._note_clock(present):
            return
        moment = write_second(int(present - CLOCK_TOLERANCE))
        locks, jobs = self._store.clean(moment, self._stopped.wait)
        self.locks += locks
        self.jobs += jobs
        if locks or jobs:
            log.info("cleaned %d expired locks and %d old jobs", locks, jobs)

    def _present(self) -> float:
        return self._store.database.read(self._store.database.time)

    def _note_clock(self, present: float) -> bool:
        """Return whether the clock has run steadily for a while, or since it was first noted."""
        since = time.monotonic()
        before, self._ahead = self._ahead, present - since  # of the clock that nobody sets
        if before is not None and abs(self._ahead - before) >= CLOCK_TOLERANCE:
            log.warning(
                "the clock has jumped by %+.0f s: nothing is cleaned for %d s",
                self._ahead - before,
                STEADY_PERIOD,
            )
            self._steady_since = since
        return since - self._steady_since >= STEADY_PERIOD
