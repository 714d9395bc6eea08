"""What can go wrong with a request, and the ErrorResponse that says so (contract, "Errors").

Code raises one of these exceptions where it finds the fault. The interface that carries the
request, such as `views.py`, turns it into an answer. This module needs only the standard library.
"""

import json
import re
from http import HTTPStatus
from typing import ClassVar

RETRY_AFTER_SECONDS = 1

#: The Content-Encoding of what is not encoded.
IDENTITY = "identity"

#: The message if a fault of this program ends a request.
CRASHED = "An unexpected error happened; the server's log has the details"

_HOST = re.compile("^[A-Za-z][A-Za-z0-9+.-]*://[^/?]*")


class ServiceError(Exception):
    """A request cannot be done; the text of the exception is the `errorMessage`."""

    status: ClassVar[HTTPStatus] = HTTPStatus.INTERNAL_SERVER_ERROR
    headers: ClassVar[dict[str, str]] = {}


class InvalidParameter(ServiceError):
    """The request is malformed, or what it asks for is impossible (400)."""

    status = HTTPStatus.BAD_REQUEST


class Unidentified(ServiceError):
    """The requester has no valid identity (401)."""

    status = HTTPStatus.UNAUTHORIZED
    headers: ClassVar[dict[str, str]] = {"WWW-Authenticate": "Bearer"}


class Forbidden(ServiceError):
    """The requester is known and may not do this (403)."""

    status = HTTPStatus.FORBIDDEN


class NotFound(ServiceError):
    """What is named does not exist (404)."""

    status = HTTPStatus.NOT_FOUND


class BodyTooLarge(ServiceError):
    """The body has more bytes than the setting `MAX_BODY_BYTES` allows (413).

    Args:
        size: the smallest size that is too large.
    """

    status = HTTPStatus.REQUEST_ENTITY_TOO_LARGE

    def __init__(self, size: int) -> None:
        super().__init__(f"The request body is larger than {size - 1} bytes")

    @staticmethod
    def smallest(max_body_bytes: int) -> int:
        """Return the smallest size that is too large.

        waitress refuses a body as large as its limit, and Flask cuts a chunked body off at its
        limit. So both get this size as their limit, and a body that reaches it is too large.
        """
        return max_body_bytes + 1


class NotJson(ServiceError):
    """The body is not declared to be JSON (415)."""

    status = HTTPStatus.UNSUPPORTED_MEDIA_TYPE

    def __init__(self) -> None:
        super().__init__("The body must be JSON: Content-Type: application/json")


class EncodedBody(ServiceError):
    """The body is compressed, or encoded otherwise (415; RFC 9110, 15.5.16)."""

    status = HTTPStatus.UNSUPPORTED_MEDIA_TYPE
    headers: ClassVar[dict[str, str]] = {"Accept-Encoding": IDENTITY}

    def __init__(self, encoding: str) -> None:
        super().__init__(f"The body must be sent as it is, without Content-Encoding: {encoding}")


class Unavailable(ServiceError):
    """The database, or another system that must be asked, does not answer now (503)."""

    status = HTTPStatus.SERVICE_UNAVAILABLE
    headers: ClassVar[dict[str, str]] = {"Retry-After": str(RETRY_AFTER_SECONDS)}


#: The `exceptionType` of each status. Other statuses have that of 400, or from 500 on that of 500.
EXCEPTION_TYPES = {
    400: "INVALID_PARAMETER",
    401: "AUTH",
    403: "FORBIDDEN",
    404: "DATA_NOT_FOUND",
    500: "INTERNAL_SERVER_ERROR",
    503: "EXTERNAL_SERVER_ERROR",
}


def error_body(status: int, message: str, origin: str) -> bytes:
    """Return an ErrorResponse (contract, "Errors") as JSON.

    Args:
        status: the HTTP status, 400 or above; it decides the `exceptionType`.
        message: the `errorMessage`.
        origin: the method, a space and the path as requested.
    """
    other = EXCEPTION_TYPES[400 if status < 500 else 500]
    return json.dumps(
        {
            "errorMessage": message,
            "errorCode": int(status),
            "exceptionType": EXCEPTION_TYPES.get(status, other),
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


def fault_of(error: Exception) -> tuple[int, str]:
    """Return the status and the `errorMessage` that an exception is answered with."""
    if isinstance(error, ServiceError):
        return error.status, str(error)
    return HTTPStatus.INTERNAL_SERVER_ERROR, CRASHED
