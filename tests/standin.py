"""A stand-in for the cloud's identity service and ConsumerAuthorization, on a real socket.

It answers as the contract describes, and can be made slow, broken or down.
"""

import contextlib
import json
import socket
import ssl
import threading
import uuid
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

IDENTITY = "/authentication/identity"
AUTHORIZATION = "/consumerauthorization/authorization"
PASSWORD = "correct horse battery staple"
NAME = "OrchestrationManagement"


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
    """

    def __init__(self, context: ssl.SSLContext | None = None) -> None:
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
        self.connections = 0
        self.sockets: list[socket.socket] = []
        self._own: str | None = None
        self._sessions: dict[str, dict[str, Any]] = {}
        self._server = _Server(("127.0.0.1", 0), _Request)
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

    def token(self, name: str, sysop: bool = False, seconds: float = 300) -> str:
        """Log a system in and return its token."""
        token = str(uuid.uuid4())
        self._sessions[token] = {"systemName": name, "sysop": sysop, "end": _in(seconds)}
        return token

    def end_own_session(self) -> None:
        """Forget the service's login, as a restart would."""
        self._own = None

    def end(self, token: str) -> None:
        del self._sessions[token]

    def clean(self) -> None:
        """Forget the sessions that have ended, which until then count as verified."""
        self._sessions = {it: its for it, its in self._sessions.items() if its["end"] > _in(0)}

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

    def respond(self, path: str, authorization: str | None, body: bytes) -> tuple[int, bytes]:
        made = self.answer(path)
        if made is not None:
            return made
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

    def _log_in(self, request: Any) -> tuple[int, bytes]:
        name, password = request["systemName"], request["credentials"]["password"]
        if (name, password) == (NAME, PASSWORD):
            token = self._own = str(uuid.uuid4())  # the session before this one ends
        elif self.operators.get(name) == password:
            token = self.token(name, sysop=True)
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
        status, answer = cloud.respond(self.path, self.headers.get("Authorization"), body)
        try:
            if status == 0:  # bytes as they are
                self.wfile.write(answer)
                self.close_connection = True
                return
            self.send_response(status)
            if 300 <= status < 400:
                self.send_header("Location", f"{cloud.url}{IDENTITY}/elsewhere")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)
        except OSError:
            self.close_connection = True  # the service has given up

    do_GET = do_POST = _any  # noqa: N815


def _in(seconds: float) -> str:
    """A time as the Java implementation writes it, with nanoseconds."""
    moment = datetime.now(timezone.utc) + timedelta(seconds=seconds)
    return moment.strftime("%Y-%m-%dT%H:%M:%S.%f") + "688Z"
