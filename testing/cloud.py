"""Stand-ins of the cloud's other systems that the service asks, each on a port of its own.

They answer as the contract says that the real ones do ("Who is asking"), and a test can take them
down or slow them down.
"""

import json
import threading
import uuid
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from werkzeug.wrappers import Request, Response

from orchmgmt.settings import OPERATOR_NAME, Settings
from orchmgmt.testing.names import unknown
from orchmgmt.testing.server import Server
from orchmgmt.values import Naming, strip

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

#: Seconds that a login lasts.
LIFETIME = 300

#: How a system shows a token.
TOKEN = "Bearer IDENTITY-TOKEN//"

#: What of the contract's question ConsumerAuthorization must be told.
QUESTION = ("provider", "consumer", "cloud", "targetType", "target", "scope")

NO_TOKEN = "Invalid identity token"

#: The password of every system, unless the service's settings have one.
PASSWORD = "password of the test"


class StandIn:
    """A system of the cloud, on a free port of this machine.

    Attributes:
        url: its base URL, as the service's setting has it.
    """

    base: ClassVar[str]

    def __init__(self) -> None:
        self._seconds = 0.0
        self._stopped = threading.Event()
        self._server = Server(self, "127.0.0.1", 0)
        self.url = self._server.url + self.base

    def down(self) -> None:
        """Drop all connections and refuse new ones, until `up`."""
        self._stopped.set()
        self._server.down()

    def up(self) -> None:
        """Answer again, on the same port."""
        self._stopped = threading.Event()
        self._server.up()

    def slow(self, seconds: float) -> None:
        """Answer each request so many seconds late; 0 is at once, as in the beginning.

        Raises:
            ValueError: it is no number from 0 on.
        """
        if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not seconds >= 0:
            raise ValueError(f"seconds must be a number from 0 on, not {seconds!r}")
        self._seconds = seconds

    def reset(self) -> None:
        """Be up and fast, and forget what a test has said."""
        self.slow(0)
        self._stopped.set()  # nobody waits any longer
        self.up()

    def stop(self) -> None:
        """Drop all connections and give up the port."""
        if not self._server.elsewhere:
            self._stopped.set()
        self._server.stop()

    def __call__(
        self, environ: "WSGIEnvironment", start_response: "StartResponse"
    ) -> Iterable[bytes]:
        """Answer a request."""
        request = Request(environ)
        body = request.get_data()
        if self._seconds and self._stopped.wait(self._seconds):
            raise ConnectionResetError("the stand-in has gone down")
        try:
            payload = json.loads(body or b"null")
        except (ValueError, RecursionError):
            payload = None
        operation = f"{request.method} {request.path.removeprefix(self.base)}"
        own = request.headers.get("Authorization", "")
        status, answer = self._answer(operation, own, payload)
        response = Response(json.dumps(answer), status, content_type="application/json")
        return response(environ, start_response)

    def _answer(self, operation: str, own: str, payload: Any) -> tuple[int, Any]:
        raise NotImplementedError

    def __repr__(self) -> str:
        return f"<{type(self).__name__} at {self.url}>"


@dataclass
class _Session:
    name: str
    operator: bool
    began: datetime
    end: datetime


class Identity(StandIn):
    """A stand-in of the Authentication system.

    Args:
        settings: those of the service, which have the password of all systems.
    """

    base = "/authentication/identity"

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._sessions: dict[str, _Session] = {}
        self._turn = threading.Lock()
        super().__init__()

    def token(self, name: str, operator: bool = False) -> str:
        """Log a system in, and return its token. It ends that system's token before it.

        Args:
            name: its SystemName.
            operator: whether it is an operator (`sysop`).

        Raises:
            ValueError: the name is malformed.
        """
        if not isinstance(operator, bool):
            raise ValueError("operator must be true or false")
        return self._begin(_system_name(name), operator)[0]

    def expire(self, token: str) -> None:
        """Let a token end. As the real system does, this one goes on saying that it is verified.

        Raises:
            ValueError: there is no such token.
        """
        self._session(token).end = datetime.now(UTC) - timedelta(seconds=1)

    def revoke(self, token: str) -> None:
        """Forget a token, as after a logout.

        Raises:
            ValueError: there is no such token.
        """
        self._session(token)
        self._sessions.pop(token, None)

    def reset(self) -> None:
        """Be up and fast, and forget all tokens."""
        super().reset()
        self._sessions = {}

    def name_of(self, authorization: str) -> str | None:
        """Return the system that a header `Authorization` shows the token of, if it is valid."""
        session = self._sessions.get(authorization.removeprefix(TOKEN))
        return session.name if session and session.end > datetime.now(UTC) else None

    @property
    def password(self) -> str:
        """The password by which every system may log in."""
        file = self._settings.system_password_file
        if file:
            return Path(file).read_text("utf-8").rstrip("\r\n")
        return self._settings.system_password

    def _begin(self, name: str, operator: bool) -> tuple[str, _Session]:
        began = datetime.now(UTC)
        session = _Session(name, operator, began, began + timedelta(seconds=LIFETIME))
        token = str(uuid.uuid4())
        with self._turn:
            others = {it: its for it, its in self._sessions.items() if its.name != name}
            self._sessions = {**others, token: session}
        return token, session

    def _session(self, token: str) -> _Session:
        session = self._sessions.get(str(token))
        if session is None:
            raise ValueError("There is no such token")
        return session

    def _answer(self, operation: str, own: str, payload: Any) -> tuple[int, Any]:
        if operation == "POST /login":
            return self._log_in(payload)
        verify = "GET /verify/"
        if not operation.startswith(verify):
            return 404, _error("DATA_NOT_FOUND", "No such path")
        if not own.startswith(TOKEN) or self.name_of(own) is None:
            return 401, _error("AUTH", NO_TOKEN)
        session = self._sessions.get(operation.removeprefix(verify))
        if session is None:
            return 200, {"verified": False}
        return 200, {
            "verified": True,
            "systemName": session.name,
            "sysop": session.operator,
            "loginTime": _whole(session.began),
            "expirationTime": _whole(session.end),
        }

    def _log_in(self, payload: Any) -> tuple[int, Any]:
        try:
            name, password = payload["systemName"], payload["credentials"]["password"]
            name = _system_name(name)
        except (AttributeError, KeyError, TypeError, ValueError):
            return 400, _error("INVALID_PARAMETER", "The name or the credentials are malformed")
        if not isinstance(password, str) or not 0 < len(password) < 64:
            return 400, _error("INVALID_PARAMETER", "The password is missing or too long")
        if password != self.password:
            return 401, _error("AUTH", "Invalid name and/or credentials")
        token, session = self._begin(name, operator=name == OPERATOR_NAME)
        nanoseconds = session.end.strftime("%Y-%m-%dT%H:%M:%S.%f") + "000Z"
        return 200, {"token": token, "expirationTime": nanoseconds}


class Authorization(StandIn):
    """A stand-in of ConsumerAuthorization. It allows what a test has granted, and nothing else.

    Args:
        settings: those of the service, whose identity the questions must have.
        identity: the stand-in that verifies tokens, if the service's tokens are of one.

    Attributes:
        scopes: what a system may be allowed to do: the scopes of the service's operations.
    """

    scopes: Collection[str] = ()
    base = "/consumerauthorization/authorization"

    def __init__(self, settings: Settings, identity: Identity | None) -> None:
        self._settings = settings
        self._identity = identity
        self._granted: set[tuple[str, str]] = set()
        super().__init__()

    def grant(self, name: str, scope: str) -> None:
        """Let a system do an operation, such as `query`, of both services.

        Raises:
            ValueError: the name is malformed, or no operation has this scope.
        """
        if scope not in self.scopes:
            raise ValueError(unknown("scope", str(scope), self.scopes))
        self._granted.add((_system_name(name), scope))

    def revoke(self, name: str, scope: str) -> None:
        """Take that back.

        Raises:
            ValueError: it has not been granted.
        """
        taken = (_system_name(name), scope)
        if taken not in self._granted:
            raise ValueError(f"{scope} has not been granted to {name}")
        self._granted.remove(taken)

    def reset(self) -> None:
        """Be up and fast, and take back all that was granted."""
        super().reset()
        self._granted = set()

    def _answer(self, operation: str, own: str, payload: Any) -> tuple[int, Any]:
        if operation != "POST /verify":
            return 404, _error("DATA_NOT_FOUND", "No such path")
        asker = self._asker(own)
        if asker is None:
            return 401, _error("AUTH", NO_TOKEN)
        if not isinstance(payload, dict) or not all(
            isinstance(payload.get(it), str) for it in QUESTION
        ):
            return 400, _error("INVALID_PARAMETER", "The question is malformed")
        if asker not in (payload["provider"], payload["consumer"]):
            return 403, _error("FORBIDDEN", "Only the provider or the consumer may ask")
        return 200, (payload["consumer"], payload["scope"]) in self._granted

    def _asker(self, own: str) -> str | None:
        """Who asks. Without a stand-in of the Authentication system, a token is not verified."""
        if self._identity:
            return self._identity.name_of(own) if own.startswith(TOKEN) else None
        return self._settings.own_name


def _system_name(name: object) -> str:
    """A name as the cloud's systems have it."""
    if not isinstance(name, str):
        raise ValueError("A name is a text")
    return Naming(extended=True).system_name(strip(name))


def _whole(moment: datetime) -> str:
    """A time as verify has it: in whole seconds, cut off."""
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def _error(kind: str, message: str) -> dict[str, Any]:
    return {"errorMessage": message, "exceptionType": kind}
