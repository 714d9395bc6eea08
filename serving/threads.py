"""How many threads answer requests."""

import threading
import time
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

#: A call that takes longer, in seconds, may be waiting for another program.
LONG_CALL = 0.2

#: How many threads there may be beyond the usual number.
EXTRA_THREADS = 64


class ThreadCount:
    """Notes how long the calls of a pool's threads take, and sets the number of threads by it.

    waitress's pool has a fixed size. If as many requests as it has threads wait for a busy database
    or a hanging identity server, all other requests wait too: beside 12 creates that waited for
    another process, a pool of four took 14 s for a query. But many threads cost speed, because
    threads that compute take the interpreter from each other: with one thread on SQLite, a query by
    id takes a fifth less CPU than with four, and a quarter less than with 16. So there are usually
    few threads, and two more for each call that waits.

    Args:
        usual: how many threads there are while no call waits.
    """

    def __init__(self, usual: int) -> None:
        self._usual = self._count = usual
        self._begun: dict[int, float] = {}  # when the call of each thread began
        self._adapted = self._computed = 0.0

    def timed(self, call: Callable[P, R]) -> Callable[P, R]:
        """Return a function that makes the same call, and notes how long it takes."""

        def timed(*args: P.args, **kwargs: P.kwargs) -> R:
            thread = threading.get_ident()
            self._begun[thread] = time.monotonic()
            try:
                return call(*args, **kwargs)
            finally:
                del self._begun[thread]

        return timed

    def adapt(self, set_count: Callable[[int], object]) -> None:
        """Set the number of threads by what has happened since the last time.

        Args:
            set_count: sets the number.
        """
        now, computed = time.monotonic(), time.process_time()
        idle = computed - self._computed < (now - self._adapted) / 2
        self._adapted, self._computed = now, computed
        waiting = sum(now - begun > LONG_CALL for begun in list(self._begun.values()))
        wanted = self._usual + min(2 * waiting, EXTRA_THREADS)
        if idle or wanted < self._count:  # in a busy process, long calls compute and do not wait
            self._count = wanted
            set_count(wanted)
