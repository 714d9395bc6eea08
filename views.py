"""The operations over HTTP: read the request, perform the operation, write the answer."""

import logging
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

from flask import Flask, Response, request
from werkzeug.exceptions import ClientDisconnected, HTTPException, RequestEntityTooLarge
from werkzeug.wrappers import Request

from orchmgmt.entries import IDEMPOTENCY_KEY, MANAGEMENT, ROOT
from orchmgmt.errors import (
    IDENTITY,
    BodyTooLarge,
    EncodedBody,
    InvalidParameter,
    NotJson,
    ServiceError,
    error_body,
    fault_of,
    origin_of,
)
from orchmgmt.interfaces import perform, written
from orchmgmt.operations import Operation, Result
from orchmgmt.policies import Evidence
from orchmgmt.policies.gate import Gate
from orchmgmt.schemas import parse_json
from orchmgmt.store import Store

log = logging.getLogger("orchmgmt")

#: An answer of fewer bytes goes out in one piece: in many it takes half as long again.
WHOLE = 1_000_000

NO_SUCH_PATH = "There is no such path"

#: What a path holds unquoted (RFC 3986), beside letters, digits and `-._~`.
_AS_THEY_ARE = "/!$&'()*+,;=:@"


def add_operation(app: Flask, operation: Operation, gate: Gate) -> None:
    """Offer an operation below its service's path, to those whom the gate lets in."""
    path = f"{MANAGEMENT}/{operation.group}/{operation.scope}"
    view = _view(operation, gate)
    options: dict[str, Any] = {"methods": [operation.method]}
    if not operation.in_path:
        app.add_url_rule(path, operation.name, view, **options)
        return
    for rule in (path, f"{path}/"):
        app.add_url_rule(rule, operation.name, view, defaults={operation.in_path: ""}, **options)
    app.add_url_rule(f"{path}/<{operation.in_path}>", operation.name, view, **options)


def _view(operation: Operation, gate: Gate) -> Callable[..., Response]:
    def view(**path: str) -> Response:
        def read() -> tuple[Any, str | None]:
            if operation.from_path:
                (value,) = path.values()
                payload = operation.from_path(value, request.args.to_dict(flat=False))
            else:
                payload = read_payload()
            return payload, request.headers.get(IDEMPOTENCY_KEY)

        return _answer(
            operation, perform(operation, gate, evidence_of(request), _note_requester, read)
        )

    return view


def evidence_of(request: Request) -> Evidence:
    """Return what tells who sent a request."""
    return Evidence(request.headers, request.remote_addr)


def _note_requester(name: str) -> None:
    request.environ["REMOTE_USER"] = name


def _answer(operation: Operation, result: Result) -> Response:
    parts = written(operation, result)
    if not parts:
        response = Response(status=operation.status)
        del response.headers["Content-Type"]  # there is no content
        return response
    if sum(map(len, parts)) < WHOLE:
        parts = [b"".join(parts)]
    return Response(parts, operation.status, content_type="application/json")


def add_monitor(app: Flask, store: Store, gate: Gate) -> None:
    """Offer what other systems and supervisors see whether this one is there."""

    @app.get(f"{ROOT}/monitor/echo", endpoint="monitor.echo")
    def echo() -> Response:
        gate.admit(evidence_of(request), "monitor.echo")
        return Response("Got it!", content_type="text/plain")

    @app.get("/health", endpoint="health.health")  # a proxy asks it, and needs no identity
    def health() -> Response:
        store.database.check()
        return Response('{"status": "ok"}', content_type="application/json")


def read_payload() -> Any:
    """Return the request's JSON; `None` when there is no body."""
    too_large = request.max_content_length or 0
    if (request.content_length or 0) >= too_large:
        raise BodyTooLarge(too_large)
    try:
        body = request.get_data(cache=False)
    except RequestEntityTooLarge:
        raise BodyTooLarge(too_large) from None
    except ClientDisconnected:
        raise InvalidParameter("The request body is not complete") from None
    if len(body) >= too_large:
        raise BodyTooLarge(too_large)
    if not body:
        return None
    encoding = request.headers.get("Content-Encoding", IDENTITY)
    if encoding.strip().lower() not in ("", IDENTITY):
        raise EncodedBody(encoding)
    if not request.is_json:
        raise NotJson
    return parse_json(body)


def add_error_handlers(app: Flask) -> None:
    """Make every answer of 400 and above an ErrorResponse, whatever raised it."""

    def origin() -> str:
        environ = request.environ
        target = environ.get("REQUEST_URI") or environ.get("RAW_URI")  # waitress; gunicorn
        if not target:  # Granian unquotes the path and has nothing else
            path = environ.get("SCRIPT_NAME", "") + environ["PATH_INFO"]
            target = quote(path.encode("latin-1"), safe=_AS_THEY_ARE)
        return origin_of(request.method, target)

    def respond(status: int, message: str, headers: dict[str, str]) -> Response:
        body = error_body(status, message, origin())
        return Response(body, status, headers, content_type="application/json")

    @app.errorhandler(ServiceError)
    def service_error(error: ServiceError) -> Response:
        return respond(*fault_of(error), error.headers)

    @app.errorhandler(HTTPException)
    def http_error(error: HTTPException) -> Response | HTTPException:
        if error.response is not None or error.code is None or error.code < 400:
            return error  # a redirection
        unknown = error.code == 404
        message = NO_SUCH_PATH if unknown else error.description or error.name
        return respond(error.code, message, dict(error.get_headers()))

    @app.errorhandler(Exception)
    def crash(error: Exception) -> Response:
        log.exception("%r failed", origin(), exc_info=error)
        return respond(*fault_of(error), {})
