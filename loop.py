"""The loop that waits for the server's sockets.

waitress asks every connection before each wait whether it wants to read or write, so that a few
hundred idle ones halve the throughput of the others. This loop asks those that something has
happened to, and all of them once a second, for what time alone brings about.
"""

import select
import selectors
import time
from typing import Any

from waitress import wasyncore

#: How often every connection is asked, in seconds.
EVERYBODY = 1.0


class Sockets(dict[int, Any]):
    """waitress's map from file descriptors to sockets, and which of them have come anew."""

    def __init__(self) -> None:
        super().__init__()
        self.stirred: set[int] = set()

    def __setitem__(self, number: int, dispatcher: Any) -> None:
        self.stirred.add(number)
        super().__setitem__(number, dispatcher)


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
        if everybody:
            self._next_round = now + EVERYBODY
            self._sockets.stirred.update(self._sockets)
        self._sockets.stirred = {it for it in self._sockets.stirred if self._watch(it)}
        for key, events in self._selector.select(min(timeout, EVERYBODY)):
            dispatcher = self._sockets.get(key.fd)
            if dispatcher is key.data:
                self._sockets.stirred.add(key.fd)
                flags = select.POLLIN if events & selectors.EVENT_READ else 0
                flags |= select.POLLOUT if events & selectors.EVENT_WRITE else 0
                wasyncore.readwrite(dispatcher, flags)
        return everybody

    def close(self) -> None:
        """Stop watching."""
        self._selector.close()

    def _watch(self, number: int) -> bool:
        """Wait for what a socket wants, and return whether to ask it again before the next wait."""
        dispatcher = self._sockets.get(number)
        listens = dispatcher is not None and dispatcher.accepting
        events = 0
        if dispatcher is not None and dispatcher.readable():
            events |= selectors.EVENT_READ
        if dispatcher is not None and dispatcher.writable() and not listens:
            events |= selectors.EVENT_WRITE
        watched = self._watched.get(number)
        if watched != (dispatcher, events):
            if watched is not None:
                self._selector.unregister(number)
                del self._watched[number]
            if events:
                self._selector.register(number, events, dispatcher)
                self._watched[number] = dispatcher, events
        # One that only waits for its client will not change its mind by itself.
        idle = events == selectors.EVENT_READ and not listens
        return dispatcher is not None and not idle
