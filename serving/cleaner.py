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

#: How long a round may go on when it is to stop, in seconds; then what it is at is undone.
PATIENCE = 10

#: What is deleted has been past for so long, in seconds. A clock that is off by less does no harm.
GRACE = 5

#: The clock is believed once it has gone as evenly as time does for so long, in seconds.
EVEN = 60


class Cleaner:
    """Cleans a store now and then, in the background, until it is stopped.

    While the clock of the database jumps, forward or back, nothing is deleted: it would be gone for
    good when the clock is right again. A clock that the store was given jumps as it is meant to.

    Args:
        store: what to clean.
        interval: the pause between two rounds, in seconds.

    Attributes:
        rounds: how many there have been.
        failures: how many of them failed.
        locks: how many expired locks they deleted.
        jobs: how many old jobs they deleted.
    """

    def __init__(self, store: Store, interval: float) -> None:
        self._store = store
        self._interval = interval
        self.rounds = self.failures = self.locks = self.jobs = 0
        self._ahead: float | None = None
        self._even_since = -inf
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
        """Stop the thread, and wait a while for the end of its batch."""
        self._stopped.set()
        self._thread.join(PATIENCE)

    def _run(self) -> None:
        with suppress(Unavailable):
            self._believes(self._present())
        while not self._stopped.wait(self._interval):
            self.rounds += 1
            try:
                self._round()
            except Exception:
                self.failures += 1
                log.exception("the cleaner's round failed; the next one will try again")

    def _round(self) -> None:
        present = self._present()
        if self._store.clock is None and not self._believes(present):
            return
        moment = write_second(int(present - GRACE))
        locks, jobs = self._store.clean(moment, self._stopped.wait)
        self.locks += locks
        self.jobs += jobs
        if locks or jobs:
            log.info("cleaned %d expired locks and %d old jobs", locks, jobs)

    def _present(self) -> float:
        return self._store.database.read(self._store.database.time)

    def _believes(self, present: float) -> bool:
        """Whether the clock has gone as evenly as time does for a while, or as long as we know."""
        since = time.monotonic()
        before, self._ahead = self._ahead, present - since
        if before is not None and abs(self._ahead - before) >= GRACE:
            log.warning(
                "the clock has jumped by %+.0f s: nothing is cleaned for %d s",
                self._ahead - before,
                EVEN,
            )
            self._even_since = since
        return since - self._even_since >= EVEN
