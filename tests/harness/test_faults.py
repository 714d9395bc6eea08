"""`orchmgmt.testing`: what a fault does, and which request it meets."""

import json
import socket
import threading
from http.client import IncompleteRead, RemoteDisconnected

import pytest
from support import UUID, Client, lock, until

from orchmgmt.extensions.recorder import operations
from orchmgmt.testing import Service
from orchmgmt.testing.faults import ARGUMENTS, Next
from orchmgmt.testing.names import OF_THE_RECORDER

pytestmark = pytest.mark.sqlite

INSTANCE = "Boiler|heat|1.0.0"

#: Seconds; nothing waits for it to its end.
FOR_EVER = 1e6


@pytest.fixture
def service(orchmgmt_shared):
    return orchmgmt_shared


@pytest.fixture
def client(service):
    return Client(service.url, service.headers)


def asking(work):
    """Start a request that ends without an answer, in a thread."""

    def ask():
        with pytest.raises((RemoteDisconnected, ConnectionResetError)):
            work()

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    return thread


# --- late answers


def test_of_a_late_answer_the_operation_is_done_at_once(service, client):
    service.faults.next(delay=FOR_EVER)
    waiting = asking(lambda: client.create(lock(INSTANCE)))
    until(service.locks)
    (request,) = service.requests
    assert (request.status, request.answered_at, request.delivered) == (None, None, None)
    assert request.requester == "Sysop"
    assert str(request).startswith("in flight POST /")
    service.down()
    waiting.join(30)
    assert (request.status, request.delivered) == (None, False)
    assert request.answered_at >= request.received_at
    service.up()


def test_with_a_delay_before_nothing_is_done_yet(service, client):
    service.faults.next(delay_before=FOR_EVER)
    waiting = asking(lambda: client.create(lock(INSTANCE)))
    service.requests.wait_for("lock.create", timeout=60)
    assert service.locks() == []
    service.reset()
    waiting.join(30)
    service.faults.next(delay_before=0.001, delay=0.001)
    assert client.create(lock(INSTANCE)).status == 201


def test_a_reset_also_drops_a_request_that_is_about_to_wait(service, client):
    came, go_on = threading.Event(), threading.Event()

    def when(_):
        came.set()
        return go_on.wait(60)

    service.faults.next(delay_before=FOR_EVER, when=when)
    waiting = asking(lambda: client.create(lock(INSTANCE)))
    assert came.wait(60)
    service.reset()
    go_on.set()
    waiting.join(30)
    assert not waiting.is_alive()
    assert service.locks() == []


def test_a_client_that_gives_up_one_in_flight_and_a_drop_are_told_apart(service, client):
    service.faults.next([{"delay": FOR_EVER}, {"drop": "before"}, {"drop": "middle"}])
    held = asking(client.locks)
    service.requests.wait_for(count=1, timeout=60)
    for drop in (RemoteDisconnected, IncompleteRead):
        with pytest.raises(drop):
            client.locks()
    gone = threading.Event()
    service.faults.next(when=lambda _: gone.wait(60), status=200)
    host, _, port = service.url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        connection.sendall(b"GET /nowhere HTTP/1.1\r\nHost: it\r\n\r\n")
        service.requests.wait_for(count=4, timeout=60)
    gone.set()
    until(lambda: service.requests[3].answered_at)
    assert client.locks().status == 200
    flying, dropped, half, abandoned, answered = service.requests
    assert [(it.status, it.answered_at is None, it.delivered) for it in service.requests] == [
        (None, True, None),
        (None, False, False),
        (200, False, False),
        (200, False, False),
        (200, False, True),
    ]
    assert dropped.fault == "next(drop='before')"
    assert half.fault == "next(drop='middle')"
    assert str(flying).startswith("in flight POST /")
    assert str(abandoned).startswith("200 GET /nowhere")
    assert str(abandoned).endswith(", not delivered")
    assert answered.fault == ""
    service.reset()
    held.join(30)


def test_a_client_that_leaves_a_large_answer_has_not_got_it(service):
    service.faults.next(body="x" * 20_000_000)
    host, _, port = service.url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        connection.sendall(b"GET /nowhere HTTP/1.1\r\nHost: it\r\n\r\n")
        assert connection.recv(99).startswith(b"HTTP/1.1 200 ")
    until(lambda: service.requests[0].delivered is False)


# --- own answers


@pytest.mark.parametrize(
    ("fault", "status", "content_type", "body"),
    [
        ({"body": {"entries": 5}}, 200, "application/json", b'{"entries": 5}'),
        ({"body": []}, 200, "application/json", b"[]"),
        (
            {"body": "<h1>Bad</h1>", "status": 502},
            502,
            "text/plain; charset=utf-8",
            b"<h1>Bad</h1>",
        ),
        ({"body": b"\xff\x00"}, 200, "application/octet-stream", b"\xff\x00"),
        ({"body": "", "headers": {"Content-Type": "text/html"}}, 200, "text/html", b""),
        ({"status": 302, "headers": {"Location": "/x"}}, 302, "text/html; charset=utf-8", b""),
        ({"body": {}, "status": 299, "trickle": 0.001}, 299, "application/json", b"{}"),
    ],
)
def test_an_own_answer_comes_instead_and_nothing_is_done(
    service, client, fault, status, content_type, body
):
    service.faults.next(**fault)
    answer = client.create(lock(INSTANCE))
    assert (answer.status, answer.headers["Content-Type"], answer.body) == (
        status,
        content_type,
        body,
    )
    for name, value in fault.get("headers", {}).items():
        assert answer.headers[name] == value
    assert service.locks() == []
    assert service.requests[-1].status == status


def test_headers_alone_go_with_the_real_answer(service, client):
    service.faults.next(headers={"Content-Type": "text/html", "X-Proxy": "yes"})
    answer = client.create(lock(INSTANCE))
    assert (answer.status, answer.headers["X-Proxy"]) == (201, "yes")
    assert answer.headers.get_all("Content-Type") == ["text/html"]
    assert len(service.locks()) == 1
    service.faults.next(headers={"Content-Length": "100000"})
    with pytest.raises(IncompleteRead):
        client.locks()


def test_a_reset_is_no_end(service, client):
    service.faults.next(drop="reset", times=20)
    for _ in range(20):
        with pytest.raises(ConnectionResetError):
            client.create(lock(INSTANCE))
    assert service.locks() == []
    service.faults.next(drop="reset")
    with pytest.raises(ConnectionResetError):
        service.app.test_client().get("/nowhere")


def test_a_body_trickles_and_stops_with_the_service(service, client):
    service.faults.next(trickle=0.001)
    assert client.create(lock(INSTANCE)).status == 201
    assert service.requests[-1].delivered
    service.faults.next(trickle=FOR_EVER)
    host, _, port = service.url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        connection.sendall(b"GET /nowhere HTTP/1.1\r\nHost: it\r\n\r\n")
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += connection.recv(1)
        assert head.startswith(b"HTTP/1.1 404 ")
        assert service.requests[-1].answered_at is None
        assert connection.recv(99) == b"{"
        service.down()
        assert connection.recv(99) == b""
    until(lambda: service.requests[-1].answered_at)
    assert service.requests[-1].delivered is False
    service.up()


# --- which request


@pytest.mark.parametrize(
    ("chosen", "met"),
    [
        ({"owner": "boiler-control"}, {"create", "query", "remove"}),
        ({"owner": "Nobody"}, set()),
        ({"instance": "boiler|heat|1"}, {"create", "query", "remove"}),
        ({"instance": "Boiler|heat|2"}, set()),
        ({"requester": "room-climate"}, {"other"}),
        ({"requester": "RoomClimate", "owner": "BoilerControl"}, set()),
        ({"when": lambda it: it.requester == "Sysop" and it.method == "DELETE"}, {"remove"}),
        ({"when": lambda it: "Rival" in it.owners}, {"create"}),
        ({"operation": "lock.query", "skip": 1}, {"other"}),
        ({"skip": 2}, {"remove"}),
    ],
)
def test_a_fault_meets_whom_it_is_meant_for(service, client, chosen, met):
    service.faults.next(status=503, **chosen)
    other = Client(service.url, {"Authorization": "Bearer SYSTEM//RoomClimate"})
    asked = {
        "create": lambda: client.create(
            lock("Pump|flow|1", "Rival"), lock(INSTANCE, "BoilerControl")
        ),
        "query": lambda: client.locks(
            owners=["BoilerControl"], serviceInstanceIds=["Boiler|heat|1"]
        ),
        "remove": lambda: client.remove("BoilerControl", "instanceIds=A%7Cb%7C1,Boiler%7Cheat%7C1"),
        "other": other.locks,
    }
    found = set()
    for name, ask in asked.items():
        if ask().status == 503:
            found.add(name)
            service.faults.next(status=503, **chosen)
    assert found == met


def test_a_fault_of_all_operations_spares_who_waits_for_the_service(service, client):
    service.faults.always(status=500)
    echo = "/serviceorchestration/monitor/echo"
    assert client.send("GET", "/health").status == client.send("GET", echo).status == 200
    assert client.locks().status == client.send("GET", "/nowhere").status == 500
    service.faults.next(status=503, operation="health.health")
    assert client.send("GET", "/health").status == 503


def test_several_faults_come_in_turn_and_all_or_none(service, client):
    service.faults.next([{"status": 503}, {"status": 502, "times": 2}, {"drop": "before"}])
    assert [client.locks().status for _ in range(3)] == [503, 502, 502]
    assert repr(service.faults) == "<Faults: next(drop='before')>"
    with pytest.raises(ValueError, match="status must be"):
        service.faults.next([{"status": 503}, {"status": 5}])
    assert service.faults.unused() == ["next(drop='before')"]
    with pytest.raises(TypeError, match=r"argument of a fault: stats \(did you mean status\?\)"):
        service.faults.next([{"stats": 503}])
    with pytest.raises(TypeError, match="A fault was expected, such as"):
        service.faults.next([503])
    for misunderstood in (503, {"status": 503}):
        with pytest.raises(TypeError, match=r"or a list such as \[\{'status': 503\}\]"):
            service.faults.next(misunderstood)
    with pytest.raises(TypeError, match="give one fault by keywords, or a list"):
        service.faults.next([{"status": 503}], status=503)


def test_a_skip_that_is_not_over_is_unused(service, client):
    service.faults.next(skip=1, status=503)
    assert client.locks().status == 200
    with pytest.raises(AssertionError, match="status=503"):
        service.faults.assert_all_used()
    assert client.locks().status == 503
    service.faults.assert_all_used()


def test_a_broken_when_fails_the_test(service, client):
    service.faults.next(status=503, when=lambda it: it.json["owner"])
    with pytest.raises(RemoteDisconnected):
        client.locks()
    with pytest.raises(RuntimeError, match=r"`when` of next\(.*\) has raised KeyError\('owner'\)"):
        service.check()
    service.check()


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ({"body": {1, 2}}, "body must be text, bytes or JSON"),
        ({"status": 200, "headers": {"X": 1}}, "headers must be texts by name"),
        ({"status": 200, "headers": {"X": "a\r\nb"}}, "headers must be texts by name"),
        ({"status": 200, "headers": [("X", "a")]}, "headers must be texts by name"),
        ({"trickle": -1}, "trickle must be a number of seconds"),
        ({"delay_before": "1"}, "delay_before must be a number of seconds"),
        ({"body": "x", "drop": "reset"}, "body and drop='reset' do not go together"),
        ({"trickle": 1, "drop": "before"}, "trickle and drop='before' do not go together"),
        ({"status": 503, "skip": -1}, "skip must be a whole number from 0, not -1"),
        ({"status": 503, "owner": "9"}, "does not match the naming convention"),
        ({"status": 503, "instance": "Boiler"}, "does not match the naming convention"),
        ({"status": 503, "requester": 5}, "requester must be a text, not 5"),
        ({"status": 503, "when": "now"}, "when must be a function"),
        ({"when": print}, "a fault needs one of status, body"),
        (
            {"status": 503, "operation": "lock.reserve"},
            r"Unknown operation: lock.reserve \(a service has it with recorder=True\)",
        ),
    ],
)
def test_what_cannot_be_is_an_error_at_once(service, fault, message):
    with pytest.raises(ValueError, match=message):
        service.faults.next(**fault)
    assert service.faults.unused() == []


def test_the_arguments_that_a_type_checker_sees_are_those_that_there_are():
    assert set(ARGUMENTS) == Next.__optional_keys__


def test_the_operations_are_those_of_the_recorder_too(orchmgmt_factory):
    service = orchmgmt_factory(recorder=True)
    added = {it.name for it in operations(service.store)}
    assert added == set(OF_THE_RECORDER)
    client = Client(service.url, service.headers)
    service.faults.next(status=503, operation="lock.reserve", owner="Alice")
    service.faults.next(status=503, operation="lock.release")
    service.faults.next(status=503, operation="history.record")
    reserved = {**lock(INSTANCE, "Alice"), "orchestrationJobId": UUID}
    assert client.post("/lock/reserve", {"locks": [reserved]}).status == 503
    path = "/serviceorchestration/orchestration/mgmt/lock/release/"
    assert client.send("DELETE", path + UUID).status == 503
    assert client.post("/history/record", {}).status == 503
    service.faults.assert_all_used()
    with pytest.raises(ValueError, match=r"lock.reserved \(did you mean lock.reserve\?\)"):
        service.requests.of("lock.reserved")


# --- strict faults


def ask_for_faults(service):
    service.faults.next(status=503)
    service.faults.next(status=5)


def test_strict_faults_fail_where_the_service_ends():
    with (
        pytest.raises(AssertionError, match=r"not happened: next\(status=503\)"),
        Service(strict_faults=True) as service,
    ):
        service.faults.next(status=503)
    with pytest.raises(ValueError, match="status must be"), Service(strict_faults=True) as service:
        ask_for_faults(service)
    service = Service(strict_faults=True).start()
    service.faults.always(drop="after")
    with pytest.raises(AssertionError, match="always"):
        service.stop()
    service.stop()


# --- over HTTP


def test_other_languages_can_ask_for_the_same(serve):
    server = serve(command="test-server")

    def control(name, payload=None):
        body = payload and json.dumps(payload).encode()
        return server.send("POST" if payload else "GET", f"/test/{name}", body, {}).json

    wanted = [
        {"body": {"entries": "none"}, "headers": {"X-Own": "1"}, "requester": "Sysop"},
        {"drop": "reset", "owner": "BoilerControl", "skip": 1},
    ]
    assert len(control("faults", {"next": wanted})["unused"]) == 2
    assert server.locks().json == {"entries": "none"}
    assert server.create(lock(INSTANCE, "BoilerControl")).status == 201
    with pytest.raises(ConnectionResetError):
        server.remove("BoilerControl", "instanceIds=Boiler%7Cheat%7C1")
    server.send("POST", "/serviceorchestration/orchestration/mgmt/lock/query", b"{\xff")
    asked = control("requests")["requests"]
    assert [(it["status"], it["delivered"]) for it in asked] == [
        (200, True),
        (201, True),
        (None, False),
        (415, True),
    ]
    assert asked[3]["raw"] == "{\\xff"
    assert asked[3]["json"] is None
    assert asked[2]["received_at"] <= asked[2]["answered_at"]
    assert asked[2]["fault"].startswith("next(drop='reset'")
