"""What must not hurt: a full disk, a clock that jumps, and a server told to stop under load."""

import http.client
import json
import os
import resource
import shutil
import signal
import socket
import sqlite3
import subprocess
import threading
import time
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from conftest import COMMAND
from support import MANAGEMENT, OPERATOR, Process, connection_of, job, lock

from orchmgmt.errors import Unavailable
from orchmgmt.store import Store

BULK = 200
NO_ROOM = 1_000_000  # bytes


def bulk(number):
    return [lock(f"Bulk{number}x{n}|service|1.0.0", f"Owner{number}") for n in range(BULK)]


def fill(server):
    """Create locks until there is no room; return how many bulks were acknowledged."""
    for number in range(1000):
        answer = server.create(*bulk(number))
        if answer.status != 201:
            assert answer.status == 503
            assert int(answer.headers["Retry-After"]) > 0
            assert answer.error in (
                "The database has no room",
                "The database does not answer; try again later",
            )
            return number
    raise AssertionError("the database never became full")


def serves_while_full(server, bulks):
    """Reads go on, writes are refused and nothing is half done, again and again."""
    for _ in range(3):
        assert server.locks(pagination={"page": 0, "size": 1}).json["count"] == bulks * BULK
        assert server.jobs().status == 200
        health = server.send("GET", "/health")
        refused = server.create(*bulk(999))
        assert health.status == refused.status == 503
        assert health.error == refused.error
        assert "orchmgmt_database_up 0.0" in server.send("GET", "/metrics").body.decode()
    assert server.process.poll() is None


def serves_again(server, bulks, path):
    """Writes work as soon as there is room, and what was acknowledged is all there."""
    assert server.create(*bulk(999)).status == 201
    assert server.send("GET", "/health").status == 200
    assert "orchmgmt_database_up 1.0" in server.send("GET", "/metrics").body.decode()
    assert server.remove("Owner999", "instanceIds=Bulk999x0%7Cservice%7C1.0.0").status == 200
    assert server.locks().json["count"] == (bulks + 1) * BULK - 1
    assert server.stop() == 0
    with closing(sqlite3.connect(path)) as database:
        assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        rows = database.execute("SELECT owner, count(*) FROM orchestration_lock GROUP BY owner")
        found = dict(rows.fetchall())
    expected = {f"Owner{number}": BULK for number in range(bulks)}
    assert found == {**expected, "Owner999": BULK - 1}


def test_a_file_that_may_not_grow_is_a_503_until_it_may(serve, tmp_path):
    server = serve("--metrics", "true")
    pid = server.process.pid
    _, most = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (NO_ROOM, most))
    bulks = fill(server)
    assert bulks > 0
    serves_while_full(server, bulks)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (most, most))
    serves_again(server, bulks, tmp_path / "orchmgmt.db")


MOUNT = ["unshare", "--user", "--map-root-user", "--mount"]


@pytest.fixture
def small_disk(tmp_path):
    """A command's beginning that gives it a disk of a few megabytes, and the disk's folder."""
    folder = tmp_path / "disk"
    folder.mkdir()
    script = f"mount -t tmpfs -o size=4m tmpfs '{folder}' && exec \"$@\""
    command = [*MOUNT, "sh", "-c", script, "sh"]
    if shutil.which("unshare") is None or subprocess.run([*command, "true"]).returncode:
        pytest.skip("this user cannot mount a disk of its own, as in most containers")
    return command, folder


def test_a_full_disk_is_a_503_until_there_is_room(small_disk, tmp_path):
    command, folder = small_disk
    url = f"sqlite:///{folder}/orchmgmt.db"
    with (tmp_path / "log").open("w") as errors:
        process = subprocess.Popen(
            [*command, COMMAND, "serve", "--port", "0", "--database-url", url, "--metrics", "true"],
            stdout=subprocess.PIPE, stderr=errors, text=True,
        )  # fmt: skip
    try:
        server = Process(process)
        inside = Path(f"/proc/{process.pid}/root{folder}")  # others do not see the disk
        (inside / "ballast").write_bytes(b"x" * 2_000_000)
        bulks = fill(server)
        assert bulks > 0
        serves_while_full(server, bulks)
        assert server.create(*bulk(999)).error == "The database has no room"
        log = (tmp_path / "log").read_text()
        assert "ERROR orchmgmt: the database has no room: database or disk is full" in log
        (inside / "ballast").unlink()
        assert server.send("GET", "/health").status == 503  # nothing is written to find out
        assert server.create(*bulk(999)).status == 201
        assert server.send("GET", "/health").status == 200
        assert server.locks().json["count"] == (bulks + 1) * BULK
        assert server.stop() == 0
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_sqlites_own_limit_leaves_nothing_half_written_either(tmp_path):
    with Store({"DATABASE_URL": f"sqlite:///{tmp_path}/orchmgmt.db"}) as store:
        connection = connection_of(store)
        connection.execute("PRAGMA max_page_count = 60")
        kept = 0

        def put():
            jobs = [job(kept + n) for n in range(50)]
            store.database.write(store.job_table.put, jobs)
            return len(jobs)

        with suppress(Unavailable):
            for _ in range(1000):
                kept += put()
        assert 0 < kept < 50_000
        jobs = "SELECT count(*) FROM orchestration_job"
        counts = "SELECT sum(jobs) FROM orchestration_job_count"

        def rows(sql):
            return store.database.read(store.database.rows, sql)

        assert rows(jobs) == rows(counts) == [(kept,)]
        connection.execute("PRAGMA max_page_count = 6000")
        kept += put()
        assert rows(jobs) == rows(counts) == [(kept,)]


def test_a_file_or_folder_that_may_not_be_written_to_is_told_by_health(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    command = [COMMAND, "serve", "--port", "0", "--database-url", f"sqlite:///{folder}/orchmgmt.db"]
    command += ["--database-timeout-seconds", "60"]  # longer than the client waits
    if os.getuid() == 0:  # root may write to all, but not from a name space of its own
        unshare = ["unshare", "--user", "true"]
        if shutil.which("unshare") is None or subprocess.run(unshare, check=False).returncode:
            pytest.skip("this user cannot give up an administrator's rights")
        command = ["unshare", "--user", *command]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        server = Process(process)
        assert server.create(lock("A|b|1.0.0")).status == 201
        for path in (folder / "orchmgmt.db", folder):
            mode = path.stat().st_mode
            path.chmod(mode & ~0o222)
            assert server.send("GET", "/health").status == 503
            assert server.locks().json["count"] == 1
            path.chmod(mode)
            assert server.send("GET", "/health").status == 200
        with closing(sqlite3.connect(folder / "orchmgmt.db", isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")  # a long write is no reason to restart a server
            assert server.send("GET", "/health").status == 200
        assert server.stop() == 0
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.fixture
def faked(clock, serve):
    """A server whose time of day is the clock's; the time that only goes on is the real one."""
    return serve("--cleaner-interval-seconds", "0.05", "--metrics", "true", env=clock.env)


HOUR, DAY = 3600, 86400


def rounds_of(server):
    text = server.send("GET", "/metrics").body.decode()
    return float(text.split("\norchmgmt_cleaner_rounds_total ")[1].split()[0])


def cleaned_twice(server):
    """Wait until a whole round of the cleaner has passed."""
    before = rounds_of(server)
    while rounds_of(server) < before + 2:
        time.sleep(0.01)


def test_a_clock_that_jumps_releases_no_lock_early_and_leaves_none_stuck(faked, clock, tmp_path):
    address = urlsplit(faked.url)
    kept = http.client.HTTPConnection(address.hostname, address.port, timeout=30)
    health = ("GET", "/health")
    kept.request(*health)
    kept.getresponse().read()

    def held(name):
        cleaned_twice(faked)
        answer = faked.create(lock(name, expires_at=clock.after(DAY)))
        assert answer.status in (201, 400)
        assert answer.status == 201 or answer.error == f"Already locked: {name}"
        return answer.status == 400

    hours = ["Two|hours|1.0.0", "Other|hours|1.0.0"]
    expires = clock.after(2 * HOUR)
    assert faked.create(*[lock(it, expires_at=expires) for it in hours]).status == 201
    assert faked.create(lock("Two|days|1.0.0", expires_at=clock.after(2 * DAY))).status == 201

    clock.set(-HOUR)  # back an hour: all are held still, and new ones can be made
    assert all(map(held, hours))
    assert faked.create(lock("Back|then|1.0.0", expires_at=clock.after(60))).status == 201
    assert held("Back|then|1.0.0")
    past = faked.create(lock("Past|then|1.0.0", expires_at=clock.after(-60)))
    assert past.error.startswith("Expires at is in the past")

    clock.set(0)  # and forward again: only what has expired is free
    assert not held("Back|then|1.0.0")
    assert all(map(held, hours))
    clock.set(2 * HOUR - 60)
    assert all(map(held, hours))

    clock.set(DAY)  # forward a day: what has expired is free, the rest is held, and all is kept
    assert held("Two|days|1.0.0")
    assert not held(hours[0])

    clock.set(0)  # what was made meanwhile is held until its time, by whatever clock
    assert all(map(held, hours))
    assert "nothing is cleaned for 60 s" in (tmp_path / "server-0.log").read_text()
    time.sleep(1.1)  # the server looks at its connections once a second
    kept.request(*health)  # the clients that were there all the time still are
    assert kept.getresponse().read() == b'{"status": "ok"}'
    kept.close()
    assert faked.stop() == 0


def test_a_clock_set_back_while_a_client_sends_does_not_cut_it_off(faked, clock):
    address = urlsplit(faked.url)
    body = json.dumps({"locks": [lock("A|b|1.0.0")]}).encode()
    head = (
        f"POST {MANAGEMENT}/lock/create HTTP/1.1\r\nHost: test\r\nAuthorization: {OPERATOR}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    ).encode()
    with socket.create_connection((address.hostname, address.port), timeout=30) as client:
        client.sendall(head + body[:10])
        for ahead in (-HOUR, DAY, 0):
            clock.set(ahead)
            assert faked.send("GET", "/health").status == 200
            time.sleep(1.1)
        client.sendall(body[10:])
        assert client.recv(12) == b"HTTP/1.1 201"


def test_a_stop_under_load_answers_all_that_was_taken(serve, tmp_path):
    """Kept connections with several requests each on their way, and none lost in between."""
    server = serve()
    address = urlsplit(server.url)
    acknowledged: set[str] = set()
    enough = threading.Event()
    broken: list[object] = []

    def work(client):
        with ExitStack() as stack:
            connection = stack.enter_context(
                socket.create_connection((address.hostname, address.port), timeout=30)
            )
            answers = stack.enter_context(connection.makefile("rb"))
            try:
                for number in range(10_000):
                    names = [f"Client{client}|s{number}x{n}|1.0.0" for n in range(5)]
                    connection.sendall(b"".join(map(create, names)))
                    for name in names:
                        status = answers.readline()
                        if not status:
                            return  # it was not taken: there is not even a byte of an answer
                        headers = http.client.parse_headers(answers)
                        body = answers.read(int(headers["Content-Length"]))
                        if b" 201 " not in status or name.encode() not in body:
                            broken.append((status, body))
                        acknowledged.add(name)
                        if len(acknowledged) > 200:
                            enough.set()
            except (BrokenPipeError, ConnectionResetError):
                return
            except Exception as error:
                broken.append(error)

    def create(name):
        body = json.dumps({"locks": [lock(name)]}).encode()
        return (
            f"POST {MANAGEMENT}/lock/create HTTP/1.1\r\nHost: test\r\nAuthorization: {OPERATOR}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        ).encode() + body

    threads = [threading.Thread(target=work, args=(client,)) for client in range(8)]
    for thread in threads:
        thread.start()
    assert enough.wait(60)
    assert server.stop() == 0
    for thread in threads:
        thread.join()
    assert broken == []
    with closing(sqlite3.connect(tmp_path / "orchmgmt.db")) as database:
        rows = database.execute("SELECT service_instance_id FROM orchestration_lock").fetchall()
    assert {row[0] for row in rows} == acknowledged


def test_a_stop_answers_what_waits_in_the_kernel_however_much(serve):
    server = serve()
    address = urlsplit(server.url)
    server.process.send_signal(signal.SIGSTOP)
    with ExitStack() as stack:
        clients = [
            stack.enter_context(socket.create_connection((address.hostname, address.port), 30))
            for _ in range(400)
        ]
        for client in clients:
            client.sendall(b"GET /health HTTP/1.1\r\nHost: test\r\n\r\n")
        server.process.send_signal(signal.SIGTERM)
        server.process.send_signal(signal.SIGCONT)
        assert {client.recv(12) for client in clients} == {b"HTTP/1.1 200"}
    assert server.process.wait(60) == 0
