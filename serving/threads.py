"""How many threads answer requests."""

import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

from flask import Flask

#: A request that takes longer, in seconds, may be waiting for another program.
LONG = 0.2

#: How many more threads than usual there may be while requests wait.
MORE = 64


class Threads:
    """Sees to it that there are threads to answer with, whatever requests wait for.

    Threads that compute only take the interpreter from each other, so usually there are few. For
    each one that waits for another program, such as a busy database, there are two more.

    Args:
        app: the application, whose calls are watched.
        usual: how many threads there are to begin with.
    """

    def __init__(self, app: Flask, usual: int) -> None:
        self._app = app
        self._usual = self._count = usual
        self._begun: dict[int, float] = {}  # when, by the thread of each call
        self._looked = self._computed = 0.0

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        """Answer a request."""
        thread = threading.get_ident()
        self._begun[thread] = time.monotonic()
        try:
            return self._app(environ, start_response)
        finally:
            del self._begun[thread]

    def adapt(self, set_count: Callable[[int], object]) -> None:
        """Set the number of threads, as it has gone since the last call.

        Args:
            set_count: sets it.
        """
        now, computed = time.monotonic(), time.process_time()
        idle = computed - self._computed < (now - self._looked) / 2
        self._looked, self._computed = now, computed
        waiting = sum(now - begun > LONG for begun in list(self._begun.values()))
        wanted = self._usual + min(2 * waiting, MORE)
        if idle or wanted < self._count:  # while it is not idle, what takes long computes
            self._count = wanted
            set_count(wanted)
