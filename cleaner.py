"""The thread of a server that deletes expired locks and old jobs."""

import logging
import threading

from orchmgmt.store import Store

log = logging.getLogger("orchmgmt")

#: How long a round may go on when it is to stop, in seconds; then what it is at is undone.
PATIENCE = 10


class Cleaner:
    """Cleans a store now and then, in the background, until it is stopped.

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
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="cleaner", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Stop the thread, and wait a while for the end of its round."""
        self._stopped.set()
        self._thread.join(PATIENCE)

    def _run(self) -> None:
        while not self._stopped.wait(self._interval):
            self.rounds += 1
            try:
                locks, jobs = self._store.clean()
            except Exception:
                self.failures += 1
                log.exception("the cleaner's round failed; the next one will try again")
            else:
                self.locks += locks
                self.jobs += jobs
                if locks or jobs:
                    log.info("cleaned %d expired locks and %d old jobs", locks, jobs)
