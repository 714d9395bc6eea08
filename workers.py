"""The threads that answer requests.

Python runs one thread at a time, so threads that compute only take the interpreter from each other:
with four at work instead of one, a third of the throughput is lost. But one thread that waits for
a busy database would keep all other requests waiting too. So there are several threads, and only as
many of them work at once as can use it; one that waits for another program makes room meanwhile.
"""

import logging
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

log = logging.getLogger("orchmgmt")

_this_thread = threading.local()


class Task(Protocol):
    """A connection with a request that can be answered, as waitress has it."""

    def service(self) -> None:
        """Answer the request."""

    def cancel(self) -> None:
        """Drop the request."""


class Workers:
    """A task dispatcher for waitress.

    Args:
        threads: how many threads there are.
        at_once: how many of them may work at once, not counting those that wait.
    """

    def __init__(self, threads: int, at_once: int) -> None:
        self._free = at_once
        self._tasks: deque[Task] = deque()
        self._returning = 0
        self._stopping = False
        lock = threading.Lock()
        self._work = threading.Condition(lock)
        self._place = threading.Condition(lock)
        self._threads = [
            threading.Thread(target=self._run, name=f"worker-{number}", daemon=True)
            for number in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    def add_task(self, task: Task) -> None:
        """Have a thread answer a request."""
        with self._work:
            self._tasks.append(task)
            if self._free:
                self._work.notify()

    def shutdown(self, cancel_pending: bool = True, timeout: float = 5) -> None:
        """End the threads once they have answered what they are at.

        Args:
            cancel_pending: whether to drop requests that no thread has begun with.
            timeout: how long to wait for each thread, in seconds.
        """
        with self._work:
            self._stopping = True
            self._work.notify_all()
        for thread in self._threads:
            thread.join(timeout)
        while cancel_pending and self._tasks:
            self._tasks.popleft().cancel()

    def _run(self) -> None:
        _this_thread.workers = self
        while True:
            with self._work:
                while not (self._stopping or (self._tasks and self._free > self._returning)):
                    self._work.wait()
                if self._stopping:
                    return
                task = self._tasks.popleft()
                self._free -= 1
            try:
                task.service()
            except BaseException:
                log.exception("a request failed outside of the application")
            self._leave()

    def _leave(self) -> None:
        with self._work:
            self._free += 1
            if self._returning:
                self._place.notify()
            elif self._tasks:
                self._work.notify()

    def _return(self) -> None:
        with self._place:
            self._returning += 1
            while not self._free:
                self._place.wait()
            self._returning -= 1
            self._free -= 1
            if self._tasks and self._free > self._returning:
                self._work.notify()


@contextmanager
def waiting() -> Iterator[None]:
    """Let another thread work while this one waits for another program."""
    workers: Workers | None = getattr(_this_thread, "workers", None)
    if workers is None:
        yield
        return
    workers._leave()
    try:
        yield
    finally:
        workers._return()
