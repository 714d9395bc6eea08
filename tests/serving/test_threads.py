"""Threads that answer and threads that wait, and requests that come in between."""

import json
import socket
import sqlite3
import struct
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from support import MANAGEMENT, OPERATOR, in_threads, lock, until

from orchmgmt.app import create_app
from orchmgmt.serving import server
from orchmgmt.settings import Settings

CREATE = f"POST {MANAGEMENT}/lock/create HTTP/1.1\r\nHost: test\r\nAuthorization: {OPERATOR}\r\n"


def connect(service):
    address = urlsplit(service.url)
    return closing(socket.create_connection((address.hostname, address.port), timeout=30))


def threads_of(server):
    """How many threads the process has."""
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    return int(status.split("Threads:")[1].split()[0])


def create(name, *headers):
    """The head and the body of a create."""
    body = json.dumps({"locks": [lock(name)]}).encode()
    lines = ["Content-Type: application/json", f"Content-Length: {len(body)}", *headers]
    return (CREATE + "\r\n".join(lines) + "\r\n\r\n").encode(), body


def read_answer(stream):
    """A status, and the body that belongs to it."""
    status, length = int(stream.readline().split()[1]), 0
    while (line := stream.readline()) not in (b"\r\n", b""):
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            length = int(value)
    return status, stream.read(length)


@pytest.mark.postgresql  # where several threads answer
def test_a_request_that_waits_to_be_asked_for_gets_its_own_answer(start):
    service = start()
    wrong: list[object] = []

    def work(client):
        for number in range(25):
            first, second = (f"Client{client}|{place}x{number}|1.0.0" for place in "ab")
            head, body = create(second, "Expect: 100-continue")
            with connect(service) as connection, connection.makefile("rb") as stream:
                connection.sendall(b"".join(create(first)) + head)
                answers = [read_answer(stream), read_answer(stream)]
                connection.sendall(body)
                answers.append(read_answer(stream))
                connection.shutdown(socket.SHUT_WR)
                statuses = [status for status, _ in answers]
                if statuses != [201, 100, 201] or second.encode() not in answers[2][1]:
                    wrong.append(answers)
                elif rest := stream.read():
                    wrong.append(rest)

    in_threads(work, range(8))
    assert wrong == []


@pytest.mark.postgresql
def test_clients_that_go_away_while_they_are_answered_end_nothing(serve, database_url, tmp_path):
    running = serve("--database-url", database_url)
    asked = (
        b"GET /health HTTP/1.1\r\nHost: test\r\n\r\n" + create("A|b|1", "Expect: 100-continue")[0]
    )

    def work(client):
        for number in range(150):
            with connect(running) as connection:
                reset = struct.pack("ii", 1, 0)
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset)
                connection.sendall(asked)
                time.sleep((client + number) % 7 / 1000)

    in_threads(work, range(8))
    assert running.send("GET", "/health", headers={}).status == 200
    assert running.stop() == 0
    assert "Traceback" not in (tmp_path / "server-0.log").read_text()


@pytest.mark.sqlite
def test_a_server_whose_threads_all_wait_can_be_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr(server, "DRAIN_TIMEOUT", 0.5)
    url = f"sqlite:///{tmp_path}/orchmgmt.db"
    settings = Settings(database_url=url, database_timeout_seconds=60, threads=1, port=0)
    running = server.Server(settings)
    thread = threading.Thread(target=running.run, args=[create_app(settings)], daemon=True)
    thread.start()
    database = sqlite3.connect(tmp_path / "orchmgmt.db", isolation_level=None)
    with closing(database), connect(running) as client:
        database.execute("BEGIN IMMEDIATE")
        client.sendall(b"".join(create("A|b|1.0.0")))
        time.sleep(0.2)
        running.stop()
        thread.join(30)
        assert not thread.is_alive()
        database.execute("ROLLBACK")


@pytest.mark.sqlite
def test_creates_that_wait_for_another_process_do_not_stop_readers(serve, tmp_path):
    """One thread answers, until it waits; once nothing waits, one is enough again."""
    server = serve("--database-timeout-seconds", "60")
    assert server.locks().status == 200  # all its threads have started by now
    usual = threads_of(server)
    answers = []
    database = sqlite3.connect(tmp_path / "orchmgmt.db", isolation_level=None)
    with closing(database), ThreadPoolExecutor(12) as pool:
        database.execute("BEGIN IMMEDIATE")
        for number in range(12):
            answers.append(pool.submit(server.create, lock(f"P{number}|s|1.0.0")))
        for _ in range(20):
            assert server.locks().json["count"] == 0
            assert server.send("GET", "/health").status == 200
        until(lambda: threads_of(server) >= usual + 12)
        assert not any(answer.done() for answer in answers)
        database.execute("ROLLBACK")
        assert [answer.result().status for answer in answers] == [201] * 12
    until(lambda: threads_of(server) == usual)
    assert server.locks().json["count"] == 12
