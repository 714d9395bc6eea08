"""`orchmgmt test-server`, and what other languages do with it."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlencode

import pytest
from conftest import COMMAND
from needs import program
from pages import blocks, page
from support import Client, lock, until

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
    assert seeded["locks"] == server.locks().entries
    assert {it["status"] for it in seeded["jobs"]} == {"ERROR", "PENDING"}
    assert all(it in server.jobs().entries for it in seeded["jobs"])
    control(server, "clock", {"advance": 61})
    assert server.locks().entries == []
    assert control(server, "clean") == {"locks": 1, "jobs": 1}
    assert len(server.jobs().entries) == 1
    assert control(server, "clock", {"set": "2030-01-01T00:00:00Z"})["now"].startswith("2030-01-01")
    frozen = control(server, "clock", {"freeze": True})["now"]
    assert control(server, "clock")["now"] == frozen
    control(server, "clock", {"resume": True})
    assert control(server, "reset") == {}
    assert server.jobs().entries == []
    assert not control(server, "clock")["now"].startswith("2030")


LOCK = {
    "id": 43,
    "orchestrationJobId": "037b336d-b57d-4772-af88-d60225116d02",
    "serviceInstanceId": INSTANCE,
    "owner": "BoilerControl",
    "expiresAt": "2099-01-01T00:00:00Z",
    "temporary": True,
}
JOB = {
    "id": "037b336d-b57d-4772-af88-d60225116d02",
    "status": "IN_PROGRESS",
    "type": "PUSH",
    "requesterSystem": "RoomClimate",
    "targetSystem": "BoilerControl",
    "serviceDefinition": "alarmNotification",
    "subscriptionId": "5a780d98-aa07-4655-adb7-2d6e7d588850",
    "message": "",
    "createdAt": "2026-11-11T18:18:44Z",
    "startedAt": "2026-11-11T18:18:46Z",
    "finishedAt": "",
}


@pytest.mark.postgresql
@pytest.mark.sqlite
def test_what_the_service_answers_can_be_seeded_as_it_is(serve, database_url):
    server = serve("--database-url", database_url, command="test-server")
    other = {"service_instance_id": "Pump|flow|1.0.0", "expiresIn": -5, "id": None}
    seeded = control(server, "seed", {"locks": [LOCK, other], "jobs": [JOB]})
    assert (seeded["locks"][0], seeded["jobs"]) == (LOCK, [JOB])
    assert (server.locks().entries, server.jobs().entries) == ([LOCK], [JOB])
    assert (seeded["locks"][1]["id"], seeded["locks"][1]["temporary"]) == (44, False)
    lower = {**LOCK, "id": 44, "serviceInstanceId": "Tank|level|1.0.0"}
    refusal = control(server, "seed", {"locks": [lower]}, status=400)
    assert refusal == "The ids of locks rise: 44 is not larger than 44"


def test_the_log_of_requests_is_filtered(server):
    def found(**filters):
        listed = server.send("GET", f"/test/requests?{urlencode(filters)}", headers={})
        return [it["operation"] for it in listed.json["requests"]]

    server.create(lock(INSTANCE))
    server.locks()
    somebody = Client(server.url, {"Authorization": "Bearer SYSTEM//Somebody"})
    assert somebody.locks().status == 403
    assert found() == ["lock.create", "lock.query", "lock.query"]
    assert found(operation="lock.query") == ["lock.query"] * 2
    assert found(operation="lock.query", requester="Sysop") == ["lock.query"]
    assert found(requester="Somebody") == ["lock.query"]
    second = control(server, "requests")["requests"][1]["received_at"]
    assert found(since=second) == ["lock.query"] * 2
    unescaped = server.send("GET", f"/test/requests?since={second}", headers={})
    assert len(unescaped.json["requests"]) == 2
    assert found(since="2099-01-01T00:00:00Z") == []
    for query, message in (
        ("operations=lock.query", "Unknown key: operations (did you mean operation?)"),
        ("operation=lock.qery", "Unknown operation: lock.qery (did you mean lock.query?)"),
        ("since=2099-01-01", "'2099-01-01' is no time such as 2030-01-01T00:00:00Z"),
        ("requester=A&requester=B", "requester is there twice"),
    ):
        answer = server.send("GET", f"/test/requests?{query}", headers={})
        assert (answer.status, answer.json["error"]) == (400, message)
    assert server.send("POST", "/test/reset?hard=1", headers={}).status == 400


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
        ([*good[0], *good[0]], good[1], "Already locked"),
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


def test_the_stand_ins_of_other_systems_are_controlled_over_http(serve):
    policies = ("--authentication-policy", "outsourced", "--management-policy", "authorization")
    server = serve(*policies, command="test-server")
    token = control(server, "identity/token", {"name": "Alice"})["token"]
    operator = control(server, "identity/token", {"name": "Bob", "operator": True})["token"]
    alice, bob = (
        Client(server.url, {"Authorization": f"Bearer IDENTITY-TOKEN//{it}"})
        for it in (token, operator)
    )
    assert (alice.locks().status, bob.locks().status) == (403, 200)
    control(server, "authorization/grant", {"name": "Alice", "scope": "query"})
    assert alice.locks().status == 200
    control(server, "authorization/down")
    assert alice.locks().status == 503
    control(server, "authorization/up")
    control(server, "authorization/slow", {"seconds": 0})
    control(server, "authorization/revoke", {"name": "Alice", "scope": "query"})
    assert alice.locks().status == 403
    control(server, "identity/down")
    assert bob.locks().status == 503
    control(server, "identity/up")
    control(server, "identity/expire", {"token": operator})
    control(server, "identity/revoke", {"token": token})
    assert (alice.locks().status, bob.locks().status) == (401, 401)
    message = "Unknown key: nam (did you mean name?)"
    assert control(server, "identity/token", {"nam": "Alice"}, status=400) == message
    assert control(server, "identity/expire", {}, status=400) == "token is missing"
    assert control(server, "identity/expire", {"token": []}, status=400) == "There is no such token"


BAD = [
    ("identity/token", {"name": "Alice"}, 'A running service with authentication_policy="outs'),
    ("authorization/down", None, 'A running service with management_policy="authorization"'),
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
    ("seed", {"locks": [{}]}, "serviceInstanceId is missing"),
    ("seed", {"locks": [{"service_instance_id": 5}]}, "serviceInstanceId"),
    ("seed", {"locks": [{"serviceInstanceID": INSTANCE}]}, "Unknown key: serviceInstanceID (did"),
    (
        "seed",
        {"locks": [{"serviceInstanceId": INSTANCE, "service_instance_id": INSTANCE}]},
        "serviceInstanceId and service_instance_id are the same",
    ),
    ("seed", {"locks": [{**LOCK, "id": "43"}]}, "The id of a lock is an integer from 1 to"),
    ("seed", {"jobs": [{**JOB, "id": 5}]}, "id must be a string"),
    ("clean", {"all": True}, "Unknown key: all (known: none)"),
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


def test_only_this_machine_may_reach_it_unless_that_is_said(run, serve, tmp_path):
    for options in (("0.0.0.0",), ("::",), ("192.0.2.1",), ("0.0.0.0", "--control-host", "::1")):
        ended = run("test-server", "--host", *options)
        assert (ended.returncode, ended.stdout) == (2, "")
        assert "loopback address" in ended.stderr
        assert len(ended.stderr.splitlines()) == 1
    file = tmp_path / "ready.json"
    hosts = ("--host", "0.0.0.0", "--control-host", "0.0.0.0", "--ready-file", str(file))
    server = serve(*hosts, command="test-server")
    stays = Client(json.loads(file.read_text())["control"], {})
    assert stays.url.startswith("http://0.0.0.0:")
    assert control(stays, "down") == control(stays, "up") == {}
    assert server.locks().status == 200


def test_the_ready_file_is_there_while_it_listens(serve, run, tmp_path):
    file = tmp_path / "ready.json"
    server = serve("--ready-file", str(file), command="test-server")
    ready = json.loads(file.read_text())
    assert ready["url"] == server.url != ready["control"]
    assert ready["pid"] == server.process.pid
    assert server.stop(signal.SIGINT) == 0
    assert [it.name for it in tmp_path.iterdir() if it.suffix != ".log"] == []
    file.write_text("of an earlier run")
    ended = run("test-server", "--ready-file", str(file), "--max-page-size", "0")
    assert (ended.returncode, file.exists()) == (2, False)


def test_it_says_where_it_is_as_json_and_ends_with_its_input(tmp_path):
    file = tmp_path / "ready.json"
    with subprocess.Popen(
        [COMMAND, "test-server", "--json", "--ready-file", file, "--control-port", "0"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        line = process.stdout.readline()
        assert line == file.read_text()
        ready = json.loads(line)
        assert ready.keys() == {"url", "control", "pid"}
        assert Client(ready["url"]).locks().status == 200
        rest, _ = process.communicate("what it is told does not matter", timeout=60)
    assert (process.returncode, rest, file.exists()) == (0, "", False)


#: Starts three test servers, and lives until it is killed.
PARENT = """
import socket, subprocess, sys, time
ours, theirs = socket.socketpair()
for options, stdin in ([], subprocess.DEVNULL), ([], theirs), (["--keep"], subprocess.PIPE):
    server = [sys.argv[1], "test-server", "--json", *options]
    subprocess.Popen(server, stdin=stdin)
theirs.close()
time.sleep(3600)
"""


def test_it_ends_when_its_parent_is_killed_unless_it_is_to_be_kept():
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, COMMAND], stdout=subprocess.PIPE, text=True
    ) as parent:
        started = [json.loads(parent.stdout.readline()) for _ in range(3)]
        parent.kill()
        left = {}

        def two_have_ended():
            left.clear()
            left.update({it["url"]: it["pid"] for it in started if is_there(it["pid"])})
            return len(left) == 1

        until(two_have_ended)
        ((url, kept),) = left.items()
        assert Client(url).locks().status == 200
        os.kill(kept, signal.SIGTERM)
    until(lambda: not is_there(kept))


def is_there(pid: int) -> bool:
    """Whether a process runs; nobody may have waited for one that has ended."""
    status = Path(f"/proc/{pid}/stat")
    return status.exists() and status.read_text().rpartition(")")[2].split()[0] != "Z"


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


def test_the_example_with_a_container_passes(tmp_path):
    node = program("node")
    package = tmp_path / "node_modules" / "testcontainers"
    package.mkdir(parents=True)
    shutil.copy(Path(__file__).with_name("testcontainers.mjs"), package / "index.mjs")
    (package / "package.json").write_text('{"exports": "./index.mjs"}')
    (example,) = blocks("js", page("testing.md"))
    (tmp_path / "boiler.test.mjs").write_text(example)
    said = passes([node, "--test", "--test-reporter", "tap", "boiler.test.mjs"], tmp_path)
    assert "# pass 2\n# fail 0" in said


def test_the_example_in_python_passes():
    # Where it is, as its reader runs it, beside the plugins that happen to be installed.
    command = [sys.executable, "-B", "-m", "pytest", "-p", "no:cacheprovider"]
    assert "8 passed" in passes(command, EXAMPLES / "client")
    text = (EXAMPLES / "client" / "test_boiler.py").read_text()
    assert len(text.splitlines()) < 60
