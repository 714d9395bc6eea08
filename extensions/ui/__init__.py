"""The page at `/ui/`, where people look at locks and history and operate them.

The page is an ordinary client of the public operations. Besides its files, it needs to know a
little about the service, and by which name the service knows its requester.
"""

import re
from importlib.metadata import version
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import urlsplit

from flask import Blueprint, Response, request, send_from_directory

from orchmgmt.app import Service
from orchmgmt.errors import Unavailable
from orchmgmt.extensions import Extension
from orchmgmt.policies.gate import Gate
from orchmgmt.schemas import write_json
from orchmgmt.store import Store
from orchmgmt.views import evidence_of

FOLDER = Path(__file__).with_name("static")

# A machine may be configured with other types for these endings.
TYPES = {
    ".css": "text/css",
    ".html": "text/html",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
}

#: Contains nothing that could end a directive of the security policy.
_ORIGIN = re.compile(r"https?://[A-Za-z0-9.\[\]:_-]+").fullmatch


class Page(Extension):
    """The page, and two answers that it needs and no operation gives."""

    def __init__(self, service: Service) -> None:
        service.app.register_blueprint(_blueprint(service.store, service.gate))


def _blueprint(store: Store, gate: Gate) -> Blueprint:
    blueprint = Blueprint("ui", __name__)
    settings = store.settings
    identity_url = login_address(settings.identity_url)
    headers = {
        "Content-Security-Policy": _security_policy(identity_url),
        "Cross-Origin-Opener-Policy": "same-origin",
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
    }

    @blueprint.after_request
    def protect(response: Response) -> Response:
        response.headers.update(headers)
        return response

    @blueprint.get("/")
    @blueprint.get("/ui")  # Flask's own redirect contains host and scheme, and browsers cache it
    def redirect() -> Response:
        query = request.query_string.decode("latin-1")
        # Relative, because a proxy may add a path before it.
        return Response(status=302, headers={"Location": f"ui/?{query}" if query else "ui/"})

    @blueprint.get("/ui/", defaults={"name": "index.html"})
    @blueprint.get("/ui/<name>")
    def file(name: str) -> Response:
        return send_from_directory(FOLDER, name, mimetype=TYPES.get(Path(name).suffix))

    @blueprint.get("/ui/service.json")
    def service() -> Response:
        answer = {
            "authenticationPolicy": settings.authentication_policy,
            "identityUrl": identity_url,
            "maxPageSize": settings.max_page_size,
            "version": version("orchmgmt"),
            "health": _health(store),
            "time": store.database.read(store.database.time),  # s since the epoch
        }
        return _uncached(answer)

    @blueprint.get("/ui/who.json")
    def who() -> Response:
        requester = gate.admit(evidence_of(request), "ui.who")
        return _uncached({"name": requester.name, "operator": requester.operator})

    return blueprint


def _health(store: Store) -> str:
    """Return `ok`, or what is wrong. A proxy may hide `/health`."""
    try:
        store.database.check()
    except Unavailable as error:
        return str(error)
    return "ok"


def login_address(identity_url: str) -> str:
    """Return the identity service's address if a browser may send a password there, otherwise "".

    It may if the address is https, or on the same machine.
    """
    parts = urlsplit(identity_url)
    if not _ORIGIN(f"{parts.scheme}://{parts.netloc}"):
        return ""
    try:
        local = ip_address(parts.hostname or "").is_loopback
    except ValueError:
        local = parts.hostname == "localhost"
    return identity_url.rstrip("/") if parts.scheme == "https" or local else ""


def _security_policy(identity_url: str) -> str:
    """Allow only files of the service, and requests to it and to log in; text is never HTML."""
    login = urlsplit(identity_url)._replace(path="").geturl()
    return "; ".join(
        (
            "default-src 'none'",
            "script-src 'self'",
            "style-src 'self'",
            "img-src 'self'",
            f"connect-src 'self' {login}".rstrip(),
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
            "require-trusted-types-for 'script'",
            "trusted-types 'none'",
        )
    )


def _uncached(answer: object) -> Response:
    response = Response(write_json(answer), content_type="application/json")
    response.cache_control.no_store = True
    return response
