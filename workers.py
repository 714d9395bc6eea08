"""The threads that wait for requests and answer them.

To hand a request from a thread that waits for sockets to one that answers it takes longer than most
answers do, and two threads that compute only take the interpreter from each other. So the thread
that has found a request answers it: it leads. While it waits for another program, such as a busy
database or the identity service, another thread takes the lead.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Protocol

log = logging.getLogger("orchmgmt")

#: After so long, in seconds, the sockets are looked at again before further requests are answered.
LONGEST = 0.005

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
    """

    def __init__(self, threads: int) -> None:
        self._threads = [
            threading.Thread(target=self._work, name=f"worker-{number}", daemon=True)
            for number in range(threads)
        ]
        self._tasks: deque[Task] = deque()
        self._lead = threading.Lock()
        self._leader: int | None = None
        self._ended = threading.Event()
        self._failure: BaseException | None = None

    def run(self, turn: Callable[[], bool], overdue: Callable[[], bool]) -> None:
        """Work until it is done, then drop the requests that no thread has begun with.

        Args:
            turn: waits for sockets, adds a task for each request, and returns whether to go on.
                One thread calls it, now this, now that; none, while all wait for other programs.
            overdue: returns whether to go on no longer, whoever waits for what.
        """
        self._turn = turn
        for thread in self._threads:
            thread.start()
        while not (self._ended.wait(1) or overdue()):
            pass
        self.shutdown()
        if self._failure is not None:
            raise self._failure

    def shutdown(self, cancel_pending: bool = True, timeout: float = 5) -> None:
        """End the threads once they have answered what they are at.

        Args:
            cancel_pending: whether to drop requests that no thread has begun with.
            timeout: how long to wait for the threads, in seconds.
        """
        self._ended.set()
        deadline = time.monotonic() + timeout
        for thread in self._threads:
            thread.join(max(0, deadline - time.monotonic()))
        while cancel_pending and self._tasks:
            self._tasks.popleft().cancel()

    def add_task(self, task: Task) -> None:
        """Have a request answered."""
        self._tasks.append(task)

    @property
    def behind(self) -> bool:
        """Whether there are requests that no thread has begun with."""
        return bool(self._tasks)

    def leads(self) -> bool:
        """Return whether the thread that asks is the one that looks after the sockets."""
        return self._leader == threading.get_ident()

    def hand_over(self) -> None:
        """Let another thread take the lead, if this one has it."""
        if self.leads():
            self._leader = None
            self._lead.release()

    def _work(self) -> None:
        _this_thread.workers = self
        while not self._ended.is_set():
            self._lead.acquire()
            self._leader = threading.get_ident()
            try:
                while self.leads() and not self._ended.is_set():
                    if self._turn():
                        self._answer()
                    else:
                        self._ended.set()
            except BaseException as error:
                self._failure = error
                self._ended.set()
            finally:
                self.hand_over()

    def _answer(self) -> None:
        end = time.monotonic() + LONGEST
        while self.leads() and self._tasks and time.monotonic() < end:
            try:
                self._tasks.popleft().service()
            except BaseException:
                log.exception("a request failed outside of the application")


def make_room() -> None:
    """Let another thread take the lead: this one is going to wait for another program."""
    workers: Workers | None = getattr(_this_thread, "workers", None)
    if workers is not None:
        workers.hand_over()
