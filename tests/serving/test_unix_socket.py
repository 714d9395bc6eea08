"""`orchmgmt serve --unix-socket`: how the socket comes, who may open it, and how it goes."""

import http.client
import json
import os
import signal
import socket
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from support import MANAGEMENT, OPERATOR, Process

pytestmark = pytest.mark.sqlite

QUERY = f"{MANAGEMENT}/lock/query"
Serve = Callable[..., Process]


def connect(path: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(30)
    connection.connect(str(path))
    return connection


def query(path: Path) -> tuple[int, Any]:
    with connect(path) as connection:
        head = f"POST {QUERY} HTTP/1.1\r\nHost: a\r\nAuthorization: {OPERATOR}\r\n\r\n"
        connection.sendall(head.encode())
        response = http.client.HTTPResponse(connection)
        response.begin()
        return response.status, json.loads(response.read())


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "http.sock"


def test_operations_are_served_and_the_line_says_where(serve: Serve, path: Path) -> None:
    process = serve("--unix-socket", str(path))
    assert process.url.startswith("http+unix://")
    assert unquote(process.url.removeprefix("http+unix://")) == str(path)
    assert query(path) == (200, {"entries": [], "count": 0})


def test_no_tcp_port_is_opened_and_nothing_warned_of(
    serve: Serve, path: Path, tmp_path: Path
) -> None:
    process = serve("--unix-socket", "http.sock", "--host", "0.0.0.0")
    assert query(path)[0] == 200
    files = Path(f"/proc/{process.process.pid}/fd")
    if files.exists():
        own = {os.readlink(file) for file in files.iterdir() if file.is_symlink()}
        tables = [Path(f"/proc/net/{name}").read_text() for name in ("tcp", "tcp6")]
        sockets = {f"socket:[{line.split()[9]}]" for it in tables for line in it.splitlines()[1:]}
        assert own & sockets == set()
    assert process.stop() == 0
    log = (tmp_path / "server-0.log").read_text().splitlines()
    assert len(log) == 2
    assert all(" INFO orchmgmt: " in line for line in log)


def test_only_its_owner_and_group_may_open_it(serve: Serve, path: Path) -> None:
    before = os.umask(0)
    try:
        serve("--unix-socket", str(path))
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o660


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_is_gone_when_the_server_ends(serve: Serve, path: Path, number: int) -> None:
    assert serve("--unix-socket", str(path)).stop(number) == 0
    assert not path.exists()


def test_what_a_killed_server_left_behind_is_replaced(serve: Serve, path: Path) -> None:
    serve("--unix-socket", str(path)).stop(signal.SIGKILL)
    assert path.exists()
    with socket.socket(socket.AF_UNIX) as nobody, pytest.raises(ConnectionRefusedError):
        nobody.connect(str(path))
    serve("--unix-socket", str(path))
    assert query(path)[0] == 200


def test_one_that_is_in_use_is_taken(serve: Serve, run: Callable[..., Any], path: Path) -> None:
    serve("--unix-socket", str(path))
    ended = run("serve", "--unix-socket", str(path))
    assert ended.returncode == 4
    assert ended.stderr == f"Error: cannot listen on {path}: Address already in use\n"
    assert query(path)[0] == 200


def test_a_server_that_ends_leaves_its_successors_socket(serve: Serve, path: Path) -> None:
    first = serve("--unix-socket", str(path))
    path.unlink()
    serve("--unix-socket", str(path))
    assert first.stop() == 0
    assert query(path)[0] == 200


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("file", "it is there and no socket"),
        ("folder", "it is there and no socket"),
        ("missing/http.sock", "No such file or directory"),
        ("file/http.sock", "Not a directory"),
        ("x" * 200, "AF_UNIX path too long"),
    ],
)
def test_a_path_of_no_use_is_one_clear_line(
    run: Callable[..., Any], tmp_path: Path, name: str, reason: str
) -> None:
    (tmp_path / "file").write_text("kept")
    (tmp_path / "folder").mkdir()
    path = tmp_path / name
    ended = run("serve", "--unix-socket", str(path))
    assert ended.returncode == 4
    assert ended.stderr == f"Error: cannot listen on {path}: {reason}\n"
    assert (tmp_path / "file").read_text() == "kept"
