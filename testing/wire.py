"""What stands between the network and the application: the log of requests, and the faults."""

import json
import threading
from collections.abc import Iterable
from dataclasses import dataclass, field
from io import BytesIO
from typing import TYPE_CHECKING, Any

from flask import Flask, Response, request
from werkzeug.datastructures import EnvironHeaders, Headers
from werkzeug.exceptions import HTTPException
from werkzeug.test import run_wsgi_app
from werkzeug.wrappers import Request as HttpRequest

from orchmgmt.errors import error_body, origin_of
from orchmgmt.testing.faults import Faults

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

#: Where a request's environ has its line of the log.
LINE = "orchmgmt.testing.request"


@dataclass
class Request:
    """A request that a service got.

    Attributes:
        operation: `lock.create`, `history.query`, ...; empty if there is no such path or method.
        method: the HTTP method.
        path: the path, unquoted and without query string.
        query: the query string's values, by name.
        headers: what the client sent, by name in any letter case.
        json: what the body says; `None` if it is empty or no JSON.
        requester: the system that sent it; empty if nobody was identified.
        status: the status of its answer; `None` if the client has got none.
    """

    operation: str
    method: str
    path: str
    query: dict[str, list[str]]
    headers: Headers = field(repr=False)
    json: Any
    requester: str = ""
    status: int | None = None

    def __str__(self) -> str:
        outcome = "no answer" if self.status is None else self.status
        body = "" if self.json is None else f" {json.dumps(self.json)}"
        query = f" {self.query}" if self.query else ""
        who = f" from {self.requester}" if self.requester else ""
        return f"{outcome} {self.method} {self.path}{query}{who}{body}"


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
        names = sorted({it.endpoint for it in app.url_map.iter_rules()})
        self.faults = Faults(names)
        self.requests: list[Request] = []
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
        line = environ[LINE] = self._read(environ)
        self.requests.append(line)
        fault = self.faults.take(line.operation)
        if fault is None:
            return self._next(environ, start_response)
        if fault.delay and self._cut.wait(fault.delay):
            raise ConnectionResetError("the service has gone down")
        if fault.drop == "before":
            raise ConnectionResetError("dropped before anything was done")
        if fault.status is not None:
            line.status = fault.status
            origin = origin_of(line.method, environ.get("REQUEST_URI") or line.path)
            body = error_body(fault.status, "A fault that the test asked for", origin)
            answer = Response(body, fault.status, content_type="application/json")
            if fault.retry_after is not None:
                answer.headers["Retry-After"] = str(fault.retry_after)
            return answer(environ, start_response)
        if fault.drop is None:
            return self._next(environ, start_response)
        parts, status, headers = run_wsgi_app(self._next, environ, buffered=True)
        body = b"".join(parts)
        if fault.drop == "after":
            line.status = None
            raise ConnectionResetError("dropped before the answer")
        # An answer without a body announces one, so that there is a middle to drop it in.
        headers["Content-Length"] = str(len(body) or 1)
        start_response(status, headers.to_wsgi_list())
        return _half(body)

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
        )


def _note(response: Response) -> Response:
    line = request.environ[LINE]
    line.requester = request.environ.get("REMOTE_USER", "")
    line.status = response.status_code
    return response


def _half(body: bytes) -> Iterable[bytes]:
    yield body[: len(body) // 2]
    raise ConnectionResetError("dropped in the middle of the answer")
