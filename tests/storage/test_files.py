"""What other programs do to the files of a SQLite database that servers have in use."""

import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from threading import Event
from time import sleep

import pytest
from support import Client, Process, lock

from orchmgmt.databases.sqlite import LOOK_INTERVAL
from orchmgmt.errors import Unavailable
from orchmgmt.store import Store

pytestmark = pytest.mark.sqlite

SILENT = "The database does not answer; try again later"


def remove(path: Path) -> None:
    path.unlink()


def replace(path: Path) -> None:
    other = path.with_name("other")
    other.write_bytes(path.read_bytes())
    other.replace(path)


def truncate(path: Path) -> None:
    os.truncate(path, 0)


every_file = pytest.mark.parametrize("suffix", ["", "-wal", "-shm"], ids=["main", "wal", "shm"])
every_harm = pytest.mark.parametrize("harm", [remove, replace, truncate])


def made(client: Client, name: str) -> bool:
    """Whether a lock was acknowledged; if not, the database must be to blame."""
    answer = client.create(lock(f"{name}|b|1.0.0"))
    assert answer.status == 201 or (answer.status, answer.error) == (503, SILENT)
    return answer.status == 201


def refused(client: Client) -> bool:
    answer = client.locks()
    assert answer.status == 200 or (answer.status, answer.error) == (503, SILENT)
    return answer.status == 503


def harmed(tmp_path: Path, name: str, log: str) -> None:
    """The log of a server has one line that says which file it is about, and what to do."""
    lines = [it for it in (tmp_path / log).read_text().splitlines() if " ERROR " in it]
    assert len(lines) == 1, lines
    assert f"/{name} was " in lines[0]
    assert "start again" in lines[0]


@every_harm
@every_file
@pytest.mark.parametrize("count", [1, 2], ids=["one", "two"])
def test_nothing_is_acknowledged_once_a_file_has_been_harmed(
    serve: Callable[..., Process],
    tmp_path: Path,
    count: int,
    suffix: str,
    harm: Callable[[Path], None],
) -> None:
    servers = [serve() for _ in range(count)]
    for number, server in enumerate(servers):
        assert made(server, f"Early{number}")
    harm(tmp_path / f"orchmgmt.db{suffix}")
    for number, server in enumerate(servers):
        for _ in range(3):
            assert not made(server, f"Late{number}")
        assert server.send("GET", "/health").status == 503
        assert server.locks().status == 503
        harmed(tmp_path, f"orchmgmt.db{suffix}", f"server-{number}.log")


@every_harm
@every_file
def test_a_server_that_only_reads_notices_it_too(
    serve: Callable[..., Process], tmp_path: Path, suffix: str, harm: Callable[[Path], None]
) -> None:
    server = serve()
    assert made(server, "Early")
    assert not refused(server)
    harm(tmp_path / f"orchmgmt.db{suffix}")
    sleep(LOOK_INTERVAL)  # reading the truncated index before the next look would be a SIGBUS
    assert refused(server)
    harmed(tmp_path, f"orchmgmt.db{suffix}", "server-0.log")


@pytest.mark.parametrize(
    ("suffix", "harm"),
    [
        (suffix, harm)
        for suffix in ("", "-wal", "-shm")
        for harm in (remove, replace, truncate)
        if (suffix, harm) != ("-shm", truncate)
    ],
)
def test_nothing_is_acknowledged_if_it_happens_within_the_transaction(
    tmp_path: Path, suffix: str, harm: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    with Store({"DATABASE_URL": f"sqlite:///{tmp_path}/orchmgmt.db"}, lambda: 1e9) as store:
        store.history.create("PULL", "A", "A", "b")  # the files are there

        def work() -> None:
            store.database.change("UPDATE orchestration_job SET message = 'late'")
            harm(tmp_path / f"orchmgmt.db{suffix}")

        with pytest.raises(Unavailable):
            store.database.write_once(work)
        with pytest.raises(Unavailable):
            store.history.find()
    assert f"orchmgmt.db{suffix} was " in caplog.text


@pytest.mark.parametrize("harm", [remove, replace])
def test_no_other_file_is_opened_between_two_looks(
    tmp_path: Path, harm: Callable[[Path], None]
) -> None:
    path = tmp_path / "orchmgmt.db"
    with Store({"DATABASE_URL": f"sqlite:///{path}"}) as store, ThreadPoolExecutor() as pool:
        reading, go_on = Event(), Event()

        def work() -> None:
            reading.set()
            go_on.wait()

        reader = pool.submit(store.database.read, work)  # it has looked, and has the connection
        reading.wait()
        away = tmp_path / "away"
        away.hardlink_to(path)
        harm(path)
        try:
            with pytest.raises(Unavailable):
                store.locks.find()
        finally:
            away.replace(path)
            go_on.set()
        reader.result()
        assert store.locks.find().count == 0


def test_an_index_that_is_emptied_within_a_transaction_ends_the_process_at_most(
    tmp_path: Path,
) -> None:
    """To touch what is mapped and gone is a SIGBUS; who has died acknowledges nothing."""
    script = """if True:
        import os, sys
        from orchmgmt.store import Store
        with Store({"DATABASE_URL": sys.argv[1]}) as store:
            store.history.create("PULL", "A", "A", "early")
            def work():
                store.database.change("UPDATE orchestration_job SET message = 'late'")
                os.truncate("orchmgmt.db-shm", 0)
            store.database.write_once(work)
            print("acknowledged")
    """
    url = f"sqlite:///{tmp_path}/orchmgmt.db"
    ended = subprocess.run(
        [sys.executable, "-c", script, url], cwd=tmp_path, capture_output=True, text=True
    )
    assert "acknowledged" not in ended.stdout
    assert ended.returncode == -signal.SIGBUS or "Unavailable" in ended.stderr
    with Store({"DATABASE_URL": url}) as store:
        assert [it.service_definition for it in store.history.find().entries] == ["early"]


@pytest.mark.parametrize("removed", [["-wal"], ["-shm"], ["-wal", "-shm"]], ids="".join)
def test_what_was_acknowledged_before_outlives_a_kill(
    serve: Callable[..., Process], tmp_path: Path, removed: list[str]
) -> None:
    servers = [serve() for _ in range(2)]
    for number, server in enumerate(servers):
        assert made(server, f"Early{number}")
    for suffix in removed:
        (tmp_path / f"orchmgmt.db{suffix}").unlink()
    for server in servers:
        assert server.send("GET", "/health").status == 503  # as a supervisor asks now and then
    for server in servers:
        server.process.kill()
        server.process.wait()
    again = serve()
    names = {it["serviceInstanceId"] for it in again.locks().entries}
    assert names == {"Early0|b|1.0.0", "Early1|b|1.0.0"}


@pytest.mark.parametrize("removed", [["-wal"], ["-shm"], ["-wal", "-shm"]], ids="".join)
def test_no_other_process_comes_to_a_database_whose_files_are_missing(
    serve: Callable[..., Process],
    run: Callable[..., object],
    tmp_path: Path,
    removed: list[str],
) -> None:
    server = serve()
    assert made(server, "Early")
    for suffix in removed:
        (tmp_path / f"orchmgmt.db{suffix}").unlink()
    line = '{"serviceInstanceId": "A|b|1", "owner": "B", "expiresAt": "2099-01-01T00:00:00Z"}'
    options = ["--database-timeout-seconds", "0.1"]
    for command in (
        ["serve", "--port", "0", *options],
        ["lock", "export", *options],
        ["history", "export", *options],
        ["lock", "import", "-", *options],
        ["clean", *options],
        ["upgrade", *options],
        ["backup", "copy.db", *options],
    ):
        ended = run(*command, input=line)
        said = ended.stderr.splitlines()
        assert (ended.returncode, len(said)) == (3, 1), (command, ended.stderr)
        assert f"orchmgmt.db{removed[0]} is missing" in said[0]
        assert "stop them all" in said[0]
    assert not (tmp_path / "copy.db").exists()
    assert server.stop() == 0
    ended = run("lock", "export")
    assert (ended.returncode, ended.stdout.count("\n")) == (0, 1)


@pytest.mark.parametrize("harm", [truncate, Path.unlink])
def test_an_emptied_or_removed_database_with_its_log_is_no_new_one(
    serve: Callable[..., Process],
    run: Callable[..., object],
    tmp_path: Path,
    harm: Callable[[Path], object],
) -> None:
    server = serve()
    assert made(server, "Early")
    server.process.kill()
    server.process.wait()
    copy = (tmp_path / "orchmgmt.db").read_bytes()
    harm(tmp_path / "orchmgmt.db")
    log = (tmp_path / "orchmgmt.db-wal").read_bytes()
    ended = run("serve", "--port", "0")
    assert ended.returncode == 3
    assert "restore a backup" in ended.stderr
    assert "restore a backup" in run("check").stdout
    assert (tmp_path / "orchmgmt.db-wal").read_bytes() == log
    (tmp_path / "orchmgmt.db").write_bytes(copy)
    assert serve().locks().json["count"] == 1


def test_a_database_may_be_put_in_order_while_it_is_in_use(
    serve: Callable[..., Process], tmp_path: Path
) -> None:
    servers = [serve() for _ in range(2)]
    for number in range(30):
        wanted = [lock(f"L{number}p{n}|b|1.0.0", "Owner") for n in range(100)]
        assert servers[number % 2].create(*wanted).status == 201
    path = tmp_path / "orchmgmt.db"
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        size = path.stat().st_size
        assert (tmp_path / "orchmgmt.db-wal").stat().st_size == 0
        assert all(made(server, f"First{n}") for n, server in enumerate(servers))
        other.execute("DELETE FROM orchestration_lock WHERE service_instance_id LIKE 'L%'")
        other.execute("VACUUM")
        other.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        assert path.stat().st_size < size
        assert all(made(server, f"Second{n}") for n, server in enumerate(servers))
    assert servers[0].locks().json["count"] == 4
    assert all(server.send("GET", "/health").status == 200 for server in servers)
