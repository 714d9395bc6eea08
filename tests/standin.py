"""A stand-in for the cloud's other systems, on a real socket: identity, authorization, registry.

It answers as the contract describes, and can be made slow, broken or down.
"""

import contextlib
import ipaddress
import json
import socket
import ssl
import threading
import time
import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote

IDENTITY = "/authentication/identity"
AUTHORIZATION = "/consumerauthorization/authorization"
REGISTRY = "/serviceregistry"
PASSWORD = "correct horse battery staple"
NAME = "OrchestrationManagement"

# What the identity service may say to `verify` that nobody may be let in for.
NONSENSE = [
    (200, b""),
    (200, b"<html>"),
    (200, b"\xff\xfe"),
    (200, b"true"),
    (200, b"[]"),
    (200, b"{}"),
    (200, b'{"verified": "true", "systemName": "Alice", "sysop": true}'),
    (200, b'{"verified": 1, "systemName": "Alice", "sysop": true}'),
    (200, b'{"verified": null}'),
    (200, b'{"verified": true}'),
    (200, b'{"verified": true, "systemName": "Alice"}'),
    (200, b'{"verified": true, "systemName": "Alice", "sysop": "true"}'),
    (200, b'{"verified": true, "systemName": "Alice", "sysop": 1}'),
    (200, b'{"verified": true, "systemName": null, "sysop": true}'),
    (200, b'{"verified": true, "systemName": ["Alice"], "sysop": true}'),
    (200, b'{"verified": true, "systemName": "Alice", "sysop": true, "expirationTime": 5}'),
    (200, b'{"verified": true, "systemName": "Alice", "sysop": true, "expirationTime": "soon"}'),
    (200, b"[" * 60_000),
    (200, b'{"verified": true, "systemName": "Alice", "sysop": true}' + b" " * 70_000),
    (201, b'{"verified": true, "systemName": "Alice", "sysop": true}'),
    (301, b'{"verified": true, "systemName": "Alice", "sysop": true}'),
    (307, b'{"verified": true, "systemName": "Alice", "sysop": true}'),
    (400, b"{}"),
    (401, b"{}"),
    (403, b"{}"),
    (404, b"{}"),
    (500, b'{"verified": true, "systemName": "Alice", "sysop": true}'),
    (503, b""),
    (0, b""),
    (0, b"\0\1\2\r\n\r\n"),
    (0, b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{}"),
    (0, b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n{}"),
    (0, b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n{}"),
    (0, b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 500 + b"\r\n{}"),
    (0, b"HTTP/1.1 200 OK\r\nX: " + b"y" * 100_000 + b"\r\n\r\n{}"),
]


class Cloud:
    """The stand-in.

    Attributes:
        requests: the method, the path and the `Authorization` of each request, as they came.
        questions: what ConsumerAuthorization was asked.
        allowed: the answers of ConsumerAuthorization: (consumer, target, scope).
        answer: takes a path and gives the status and the body that are sent instead, or None.
        open: while it is not set, requests are held. `held` counts them.
        lifetime: how long a login lasts, in seconds.
        operators: operators who may log in, each with a password.
        page: the origin whose pages may ask from a browser.
        systems: what the registry knows, by name.
        services: likewise, by instance id.
        refused: addresses that the registry does not take.
        restricted: whether systems see only services that say so, as by default.
        moment: how long a service is away while its row is replaced, in seconds.
        identity_away: whether the registry's own identity service does not answer.
        writes: what has changed the registry: the system, and the path.
    """

    def __init__(self, context: ssl.SSLContext | None = None, port: int = 0) -> None:
        self.requests: list[tuple[str, str, str | None]] = []
        self.questions: list[dict[str, str]] = []
        self.allowed: set[tuple[str, str, str]] = set()
        self.answer: Callable[[str], tuple[int, bytes] | None] = lambda path: None
        self.open = threading.Event()
        self.open.set()
        self.held = 0
        self.changed = threading.Condition()
        self.lifetime = 300.0
        self.operators: dict[str, str] = {}
        self.page = ""
        self.systems: dict[str, dict[str, Any]] = {}
        self.services: dict[str, dict[str, Any]] = {}
        self.refused: set[str] = set()
        self.restricted = True
        self.moment = 0.002
        self.identity_away = False
        self.writes: list[tuple[str, str]] = []
        self.connections = 0
        self.sockets: list[socket.socket] = []
        self._own: str | None = None
        self._sessions: dict[str, dict[str, Any]] = {}
        self._server = _Server(("127.0.0.1", port), _Request)
        self._server.cloud = self
        if context is not None:
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        scheme = "https" if context else "http"
        self.url = f"{scheme}://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()

    @property
    def settings(self) -> dict[str, Any]:
        """What a service needs to be told to ask it."""
        return {
            "IDENTITY_URL": self.url + IDENTITY,
            "AUTHORIZATION_URL": self.url + AUTHORIZATION,
            "SYSTEM_PASSWORD": PASSWORD,
        }

    @property
    def registry(self) -> dict[str, str]:
        """What a service needs to be told to register here."""
        return {"SERVICE_REGISTRY_URL": self.url + REGISTRY}

    def token(self, name: str, sysop: bool = False, seconds: float = 300) -> str:
        """Log a system in and return its token."""
        token = str(uuid.uuid4())
        self._sessions[token] = {"systemName": name, "sysop": sysop, "end": _in(seconds)}
        return token

    def end_own_session(self) -> None:
        """Forget the service's login, as a restart would."""
        self._own = None

    def end_sessions(self, name: str) -> None:
        """Forget a system's logins, as another login of the same system does."""
        sessions = self._sessions.items()
        self._sessions = {it: its for it, its in sessions if its["systemName"] != name}

    def end(self, token: str) -> None:
        del self._sessions[token]

    def clean(self) -> None:
        """Forget the sessions that have ended, which until then count as verified."""
        self._sessions = {it: its for it, its in self._sessions.items() if its["end"] > _in(0)}

    def forget(self) -> None:
        """Forget what is registered, as a registry with a new database does."""
        self.systems.clear()
        self.services.clear()

    def paths(self) -> list[str]:
        return [path for _, path, _ in self.requests]

    def count(self, part: str) -> int:
        return sum(part in path for path in self.paths())

    def wait_for(self, held: int) -> None:
        """Wait until so many requests are held."""
        with self.changed:
            assert self.changed.wait_for(lambda: self.held >= held, 30), self.held

    def stop(self) -> None:
        self.open.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
        for connection in self.sockets:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def _hold(self) -> None:
        if self.open.is_set():
            return
        with self.changed:
            self.held += 1
            self.changed.notify_all()
        self.open.wait(30)
        with self.changed:
            self.held -= 1

    def respond(
        self, method: str, path: str, authorization: str | None, certified: str | None, body: bytes
    ) -> tuple[int, bytes]:
        made = self.answer(path)
        if made is not None:
            return made
        if path.startswith(f"{REGISTRY}/"):
            if self.identity_away:  # the Java implementation tells the asker's token
                return _json(503, _error(f"No answer: GET {IDENTITY}/verify/{authorization}"))
            name = certified or self._name(authorization)
            if name is None:
                return _json(401, _error("Invalid identity token"))
            path = path.removeprefix(REGISTRY)
            return _json(*self._registry(name, method, path, json.loads(body or b"null")))
        if path == f"{IDENTITY}/login":
            return self._log_in(json.loads(body))
        if path.startswith(f"{IDENTITY}/verify/"):
            if self._own is None or authorization != f"Bearer IDENTITY-TOKEN//{self._own}":
                return 401, b'{"errorMessage": "Invalid identity token"}'
            session = self._sessions.get(path.removeprefix(f"{IDENTITY}/verify/"))
            if session is None:
                return 200, b'{"verified": false}'
            # As in the Java implementation: in whole seconds, cut off, and also when it has passed.
            end = session["end"].partition(".")[0] + "Z"
            times = {"loginTime": _in(-1), "expirationTime": end}
            return 200, json.dumps({"verified": True, **session, **times}).encode()
        if path == f"{AUTHORIZATION}/verify":
            own = {f"Bearer IDENTITY-TOKEN//{self._own}", f"Bearer SYSTEM//{NAME}"}
            if authorization not in own:
                return 401, b"{}"
            question = json.loads(body)
            self.questions.append(question)
            if NAME not in (question["provider"], question["consumer"]):
                return 403, b"{}"
            key = (question["consumer"], question["target"], question["scope"])
            return 200, json.dumps(key in self.allowed).encode()
        return 404, b"{}"

    def _name(self, authorization: str | None) -> str | None:
        """The system that sent a request, if it may be believed."""
        kind, _, value = (authorization or "").removeprefix("Bearer ").partition("//")
        if kind == "SYSTEM":
            return value
        if kind == "IDENTITY-TOKEN" and value == self._own:
            return NAME
        return None

    def _registry(
        self, name: str, method: str, path: str, payload: Any
    ) -> tuple[int, dict[str, Any] | None]:
        try:
            if method == "POST" and path in (
                "/system-discovery/lookup",
                "/service-discovery/lookup",
            ):
                found = (self._find_systems if "system" in path else self._find_services)(
                    name, payload
                )
                return 200, {"entries": found, "count": len(found)}
            if (method, path) == ("POST", "/system-discovery/register"):
                return self._register_system(name, payload)
            if (method, path) == ("POST", "/service-discovery/register"):
                return self._register_service(name, payload)
        except ValueError as error:
            return 400, _error(str(error))
        if (method, path) == ("DELETE", "/system-discovery/revoke"):
            for instance in [it for it in self.services if it.startswith(f"{name}|")]:
                self.services.pop(instance, None)
            self.writes.append((name, path))
            return (204 if self.systems.pop(name, None) is None else 200), None
        if method == "DELETE" and path.startswith("/service-discovery/revoke/"):
            instance = unquote(path.rpartition("/")[2])
            if not instance.startswith(f"{name}|"):
                return 403, _error("Revoking other systems' service is forbidden")
            self.writes.append((name, "/service-discovery/revoke"))
            return (204 if self.services.pop(instance, None) is None else 200), None
        return 404, _error("Not found")

    def _find_systems(self, name: str, payload: Any) -> list[dict[str, Any]]:
        if payload.get("addressType"):
            for address in payload.get("addresses", ()):
                self._address(address)
        wanted = payload.get("systemNames") or list(self.systems)
        return [it for key, it in list(self.systems.items()) if key in wanted]

    def _find_services(self, name: str, payload: Any) -> list[dict[str, Any]]:
        definitions = payload.get("serviceDefinitionNames", ())
        providers = payload.get("providerNames", ())
        if not definitions and not providers:
            raise ValueError("One of the following filters must be used: ...")
        return [
            it
            for it in list(self.services.values())
            if (not definitions or it["serviceDefinition"]["name"] in definitions)
            and (not providers or it["instanceId"].partition("|")[0] in providers)
            and (
                name == "Sysop"
                or not self.restricted
                or it["metadata"].get("unrestrictedDiscovery") is True
            )
        ]

    def _register_system(self, name: str, payload: Any) -> tuple[int, dict[str, Any]]:
        new = {
            "name": name,
            **payload,
            "addresses": [self._address(it) for it in payload["addresses"]],
        }
        known = self.systems.setdefault(name, new)
        if known is new:
            self.writes.append((name, "/system-discovery/register"))
            return 201, new
        for key in ("metadata", "version", "addresses", "device"):
            if known.get(key) != new.get(key):
                raise ValueError(
                    f"System with name: {name} already exists, but provided {key} is not matching"
                )
        return 200, known

    def _register_service(self, name: str, payload: Any) -> tuple[int, dict[str, Any]]:
        if name not in self.systems:
            raise ValueError(f"System does not exist: {name}")
        for interface in payload["interfaces"]:
            properties = interface["properties"]
            properties["accessAddresses"] = [
                self._address(it)["address"] for it in properties["accessAddresses"]
            ]
        instance = f"{name}|{payload['serviceDefinitionName']}|{payload['version']}"
        new = {
            "instanceId": instance,
            "provider": self.systems[name],
            "serviceDefinition": {"name": payload["serviceDefinitionName"]},
            **{key: payload[key] for key in ("version", "metadata", "interfaces")},
        }
        if self.services.pop(instance, None) is not None:
            time.sleep(self.moment)  # whoever looks it up now does not find it
        self.services[instance] = new
        self.writes.append((name, "/service-discovery/register"))
        return 201, new

    def _address(self, text: str) -> dict[str, str]:
        """An address as the registry keeps it."""
        if text in self.refused:
            raise ValueError(f"Address verification failure: {text} is not allowed")
        try:
            address = ipaddress.ip_address(text)
        except ValueError:
            if not text or "//" in text or ":" in text:
                raise ValueError(f"Address verification failure: {text}") from None
            return {"type": "HOSTNAME", "address": text.lower()}
        if address.is_unspecified or address.is_multicast:
            raise ValueError(f"Address verification failure: {text}")
        return {"type": f"IPV{address.version}", "address": address.exploded}

    def _log_in(self, request: Any) -> tuple[int, bytes]:
        name, password = request["systemName"], request["credentials"]["password"]
        if (name, password) == (NAME, PASSWORD):
            token = self._own = str(uuid.uuid4())  # the session before this one ends
        elif self.operators.get(name) == password:
            self.end_sessions(name)  # a system has one
            token = self.token(name, sysop=True, seconds=self.lifetime)
        else:
            return 401, b'{"errorMessage": "Invalid name and/or credentials"}'
        return 200, json.dumps({"token": token, "expirationTime": _in(self.lifetime)}).encode()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128
    cloud: Cloud


class _Request(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def setup(self) -> None:
        super().setup()
        self.server.cloud.connections += 1
        self.server.cloud.sockets.append(self.connection)

    def log_message(self, *args: Any) -> None:
        pass

    def _any(self) -> None:
        cloud = self.server.cloud
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        cloud.requests.append((self.command, self.path, self.headers.get("Authorization")))
        cloud._hold()
        if self.command == "OPTIONS":  # a browser asks whether its page may ask
            status, answer = 204, b""
        else:
            status, answer = cloud.respond(
                self.command, self.path, self.headers.get("Authorization"), self._certified(), body
            )
        try:
            if status == 0:  # bytes as they are
                self.wfile.write(answer)
                self.close_connection = True
                return
            self.send_response(status)
            if 300 <= status < 400:
                self.send_header("Location", f"{cloud.url}{IDENTITY}/elsewhere")
            if cloud.page:
                self.send_header("Access-Control-Allow-Origin", cloud.page)
                self.send_header("Access-Control-Allow-Headers", "Content-Type")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)
        except OSError:
            self.close_connection = True  # the service has given up

    do_GET = do_POST = do_DELETE = do_OPTIONS = _any  # noqa: N815

    def _certified(self) -> str | None:
        """The system that a client certificate names."""
        if not isinstance(self.connection, ssl.SSLSocket):
            return None
        subject: Any = (self.connection.getpeercert() or {}).get("subject", ())
        names = dict(pair for part in subject for pair in part)
        return names["commonName"].partition(".")[0].capitalize() if names else None


def _error(message: str) -> dict[str, Any]:
    return {"errorMessage": message, "exceptionType": "INVALID_PARAMETER"}


def _json(status: int, answer: Any) -> tuple[int, bytes]:
    return status, b"" if answer is None else json.dumps(answer).encode()


def _in(seconds: float) -> str:
    """A time as the Java implementation writes it, with nanoseconds."""
    moment = datetime.now(UTC) + timedelta(seconds=seconds)
    return moment.strftime("%Y-%m-%dT%H:%M:%S.%f") + "688Z"
