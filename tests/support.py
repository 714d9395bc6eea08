"""A client for the service, and what tests say again and again."""

import http.client
import json
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from command import Started

from orchmgmt import testing
from orchmgmt.app import create_app, store_of
from orchmgmt.serving.server import Server

MANAGEMENT = "/serviceorchestration/orchestration/mgmt"
OPERATOR = "Bearer SYSTEM//Sysop"
UUID = "f0e1d2c3-0000-4000-8000-000000000000"
FUTURE = "2099-01-01T00:00:00Z"

EXCEPTION_TYPES = {
    401: "AUTH",
    403: "FORBIDDEN",
    404: "DATA_NOT_FOUND",
    500: "INTERNAL_SERVER_ERROR",
    501: "INTERNAL_SERVER_ERROR",
    502: "INTERNAL_SERVER_ERROR",
    503: "EXTERNAL_SERVER_ERROR",
    504: "INTERNAL_SERVER_ERROR",
}


@dataclass
class Answer:
    """What came back over the wire; `origin` is the method and path that were sent."""

    status: int
    headers: http.client.HTTPMessage
    body: bytes
    origin: str

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> str:
        """The message of an ErrorResponse, once all else in it has been checked."""
        assert self.headers["Content-Type"] == "application/json"
        assert list(self.json) == ["errorMessage", "errorCode", "exceptionType", "origin"]
        assert self.json["errorCode"] == self.status >= 400
        assert self.json["exceptionType"] == EXCEPTION_TYPES.get(self.status, "INVALID_PARAMETER")
        assert self.json["origin"] == self.origin
        return str(self.json["errorMessage"])

    @property
    def entries(self) -> list[dict[str, Any]]:
        """The entries of a successful answer."""
        assert self.status in (200, 201), self.body
        assert list(self.json) == ["entries", "count"]
        found: list[dict[str, Any]] = self.json["entries"]
        return found


@dataclass
class Client:
    """Talks to a service as an operator, unless told otherwise. One connection per request."""

    url: str
    headers: dict[str, str] = field(default_factory=lambda: {"Authorization": OPERATOR})
    timeout: float = 30

    def send(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: dict[str, str] | None = None,
    ) -> Answer:
        """Send exactly these bytes; `headers` replaces the client's own."""
        address = urlsplit(self.url)
        connection = http.client.HTTPConnection(
            str(address.hostname), address.port, timeout=self.timeout
        )
        try:
            connection.request(method, path, body, self.headers if headers is None else headers)
            response = connection.getresponse()
            origin = f"{method} {path.partition('?')[0]}"
            return Answer(response.status, response.headers, response.read(), origin)
        finally:
            connection.close()

    def post(self, path: str, payload: Any = None, **headers: str) -> Answer:
        """Post JSON to an operation of the management services."""
        return self.send(
            "POST",
            MANAGEMENT + path,
            json.dumps(payload).encode(),
            {**self.headers, "Content-Type": "application/json", **headers},
        )

    def create(self, *locks: Any) -> Answer:
        return self.post("/lock/create", {"locks": list(locks)})

    def locks(self, **query: Any) -> Answer:
        return self.post("/lock/query", query)

    def remove(self, owner: str, query: str = "") -> Answer:
        """`owner` and `query` go out as they are: quote what needs it."""
        return self.send("DELETE", f"{MANAGEMENT}/lock/remove/{owner}{query and '?' + query}")

    def jobs(self, **query: Any) -> Answer:
        return self.post("/history/query", query)


class Connection:
    """One client's kept connection to one server."""

    def __init__(self, url: str) -> None:
        address = urlsplit(url)
        self._http = http.client.HTTPConnection(str(address.hostname), address.port, timeout=60)

    def send(self, method: str, path: str, payload: Any = None) -> tuple[int, Any]:
        headers = {"Authorization": OPERATOR, "Content-Type": "application/json"}
        body = None if payload is None else json.dumps(payload)
        self._http.request(method, MANAGEMENT + path, body, headers)
        response = self._http.getresponse()
        text = response.read()
        return response.status, json.loads(text) if text else None

    def create(self, *locks: Any) -> tuple[int, Any]:
        return self.send("POST", "/lock/create", {"locks": locks})

    def remove(self, owner: str, *instances: str) -> tuple[int, Any]:
        wanted = "&".join(f"instanceIds={quote(instance)}" for instance in instances)
        return self.send("DELETE", f"/lock/remove/{owner}?{wanted}")

    def close(self) -> None:
        self._http.close()


@dataclass
class Service(Client):
    """A service in the test's own process, on a real socket.

    Attributes:
        store: its locks and jobs.
        harness: the harness's own, if it is one of those.
    """

    store: Any = None
    harness: Any = None

    @property
    def clock(self) -> Any:
        """The time that it goes by."""
        return self.harness.clock


@contextmanager
def served(**settings: Any) -> Iterator[Service]:
    """A service of the harness with these settings, while the context lasts."""
    with testing.Service(**{name.lower(): value for name, value in settings.items()}) as harness:
        yield Service(harness.url, store=harness.store, harness=harness)


@contextmanager
def on_waitress(**settings: Any) -> Iterator[Service]:
    """As `served`, by the server of `orchmgmt serve`: for what depends on it and its threads."""
    app = create_app({"PORT": 0, **settings})
    with store_of(app) as store:
        server = Server(store.settings)
        thread = threading.Thread(target=server.run, args=[app])
        thread.start()
        try:
            yield Service(server.url, store=store)
        finally:
            server.stop()
            thread.join()


class Process(Client):
    """A service started from the command line."""

    def __init__(self, process: "subprocess.Popen[str] | Started") -> None:
        self.process = process
        assert process.stdout is not None
        line = process.stdout.readline()
        found = re.fullmatch("(?:Listening on|Open) (.+?)/?\n", line)
        assert found, (line, process.stderr and process.stderr.read())
        super().__init__(found[1])

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send a signal and return the exit code."""
        self.process.send_signal(number)
        return self.process.wait(60)


FAKETIME = sorted(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))


class Clock:
    """The time of day that a server sees: the real one, and so many seconds.

    Attributes:
        env: the environment that makes it see it; the time that only goes on is the real one.
    """

    def __init__(self, path: Path, ahead: int = 0) -> None:
        self._path = path
        self.set(ahead)
        self.env = {
            "LD_PRELOAD": str(FAKETIME[0]),
            "FAKETIME_TIMESTAMP_FILE": str(path),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }

    def set(self, seconds: int) -> None:
        self.ahead = seconds
        partial = self._path.with_suffix(".new")
        partial.write_text(f"{seconds:+d}\n")
        partial.replace(self._path)

    def after(self, seconds: float) -> str:
        """The moment that many seconds after the server's present."""
        return after(self.ahead + seconds)


def after(seconds: float) -> str:
    """The moment that many seconds from now."""
    moment = datetime.now(UTC) + timedelta(seconds=seconds)
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def until(condition: Callable[[], object]) -> None:
    """Wait for what a thread or a process does in its own time."""
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)


def lock(instance: str, owner: str = "Owner", expires_at: str = FUTURE) -> dict[str, Any]:
    """One element of a create request."""
    return {"serviceInstanceId": instance, "owner": owner, "expiresAt": expires_at}


def job(number: int, **columns: str) -> dict[str, str]:
    """A job as the history stores it; the same number is the same job."""
    finished = columns.get("status", "DONE") in ("DONE", "ERROR")
    return {
        "id": f"00000000-0000-4000-8000-{number:012x}",
        "status": "DONE",
        "type": "PULL",
        "requester_system": "Alice",
        "target_system": "Alice",
        "service_definition": "kelvinInfo",
        "subscription_id": UUID,
        "message": "",
        "created_at": f"2026-11-01T00:{number // 60 % 60:02}:{number % 60:02}Z",
        "started_at": "2026-11-01T01:00:00Z",
        "finished_at": "2026-11-01T02:00:00Z" if finished else "",
        **columns,
    }


def connection_of(store: Any) -> Any:
    """The connection that SQLite's transactions borrow, one after the other."""
    return store.database.read(lambda: store.database.connection)


@contextmanager
def traced(store: Any) -> Iterator[list[str]]:
    """The SQL that SQLite itself runs for this thread, with its values."""
    statements: list[str] = []

    connection = connection_of(store)
    connection.set_trace_callback(statements.append)
    try:
        yield statements
    finally:
        connection.set_trace_callback(None)


def in_threads(work: Callable[..., object], *values: Iterable[Any]) -> None:
    """Call `work` as `map` would, but each call in a thread of its own, and wait for all."""
    threads = [
        threading.Thread(target=work, args=arguments) for arguments in zip(*values, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
