"""How many threads answer requests."""

import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

from flask import Flask

#: A call that takes longer, in seconds, may be waiting for another program.
LONG_CALL = 0.2

#: How many threads there may be beyond the usual number.
EXTRA_THREADS = 64


class ThreadCountMiddleware:
    """WSGI middleware that notes how long calls take, and sets the number of threads by it.

    waitress's pool has a fixed size, so as many requests as it has threads keep all others waiting
    while they wait for a busy database or a hanging identity server: beside 12 creates that waited
    for another process, a pool of four took 14 s for a query. Many threads cost speed, because
    threads that compute take the interpreter from each other: with one thread on SQLite, a query by
    id takes a fifth less CPU than with four, and a quarter less than with 16. So there are usually
    few, and two more for each call that waits.

    Args:
        app: the application.
        usual: how many threads there are while no call waits.
    """

    def __init__(self, app: Flask, usual: int) -> None:
        self._app = app
        self._usual = self._count = usual
        self._begun: dict[int, float] = {}  # when the call of each thread began
        self._adapted = self._computed = 0.0

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        """Answer a request."""
        thread = threading.get_ident()
        self._begun[thread] = time.monotonic()
        try:
            return self._app(environ, start_response)
        finally:
            del self._begun[thread]

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
