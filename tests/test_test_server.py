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
from support import Client, lock

pytestmark = pytest.mark.sqlite

INSTANCE = "Boiler|heat|1.0.0"
EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.fixture
def server(serve):
    return serve(command="test-server")


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
    assert left == ["next(status=503, operation='lock.create', retry_after=1, times=2)"]
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


BAD = [
    ("reset", {"all": True}, "Unknown key: all (known: none)"),
    ("clock", {"advanc": 61}, "Unknown key: advanc (did you mean advance?)"),
    ("clock", {"advance": "61"}, "A number of seconds was expected, not '61'"),
    ("clock", {"advance": None}, "A number of seconds was expected, not None"),
    ("clock", {"set": "now"}, "'now' is no time such as 2030-01-01T00:00:00Z"),
    ("clock", {"freeze": False}, "freeze must be true"),
    ("clock", {"advance": 1, "freeze": True}, "One at a time, not advance, freeze"),
    ("clock", [], "A JSON object was expected"),
    ("faults", {"next": []}, "A JSON object was expected"),
    ("faults", {"next": {"stats": 503}}, "Unknown key: stats (did you mean status?)"),
    ("faults", {"next": {"status": [503]}}, "status must be an HTTP status from 400 on"),
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
    assert json.loads(file.read_text()) == {"url": server.url, "pid": server.process.pid}
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


def needs(program: str) -> None:
    if shutil.which(program) is None:
        if os.environ.get("CI") == "true":
            pytest.fail(f"{program} is missing")
        pytest.skip(f"{program} is not installed")


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
    needs("curl")
    assert passes(["./test.sh"], EXAMPLES / "shell").endswith("passed\n")


def test_the_example_in_go_passes():
    needs("go")
    assert "ok" in passes(["go", "test", "-vet=off", "-count=1", "./..."], EXAMPLES / "go")


def test_the_example_in_python_passes(tmp_path):
    shutil.copytree(EXAMPLES / "client", tmp_path / "client")
    command = [sys.executable, "-m", "pytest", "-c", os.devnull, "--rootdir", ".", "-W", "error"]
    assert "8 passed" in passes([*command, "."], tmp_path / "client")
    text = (EXAMPLES / "client" / "test_boiler.py").read_text()
    assert len(text.splitlines()) < 60
