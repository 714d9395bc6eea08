"""`serve --read-only`: a database is looked at as it is, wherever it lies, and stays as it is."""

import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cluster import Cluster
from conftest import COMMAND
from standin import Cloud
from support import MANAGEMENT, Client, Process, lock, until
from wire import connect

from orchmgmt.entries import Lock
from orchmgmt.store import Store

DATA = Path(__file__).parents[1] / "data"
PAST = datetime(1970, 1, 2, tzinfo=UTC)
FUTURE = datetime(2099, 1, 1, tzinfo=UTC)
MESSAGE = "This server answers queries alone: it was started with --read-only"

ALICE = "Bearer SYSTEM//Alice"

#: A server with these would clean all that is old at once.
EAGER = ("--cleaner-interval-seconds", "0.05", "--history-max-age-days", "0")


def fill(url: str) -> None:
    """Leave an expired and an active lock, and a job that has ended."""
    for name, clock, end in (("Old", lambda: 0.0, PAST), ("A", None, FUTURE)):
        with Store({"DATABASE_URL": url}, clock) as store:
            store.locks.create(
                [Lock(service_instance_id=f"{name}|b|1", owner="Owner", expires_at=end)]
            )
    with Store({"DATABASE_URL": url}) as store:
        made = store.history.create("PULL", "Alice", "Alice", "kelvinInfo")
        store.history.start(made)
        store.history.finish(made)


def contents(folder: Path) -> dict[str, bytes]:
    return {it.name: it.read_bytes() for it in folder.iterdir() if not it.name.endswith(".log")}


def requests(service: Client) -> None:
    """Each operation, on a server that only reads."""
    assert service.locks().json["count"] == 1
    assert service.jobs().json["count"] == 1
    assert service.send("GET", "/health").status == 200
    for answer in (
        service.create(lock("C|d|1")),
        service.create(),  # whatever is wrong with it
        service.remove("Owner", "instanceIds=A%7Cb%7C1"),
        service.remove("Nobody", "instanceIds=Z%7Cz%7C1"),
    ):
        assert (answer.status, answer.error) == (403, MESSAGE)
    assert service.send("POST", f"{MANAGEMENT}/lock/create", headers={}).status == 401
    alice = service.send("POST", f"{MANAGEMENT}/lock/create", headers={"Authorization": ALICE})
    assert (alice.status, alice.error) == (403, "Requester has no management permission")
    assert service.locks().json["count"] == 1


@pytest.mark.sqlite
def test_a_database_is_looked_at_and_stays_as_it_is(
    serve: Callable[..., Process], tmp_path: Path
) -> None:
    fill(f"sqlite:///{tmp_path}/orchmgmt.db")
    before = contents(tmp_path)
    server = serve("--read-only", *EAGER, "--metrics", "true", "--recorder", "true", "--ui", "true")
    requests(server)
    for method, path in (
        ("POST", "/history/record"),
        ("POST", "/lock/reserve"),
        ("DELETE", "/lock/release/00000000-0000-4000-8000-000000000001"),
    ):
        answer = server.send(method, MANAGEMENT + path, b"{}")
        assert (answer.status, answer.error) == (403, MESSAGE)
    assert b"orchmgmt_database_up 1.0" in server.send("GET", "/metrics").body
    told = json.loads(server.send("GET", "/ui/service.json").body)
    assert told["health"] == "ok"
    assert server.stop() == 0
    assert contents(tmp_path) == before
    log = (tmp_path / "server-0.log").read_text()
    assert ", read-only; authentication policy declared" in log
    assert "refused Sysop lock.create from 127.0.0.1: 403 This server answers queries alone" in log


@pytest.mark.sqlite
def test_what_a_killed_server_left_is_read_and_stays(
    serve: Callable[..., Process], tmp_path: Path
) -> None:
    writer = serve()
    writer.create(lock("A|b|1"))
    writer.process.kill()
    writer.process.wait()
    before = {name: it for name, it in contents(tmp_path).items() if not name.endswith("-shm")}
    assert before["orchmgmt.db-wal"]
    for number in (signal.SIGTERM, signal.SIGKILL):
        server = serve("--read-only", *EAGER)
        assert server.locks().json["count"] == 1
        server.stop(number)
        after = {name: it for name, it in contents(tmp_path).items() if not name.endswith("-shm")}
        assert after == before


@pytest.mark.sqlite
def test_a_reader_that_was_first_sees_what_a_server_writes_later(
    serve: Callable[..., Process], tmp_path: Path
) -> None:
    fill(f"sqlite:///{tmp_path}/orchmgmt.db")
    before = contents(tmp_path)
    reader = serve("--read-only", *EAGER)
    assert reader.locks().json["count"] == 1
    assert contents(tmp_path) == before  # nothing that could be in a server's way
    writer = serve()
    for number in range(300):
        writer.create(*[lock(f"S{number}x{n}|b|1") for n in range(10)])
        if not number % 20:
            assert reader.locks().json["count"] == 11 + 10 * number
    with closing(sqlite3.connect(tmp_path / "orchmgmt.db")) as other:
        other.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    assert reader.locks().json["count"] == 3001
    assert writer.stop() == 0
    for _ in range(2):
        assert reader.locks().json["count"] == 3001
    assert reader.send("GET", "/health").status == 200
    writer = serve()
    writer.create(lock("Last|b|1"))
    assert reader.locks().json["count"] == 3002
    assert "damaged" not in (tmp_path / "server-0.log").read_text()


@pytest.mark.sqlite
def test_a_link_to_a_database_is_that_database(
    serve: Callable[..., Process],
    run: Callable[..., "subprocess.CompletedProcess[str]"],
    tmp_path: Path,
) -> None:
    for name in ("real", "link"):
        (tmp_path / name).mkdir()
    (tmp_path / "link" / "x.db").symlink_to("../real/x.db")
    by_link = f"sqlite:///{tmp_path}/link/x.db"
    servers = [serve("--database-url", f"sqlite:///{tmp_path}/real/x.db")]
    servers[0].create(lock("A|b|1"))
    servers += [serve("--database-url", by_link), serve("--read-only", "--database-url", by_link)]
    servers[1].create(lock("C|d|1"))
    assert [it.locks().json["count"] for it in servers] == [2, 2, 2]
    assert run("lock", "export", "--database-url", by_link).stderr == "Exported 2 locks.\n"
    assert run("backup", "copy.db", "--database-url", by_link).returncode == 0
    with closing(sqlite3.connect(tmp_path / "copy.db")) as copy:
        found = copy.execute("SELECT count(*) FROM orchestration_lock").fetchone()
    assert found == (2,)
    (tmp_path / "real" / "x.db-wal").unlink()
    assert [it.create(lock("E|f|1")).status for it in servers[:2]] == [503, 503]


@pytest.mark.sqlite
def test_beside_a_server_it_shows_what_that_one_writes(serve: Callable[..., Process]) -> None:
    writer = serve()
    reader = serve("--read-only")
    writer.create(lock("A|b|1"))
    writer.create(lock("C|d|1", owner="Other"))
    assert reader.locks().json["count"] == 2
    writer.remove("Other", "instanceIds=C%7Cd%7C1")
    assert reader.locks().json["count"] == 1
    assert reader.create(lock("E|f|1")).status == 403
    assert writer.stop() == 0
    assert reader.locks().json["count"] == 1
    assert reader.send("GET", "/health").status == 200


@pytest.mark.sqlite
@pytest.mark.parametrize("log", [False, True], ids=["closed", "with its log"])
def test_a_disk_that_nobody_can_write_to(
    read_only: tuple[Path, list[str]], tmp_path: Path, log: bool
) -> None:
    folder, command = read_only
    url = f"sqlite:///{folder}/orchmgmt.db"
    fill(url)
    with ExitStack() as stack:
        if log:
            store = stack.enter_context(Store({"DATABASE_URL": url}))
            more = Lock(service_instance_id="C|d|1", owner="Other", expires_at=FUTURE)
            store.locks.create([more])
        arguments = ["serve", "--read-only", "--port", "0", "--database-url", url, *EAGER]
        process = subprocess.Popen(
            [*command, COMMAND, *arguments],
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        server = Process(process)
        try:
            assert server.locks().json["count"] == 1 + log
            assert server.jobs().json["count"] == 1
            assert server.send("GET", "/health").status == 200
            assert server.create(lock("E|f|1")).error == MESSAGE
        finally:
            server.stop()
            assert process.stdout is not None
            process.stdout.close()


@pytest.mark.sqlite
def test_a_check_names_a_file_system_that_is_read_only(read_only: tuple[Path, list[str]]) -> None:
    folder, command = read_only
    url = f"sqlite:///{folder}/orchmgmt.db"
    fill(url)
    ended = subprocess.run(
        [*command, COMMAND, "check", "--database-url", url], stdout=-1, text=True, timeout=60
    )
    assert ended.returncode == 1
    assert f"cannot write to {folder}, which is on a read-only file system" in ended.stdout


@pytest.mark.sqlite
def test_nothing_is_registered(serve: Callable[..., Process], cloud: Cloud, tmp_path: Path) -> None:
    fill(f"sqlite:///{tmp_path}/orchmgmt.db")
    env = {f"ORCHMGMT_{name}": value for name, value in cloud.registry.items()}
    server = serve("--read-only", env=env)
    assert server.locks().json["count"] == 1
    assert server.stop() == 0
    assert cloud.requests == []


@pytest.fixture
def replicated() -> Iterator[tuple[Cluster, Cluster]]:
    with ExitStack() as stack:
        primary = Cluster()
        stack.callback(primary.remove)
        fill(primary.create_database())
        standby = Cluster(primary=primary, hot_standby="on")
        stack.callback(standby.remove)
        yield primary, standby


@pytest.mark.postgresql
def test_a_standby(
    replicated: tuple[Cluster, Cluster],
    serve: Callable[..., Process],
    run: Callable[..., "subprocess.CompletedProcess[str]"],
) -> None:
    primary, standby = replicated
    name = "test1"
    server = serve("--read-only", *EAGER, "--database-url", standby.url(name))
    requests(server)
    writer = serve("--database-url", primary.url(name))
    assert writer.create(lock("C|d|1", owner="Other")).status == 201
    until(lambda: server.locks().json["count"] == 2)
    both = f"{primary.url(name).rpartition('/')[0]},127.0.0.1:{standby.port}/{name}"
    either = serve("--read-only", "--database-url", both)
    assert either.locks().json["count"] == 2
    for what, count in (("lock", "2 locks"), ("history", "1 job")):
        ended = run(what, "export", "--database-url", standby.url(name))
        assert (ended.returncode, ended.stderr) == (0, f"Exported {count}.\n")


@pytest.mark.postgresql
def test_a_user_who_may_only_read(postgresql: Cluster, serve: Callable[..., Process]) -> None:
    url = postgresql.create_database()
    fill(url)
    with closing(connect(url)) as database:
        database.execute("DROP ROLE IF EXISTS reader")
        database.execute("CREATE ROLE reader LOGIN PASSWORD 'reads'")
        database.execute("GRANT SELECT ON ALL TABLES IN SCHEMA public TO reader")
        try:
            address = url.rpartition("@")[2]
            server = serve(
                "--read-only", *EAGER, "--database-url", f"postgresql://reader:reads@{address}"
            )
            requests(server)
            server.stop()
            with closing(connect(url)) as rows:
                found = rows.execute("SELECT count(*) FROM orchestration_lock").fetchall()
            assert found == [(2,)]
        finally:
            database.execute("DROP OWNED BY reader")
            database.execute("DROP ROLE reader")


# The port first, then the database


@pytest.mark.sqlite
@pytest.mark.parametrize("unix", [False, True], ids=["port", "socket"])
@pytest.mark.parametrize("version", [0, 1], ids=["none", "earlier"])
def test_where_the_address_is_taken_the_database_stays_as_it_is(
    run: Callable[..., "subprocess.CompletedProcess[str]"], tmp_path: Path, unix: bool, version: int
) -> None:
    path = tmp_path / "orchmgmt.db"
    if version:
        shutil.copyfile(DATA / f"schema-{version}.sqlite", path)
    before = path.read_bytes() if version else None
    with socket.socket(socket.AF_UNIX if unix else socket.AF_INET) as other:
        other.bind(str(tmp_path / "http.sock") if unix else ("127.0.0.1", 0))
        other.listen()
        where = ("--unix-socket", "http.sock") if unix else ("--port", str(other.getsockname()[1]))
        ended = run("serve", *where)
    assert ended.returncode == 4
    assert ended.stderr.startswith("Error: cannot listen on ")
    assert (path.read_bytes() if path.exists() else None) == before
    assert not list(tmp_path.glob("*-wal"))


@pytest.mark.sqlite
def test_a_database_that_cannot_be_used_leaves_no_socket(
    run: Callable[..., "subprocess.CompletedProcess[str]"], tmp_path: Path
) -> None:
    with closing(sqlite3.connect(tmp_path / "orchmgmt.db")) as database:
        database.execute("CREATE TABLE other (a)")
    ended = run("serve", "--unix-socket", "http.sock")
    assert ended.returncode == 3
    assert os.listdir(tmp_path) == ["orchmgmt.db"]
