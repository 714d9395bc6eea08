"""What can go wrong, and the one place that turns it into an ErrorResponse.

Code raises one of the exceptions below where it finds the fault; nobody else knows what the
contract's section "Errors" makes of it.
"""

import json
import logging
import re
from http import HTTPStatus
from typing import ClassVar
from urllib.parse import quote

from flask import Flask, Response, g, request
from werkzeug.exceptions import HTTPException

log = logging.getLogger("orchmgmt")

RETRY_AFTER_SECONDS = 1

#: The Content-Encoding of what is not encoded.
IDENTITY = "identity"

#: What a path holds unquoted (RFC 3986), beside letters, digits and `-._~`.
_AS_THEY_ARE = "/!$&'()*+,;=:@"

_HOST = re.compile("^[A-Za-z][A-Za-z0-9+.-]*://[^/?]*")


class ServiceError(Exception):
    """A request that cannot be answered as asked; its text is the `errorMessage`."""

    status: ClassVar[HTTPStatus] = HTTPStatus.INTERNAL_SERVER_ERROR
    headers: ClassVar[dict[str, str]] = {}


class InvalidParameter(ServiceError):
    """The request is malformed, or what it asks for cannot be (400)."""

    status = HTTPStatus.BAD_REQUEST


class Unidentified(ServiceError):
    """The requester has no identity, or not a valid one (401)."""

    status = HTTPStatus.UNAUTHORIZED
    headers: ClassVar[dict[str, str]] = {"WWW-Authenticate": "Bearer"}


class Forbidden(ServiceError):
    """The requester is known and may not do this (403)."""

    status = HTTPStatus.FORBIDDEN


class NotFound(ServiceError):
    """What is named does not exist (404)."""

    status = HTTPStatus.NOT_FOUND


class EncodedBody(ServiceError):
    """The body is compressed, or encoded otherwise (415; RFC 9110, 15.5.16)."""

    status = HTTPStatus.UNSUPPORTED_MEDIA_TYPE
    headers: ClassVar[dict[str, str]] = {"Accept-Encoding": IDENTITY}

    def __init__(self, encoding: str) -> None:
        super().__init__(f"The body must be sent as it is, without Content-Encoding: {encoding}")


class Unavailable(ServiceError):
    """The database, or a server that must be asked, does not answer now (503)."""

    status = HTTPStatus.SERVICE_UNAVAILABLE
    headers: ClassVar[dict[str, str]] = {"Retry-After": str(RETRY_AFTER_SECONDS)}


_EXCEPTION_TYPES = {
    HTTPStatus.UNAUTHORIZED: "AUTH",
    HTTPStatus.FORBIDDEN: "FORBIDDEN",
    HTTPStatus.NOT_FOUND: "DATA_NOT_FOUND",
    HTTPStatus.SERVICE_UNAVAILABLE: "EXTERNAL_SERVER_ERROR",
}


def error_body(status: int, message: str, origin: str) -> bytes:
    """Return an ErrorResponse (contract, "Errors") as JSON.

    Args:
        status: the HTTP status, 400 or above; it decides the `exceptionType`.
        message: the `errorMessage`.
        origin: the method, a space and the path as requested.
    """
    other = "INVALID_PARAMETER" if status < 500 else "INTERNAL_SERVER_ERROR"
    return json.dumps(
        {
            "errorMessage": message,
            "errorCode": int(status),
            "exceptionType": _EXCEPTION_TYPES.get(HTTPStatus(status), other),
            "origin": origin,
        },
        separators=(",", ":"),
    ).encode()


def origin_of(method: str, target: str) -> str:
    """Return the `origin` of a request: its method and path, without query string or host.

    Args:
        method: the HTTP method.
        target: the request target as it was sent, in origin form or absolute form.
    """
    return f"{method} {_HOST.sub('', target, count=1).partition('?')[0]}"


def body_too_large(limit: int) -> str:
    """Return the message for a body above `limit` bytes (413)."""
    return f"The request body is larger than {limit} bytes"


def register_error_handlers(app: Flask) -> None:
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
        g.refusal = message  # for the audit log
        return Response(body, status, headers, content_type="application/json")

    @app.errorhandler(ServiceError)
    def service_error(error: ServiceError) -> Response:
        return respond(error.status, str(error), error.headers)

    @app.errorhandler(HTTPException)
    def http_error(error: HTTPException) -> Response | HTTPException:
        if error.response is not None or error.code is None or error.code < 400:
            return error  # a redirection
        unknown = error.code == HTTPStatus.NOT_FOUND
        message = "There is no such path" if unknown else error.description or error.name
        return respond(error.code, message, dict(error.get_headers()))

    @app.errorhandler(Exception)
    def crash(error: Exception) -> Response:
        log.exception("%r failed", origin(), exc_info=error)
        return respond(500, "An unexpected error happened; the server's log has the details", {})
