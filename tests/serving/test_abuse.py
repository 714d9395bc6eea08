"""Clients that take more than their share, and what goes on for the others."""

import json
import os
import resource
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, closing
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from support import FUTURE, MANAGEMENT, OPERATOR, Client, job, lock
from wire import JOB, job_entry, put

from orchmgmt.models import NewLock
from orchmgmt.serving.connections import Connection

pytestmark = pytest.mark.sqlite

QUERY = (
    f"POST {MANAGEMENT}/lock/query HTTP/1.1\r\nHost: test\r\nAuthorization: {OPERATOR}\r\n\r\n"
).encode()


def connect(service, receive_buffer=None):
    address = urlsplit(service.url)
    client = socket.socket()
    if receive_buffer:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    client.settimeout(30)
    client.connect((address.hostname, address.port))
    return closing(client)


def read_answers(client, count):
    """The statuses of so many answers to requests that were sent at once."""
    data, statuses = b"", []
    while len(statuses) < count:
        head, separator, rest = data.partition(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0] or 0)
        if separator and len(rest) >= length:
            statuses.append(int(head.split()[1]))
            data = rest[length:]
        else:
            received = client.recv(1 << 20)
            assert received, data
            data += received
    return statuses


def test_requests_sent_at_once_are_answered_in_their_order(service):
    with connect(service) as client:
        client.sendall(QUERY * 20 + b"GET /nope HTTP/1.1\r\nHost: test\r\n\r\n" + QUERY)
        assert read_answers(client, 22) == [200] * 20 + [404, 200]


def test_clients_that_ask_for_much_and_read_nothing_hold_up_nobody(start):
    service = start(THREADS=2)
    names = [f"P{number}{'x' * 50}|s{'y' * 50}|1.0.0" for number in range(1000)]
    service.store.lock_table.create([NewLock("", name, "Owner", FUTURE) for name in names])
    with ExitStack() as stack:
        greedy = [stack.enter_context(connect(service, 4096)) for _ in range(6)]
        for client in greedy:
            client.sendall(QUERY * 150)
        for _ in range(3):
            assert service.send("GET", "/health", headers={}).status == 200
            assert service.create(lock(f"New{time.monotonic_ns()}|s|1.0.0")).status == 201
        assert read_answers(greedy[0], 3) == [200] * 3


@pytest.mark.parametrize("reads", [True, False], ids=["read", "unread"])
def test_requests_sent_ahead_leave_the_loop_to_the_others(start, monkeypatch, reads):
    service = start(THREADS=1)
    rows = [NewLock("", f"P{number}|s|1.0.0", "Owner", FUTURE) for number in range(300)]
    service.store.lock_table.create(rows)
    writes = []
    write = Connection.handle_write
    monkeypatch.setattr(Connection, "handle_write", lambda it: writes.append(1) or write(it))
    with ExitStack() as stack:
        greedy = [stack.enter_context(connect(service, 4096)) for _ in range(4)]
        for client in greedy:
            client.sendall(QUERY * 60)
        readers = [threading.Thread(target=read_answers, args=(it, 60)) for it in greedy]
        for reader in readers if reads else ():
            reader.start()
        for _ in range(5):
            assert service.send("GET", "/health", headers={}).status == 200
        for reader in () if reads else readers:
            reader.start()
        for reader in readers:
            reader.join()
    # A socket takes an answer of 50 KB in some pieces; a loop that spins writes 100,000 times.
    assert 4 * 60 <= len(writes) < 4 * 60 * 40


def test_what_one_client_has_not_read_is_one_answer(start, monkeypatch):
    service = start(THREADS=1)
    put(service, JOB, *(job_entry(number, message="x" * 100_000) for number in range(40)))
    answered = []
    work = service.store.job_table.find
    monkeypatch.setattr(
        service.store.job_table, "find", lambda *wanted: answered.append(1) or work(*wanted)
    )
    with connect(service, 4096) as client:
        client.sendall(QUERY.replace(b"/lock/", b"/history/") * 10)
        for _ in range(10):
            assert service.locks().status == 200
        assert len(answered) == 1
        assert read_answers(client, 10) == [200] * 10
    assert len(answered) == 10


def test_giant_answers_that_nobody_reads_hold_up_nobody(start):
    service = start(THREADS=1)
    # An earlier version took such messages.
    put(service, JOB, *(job_entry(number, message="x" * 1_000_000) for number in range(40)))
    with ExitStack() as stack:
        greedy = [stack.enter_context(connect(service)) for _ in range(3)]
        for client in greedy:
            client.sendall(QUERY.replace(b"/lock/", b"/history/") * 3)
        assert service.send("GET", "/health", headers={}).status == 200
        assert service.locks().status == 200
        assert read_answers(greedy[0], 3) == [200] * 3


def test_idle_and_slow_connections_hold_up_nobody(service):
    with ExitStack() as stack:
        for _ in range(300):
            stack.enter_context(connect(service))
        for _ in range(50):
            stack.enter_context(connect(service)).sendall(
                QUERY[:-2] + b"Content-Length: 10\r\n\r\n{"
            )
        for _ in range(50):
            stack.enter_context(connect(service)).sendall(b"POST /slow HTTP/1.1\r\nHos")
        assert service.locks().status == 200


HEALTH = b"GET /health HTTP/1.1\r\nHost: test\r\n\r\n"


@pytest.fixture
def many_files():
    """As many open files in this process as it may have, for the clients' ends."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(before[1], 5000), before[1]))
    if resource.getrlimit(resource.RLIMIT_NOFILE)[0] < 1500:
        pytest.skip("this user may not open 1,500 files")
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_a_thousand_connections_at_once_are_all_answered(serve, many_files, tmp_path):
    server = serve()
    with ExitStack() as stack:
        clients = [stack.enter_context(connect(server)) for _ in range(1000)]
        for client in clients:
            client.sendall(HEALTH)
        assert server.create(lock("A|b|1.0.0")).status == 201
        for client in clients:
            assert read_answers(client, 1) == [200]
        for client in clients:
            client.sendall(QUERY * 2)
        for client in clients:
            assert read_answers(client, 2) == [200, 200]
    assert server.stop() == 0
    assert "limit" not in (tmp_path / "server-0.log").read_text()


def test_a_thousand_misbehaving_connections_hold_up_nobody(serve, many_files):
    """Slow heads, slow bodies, halves that are closed, and those that send and never read."""
    server = serve()
    body = QUERY[:-2] + b"Content-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"
    with ExitStack() as stack:
        heads = [stack.enter_context(connect(server)) for _ in range(250)]
        bodies = [stack.enter_context(connect(server)) for _ in range(250)]
        halves = [stack.enter_context(connect(server)) for _ in range(250)]
        never = [stack.enter_context(connect(server)) for _ in range(250)]
        for client in bodies:
            client.sendall(body[:-2])
        for client in halves:
            client.sendall(HEALTH[:20])
            client.shutdown(socket.SHUT_WR)
        for client in never:
            client.sendall(HEALTH * 20)
        for place in range(len(HEALTH) - 1):  # a byte at a time
            for client in heads[:: len(heads) // 10]:
                client.sendall(HEALTH[place : place + 1])
            if place % 10 == 0:
                assert server.create(lock(f"Place{place}|s|1.0.0")).status == 201
        for client in heads[:: len(heads) // 10]:
            client.sendall(HEALTH[-1:])
            assert read_answers(client, 1) == [200]
        for client in bodies:
            client.sendall(b"{}")
            assert read_answers(client, 1) == [200]
        for client in halves:
            assert client.recv(100) == b""  # what it asks for will never be whole


@pytest.mark.parametrize("requests", [1, 30])
def test_a_client_that_has_said_all_gets_its_answers(service, requests):
    with connect(service) as client:
        client.sendall(QUERY * requests)
        client.shutdown(socket.SHUT_WR)
        assert read_answers(client, requests) == [200] * requests
        assert client.recv(1) == b""


def test_a_client_that_has_said_all_gets_a_large_answer_and_a_slow_one(start, tmp_path):
    service = start(DATABASE_TIMEOUT_SECONDS=30)
    names = [f"P{number}{'x' * 50}|s{'y' * 50}|1.0.0" for number in range(1000)]
    service.store.lock_table.create([NewLock("", name, "Owner", FUTURE) for name in names])
    body = json.dumps({"locks": [lock("A|b|1.0.0")]}).encode()
    head = QUERY.replace(b"query", b"create")[:-2] + b"Content-Type: application/json\r\n"
    with (
        connect(service, 4096) as large,
        connect(service) as slow,
        closing(sqlite3.connect(tmp_path / "orchmgmt.db", isolation_level=None)) as other,
    ):
        other.execute("BEGIN IMMEDIATE")
        slow.sendall(head + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        slow.shutdown(socket.SHUT_WR)
        large.sendall(QUERY)
        large.shutdown(socket.SHUT_WR)
        assert read_answers(large, 1) == [200]
        other.execute("ROLLBACK")
        assert read_answers(slow, 1) == [201]


def limited(files, folder):
    """A server that may have so many files."""
    code = (
        "import resource, sys; from orchmgmt.cli import main;"
        f"resource.setrlimit(resource.RLIMIT_NOFILE, ({files}, {files})); main(sys.argv[1:])"
    )
    return subprocess.Popen(
        [sys.executable, "-c", code, "serve", "--port", "0", "--database-timeout-seconds", "60"],
        cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_connections_leave_files_for_requests_that_wait_and_these_give_them_back(tmp_path):
    process = limited(500, tmp_path)
    try:
        client = Client(process.stdout.readline().split()[-1])
        assert client.locks().status == 200
        folder = Path(f"/proc/{process.pid}/fd")
        with ExitStack() as stack:
            other = stack.enter_context(
                closing(sqlite3.connect(tmp_path / "orchmgmt.db", isolation_level=None))
            )
            waiting = [stack.enter_context(connect(client)) for _ in range(70)]
            for _ in range(150):
                stack.enter_context(connect(client))
            assert client.locks().status == 200
            other.execute("BEGIN IMMEDIATE")
            for number, it in enumerate(waiting):
                it.sendall(create_request(f"P{number}|s|1.0.0"))
            time.sleep(2)  # by then threads have been started for those that wait
            other.execute("COMMIT")
            assert [read_answers(it, 1) for it in waiting] == [[201]] * 70
        assert client.locks().json["count"] == 70
        names = map(os.path.realpath, folder.iterdir())  # also of one that is closed meanwhile
        of_database = [it for it in names if "orchmgmt.db" in it]
        assert len(of_database) < 20
    finally:
        process.terminate()
        _, log = process.communicate(timeout=60)
    assert "unable to open" not in log
    assert "Too many open files" not in log


def create_request(name):
    body = json.dumps({"locks": [lock(name)]})
    return (
        f"POST {MANAGEMENT}/lock/create HTTP/1.1\r\nHost: test\r\nAuthorization: {OPERATOR}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n{body}"
    ).encode()


def test_more_connections_than_files_wait_their_turn(tmp_path):
    process = limited(80, tmp_path)
    try:
        assert process.stdout is not None
        client = Client(process.stdout.readline().split()[-1])
        with ExitStack() as stack:
            for _ in range(60):
                stack.enter_context(connect(client))
        assert client.create(lock("A|b|1.0.0")).status == 201
    finally:
        process.terminate()
        _, log = process.communicate(timeout=60)
    assert "Too many open files" not in log


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"locks": [{}] * 300_000}, "Service instance id is missing"),
        ({"locks": [1] * 300_000}, "A JSON object was expected"),
        ({"locks": [None] * 300_000}, "Request payload contains null element"),
    ],
    ids=["empty", "wrong type", "null"],
)
def test_only_the_first_of_many_bad_locks_is_looked_at(service, body, message):
    assert service.post("/lock/create", body).error == message


@pytest.mark.parametrize("elements", [["not a name!"], [""], [1]], ids=str)
def test_only_the_first_of_many_bad_values_is_looked_at(service, elements):
    assert service.locks(owners=elements * 200_000).status == 400


def test_a_body_that_is_asked_about_and_too_large_is_refused_at_once(service):
    with connect(service) as client:
        client.sendall(QUERY[:-2] + b"Content-Length: 99999999\r\nExpect: 100-continue\r\n\r\n")
        assert client.recv(12) == b"HTTP/1.1 413"


def test_a_damaged_database_is_a_503(start, tmp_path, caplog):
    service = start()
    service.store.database.write(service.store.job_table.put, [job(n) for n in range(3000)])
    service.store.database.close()
    with closing(sqlite3.connect(tmp_path / "orchmgmt.db")) as database:
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    with (tmp_path / "orchmgmt.db").open("r+b") as file:
        for page in range(20, file.seek(0, 2) // 4096, 2):
            file.seek(page * 4096)
            file.write(b"\xff" * 4096)
    answers = [service.jobs(pagination={"page": n, "size": 500}) for n in range(6)]
    assert {answer.status for answer in answers} <= {200, 503}
    refused = [answer for answer in answers if answer.status == 503]
    assert refused
    for answer in refused:
        assert answer.headers["Retry-After"]
        assert "sqlite" not in answer.error.lower()
    assert service.send("GET", "/health").status == 503
    assert "the database is damaged: database disk image is malformed: restore a" in caplog.text


def test_options_is_a_wrong_method_like_any_other(service):
    answer = service.send("OPTIONS", f"{MANAGEMENT}/lock/query")
    assert answer.status == 405
    assert answer.headers["Allow"] == "POST"


def test_a_refused_head_has_no_body(service):
    with connect(service) as client:
        client.sendall(b"HEAD / HTTP/1.1\r\nContent-Length: nonsense\r\n\r\n")
        client.shutdown(socket.SHUT_WR)
        answer = b"".join(iter(lambda: client.recv(65536), b""))
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400")
    assert body == b""
