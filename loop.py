"""The loop that waits for the server's sockets.

waitress asks every connection before each wait whether it wants to read or write, so that a few
hundred idle ones halve the throughput of the others. This loop asks those that something has
happened to, and all of them once a second, for what time alone brings about.
"""

import select
import selectors
import time
from collections import deque
from typing import Any

from waitress import wasyncore

#: How often every connection is asked, in seconds.
EVERYBODY = 1.0

#: How many connections that wait are taken before those that are here are looked after again.
TAKEN_AT_ONCE = 64


class Sockets(dict[int, Any]):
    """waitress's map from file descriptors to sockets, and which of them may want something new."""

    def __init__(self) -> None:
        super().__init__()
        self._stirred: deque[int] = deque()

    def __setitem__(self, number: int, dispatcher: Any) -> None:
        super().__setitem__(number, dispatcher)
        self.stir(number)

    def stir(self, number: int) -> None:
        """Have a socket asked what it wants. Any thread may call this, but must wake the loop."""
        self._stirred.append(number)

    def take_stirred(self) -> set[int]:
        """Return those stirred since the last call."""
        stirred = set()
        while self._stirred:
            stirred.add(self._stirred.popleft())
        return stirred


class Loop:
    """Waits for sockets, and lets them handle what comes.

    Args:
        sockets: the sockets; listeners and waitress's trigger among them.
    """

    def __init__(self, sockets: Sockets) -> None:
        self._sockets = sockets
        self._selector = selectors.DefaultSelector()
        self._watched: dict[int, tuple[Any, int]] = {}  # with what for, by file descriptor
        self._next_round = 0.0

    def turn(self, timeout: float) -> bool:
        """Handle what the sockets have, or wait for it.

        Args:
            timeout: how long to wait at most, in seconds.

        Returns:
            Whether every connection was asked what it wants, as once a second.
        """
        now = time.monotonic()
        everybody = now >= self._next_round
        stirred = self._sockets.take_stirred()
        if everybody:
            self._next_round = now + EVERYBODY
            stirred.update(self._sockets)
        for number in stirred:
            self._watch(number)
        for key, events in self._selector.select(min(timeout, EVERYBODY)):
            dispatcher = self._sockets.get(key.fd)
            if dispatcher is key.data:
                self._sockets.stir(key.fd)
                flags = select.POLLIN if events & selectors.EVENT_READ else 0
                flags |= select.POLLOUT if events & selectors.EVENT_WRITE else 0
                if dispatcher.accepting:
                    self._take_connections(dispatcher, flags)
                else:
                    wasyncore.readwrite(dispatcher, flags)
        return everybody

    def close(self) -> None:
        """Stop watching."""
        self._selector.close()

    def _take_connections(self, listener: Any, flags: int) -> None:
        """Take several connections that wait, where waitress takes one."""
        for _ in range(TAKEN_AT_ONCE):
            before = len(self._sockets)
            wasyncore.readwrite(listener, flags)
            if len(self._sockets) == before or not listener.readable():
                break

    def _watch(self, number: int) -> None:
        """Wait for what a socket wants, until it is stirred again."""
        dispatcher = self._sockets.get(number)
        events = 0
        if dispatcher is not None:
            if dispatcher.readable():
                events |= selectors.EVENT_READ
            if dispatcher.accepting:
                self._sockets.stir(number)  # it listens when there are not too many connections
            elif dispatcher.writable():
                events |= selectors.EVENT_WRITE
        watched = self._watched.get(number)
        if watched != (dispatcher, events):
            if watched is not None:
                self._selector.unregister(number)
                del self._watched[number]
            if events:
                self._selector.register(number, events, dispatcher)
                self._watched[number] = dispatcher, events
