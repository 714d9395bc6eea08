"""`orchmgmt test-server`, and what other languages do with it."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import COMMAND
from needs import program
from support import Client, lock

pytestmark = pytest.mark.sqlite

INSTANCE = "Boiler|heat|1.0.0"
EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def server(serve):
    return serve(command="test-server")


@pytest.fixture
def aside(serve, tmp_path):
    """A server, and the address of its control that stays."""
    server = serve("--ready-file", str(tmp_path / "ready.json"), command="test-server")
    # It is written before the address is printed.
    return server, Client(json.loads((tmp_path / "ready.json").read_text())["control"], {})


def control(server, name, payload=None, status=200):
    """What a control request is answered; anybody may make it."""
    method = "GET" if name == "requests" else "POST"
    body = None if payload is None else json.dumps(payload).encode()
    answer = server.send(method, f"/test/{name}", body, headers={})
    assert answer.status == status, answer.body
    return answer.json["error"] if status >= 400 else answer.json


def test_seeds_the_clock_and_reset_are_controlled_over_http(server):
    locks = [{"service_instance_id": INSTANCE, "owner": "boiler-control", "expires_in": 60}]
    jobs = [{"status": "ERROR", "age": 1728000}, {}]
    seeded = control(server, "seed", {"locks": locks, "jobs": jobs})
    assert seeded["locks"] == [
        {key: it for key, it in entry.items() if it != ""} for entry in server.locks().entries
    ]
    assert {it["status"] for it in server.jobs().entries} == {"ERROR", "PENDING"}
    assert {it["id"] for it in seeded["jobs"]} == {it["id"] for it in server.jobs().entries}
    control(server, "clock", {"advance": 61})
    assert server.locks().entries == []
    assert control(server, "clock", {"set": "2030-01-01T00:00:00Z"})["now"].startswith("2030-01-01")
    frozen = control(server, "clock", {"freeze": True})["now"]
    assert control(server, "clock")["now"] == frozen
    control(server, "clock", {"resume": True})
    assert control(server, "reset") == {}
    assert server.jobs().entries == []
    assert not control(server, "clock")["now"].startswith("2030")


def test_faults_and_requests_are_controlled_over_http(server):
    fault = {"status": 503, "times": 2, "operation": "lock.create", "retry_after": 1}
    left = control(server, "faults", {"next": fault})["unused"]
    assert left == ["next(status=503, retry_after=1, operation='lock.create', times=2)"]
    control(server, "faults", {"always": {"status": 500, "operation": "lock.query"}})
    answers = [server.create(lock(INSTANCE)) for _ in range(3)]
    assert [it.status for it in answers] == [503, 503, 201]
    assert answers[0].headers["Retry-After"] == "1"
    assert control(server, "faults") == {"unused": ["always(status=500, operation='lock.query')"]}
    assert server.locks().status == 500
    control(server, "faults", {"clear": True})
    assert server.locks().status == 200
    lines = control(server, "requests")["requests"]
    assert [it["status"] for it in lines] == [503, 503, 201, 500, 200]
    assert (lines[2]["operation"], lines[2]["method"]) == ("lock.create", "POST")
    assert (lines[2]["requester"], lines[2]["query"]) == ("Sysop", {})
    assert lines[2]["json"] == {"locks": [lock(INSTANCE)]}
    assert lines[2]["headers"]["Content-Type"] == "application/json"


def test_the_service_goes_down_and_up_over_http(aside):
    server, stays = aside
    server.create(lock(INSTANCE))
    for again in ("up", "reset"):
        assert control(stays, "down") == control(stays, "down") == {}
        with pytest.raises(ConnectionRefusedError):
            server.locks()
        assert control(stays, again) == {}
        assert len(server.locks().entries) == (again == "up")
    assert f"{stays.url}/test/down" in control(server, "down", status=400)
    assert server.locks().status == 200
    assert "Unknown key" in control(stays, "down", {"for": 5}, status=400)
    assert stays.send("POST", "/health", headers={}).status == 404
    control(stays, "down")
    assert server.stop() == 0


@pytest.mark.postgresql
def test_a_seed_is_put_there_whole_or_not_at_all(serve, database_url):
    server = serve("--database-url", database_url, command="test-server")
    good = [{"service_instance_id": INSTANCE}], [{}]
    for locks, jobs, message in (
        ([*good[0], {"service_instance_id": "Pump|flow|1", "owner": ""}], good[1], "Owner is"),
        ([*good[0], *good[0]], good[1], "Duplicated service instance id"),
        (good[0], [{}, {"status": "LOST"}], "Invalid status: LOST"),
        (good[0], [{"age": 1e30}], "The clock goes from"),
    ):
        seed = {"locks": locks, "jobs": jobs}
        assert control(server, "seed", seed, status=400).startswith(message)
        assert (server.locks().entries, server.jobs().entries) == ([], [])
    control(server, "seed", {"locks": good[0]})
    again = {"jobs": good[1], "locks": good[0]}
    assert control(server, "seed", again, status=400).startswith("Already locked")
    assert server.jobs().entries == []


def test_a_database_that_does_not_answer_is_said(serve, tmp_path):
    server = serve("--database-url", f"sqlite:///{tmp_path}/boilers.db", command="test-server")
    for file in tmp_path.glob("boilers.db*"):
        file.unlink()
    for name, payload in (("seed", {"jobs": [{}]}), ("reset", None)):
        assert "does not answer" in control(server, name, payload, status=503)


BAD = [
    ("reset", {"all": True}, "Unknown key: all (known: none)"),
    ("clock", {"advanc": 61}, "Unknown key: advanc (did you mean advance?)"),
    ("clock", {"advance": "61"}, "A number of seconds was expected, not '61'"),
    ("clock", {"advance": None}, "A number of seconds was expected, not None"),
    ("clock", {"set": "now"}, "'now' is no time such as 2030-01-01T00:00:00Z"),
    ("clock", {"freeze": False}, "freeze must be true"),
    ("clock", {"advance": 1, "freeze": True}, "One at a time, not advance, freeze"),
    ("clock", [], "A JSON object was expected"),
    ("faults", {"next": [5]}, "A JSON object was expected"),
    ("faults", {"always": []}, "A JSON object was expected"),
    ("faults", {"next": {"status": 503, "when": "now"}}, "when must be a function, not 'now'"),
    ("faults", {"next": {"stats": 503}}, "Unknown key: stats (did you mean status?)"),
    ("faults", {"next": {"status": [503]}}, "status must be an HTTP status from 200 to"),
    ("faults", {"always": {"status": 503, "times": 1}}, "Unknown key: times (known: "),
    ("faults", {"next": {"drop": "after", "operation": {}}}, "Unknown operation: {} (known: "),
    ("seed", {"lock": []}, "Unknown key: lock (did you mean locks?)"),
    ("seed", {"locks": {}}, "locks must be a list"),
    ("seed", {"locks": [{}]}, "service_instance_id is missing"),
    ("seed", {"locks": [{"service_instance_id": 5}]}, "serviceInstanceId"),
    ("seed", {"jobs": [{"age": "1"}]}, "A number of seconds was expected, not '1'"),
    ("seed", {"jobs": [{"status": []}]}, "Invalid status: []"),
]


def test_bad_control_is_refused_clearly(server):
    for name, payload, message in BAD:
        assert control(server, name, payload, status=400).startswith(message)


def test_bytes_and_paths_that_are_no_control_are_refused(server):
    answer = server.send("POST", "/test/reset", b"{", headers={})
    assert (answer.status, answer.json["error"][:14]) == (400, "Malformed JSON")
    assert server.send("GET", "/test/reset", headers={}).status == 405
    assert "/test/seed" in server.send("GET", "/test/", headers={}).json["error"]


def test_only_this_machine_may_reach_it(run):
    for host in ("0.0.0.0", "::", "192.0.2.1"):
        ended = run("test-server", "--host", host)
        assert (ended.returncode, ended.stdout) == (2, "")
        assert "loopback address" in ended.stderr
        assert len(ended.stderr.splitlines()) == 1


def test_the_ready_file_is_there_while_it_listens(serve, tmp_path):
    file = tmp_path / "ready.json"
    server = serve("--ready-file", str(file), command="test-server")
    ready = json.loads(file.read_text())
    assert ready["url"] == server.url != ready["control"]
    assert ready["pid"] == server.process.pid
    assert server.stop(signal.SIGINT) == 0
    assert [it.name for it in tmp_path.iterdir() if it.suffix != ".log"] == []


def test_what_cannot_be_served_is_said_in_a_line(run, tmp_path, server):
    port = server.url.rpartition(":")[2]
    for options, code, message in (
        (("--ready-file", str(tmp_path / "no" / "file")), 2, "cannot write to"),
        (("--port", port), 4, f"cannot listen on 127.0.0.1, port {port}"),
        (("--max-page-size", "0"), 2, "ORCHMGMT_MAX_PAGE_SIZE must be"),
        (("--database-url", "sqlite:////no/such/folder.db"), 3, "there is no folder"),
    ):
        ended = run("test-server", *options)
        assert (ended.returncode, ended.stderr.count("\n")) == (code, 1), ended.stderr
        assert message in ended.stderr


def test_variables_have_no_effect(serve):
    server = serve(command="test-server", env={"ORCHMGMT_AUTHENTICATION_POLICY": "certificate"})
    assert Client(server.url).locks().status == 200


def passes(command: list[str], folder: Path) -> str:
    path = f"{Path(COMMAND).parent}{os.pathsep}{os.environ['PATH']}"
    ended = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


def test_the_example_in_shell_passes():
    program("curl")
    assert passes(["./test.sh"], EXAMPLES / "shell").endswith("passed\n")


def test_the_example_in_go_passes():
    program("go")
    assert "ok" in passes(["go", "test", "-vet=off", "-count=1", "./..."], EXAMPLES / "go")


def test_the_example_in_python_passes(tmp_path):
    shutil.copytree(EXAMPLES / "client", tmp_path / "client")
    command = [sys.executable, "-m", "pytest", "-c", os.devnull, "--rootdir", ".", "-W", "error"]
    assert "8 passed" in passes([*command, "."], tmp_path / "client")
    text = (EXAMPLES / "client" / "test_boiler.py").read_text()
    assert len(text.splitlines()) < 60
