"""waitress's connections, changed where they must behave differently.

A request that waitress refuses never reaches the application, so its ErrorResponse is made here.
"""

import socket
import time
from http import HTTPStatus
from typing import Any

from waitress.channel import HTTPChannel
from waitress.parser import HTTPRequestParser
from waitress.task import ErrorTask
from waitress.utilities import BadRequest

from orchmgmt.errors import BodyTooLarge, error_body, origin_of


class _Request(HTTPRequestParser):  # type: ignore[misc]
    """A request as waitress reads it.

    waitress parses all requests that a client has sent ahead, and answers them one after the other
    even if the client reads nothing. Here they wait in `Connection.ahead`.

    After a refusal waitress closes the connection, although the client may still be sending. The
    connection is reset, and the client sees a broken pipe instead of the refusal. Here the rest of
    the request is read and dropped.
    """

    first_line = b""
    error: Any = None  # why waitress refuses the request

    def __init__(self, connection: "Connection", adj: Any) -> None:
        super().__init__(adj)
        self._connection = connection

    def received(self, data: bytes) -> int:
        if self.error is None:
            try:
                consumed: int = super().received(data)
            except ValueError:  # a Content-Length of 5,000 digits; waitress answers nothing
                self.error, self.completed = BadRequest("The request cannot be read"), True
            if self.error is not None:
                self.expect_continue = False  # waitress asks for the body that it refuses
            elif self.completed:
                self._connection.ahead = data[consumed:]
            else:
                return consumed
        return len(data)

    def origin(self) -> str:
        """Return the method and the path as they were sent, as far as the request was read."""
        line = self.first_line
        if self.error.code == HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE:
            line = self.header_plus.lstrip().partition(b"\r\n")[0]  # waitress puts `GET /` there
        method, _, rest = line.decode("latin-1").partition(" ")
        return origin_of(method, rest.partition(" ")[0])


class _Refusal(ErrorTask):  # type: ignore[misc]
    """The ErrorResponse to a request that waitress refuses; waitress alone sends plain text."""

    def execute(self) -> None:
        error, origin = self.request.error, self.request.origin()
        message = f"{error.reason}: {error.body}"
        if error.code == HTTPStatus.REQUEST_ENTITY_TOO_LARGE:
            message = str(BodyTooLarge(self.channel.adj.max_request_body_size))
        body = error_body(error.code, message, origin)
        self.status = f"{error.code} {error.reason}"
        self.response_headers.append(("Content-Type", "application/json"))
        self.content_length = len(body)
        self.set_close_on_finish()  # adds `Connection: close`
        self.write(b"" if origin.startswith("HEAD ") else body)
        # The client closes the connection: until then, the rest of the request is read.
        self.close_on_finish = False
        self.request.completed = False
        self.channel.request = self.request


class Connection(HTTPChannel):  # type: ignore[misc]
    """A connection that reads its next request once the answer before it has been sent.

    So a client that sends many requests at once takes turns with the others, and has at most one
    answer that it has not read.

    Attributes:
        ahead: what has been received, but not read as a request yet.
    """

    error_task_class = _Refusal
    ahead = b""

    def parser_class(self, adj: Any) -> _Request:
        """Return what reads the next request."""
        return _Request(self, adj)

    @property
    def last_activity(self) -> float:
        """When something was last received or sent, by the time of day.

        waitress notes the time of day. When the clock jumps forward by two minutes, it takes every
        connection for idle and closes it, even in the middle of a body or an answer.
        """
        return time.time() - (time.monotonic() - self._active)

    @last_activity.setter
    def last_activity(self, _: float) -> None:
        self._active = time.monotonic()

    def readable(self) -> bool:
        """Return whether to receive more."""
        return not self.ahead and bool(super().readable())

    def writable(self) -> bool:
        """Return whether there is something to send, or a request to read from `ahead`.

        While a thread answers, it sends by itself; waitress's loop would spin until it is done.
        """
        return not self.requests and bool(super().writable() or self.ahead)

    def handle_write(self) -> None:
        """Send what there is to send, then read the next request from `ahead`."""
        if self.connected:  # waitress may just have found the client gone, and closed the socket
            super().handle_write()
        if self.connected and not (self.requests or self.total_outbufs_len):
            ahead, self.ahead = self.ahead, b""
            self.received(ahead)

    def finish(self) -> None:
        """Close the connection if everything that has arrived is answered and sent.

        The server calls it repeatedly while it stops. The last answer says that the connection
        closes, so that the client does not send another request.
        """
        if self.ahead or _has_unread(self.socket):
            return
        for request in self.requests:
            request.headers["CONNECTION"] = "close"
        being_received = self.request is not None and self.request.error is None
        if not (self.requests or being_received or self.total_outbufs_len):
            self.will_close = True


def _has_unread(connection: socket.socket) -> bool:
    try:
        return bool(connection.recv(1, socket.MSG_PEEK))
    except OSError:  # nothing has come, or the connection is broken
        return False
