"""`orchmgmt backup`: consistent while servers write, never half there, and good to restore."""

import fcntl
import os
import re
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path

import pytest
from conftest import COMMAND
from needs import bound_by_permissions, terminal
from pages import blocks, marked
from support import job, lock

from orchmgmt.databases.schema import SCHEMA_VERSION
from orchmgmt.store import Store

EARLIER = Path(__file__).parents[1] / "data" / "schema-1.sqlite"


def instances(path):
    with closing(sqlite3.connect(path)) as database:
        assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        rows = database.execute("SELECT service_instance_id FROM orchestration_lock").fetchall()
    return [row[0] for row in rows]


def test_a_backup_in_the_middle_of_writes_is_of_one_moment(serve, run, tmp_path):
    """Nothing acknowledged before it is missing, and no bulk is there by halves."""
    server = serve()
    done = threading.Event()
    acknowledged: list[str] = []
    statuses = set()

    def write(client):
        number = 0
        while not done.is_set():
            names = [f"Client{client}|s{number}x{n}|1.0.0" for n in range(20)]
            statuses.add(server.create(*map(lock, names)).status)
            acknowledged.append(names[0])
            number += 1

    threads = [threading.Thread(target=write, args=(client,)) for client in range(2)]
    for thread in threads:
        thread.start()
    try:
        for number in range(3):
            before = list(acknowledged)
            ended = run("backup", f"{number}.db")
            assert (ended.returncode, ended.stderr) == (0, "")
            size = (tmp_path / f"{number}.db").stat().st_size
            assert ended.stdout == f"Copied {size} bytes to {number}.db.\n"
            kept = instances(tmp_path / f"{number}.db")
            assert set(before) <= set(kept)
            assert len(kept) % 20 == 0
    finally:
        done.set()
        for thread in threads:
            thread.join()
    assert statuses == {201}
    assert [it for it in os.listdir(tmp_path) if ".part" in it or re.match("[0-9].db-", it)] == []


def test_the_page_says_how_to_restore(serve, run, tmp_path):
    first = serve()
    first.create(lock("Kept|s|1.0.0"))
    assert run("backup", "backup.db").returncode == 0
    first.create(lock("Later|s|1.0.0"))
    first.stop(signal.SIGKILL)  # its write-ahead log stays, and must not come into the backup
    assert (tmp_path / "orchmgmt.db-wal").stat().st_size
    (commands,) = blocks("sh", marked("restore"))
    subprocess.run(["sh", "-ec", commands], cwd=tmp_path, check=True)
    second = serve()
    assert [it["serviceInstanceId"] for it in second.locks().entries] == ["Kept|s|1.0.0"]
    assert second.create(lock("Later|s|1.0.0")).status == 201


def test_ids_continue_after_a_restore_as_the_page_says(serve, tmp_path, monkeypatch):
    (commands,) = blocks("sh", marked("last-id"))
    monkeypatch.setenv("PATH", f"{Path(COMMAND).parent}{os.pathsep}{os.environ['PATH']}")
    subprocess.run(["sh", "-ec", commands], cwd=tmp_path, check=True)
    server = serve()
    (made,) = server.create(lock("New|s|1.0.0")).entries
    assert made["id"] == 1235
    assert server.locks().json["count"] == 1


def test_a_backup_says_what_keeps_it_from_the_database(run, tmp_path):
    folder = tmp_path / "closed"
    folder.mkdir()
    Store({"DATABASE_URL": f"sqlite:///{folder}/orchmgmt.db"}).close()
    folder.chmod(0o600)
    url = f"sqlite:///{folder}/orchmgmt.db"
    ended = run("backup", "copy.db", "--database-url", url, preexec_fn=bound_by_permissions)
    folder.chmod(0o700)
    assert (ended.returncode, ended.stdout) == (3, "")
    assert f"cannot enter {folder}, which has mode 0600" in ended.stderr


def test_a_backup_may_be_written_wherever_the_database_may_be_read(run, tmp_path):
    with Store({"DATABASE_URL": f"sqlite:///{tmp_path}/orchmgmt.db"}) as store:
        store.database.write(store.job_table.put, [job(1)])
    (tmp_path / "orchmgmt.db").chmod(0o640)
    (tmp_path / "a folder?").mkdir()
    assert run("backup", "a folder?/50%20.db").returncode == 0
    copy = tmp_path / "a folder?/50%20.db"
    assert copy.stat().st_mode & 0o777 == 0o640
    assert os.listdir(copy.parent) == [copy.name]
    url = "sqlite:///a%20folder%3F/50%2520.db"
    assert '"kelvinInfo"' in run("history", "export", "--database-url", url).stdout


def test_an_earlier_schema_is_backed_up_as_it_is(run, tmp_path):
    shutil.copyfile(EARLIER, tmp_path / "orchmgmt.db")
    assert run("backup", "backup.db").returncode == 0
    with closing(sqlite3.connect(tmp_path / "backup.db")) as database:
        assert database.execute("SELECT version FROM orchestration_schema").fetchall() == [(1,)]
    assert instances(tmp_path / "backup.db") == instances(EARLIER)


@pytest.fixture
def made(tmp_path):
    path = tmp_path / "orchmgmt.db"
    with Store({"DATABASE_URL": f"sqlite:///{path}"}) as store:
        store.database.write(store.job_table.put, [job(n) for n in range(2000)])
    return path


def fails(ended, tmp_path, *words, code=2):
    """One clear line, and nothing left behind."""
    assert ended.returncode == code
    assert ended.stdout == ""
    (line,) = ended.stderr.splitlines()
    assert line.startswith("Error: cannot ")
    for word in words:
        assert word in line
    assert [name for name in os.listdir(tmp_path) if ".part" in name] == []
    return True


@pytest.mark.parametrize("kind", ["file", "folder", "dangling link"])
def test_nothing_is_ever_replaced(run, made, tmp_path, kind):
    target = tmp_path / "backup.db"
    if kind == "file":
        target.write_text("mine")
    elif kind == "folder":
        target.mkdir()
    else:
        target.symlink_to("nowhere")
    assert fails(run("backup", "backup.db"), tmp_path, "backup.db", "exists")
    assert kind != "file" or target.read_text() == "mine"
    assert not (tmp_path / "nowhere").exists()


def test_the_database_is_not_its_own_backup(run, made, tmp_path):
    assert fails(run("backup", "orchmgmt.db"), tmp_path, "exists")


def test_a_missing_database_is_not_made(run, tmp_path):
    assert fails(run("backup", "backup.db"), tmp_path, "no such file", code=3)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("contents", "word"),
    [(b"Dear diary", "not a database"), (b"", "empty")],
    ids=["diary", "empty"],
)
def test_what_is_no_database_of_ours_is_refused(run, tmp_path, contents, word):
    (tmp_path / "orchmgmt.db").write_bytes(contents)
    assert fails(run("backup", "backup.db"), tmp_path, word, code=3)


def test_a_newer_schema_is_refused(run, made, tmp_path):
    with closing(sqlite3.connect(made)) as database, database:
        database.execute("UPDATE orchestration_schema SET version = ?", [SCHEMA_VERSION + 1])
    assert fails(run("backup", "backup.db"), tmp_path, "newer orchmgmt", code=3)


def test_a_damaged_database_makes_no_backup(run, made, tmp_path):
    with made.open("r+b") as file:
        for page in range(10, file.seek(0, 2) // 4096, 2):
            file.seek(page * 4096)
            file.write(b"\xff" * 4096)
    assert fails(run("backup", "backup.db"), tmp_path, "orchmgmt.db", code=3)
    assert not (tmp_path / "backup.db").exists()


def test_a_database_in_memory_is_refused(run, tmp_path):
    ended = run("backup", "backup.db", "--database-url", "sqlite:///:memory:")
    assert fails(ended, tmp_path, "in memory")


def test_postgresql_has_a_tool_of_its_own(run, tmp_path):
    ended = run("backup", "backup.db", "--database-url", "postgresql://u:secret@h/d")
    assert fails(ended, tmp_path, "pg_dump")
    assert "secret" not in ended.stderr


def test_a_missing_folder_is_one_clear_line(run, made, tmp_path):
    assert fails(run("backup", "no/such/backup.db"), tmp_path, "No such file or directory")


def test_no_room_for_the_backup_leaves_nothing_behind(run, made, tmp_path):
    def full():
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    assert fails(run("backup", "backup.db", preexec_fn=full), tmp_path, "backup.db", code=3)
    assert not (tmp_path / "backup.db").exists()


@pytest.mark.parametrize("command", [("backup", "backup.db"), ("history", "export", "jobs.jsonl")])
def test_what_a_killed_command_leaves_goes_with_the_next(run, made, tmp_path, command):
    script = """if True:
        import sys, time
        from pathlib import Path
        from orchmgmt.commands.unfinished import unfinished
        with unfinished(Path(sys.argv[1])) as folder:
            (folder / "copy").write_text("half")
            print(folder, flush=True)
            time.sleep(60)
    """
    with subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as working:
        folder = Path(working.stdout.readline().strip())
        try:
            assert run(*command).returncode == 0
            assert folder.exists()  # it is at work
        finally:
            working.kill()
    assert folder.exists()
    (tmp_path / command[-1]).unlink()
    assert run(*command).returncode == 0
    assert [it.name for it in tmp_path.iterdir() if ".part" in it.name] == []


def test_a_backup_to_standard_output(serve, run, tmp_path):
    server = serve()
    server.create(lock("A|b|1.0.0"))
    with (tmp_path / "copy.db").open("wb") as file:
        ended = run("backup", "-", stdout=file, stderr=subprocess.PIPE, capture_output=False)
    size = (tmp_path / "copy.db").stat().st_size
    assert (ended.returncode, ended.stderr) == (0, f"Copied {size} bytes.\n")
    assert instances(tmp_path / "copy.db") == ["A|b|1.0.0"]
    assert not (tmp_path / "-").exists()


def test_nobody_else_can_hold_up_what_needs_a_temporary_folder(run, made, tmp_path):
    """Any user may lock the folder that all share."""
    shared = tmp_path / "shared"
    shared.mkdir()
    held = os.open(shared, os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    with (tmp_path / "copy.db").open("wb") as file:
        environment = {**os.environ, "TMPDIR": str(shared)}
        ended = run("backup", "-", stdout=file, capture_output=False, env=environment, timeout=60)
    os.close(held)
    assert ended.returncode == 0
    assert list(shared.iterdir()) == []


def test_a_backup_is_not_shown_on_a_terminal(run, tmp_path):
    with Store({"DATABASE_URL": f"sqlite:///{tmp_path}/orchmgmt.db"}):
        pass
    ours, theirs = terminal()
    ended = run("backup", "-", stdout=theirs, stderr=subprocess.PIPE, capture_output=False)
    os.close(ours)
    os.close(theirs)
    assert ended.returncode == 2
    assert ended.stderr.startswith("Error: cannot back up to a terminal: send the output to")


def test_a_backup_that_nobody_reads_ends_quietly(run, tmp_path):
    with Store({"DATABASE_URL": f"sqlite:///{tmp_path}/orchmgmt.db"}) as store:
        store.database.write(store.job_table.put, [job(number) for number in range(3000)])
    read, write = os.pipe()
    os.close(read)
    ended = run("backup", "-", stdout=write, stderr=subprocess.PIPE, capture_output=False)
    os.close(write)
    assert (ended.returncode, ended.stderr) == (1, "")
