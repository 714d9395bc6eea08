"""The application is right under each WSGI server that docs/deploy.md shows."""

import http.client
import json
import os
import re
import shlex
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from certificates import CLOUD, Authority, subject
from prometheus_client.parser import text_string_to_metric_families
from support import MANAGEMENT, OPERATOR, Client, job, lock
from wire import chunked, raw

from orchmgmt.store import Store

pytestmark = pytest.mark.sqlite

DOCS = (Path(__file__).parents[2] / "docs" / "deploy.md").read_text().replace("\\\n", " ")
SERVERS = ["waitress", "granian", "gunicorn"]
QUERY = f"{MANAGEMENT}/lock/query"
ECHO = "/serviceorchestration/monitor/echo"
LIMIT = 4 * 1024 * 1024
TOO_LARGE = (413, f"The request body is larger than {LIMIT} bytes")
BIN = Path(sys.executable).parent


class UnixConnection(http.client.HTTPConnection):
    """A connection to a Unix socket, whose path is the host."""

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(30)
        self.sock.connect(self.host)


def command(server: str, path: str) -> list[str]:
    """The command that docs/deploy.md gives for a server at port 8441, or at a Unix socket."""
    if server == "waitress":
        return ["orchmgmt", "serve", *(("--unix-socket", path) if path else ("--port", "8441"))]
    (found,) = (
        line
        for line in re.findall(rf"^{server} .*$", DOCS, re.MULTILINE)
        if ("8441" in line) == (not path)
    )
    return shlex.split(found.replace("/run/orchmgmt/http.sock", path))


@contextmanager
def running(
    server: str, folder: Path, path: str = "", both: bool = False, **settings: str
) -> Iterator[str]:
    """Start a server, in a folder with its database and its log, and wait until it answers.

    Args:
        server: which.
        folder: the folder.
        path: the Unix socket where it listens, if it does.
        both: whether it listens on all addresses of IPv6 and IPv4, by one socket.
        settings: the settings.
    """
    with closing(socket.create_server(("127.0.0.1", 0))) as free:
        port = str(free.getsockname()[1])
    name, *arguments = [part.replace("8441", port) for part in command(server, path)]
    if both and server == "gunicorn":
        arguments = [part.replace("127.0.0.1:", "[::]:") for part in arguments]
    elif both:
        arguments += ["--host", "::"]
    environ = {f"ORCHMGMT_{name}": value for name, value in settings.items()}
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [BIN / name, *arguments],
            cwd=folder,
            env={**os.environ, "HOME": str(folder), **environ},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        while process.poll() is None:
            with suppress(OSError):
                connection = UnixConnection(path) if path else http.client.HTTPConnection(
                    "127.0.0.1", int(port), timeout=30
                )  # fmt: skip
                with closing(connection):
                    connection.request("GET", "/health")
                    connection.getresponse().read()
                break
            time.sleep(0.02)
        assert process.poll() is None, (folder / "log").read_text()
        yield path or f"http://127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, signal.SIGKILL)  # its workers too: how it ends is not the question
        process.wait()


@pytest.fixture(scope="module", params=SERVERS)
def server(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def folder(server: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp(server)


@pytest.fixture(scope="module")
def service(server: str, folder: Path) -> Iterator[Client]:
    """A server for all that needs no settings of its own."""
    settings = {"METRICS": "true", "DATABASE_TIMEOUT_SECONDS": "3"}
    with running(server, folder, **settings) as url:
        yield Client(url)


def test_each_operation(service: Client, folder: Path) -> None:
    one, two = lock("one|operation|1"), lock("Two|operation|1.0.0", "Second")
    created = service.create(one, two)
    assert created.status == 201
    assert [it["serviceInstanceId"] for it in created.entries] == [
        "One|operation|1.0.0",
        "Two|operation|1.0.0",
    ]
    assert service.locks(owners=["Second"]).json == {"entries": created.entries[1:], "count": 1}
    assert service.send("POST", QUERY).status == 200  # without a body
    removed = service.remove("Second", "instanceIds=A%7Cb%7C1&instanceIds=Two%7Coperation%7C1.0.0")
    assert (removed.status, removed.body) == (200, b"")
    assert service.locks(owners=["Second"]).json["count"] == 0
    with Store({"DATABASE_URL": f"sqlite:///{folder}/orchmgmt.db"}) as store:
        store.database.write(store.job_table.put, [job(1), job(2, status="ERROR")])
    assert [it["id"] for it in service.jobs(statuses=["ERROR"]).entries] == [job(2)["id"]]
    echo = service.send("GET", ECHO)
    assert (echo.status, echo.body) == (200, b"Got it!")
    assert echo.headers["Content-Type"] == "text/plain"


def test_each_error(service: Client) -> None:
    assert service.create(lock("Held|error|1")).status == 201
    nobody = {"Authorization": "Basic x"}
    alice = {"Authorization": "Bearer SYSTEM//Alice"}
    text = {"Authorization": OPERATOR, "Content-Type": "text/plain"}
    for answer, status, message in (
        (service.create(lock("Held|error|1")), 400, "Already locked: Held|error|1.0.0"),
        (service.post("/lock/create"), 400, "Request payload is null"),
        (service.send("POST", f"{QUERY}?a=b", b"", {}), 401, "No authorization header has"),
        (service.send("POST", QUERY, headers=nobody), 401, "Invalid authorization header"),
        (service.send("POST", QUERY, headers=alice), 403, "Requester has no management"),
        (service.send("GET", "/nope?q"), 404, "There is no such path"),
        (service.send("GET", QUERY), 405, ""),
        (service.send("POST", QUERY, b"{}", text), 415, "The body must be JSON"),
        (service.send("POST", QUERY, b"{", {**text, "Content-Type": "application/json"}), 400, ""),
    ):
        assert answer.status == status
        assert answer.error.startswith(message)
    assert service.send("GET", QUERY).headers["Allow"] == "POST"
    head = service.send("HEAD", QUERY)
    assert (head.status, head.body) == (405, b"")


@pytest.mark.parametrize(
    "path", ["/lock/remove/a%C3%A9%20%7Cb!$&'()*+,;=:@-._~", "/nope/%FF", "//nope", "/a%25b"]
)
def test_the_origin_is_the_path_as_requested(service: Client, path: str) -> None:
    answer = service.send("DELETE", f"{MANAGEMENT}{path}?instanceIds=A%7Cb%7C1")
    assert answer.status in (400, 404)
    assert answer.error


def test_bodies_up_to_the_limit_are_read_and_longer_ones_refused(service: Client) -> None:
    headers = {"Authorization": OPERATOR, "Content-Type": "application/json"}
    assert service.send("POST", QUERY, b"{}".ljust(LIMIT), headers).status == 200
    announced = {**headers, "Content-Length": str(LIMIT + 1)}
    answer = service.send("POST", QUERY, b"", announced)
    assert (answer.status, answer.error) == TOO_LARGE


@pytest.mark.parametrize("content", [b"{}", b"", b"["], ids=["object", "white space", "list"])
def test_bodies_in_chunks_have_the_same_limit(service: Client, server: str, content: bytes) -> None:
    framing = 100 if server == "waitress" else 0  # which counts in waitress's own limit
    fits = raw(service, chunked(content.ljust(LIMIT - framing)))
    assert fits.status == (200 if content == b"{}" else 400)
    for length in (LIMIT + 1, LIMIT + 2, LIMIT + 100_000):
        answer = raw(service, chunked(content.ljust(50_000), b" " * (length - 50_000)))
        assert (answer.status, answer.error) == TOO_LARGE


def test_a_busy_database_is_a_503_and_stops_no_reader(service: Client, folder: Path) -> None:
    with closing(sqlite3.connect(folder / "orchmgmt.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        answer = service.create(lock("Busy|database|1"))
        assert (answer.status, answer.error) == (
            503,
            "The database is busy; try again later",
        )
        assert answer.headers["Retry-After"]
        assert service.locks().status == 200
        other.execute("ROLLBACK")


def test_creates_and_removes_are_audited(service: Client, folder: Path) -> None:
    service.create(lock("Audited|service|1"))
    service.create(lock("Audited|service|1"))
    service.remove("Owner", "instanceIds=Audited%7Cservice%7C1.0.0")
    log = (folder / "log").read_text()
    for result in (
        r"operation=lock\.create status=201 result=done locks=1 instances=Audited\|",
        r"operation=lock\.create status=400 result=refused locks=1 instances=Audited\|",
        r"operation=lock\.remove status=200 result=done locks=1 instances=Audited\|",
    ):
        assert len(re.findall(rf" INFO orchmgmt\.audit: requester=Sysop {result}", log)) == 1


def test_metrics_tell_of_the_process_that_answers(service: Client) -> None:
    address = urlsplit(service.url)
    connection = http.client.HTTPConnection(str(address.hostname), address.port, timeout=30)
    headers = {"Authorization": OPERATOR, "Content-Type": "application/json"}
    create = json.dumps({"locks": [lock("Metrics|of|1")]})
    with closing(connection):
        # On one connection, so of one process: it may have waited in vain before, until it writes.
        for path, body in ((f"{MANAGEMENT}/lock/create", create), (ECHO, None), ("/metrics", None)):
            connection.request("POST" if body else "GET", path, body, headers)
            text = connection.getresponse().read().decode()
    found = {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    assert found["orchmgmt_requests_total", "monitor.echo", "200"] >= 1
    assert found["orchmgmt_database_up",] == 1
    assert found["orchmgmt_active_locks",] >= 0


def certificate(authority: Authority) -> dict[str, str]:
    issued = authority.issue(subject(f"carol.{CLOUD}.arrowhead.eu", qualifiers=("op",)))
    return {"X-Client-Certificate": issued.escaped, "X-Forwarded-For": "192.0.2.7"}


def test_a_unix_socket_is_its_proxys_alone_and_what_comes_by_it_is_believed(
    server: str, tmp_path: Path, authority: Authority
) -> None:
    sockets = tempfile.mkdtemp(prefix="orchmgmt-", dir="/tmp")  # a socket's path must be short
    settings = {"AUTHENTICATION_POLICY": "certificate", "CLOUD": CLOUD, "LOG_LEVEL": "DEBUG"}
    settings["TRUSTED_PROXIES"] = "192.0.2.1"
    try:
        path = f"{sockets}/http.sock"
        with running(server, tmp_path, path, **settings):
            assert os.stat(path).st_mode & 0o007 == 0
            with closing(UnixConnection(path)) as connection:
                connection.request("POST", QUERY, headers=certificate(authority))
                response = connection.getresponse()
                assert (response.status, json.loads(response.read())["count"]) == (200, 0)
            with closing(UnixConnection(path)) as connection:
                connection.request("GET", ECHO)
                assert connection.getresponse().status == 401
    finally:
        shutil.rmtree(sockets)
    log = (tmp_path / "log").read_text()
    assert "allowed Carol lock.query from 192.0.2.7: operator" in log
    assert "refused - monitor.echo from localhost: 401" in log


@pytest.mark.parametrize("trusted", ["127.0.0.1", "192.0.2.1"])
def test_at_a_port_only_a_trusted_proxy_is_believed(
    server: str, tmp_path: Path, authority: Authority, trusted: str
) -> None:
    settings = {"AUTHENTICATION_POLICY": "certificate", "CLOUD": CLOUD, "LOG_LEVEL": "DEBUG"}
    with running(server, tmp_path, TRUSTED_PROXIES=trusted, **settings) as url:
        answer = Client(url).send("POST", QUERY, headers=certificate(authority))
    log = (tmp_path / "log").read_text()
    if trusted == "127.0.0.1":
        assert answer.status == 200
        assert "allowed Carol lock.query from 192.0.2.7: operator" in log
    else:
        message = "A client certificate is only taken from a trusted proxy"
        assert (answer.status, answer.error) == (401, message)
        assert f"refused - lock.query from 127.0.0.1: 401 {message}" in log


@pytest.mark.skipif(not Path("/proc/net/if_inet6").exists(), reason="no IPv6 here")
def test_at_a_socket_of_both_kinds_an_ipv4_address_is_the_same_address(
    server: str, tmp_path: Path, authority: Authority
) -> None:
    settings = {"AUTHENTICATION_POLICY": "certificate", "CLOUD": CLOUD, "LOG_LEVEL": "DEBUG"}
    with running(server, tmp_path, both=True, **settings) as url:
        assert Client(url).send("POST", QUERY, headers=certificate(authority)).status == 200
        assert Client(url).send("POST", QUERY, headers={}).status == 401
        six = Client(url.replace("127.0.0.1", "[::1]"))
        assert six.send("POST", QUERY, headers=certificate(authority)).status == 200
    log = (tmp_path / "log").read_text()
    assert "refused - lock.query from 127.0.0.1: 401" in log


def test_expired_locks_are_cleaned_by_the_command(service: Client, folder: Path) -> None:
    assert service.create(lock("Cleaned|service|1")).status == 201
    with closing(sqlite3.connect(folder / "orchmgmt.db", isolation_level=None)) as other:
        past = "UPDATE orchestration_lock SET expires_at = '2020-01-01T00:00:00Z'"
        other.execute(f"{past} WHERE service_instance_id LIKE 'Cleaned%'")
    assert service.locks(serviceInstanceIds=["Cleaned|service|1"]).json["count"] == 0
    ended = subprocess.run(
        [BIN / "orchmgmt", "clean"], cwd=folder, capture_output=True, text=True, timeout=60
    )
    assert ended.stdout.startswith("Deleted 1 expired lock ")
