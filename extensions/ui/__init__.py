"""The page at `/ui/`, where people look at locks and history and operate them.

It is one client more of the public operations. Beside its files it needs to know a little about the
service, and who it is taken for.
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

FOLDER = Path(__file__).with_name("static")

# Said here, because a machine may have ideas of its own about the ending of a name.
TYPES = {
    ".css": "text/css",
    ".html": "text/html",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
}

#: With nothing in it that could end a directive of the security policy.
_ORIGIN = re.compile(r"https?://[A-Za-z0-9.\[\]:_-]+").fullmatch


class Page(Extension):
    """The page, and what it asks of the service that no operation tells."""

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
    @blueprint.get("/ui")  # Flask's own redirect names host and scheme, and browsers keep it
    def lead() -> Response:
        query = request.query_string.decode("latin-1")
        # Relative, for a proxy may put a path before it.
        return Response(status=302, headers={"Location": f"ui/?{query}" if query else "ui/"})

    @blueprint.get("/ui/", defaults={"name": "index.html"})
    @blueprint.get("/ui/<name>")
    def file(name: str) -> Response:
        return send_from_directory(FOLDER, name, mimetype=TYPES.get(Path(name).suffix))

    @blueprint.get("/ui/service.json")
    def service() -> Response:
        told = {
            "authenticationPolicy": settings.authentication_policy,
            "identityUrl": identity_url,
            "maxPageSize": settings.max_page_size,
            "version": version("orchmgmt"),
            "health": _health(store),
            "time": store.database.read(store.database.time),  # s since the epoch
        }
        return _never_kept(told)

    @blueprint.get("/ui/who.json")
    def who() -> Response:
        requester = gate.admit(request, "ui.who")
        return _never_kept({"name": requester.name, "operator": requester.operator})

    return blueprint


def _health(store: Store) -> str:
    """What `/health` says, which a proxy may keep to itself: `ok`, or what is wrong."""
    try:
        store.database.check()
    except Unavailable as error:
        return str(error)
    return "ok"


def login_address(identity_url: str) -> str:
    """Return the identity service's address if a password may be sent there from a browser.

    That is over TLS, or within one machine; otherwise it is empty.
    """
    parts = urlsplit(identity_url)
    if not _ORIGIN(f"{parts.scheme}://{parts.netloc}"):
        return ""
    try:
        within = ip_address(parts.hostname or "").is_loopback
    except ValueError:
        within = parts.hostname == "localhost"
    return identity_url.rstrip("/") if parts.scheme == "https" or within else ""


def _security_policy(identity_url: str) -> str:
    """Own files alone, own requests and the login; nothing is ever made of text but text."""
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


def _never_kept(told: object) -> Response:
    response = Response(write_json(told), content_type="application/json")
    response.cache_control.no_store = True
    return response
