"""What is read from a connection, and the answer to what waitress refuses to read.

waitress reads and writes; what it refuses never reaches the application, which would answer it with
an ErrorResponse. So it is answered here.
"""

import time
from http import HTTPStatus
from typing import Any

from waitress.channel import HTTPChannel
from waitress.parser import HTTPRequestParser
from waitress.task import ErrorTask
from waitress.utilities import BadRequest

from orchmgmt.errors import BodyTooLarge, error_body, origin_of


class _Request(HTTPRequestParser):  # type: ignore[misc]
    """A request as waitress reads it; what follows it waits until it has been answered.

    Once it is refused, what follows is read and dropped. Unread it would reset the connection, and
    the client might never see why it is refused.
    """

    first_line = b""
    error: Any = None  # what waitress has against it

    def __init__(self, connection: "Connection", adj: Any) -> None:
        super().__init__(adj)
        self._connection = connection

    def received(self, data: bytes) -> int:
        if self.error is None:
            try:
                consumed: int = super().received(data)
            except ValueError:  # a Content-Length of 5,000 digits
                self.error, self.completed = BadRequest("The request cannot be read"), True
            if self.error is not None:
                self.expect_continue = False  # who asks whether to send the body is refused
            elif self.completed:
                self._connection.ahead = data[consumed:]
            else:
                return consumed
        return len(data)

    def origin(self) -> str:
        """Return the method and path that were sent, of which a refused request has no more."""
        line = self.first_line
        if self.error.code == HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE:
            line = self.header_plus.lstrip().partition(b"\r\n")[0]  # waitress makes another up
        method, _, rest = line.decode("latin-1").partition(" ")
        return origin_of(method, rest.partition(" ")[0])


class _Refusal(ErrorTask):  # type: ignore[misc]
    """The ErrorResponse to a request that waitress cannot read, or that is too large."""

    def execute(self) -> None:
        error, origin = self.request.error, self.request.origin()
        message = f"{error.reason}: {error.body}"
        if error.code == HTTPStatus.REQUEST_ENTITY_TOO_LARGE:
            message = str(BodyTooLarge(self.channel.adj.max_request_body_size - 1))
        body = error_body(error.code, message, origin)
        self.status = f"{error.code} {error.reason}"
        self.response_headers.append(("Content-Type", "application/json"))
        self.content_length = len(body)
        self.set_close_on_finish()  # tells the client to close the connection
        self.write(b"" if origin.startswith("HEAD ") else body)
        self.close_on_finish = False  # until then the request goes on
        self.request.completed = False
        self.channel.request = self.request


class Connection(HTTPChannel):  # type: ignore[misc]
    """A connection with one request at a time, and idle by a clock that nobody sets.

    A client may send requests ahead. Each is read once the answer before it is on its way, so one
    client takes its turn among the others, and has no more than one answer that it has not read.

    Attributes:
        ahead: what has been received and not read yet.
    """

    error_task_class = _Refusal
    ahead = b""

    def parser_class(self, adj: Any) -> _Request:
        """Return what reads the next request."""
        return _Request(self, adj)

    @property
    def last_activity(self) -> float:
        """The time of day when something last happened, as waitress wants it."""
        return time.time() - (time.monotonic() - self._active)

    @last_activity.setter
    def last_activity(self, _: float) -> None:
        self._active = time.monotonic()

    def readable(self) -> bool:
        """Return whether to receive more."""
        return not self.ahead and bool(super().readable())

    def writable(self) -> bool:
        """Return whether there is something to send, or to read on from what is there.

        Not while a thread answers: it sends by itself what it has too much of.
        """
        return not self.requests and bool(super().writable() or self.ahead)

    def handle_write(self) -> None:
        """Send what is there, unless the client has just been found gone; then read on.

        The thread that has answered a request may be asking for the body of the next one: both
        would send the same.
        """
        with self.outbuf_lock:
            if self.socket is not None:
                super().handle_write()
        if self.connected and not (self.requests or self.total_outbufs_len):
            ahead, self.ahead = self.ahead, b""
            self.received(ahead)
