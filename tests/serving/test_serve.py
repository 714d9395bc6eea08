"""`orchmgmt serve`: how it starts, what it says, and how it stops."""

import json
import os
import signal
import socket
import sqlite3
import subprocess
import threading
import time
from contextlib import closing
from importlib.metadata import version
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from conftest import COMMAND
from support import FUTURE, MANAGEMENT, OPERATOR, Client, Process, lock

import orchmgmt.cli
from orchmgmt.app import create_app, store_of
from orchmgmt.commands.demo import DEMO_SAID
from orchmgmt.serving.server import Server
from orchmgmt.settings import describe

pytestmark = pytest.mark.sqlite

WARNING = "verifies nothing"
COMMANDS = [
    [],
    ["serve"],
    ["demo"],
    ["clean"],
    ["history"],
    ["history", "import"],
    ["history", "export"],
    ["lock"],
    ["lock", "import"],
    ["lock", "export"],
]

needs_ipv6 = pytest.mark.skipif(not Path("/proc/net/if_inet6").exists(), reason="no IPv6 here")


def connect(process, **options):
    address = urlsplit(process.url)
    return socket.create_connection((address.hostname, address.port), timeout=30, **options)


def request(body, length=None):
    """The bytes of a create request; a `length` beyond the body's lets the server wait for more."""
    return (
        f"POST {MANAGEMENT}/lock/create HTTP/1.1\r\nHost: test\r\nAuthorization: {OPERATOR}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {length or len(body)}\r\n\r\n"
    ).encode() + body


def read_all(connection):
    data = b""
    while block := connection.recv(65536):
        data += block
    return data


def log_of(tmp_path):
    return (tmp_path / "server-0.log").read_text()


def test_prints_the_url_that_it_listens_on(serve):
    process = serve()
    address = urlsplit(process.url)
    assert address.scheme == "http"
    assert address.hostname == "127.0.0.1"
    assert process.send("GET", "/health").status == 200
    assert process.create(lock("A|b|1.0.0")).status == 201


def test_port_0_picks_a_free_port_each_time(serve):
    first, second = serve(), serve()
    assert first.url != second.url
    assert first.create(lock("A|b|1.0.0")).status == 201
    assert second.locks().json["count"] == 1


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_taken_port_is_one_clear_line(run, host):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ended = run("serve", "--host", host, "--port", str(port))
    assert ended.returncode == 4
    assert ended.stdout == ""
    assert ended.stderr == (
        f"Error: cannot listen on {host}, port {port}: Address already in use\n"
    )


@pytest.mark.parametrize("host", ["192.0.2.1", "no-such-host.invalid", "127.0.0.1:80", "a" * 300])
def test_address_of_no_use_is_one_clear_line(run, host):
    ended = run("serve", "--host", host, "--port", "0")
    assert ended.returncode == 4
    assert ended.stdout == ""
    assert len(ended.stderr.splitlines()) == 1
    assert ended.stderr.startswith(f"Error: cannot listen on {host}, port 0: ")


@pytest.mark.parametrize("host", ["localhost", pytest.param("::1", marks=needs_ipv6)])
def test_listens_on_localhost_and_on_ipv6(serve, tmp_path, host):
    process = serve("--host", host)
    assert urlsplit(process.url).hostname == host
    assert process.locks().status == 200
    assert process.stop() == 0
    assert WARNING not in log_of(tmp_path)


@needs_ipv6
@pytest.mark.parametrize("host", ["::", "[::]"])
def test_all_addresses_of_ipv6_are_those_of_ipv4_too(serve, host):
    process = serve("--host", host)
    port = urlsplit(process.url).port
    assert process.url == f"http://[::]:{port}"
    for address in ("127.0.0.1", "[::1]"):
        assert Client(f"http://{address}:{port}").locks().status == 200


@needs_ipv6
def test_an_address_may_be_in_brackets_as_in_a_url(serve):
    process = serve("--host", "[::1]")
    assert process.url.startswith("http://[::1]:")
    assert process.locks().status == 200


@pytest.mark.parametrize("host", ["0.0.0.0", pytest.param("::", marks=needs_ipv6)])
def test_declared_identity_on_an_open_address_is_warned_of(serve, tmp_path, host):
    process = serve("--host", host)
    assert process.locks().status == 200
    assert process.stop() == 0
    warnings = [line for line in log_of(tmp_path).splitlines() if "WARNING" in line]
    assert len(warnings) == 1
    assert WARNING in warnings[0]
    assert host in warnings[0]


def test_declared_identity_on_loopback_is_no_warning(serve, tmp_path):
    assert serve().stop() == 0
    assert all(" INFO orchmgmt: " in line for line in log_of(tmp_path).splitlines())


def test_the_log_tells_of_start_and_stop_in_a_line_each(serve, tmp_path):
    process = serve("--management-policy", "whitelist")
    assert process.stop() == 0
    started, stopped = log_of(tmp_path).splitlines()
    database = f"sqlite:///{tmp_path}/orchmgmt.db"
    assert started.endswith(
        f" INFO orchmgmt: orchmgmt {version('orchmgmt')} serves {database} on {process.url}; "
        "authentication policy declared, management policy whitelist"
    )
    assert stopped.endswith(" INFO orchmgmt: stopped")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signal_ends_an_idle_server_and_its_idle_connections(serve, number):
    process = serve()
    with connect(process) as idle, connect(process) as kept:
        kept.sendall(request(json.dumps({"locks": [lock("A|b|1.0.0")]}).encode()))
        answer = b""
        while not answer.endswith(b'"count":1}'):
            answer += kept.recv(65536)
        assert process.stop(number) == 0
        assert read_all(idle) == read_all(kept) == b""
    with pytest.raises(ConnectionRefusedError):
        connect(process)


def wait_until_refused(process):
    """Until the server has taken note of its signal and takes no more connections."""
    while True:
        try:
            connect(process).close()
        except ConnectionError:
            return


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signal_lets_a_body_that_is_still_being_sent_come_and_be_answered(serve, tmp_path, number):
    process = serve()
    body = json.dumps({"locks": [lock("A|b|1.0.0")]}).encode()
    with connect(process) as sending:
        sending.sendall(request(body[:10], len(body)))
        process.locks()  # what came before has been read by now
        process.process.send_signal(number)
        wait_until_refused(process)
        assert process.process.poll() is None
        sending.sendall(body[10:])
        assert read_all(sending).startswith(b"HTTP/1.1 201")
    assert process.process.wait(30) == 0
    with closing(sqlite3.connect(tmp_path / "orchmgmt.db")) as database:
        assert database.execute("SELECT count(*) FROM orchestration_lock").fetchone() == (1,)


def test_signal_lets_a_request_that_waits_for_the_database_be_answered(serve, tmp_path):
    process = serve("--database-timeout-seconds", "30")
    with closing(sqlite3.connect(tmp_path / "orchmgmt.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with connect(process) as waiting:
            waiting.sendall(request(json.dumps({"locks": [lock("A|b|1.0.0")]}).encode()))
            process.locks()
            process.process.send_signal(signal.SIGTERM)
            wait_until_refused(process)
            assert process.process.poll() is None
            other.execute("COMMIT")
            assert read_all(waiting).startswith(b"HTTP/1.1 201")
    assert process.process.wait(30) == 0


def test_signal_lets_a_slow_reader_have_the_whole_of_a_large_answer(serve):
    process = serve("--max-page-size", "20000")
    for start in range(0, 20000, 10000):
        wanted = [lock(f"Provider{number}|service|1.0.0") for number in range(start, start + 10000)]
        assert process.create(*wanted).status == 201
    query = (
        f"POST {MANAGEMENT}/lock/query HTTP/1.1\r\nHost: test\r\nAuthorization: {OPERATOR}\r\n\r\n"
    )
    with closing(socket.socket()) as reader:
        reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        address = urlsplit(process.url)
        reader.settimeout(30)
        reader.connect((address.hostname, address.port))
        reader.sendall(query.encode())
        first = reader.recv(10)
        process.process.send_signal(signal.SIGTERM)
        wait_until_refused(process)
        head, _, body = (first + read_all(reader)).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200")
    assert len(json.loads(body)["entries"]) == 20000
    assert process.process.wait(30) == 0


def test_signal_lets_requests_that_the_kernel_has_taken_be_answered(serve):
    process = serve()
    process.process.send_signal(signal.SIGSTOP)
    connections = [connect(process) for _ in range(8)]
    try:
        for number, connection in enumerate(connections):
            body = json.dumps({"locks": [lock(f"Provider{number}|service|1.0.0")]}).encode()
            connection.sendall(request(body))
        process.process.send_signal(signal.SIGTERM)
        process.process.send_signal(signal.SIGCONT)
        answers = [read_all(connection) for connection in connections]
    finally:
        for connection in connections:
            connection.close()
    assert [answer[:12] for answer in answers] == [b"HTTP/1.1 201"] * 8
    assert process.process.wait(30) == 0


def test_signal_under_load_loses_no_acknowledged_lock(serve, tmp_path):
    process = serve()
    acknowledged: list[str] = []
    enough = threading.Event()

    def work(worker):
        for number in range(10000):
            instance = f"Provider{worker}|service{number}|1.0.0"
            try:
                answer = process.create(lock(instance))
            except OSError:
                return
            assert answer.status == 201
            acknowledged.append(instance)
            if len(acknowledged) > 50:
                enough.set()

    threads = [threading.Thread(target=work, args=(worker,)) for worker in range(4)]
    for thread in threads:
        thread.start()
    assert enough.wait(30)
    assert process.stop() == 0
    for thread in threads:
        thread.join()
    with closing(sqlite3.connect(tmp_path / "orchmgmt.db")) as database:
        rows = database.execute("SELECT service_instance_id FROM orchestration_lock")
        # Every request that was taken was answered, so the two are the same.
        assert sorted(row[0] for row in rows) == sorted(acknowledged)


def test_a_second_signal_does_not_hurt(serve):
    process = serve()
    body = json.dumps({"locks": [lock("A|b|1.0.0")]}).encode()
    with connect(process) as sending:
        sending.sendall(request(body[:10], len(body)))
        process.locks()
        process.process.send_signal(signal.SIGTERM)
        wait_until_refused(process)
        process.process.send_signal(signal.SIGINT)
        sending.sendall(body[10:])
        assert read_all(sending).startswith(b"HTTP/1.1 201")
    assert process.process.wait(30) == 0


def test_signals_to_the_last_moment_do_not_hurt(serve):
    for _ in range(3):
        process = serve().process
        while process.poll() is None:
            process.send_signal(signal.SIGTERM)
            time.sleep(0.001)
        assert process.returncode == 0


def test_server_can_be_stopped_before_it_runs_and_after_it_has_ended():
    app = create_app({"DATABASE_URL": "sqlite:///:memory:", "PORT": 0})
    with store_of(app) as store:
        server = Server(store.settings)
        server.stop()
        server.run(app)
        read, write = os.pipe()  # may well have the numbers of what the server has closed
        server.stop()
        os.close(write)
        assert os.read(read, 1) == b""
        os.close(read)


def test_database_stays_the_same_file_and_serves_again(serve, tmp_path):
    first = serve("--database-url", "sqlite:///locks%20here.db")
    created = first.create(lock("A|b|1.0.0")).entries
    assert first.stop() == 0
    assert (tmp_path / "locks here.db").is_file()
    assert serve("--database-url", "sqlite:///locks%20here.db").locks().entries == created


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_help_shows_every_option_with_its_default(run, command):
    ended = run(*command, "--help", env={"COLUMNS": "100"})
    assert ended.returncode == 0
    assert ended.stderr == ""
    assert ended.stdout.startswith("Usage: orchmgmt")
    text = " ".join(ended.stdout.split())
    for option in [word for word in text.split() if word.startswith("--")]:
        for row in describe():
            if option == "--" + row.name.removeprefix("ORCHMGMT_").lower().replace("_", "-"):
                default = row.default or "none"
                if command == ["demo"]:
                    default = DEMO_SAID.get(option.removeprefix("--").replace("-", "_"), default)
                shown = f"[{row.name}; default: {default}]"
                assert shown in text.replace("- ", "-")  # click breaks lines at hyphens too


def test_help_of_serve_names_every_setting(run):
    text = run("serve", "-h").stdout
    assert [row.name for row in describe() if f"[{row.name};" not in " ".join(text.split())] == []


def test_version_is_the_packages(run):
    ended = run("--version")
    assert ended.returncode == 0
    assert ended.stdout.split() == ["orchmgmt", "0.1.0"]


@pytest.mark.parametrize("arguments", [["srve"], ["serve", "--prot", "1"], ["lock", "import"]])
def test_misspelt_command_is_told_how_to_get_help(run, arguments):
    ended = run(*arguments)
    assert ended.returncode == 2
    assert "--help" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_demo_serves_a_fresh_copy_and_keeps_nothing(serve, tmp_path):
    example = orchmgmt.commands.demo.EXAMPLE
    before = example.read_bytes()
    folder = tmp_path / "tmp"
    folder.mkdir()
    first = serve("--still", command="demo", env={"TMPDIR": str(folder)})
    locks = first.locks().json["count"]
    assert locks > 0
    assert first.jobs().json["count"] > 0
    assert first.create(lock("Somebody|service|1.0.0")).status == 201
    (copy,) = folder.iterdir()
    assert (copy.name[:9], copy.suffix) == ("orchmgmt-", ".part")
    assert first.stop() == 0
    assert list(folder.iterdir()) == []
    assert example.read_bytes() == before
    second = serve("--still", command="demo", env={"TMPDIR": str(folder)})
    assert second.locks().json["count"] == locks


def test_nothing_of_the_working_folder_is_read_as_code(serve, tmp_path):
    (tmp_path / "app.py").write_text("raise SystemExit('wrong app')")
    (tmp_path / "settings.py").write_text("raise SystemExit('wrong settings')")
    assert serve().locks().status == 200


def test_two_servers_cannot_share_a_port(serve):
    process = serve()
    port = str(urlsplit(process.url).port)
    ended = subprocess.run(
        [COMMAND, "serve", "--port", port, "--database-url", "sqlite:///:memory:"],
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert ended.returncode == 4
    assert ended.stderr.count("\n") == 1
    assert process.send("GET", "/health").status == 200


def test_log_level_silences_warnings(serve, tmp_path):
    process = serve("--host", "0.0.0.0", "--log-level", "ERROR")
    assert process.stop() == 0
    assert log_of(tmp_path) == ""


def test_expiry_far_ahead_survives_a_restart_unchanged(serve):
    first = serve()
    first.create(lock("A|b|1.0.0", expires_at=FUTURE))
    assert first.stop() == 0
    second = serve()
    assert [it["expiresAt"] for it in Client(second.url).locks().entries] == [FUTURE]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signals_that_come_again_change_nothing(serve, number):
    process = serve()
    for _ in range(5):
        process.process.send_signal(number)
    assert process.process.wait(30) == 0


@pytest.mark.parametrize("command", ["demo", "test-server"])
def test_the_end_of_a_terminal_ends_others_that_serve_as_well(serve, command):
    assert serve(command=command).stop(signal.SIGHUP) == 0


@pytest.mark.parametrize("command", ["serve", "demo", "test-server"])
def test_signals_that_other_programs_open_their_logs_anew_by_do_nothing(serve, command):
    process = serve(command=command)
    for number in (signal.SIGUSR1, signal.SIGUSR2):
        process.process.send_signal(number)
    assert process.locks().status == 200
    assert process.stop() == 0


@pytest.mark.parametrize("command", ["serve", "test-server"])
def test_started_by_nohup_it_outlives_its_terminal(tmp_path, command):
    nohup = ["nohup", COMMAND, command, "--port", "0"]
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(nohup, cwd=tmp_path, text=True, **pipes) as popen:
        process = Process(popen)
        for _ in range(3):
            popen.send_signal(signal.SIGHUP)
            assert process.locks().status == 200
        assert process.stop() == 0


def test_demo_works_in_a_folder_with_any_name(serve, tmp_path):
    folder = tmp_path / "50%20 of it"
    folder.mkdir()
    process = serve(command="demo", env={"TMPDIR": str(folder)})
    assert process.locks().json["count"] > 0
    assert process.stop() == 0
    assert list(folder.iterdir()) == []
