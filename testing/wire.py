"""What stands between the network and the application: the log of requests, and the faults."""

import json
import select
import socket
import threading
from collections.abc import Iterable, Iterator
from io import BytesIO
from typing import TYPE_CHECKING

from flask import Flask, Response, request
from werkzeug.datastructures import EnvironHeaders, Headers
from werkzeug.exceptions import HTTPException
from werkzeug.test import run_wsgi_app
from werkzeug.wrappers import Request as HttpRequest

from orchmgmt.app import service_of
from orchmgmt.errors import ServiceError, error_body, origin_of
from orchmgmt.testing.faults import Fault, Faults
from orchmgmt.testing.requests import Request, Requests
from orchmgmt.testing.server import end_by_reset
from orchmgmt.views import evidence_of

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

#: Where a request's environ has its line of the log.
LINE = "orchmgmt.testing.request"

#: Where werkzeug's server puts the connection.
CONNECTION = "werkzeug.socket"

#: A large answer is sent in parts, so that a client that leaves meanwhile is noticed.
PART_BYTES = 64 * 1024

#: What a socket says whose other side has closed it. (Not every system knows the first.)
GONE = getattr(select, "POLLRDHUP", 0) | select.POLLHUP | select.POLLERR


class Wire:
    """Logs the requests to an application, and lets those go wrong that a fault is meant for.

    A dropped connection raises `ConnectionResetError`, in the server and in Flask's test client.

    Args:
        app: the application. From now on its requests come through here.

    Attributes:
        faults: what shall go wrong.
        requests: the requests so far.
    """

    def __init__(self, app: Flask) -> None:
        self._service = service_of(app)
        operations = sorted({it.endpoint for it in app.url_map.iter_rules()})
        self.faults = Faults(operations, self._service.store.settings.naming)
        self.requests = Requests(operations)
        self._app = app
        self._next = app.wsgi_app
        self._cut = threading.Event()
        app.wsgi_app = self  # type: ignore[method-assign]  # as Flask would have it
        app.after_request(_note)

    def cut(self) -> None:
        """Drop the connections of delayed requests, until `mend`."""
        self._cut.set()

    def mend(self) -> None:
        """Delay requests again."""
        self._cut = threading.Event()

    def __call__(
        self, environ: "WSGIEnvironment", start_response: "StartResponse"
    ) -> Iterable[bytes]:
        """Answer a request, unless a fault says otherwise."""
        cut = self._cut  # what comes later is for later requests
        line = environ[LINE] = self._read(environ)
        self.requests.append(line)
        connection: socket.socket | None = environ.get(CONNECTION)
        try:
            fault = self.faults.take(line, lambda: self._requester(environ, line)) or Fault()
            _wait(fault.delay_before, cut)
            if fault.drop == "reset" and connection:
                end_by_reset(connection)
            if fault.drop in ("before", "reset"):
                _wait(fault.delay, cut)
                raise ConnectionResetError("dropped before anything was done")
            app = self._own_answer(fault, line, environ) or self._next
            parts, status, headers = run_wsgi_app(app, environ, buffered=True)
            _wait(fault.delay, cut)
            if fault.drop == "after":
                raise ConnectionResetError("dropped before the answer")
        except BaseException:
            self.requests.end(line, delivered=False)
            raise
        body = b"".join(parts)
        headers.update(fault.headers)
        if fault.retry_after is not None:
            headers["Retry-After"] = str(fault.retry_after)
        if fault.drop == "middle":
            # An answer without a body announces one, so that there is a middle to drop it in.
            headers["Content-Length"] = str(len(body) or 1)
        line.status = int(status.split()[0])
        line.message = _message(body) if line.status >= 400 else ""
        start_response(status, headers.to_wsgi_list())
        sent = self._send(body, fault, line, connection, cut)
        return sent if connection else list(sent)

    def _send(
        self,
        body: bytes,
        fault: Fault,
        line: Request,
        connection: socket.socket | None,
        cut: threading.Event,
    ) -> Iterator[bytes]:
        """Yield the body, and note whether the client is there.

        Whoever has got all of an answer finds that in the log, so the note comes before the end. A
        client that reads only the status may leave between the note and the end.
        """
        if fault.drop == "middle":
            body = body[: len(body) // 2]
        size = 1 if fault.trickle else PART_BYTES
        last = max(len(body) - 1, 0) // size * size
        try:
            for at in range(0, last, size):
                yield body[at : at + size]
                _wait(fault.trickle, cut)
        except BaseException:
            self.requests.end(line, delivered=False)
            raise
        self.requests.end(line, fault.drop != "middle" and _is_there(connection))
        yield body[last:]
        if fault.drop == "middle":
            raise ConnectionResetError("dropped in the middle of the answer")

    def _own_answer(
        self, fault: Fault, line: Request, environ: "WSGIEnvironment"
    ) -> "WSGIApplication | None":
        """Return what answers instead of the application, if the fault has an answer."""
        if fault.body is not None:
            body, content_type = fault.content()
            return Response(body, fault.status or 200, content_type=content_type)
        if fault.status is None:
            return None
        if fault.status < 400:
            return Response(b"", fault.status)
        origin = origin_of(line.method, environ.get("REQUEST_URI") or line.path)
        body = error_body(fault.status, "A fault that the test asked for", origin)
        return Response(body, fault.status, content_type="application/json")

    def _requester(self, environ: "WSGIEnvironment", line: Request) -> str:
        """Return who sent a request, as the operation would find out; nothing if it refuses."""
        evidence = evidence_of(HttpRequest(environ, populate_request=False))
        try:
            return self._service.gate.identify(evidence, line.operation).name
        except ServiceError:
            return ""

    def _read(self, environ: "WSGIEnvironment") -> Request:
        """Read a request to its end. Dropped unread, it would be a reset to the client."""
        incoming = HttpRequest(environ, populate_request=False)
        try:
            body = incoming.get_data(cache=False)
        except HTTPException:
            raise ConnectionResetError("the client has gone") from None
        environ["wsgi.input"] = BytesIO(body)
        try:
            payload = json.loads(body)
        except (ValueError, RecursionError):  # RecursionError: a hundred thousand brackets
            payload = None
        try:
            operation = str(self._app.url_map.bind_to_environ(environ).match()[0])
        except HTTPException:
            operation = ""
        return Request(
            operation=operation,
            method=incoming.method,
            path=incoming.path,
            query=dict(incoming.args.lists()),
            headers=Headers(list(EnvironHeaders(environ))),
            json=payload,
            raw=body,
        )


def _note(response: Response) -> Response:
    request.environ[LINE].requester = request.environ.get("REMOTE_USER", "")
    return response


def _wait(seconds: float, cut: threading.Event) -> None:
    if seconds and cut.wait(seconds):
        raise ConnectionResetError("the service has gone down")


def _message(body: bytes) -> str:
    """Return what an answer says has gone wrong, if it does."""
    try:
        return str(json.loads(body)["errorMessage"])
    except (ValueError, TypeError, LookupError, RecursionError):  # a test's own body
        return ""


def _is_there(connection: socket.socket | None) -> bool:
    """Return whether the other side of a connection has not closed it."""
    if connection is None:  # a test calls the application itself
        return True
    poll = select.poll()
    poll.register(connection, GONE)
    return not poll.poll(0)
