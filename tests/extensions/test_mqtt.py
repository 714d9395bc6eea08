"""The service over MQTT, on a real Mosquitto (contract, "MQTT")."""

import base64
import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from broker import ABSENT, BASE, SYSOP, Broker, Line, Peer
from certificates import CLOUD, DAY, DOMAIN, NOW, Authority, Issued, subject
from needs import program
from standin import Cloud
from support import FUTURE, Client, Process, lock, until
from wire import connect

from orchmgmt.app import create_app, service_of
from orchmgmt.entries import all_of
from orchmgmt.extensions.mqtt import connection
from orchmgmt.store import Store
from orchmgmt.testing import Service

INSTANCE, OTHER = "Boiler|heat|1.0.0", "Tank|level|1.0.0"
NONE = "No authentication info has been provided"
INVALID = "Invalid authentication info"
NO_PERMISSION = "Requester has no management permission"
NAMING = "The specified system name does not match the naming convention: "


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    broker = Broker(tmp_path_factory.mktemp("broker"))
    yield broker
    broker.stop()


@pytest.fixture(scope="module")
def peer(broker: Broker) -> Iterator[Peer]:
    peer = Peer(broker.url)
    yield peer
    peer.close()


@pytest.fixture
def service(broker: Broker, database_url: str) -> Iterator[Service]:
    with Service(mqtt=broker.url, database_url=database_url, recorder=True) as service:
        yield service


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Peer]:
    """Asks one service on a broker of its own, for tests that change nothing."""
    broker = Broker(tmp_path_factory.mktemp("shared"))
    with Service(mqtt=broker.url):
        peer = Peer(broker.url)
        yield peer
        peer.close()
    broker.stop()


def create(*locks: Any) -> dict[str, Any]:
    return {"locks": list(locks)}


def fault(answer: dict[str, Any], operation: str) -> tuple[int, str]:
    """The status and the message of an error, once all else in it has been checked."""
    kinds = {401: "AUTH", 403: "FORBIDDEN", 503: "EXTERNAL_SERVER_ERROR"}
    payload, status = answer["payload"], answer["status"]
    assert payload == {
        "errorMessage": payload["errorMessage"],
        "errorCode": status,
        "exceptionType": kinds.get(status, "INVALID_PARAMETER"),
        "origin": BASE + operation,
    }
    return status, payload["errorMessage"]


# --- the exchanges


def test_locks_are_made_found_extended_and_removed(service: Service, peer: Peer) -> None:
    made = peer.ask("lock/create", create(lock(INSTANCE), lock(OTHER)), traceId="t1")
    first, second = service.locks()
    entries = [
        {
            "id": it.id,
            "orchestrationJobId": "",
            "serviceInstanceId": it.service_instance_id,
            "owner": "Owner",
            "expiresAt": FUTURE,
            "temporary": False,
        }
        for it in (first, second)
    ]
    assert made == {
        "status": 201,
        "traceId": "t1",
        "receiver": "Sysop",
        "payload": {"entries": entries, "count": 2},
    }
    assert list(made) == ["status", "traceId", "receiver", "payload"]
    page = {"page": 0, "size": 1}
    found = peer.ask("lock/query", {"owners": ["Owner"], "pagination": page})
    assert found["payload"] == {"entries": entries[1:], "count": 2}
    assert (found["status"], peer.ask("lock/query")["payload"]["count"]) == (200, 2)

    later = "2099-06-01T00:00:00Z"
    renewed = peer.ask("lock/renew", create({**lock(OTHER), "expiresAt": later}))
    assert renewed["status"] == 200
    assert renewed["payload"] == {"entries": [{**entries[1], "expiresAt": later}], "count": 1}

    gone = peer.ask(
        "lock/remove", [INSTANCE, OTHER], params={"owner": "Owner", "ids": f"{first.id}"}
    )
    assert gone == {"status": 200, "receiver": "Sysop", "payload": ""}
    assert [it.id for it in service.locks()] == [second.id]
    assert peer.ask("lock/remove", [OTHER], params={"owner": "owner"})["payload"] == ""
    assert service.locks() == []


def test_jobs_are_recorded_reserved_for_and_found(service: Service, peer: Peer) -> None:
    job = {
        "type": "PULL",
        "requesterSystem": "Consumer",
        "targetSystem": "Consumer",
        "serviceDefinition": "kelvinInfo",
    }
    recorded = peer.ask("history/record", {"jobs": [job]})
    (entry,) = recorded["payload"]["entries"]
    assert (recorded["status"], entry["requesterSystem"]) == (201, "Consumer")
    wanted = {**lock(INSTANCE), "orchestrationJobId": entry["id"]}
    reserved = peer.ask("lock/reserve", create(wanted), idempotencyKey="a key")
    assert fault(reserved, "lock/reserve") == (400, "Invalid idempotency key")
    for _ in range(2):
        reserved = peer.ask("lock/reserve", create(wanted), idempotencyKey="key")
        assert (reserved["status"], reserved["payload"]["entries"][0]["temporary"]) == (201, True)
    released = peer.ask("lock/release", params={"orchestrationJobId": entry["id"]})
    assert (released["status"], released["payload"]) == (200, {"count": 1})
    found = peer.ask("history/query", {"ids": [entry["id"]]})
    assert (found["status"], found["payload"]["entries"]) == (200, [entry])
    missing = peer.ask("lock/release")
    assert fault(missing, "lock/release") == (400, "Orchestration job id is missing")


def test_without_the_recorder_nobody_listens_at_its_topics(shared: Peer) -> None:
    for operation in ("lock/reserve", "lock/release", "history/record", "lock/nonsense"):
        shared.send(operation, shared.request({}))
    assert shared.ask("lock/query")["status"] == 200
    assert shared.silence()


@pytest.mark.sqlite
@pytest.mark.parametrize(
    ("given", "returned"),
    [
        (ABSENT, ABSENT),
        (None, ABSENT),
        ("", ""),
        (" tr\u00e4ce\n", " tr\u00e4ce\n"),
        (5, "5"),
        (1.5, "1.5"),
    ],
)
def test_the_trace_id_comes_back(shared: Peer, given: Any, returned: Any) -> None:
    assert shared.ask("lock/query", traceId=given).get("traceId", ABSENT) == returned


@pytest.mark.sqlite
@pytest.mark.parametrize(
    ("wanted", "qos"),
    [(ABSENT, 0), (None, 0), (0, 0), (1, 1), (2, 2), ("0", 0), ("1", 1), ("2", 2)],
)
@pytest.mark.parametrize("sent", [0, 1, 2])
def test_the_answer_has_the_quality_of_service_that_was_asked_for(
    shared: Peer, wanted: Any, qos: int, sent: int
) -> None:
    request = shared.request(qosRequirement=wanted)
    shared.send("lock/query", request, sent)
    answer = shared.received(request)
    assert (answer.qos, answer.retain) == (qos, False)


@pytest.mark.sqlite
@pytest.mark.parametrize(
    ("authentication", "message"),
    [
        (ABSENT, NONE),
        (None, NONE),
        ("", NONE),
        *(
            (it, INVALID)
            for it in (
                " ",
                "Sysop",
                "system//Sysop",
                " SYSTEM//Sysop",
                "SYSTEM//Sysop ",
                "SYSTEM// Sysop",
                "SYSTEM //Sysop",
                "Bearer SYSTEM//Sysop",
                "IDENTITY-TOKEN//5b0cd7b6-0000-4000-8000-000000000000",
                "SYSTEM//9",
                "SYSTEM//",
                "//",
                5,
                True,
                [],
                ["SYSTEM//Sysop"],
                {"SYSTEM": "Sysop"},
                "\ud800",
                "SYSTEM//\u0000",
            )
        ),
    ],
)
def test_who_says_nobody_is_401(shared: Peer, authentication: Any, message: str) -> None:
    answer = shared.ask("lock/create", 5, authentication=authentication, traceId="t")
    assert fault(answer, "lock/create") == (401, message)
    assert (answer["traceId"], "receiver" in answer) == ("t", False)


@pytest.mark.sqlite
def test_identity_comes_before_permission_and_this_before_the_payload(shared: Peer) -> None:
    answer = shared.ask("lock/create", 5, authentication="SYSTEM//bob", params=5)
    assert fault(answer, "lock/create") == (403, NO_PERMISSION)
    assert answer["receiver"] == "Bob"


@pytest.mark.sqlite
@pytest.mark.parametrize(
    ("operation", "keys", "message"),
    [
        ("lock/create", {"payload": ABSENT}, "Request payload is null"),
        ("lock/create", {"payload": None}, "Request payload is null"),
        ("lock/create", {"payload": {}}, "Request payload is empty"),
        ("lock/create", {"payload": []}, "A JSON object was expected"),
        ("lock/create", {"payload": 5}, "A JSON object was expected"),
        ("lock/create", {"payload": {"locks": 5}}, "locks must be a list"),
        ("lock/create", {"payload": create(lock(INSTANCE, "9"))}, f"{NAMING}9"),
        ("lock/query", {"payload": "x"}, "A JSON object was expected"),
        ("lock/query", {"traceId": []}, "traceId must be a string"),
        ("lock/query", {"traceId": True}, "traceId must be a string"),
        ("lock/create", {"idempotencyKey": 5}, "idempotencyKey must be a string"),
        ("lock/create", {"idempotencyKey": ""}, "Invalid idempotency key"),
        ("lock/remove", {"payload": [INSTANCE]}, "Owner is missing"),
        ("lock/remove", {"payload": [INSTANCE], "params": None}, "Owner is missing"),
        ("lock/remove", {"payload": [INSTANCE], "params": {"owner": " "}}, "Owner is missing"),
        ("lock/remove", {"payload": [INSTANCE], "params": []}, "params must be a JSON object"),
        ("lock/remove", {"params": {"owner": "O"}}, "Service instance id list empty"),
        (
            "lock/remove",
            {"payload": [], "params": {"owner": "O"}},
            "Service instance id list empty",
        ),
        (
            "lock/remove",
            {"payload": [None], "params": {"owner": "O"}},
            "Service instance id list contains empty element",
        ),
        (
            "lock/remove",
            {"payload": [f"{INSTANCE},{OTHER}"], "params": {"owner": "O"}},
            "The specified service instance identifier does not match the naming convention: "
            f"{INSTANCE},{OTHER}",
        ),
        (
            "lock/remove",
            {"payload": INSTANCE, "params": {"owner": "O"}},
            "instanceIds must be a list",
        ),
        ("lock/remove", {"payload": [INSTANCE], "params": {"owner": 5}}, "owner must be a string"),
    ],
)
def test_a_wrong_request_is_400(
    shared: Peer, operation: str, keys: dict[str, Any], message: str
) -> None:
    answer = shared.ask(operation, **{"traceId": "t", **keys})
    assert fault(answer, operation) == (400, message)
    assert answer["receiver"] == "Sysop"


@pytest.mark.sqlite
def test_unknown_keys_are_refused_if_they_are_to_be(broker: Broker, peer: Peer) -> None:
    with Service(mqtt=broker.url, strict=True):
        for operation, keys, message in (
            (
                "lock/create",
                {"idempotencykey": "k"},
                "Unknown key: idempotencykey (did you mean idempotencyKey?)",
            ),
            (
                "lock/remove",
                {"params": {"owners": "O"}},
                "Unknown key: owners (did you mean owner?)",
            ),
            ("lock/query", {"payload": {"owner": []}}, "Unknown key: owner (did you mean owners?)"),
        ):
            assert fault(peer.ask(operation, **keys), operation) == (400, message)


def unanswerable(peer: Peer) -> Iterator[tuple[str, bytes]]:
    """Messages that would make a lock if they were answered, and others."""
    for name, keys in {
        "no topic": {"responseTopic": ABSENT},
        "null": {"responseTopic": None},
        "empty": {"responseTopic": ""},
        "a number": {"responseTopic": 5},
        "a wildcard": {"responseTopic": f"{peer.topic}/#"},
        "another": {"responseTopic": f"{peer.topic}/+"},
        "inside": {"responseTopic": f"{peer.topic}/a+b"},
        "control": {"responseTopic": f"{peer.topic}/\u0000"},
        "a line": {"responseTopic": f"{peer.topic}/\n"},
        "surrogate": {"responseTopic": f"{peer.topic}/\ud800"},
        "no character": {"responseTopic": f"{peer.topic}/\uffff"},
        "the broker's": {"responseTopic": "$SYS/broker/version"},
        "a subscription": {"responseTopic": "$share/a/b"},
        "its control": {"responseTopic": "$CONTROL/dynamic-security/v1"},
        "deep": {"responseTopic": peer.topic + "/a" * 250},
        "long": {"responseTopic": peer.topic + "a" * 66_000},
        "3": {"qosRequirement": 3},
        "-1": {"qosRequirement": -1},
        "1.5": {"qosRequirement": 1.5},
        "true": {"qosRequirement": True},
        "words": {"qosRequirement": "one"},
        "space": {"qosRequirement": " 1"},
        "list": {"qosRequirement": [1]},
    }.items():
        request = peer.request(create(lock(INSTANCE)))
        request.update(keys)
        request = {key: it for key, it in request.items() if it is not ABSENT}
        yield name, json.dumps(request).encode()
    whole = json.dumps(peer.request(create(lock(INSTANCE)))).encode()
    yield "nothing", b""
    yield "null alone", b"null"
    yield "a list", b"[" + whole + b"]"
    yield "a string", b'"x"'
    yield "half", whole[:-1]
    yield "more", whole + b"}"
    yield "twice a key", b'{"payload": 1,' + whole[1:]
    yield "UTF-16", whole.decode().encode("utf-16")
    yield "no UTF-8", whole.replace(b"SYSTEM", b"\xff\xfe\xc0\x80")
    yield "NaN", b'{"traceId": NaN,' + whole[1:]
    yield "deep brackets", b"[" * 200_000
    yield "deep keys", b'{"payload":' * 100_000
    yield "bytes", bytes(range(256)) * 10


@pytest.mark.sqlite
def test_what_cannot_be_answered_is_not_done_and_harms_nobody(
    broker: Broker, peer: Peer, caplog: pytest.LogCaptureFixture
) -> None:
    with Service(mqtt=broker.url, metrics=True) as service:
        count = 0
        for _, message in unanswerable(peer):
            for qos in (0, 1):
                peer.send("lock/create", message, qos)
                count += 1
        assert peer.ask("lock/query")["payload"]["count"] == 0
        figures = {it.name: it.value() for it in service.store.figures}
        assert (figures["mqtt_ignored"], figures["mqtt_connected"]) == (count, True)
        assert peer.silence()
    assert [it.getMessage() for it in caplog.records if it.levelno > logging.INFO] == []


@pytest.mark.sqlite
def test_a_byte_order_mark_and_unknown_keys_do_not_matter(shared: Peer) -> None:
    request = shared.request(more={"a": [1]}, params={"x": "y"})
    shared.send("lock/query", b"\xef\xbb\xbf" + json.dumps(request).encode())
    assert shared.answer(request)["status"] == 200


@pytest.mark.sqlite
def test_a_retained_request_is_ignored(broker: Broker, peer: Peer) -> None:
    """With MQTT 5 it does not even come; an old broker sends it at each subscription."""
    request = peer.request(create(lock(INSTANCE)))
    peer.send("lock/create", request, retain=True)
    try:
        with Service(mqtt=broker.url) as service:
            assert peer.ask("lock/query")["payload"]["count"] == 0
        line = Line(broker, old=True)
        with Service(mqtt=line.url) as service:
            until(lambda: {it.name: it.value() for it in service.store.figures}["mqtt_ignored"])
            assert service.locks() == []
        line.close()
    finally:
        peer.send("lock/create", b"", retain=True)
    assert peer.silence()


def test_a_create_that_comes_again_with_its_key_is_answered_as_the_first(
    service: Service, peer: Peer
) -> None:
    request = peer.request(create(lock(INSTANCE)), idempotencyKey="once")
    for _ in range(3):
        peer.send("lock/create", request)
    first, *others = [peer.answer(request) for _ in range(3)]
    assert first["status"] == 201
    assert others == [first] * 2
    assert len(service.locks()) == 1
    # The key is the same as over HTTP.
    http = Client(service.url, service.headers)
    headers = {"Idempotency-Key": "once"}
    assert http.post("/lock/create", create(lock(INSTANCE)), **headers).json == first["payload"]
    without = peer.ask("lock/create", create(lock(INSTANCE)))
    assert fault(without, "lock/create") == (400, f"Already locked: {INSTANCE}")


@pytest.mark.sqlite
def test_requests_are_counted_and_audited_as_over_http(
    broker: Broker, peer: Peer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    with Service(mqtt=broker.url, metrics=True) as service:
        peer.ask("lock/create", create(lock(INSTANCE)))
        peer.ask("lock/create", authentication="IDENTITY-TOKEN//secret")
        told = Client(service.url).send("GET", "/metrics").body.decode()
    for line in (
        'orchmgmt_requests_total{operation="lock.create",status="201"} 1.0',
        'orchmgmt_requests_total{operation="lock.create",status="401"} 1.0',
        'orchmgmt_request_seconds_count{operation="lock.create"} 2.0',
        "orchmgmt_mqtt_connected 1.0",
    ):
        assert f"\n{line}\n" in told
    audit = [it.getMessage() for it in caplog.records if it.name == "orchmgmt.audit"]
    assert audit[0] == (
        f"requester=Sysop operation=lock.create status=201 result=done locks=1 "
        f"instances={INSTANCE} owners=Owner ids=1"
    )
    assert audit[1].startswith("requester=- operation=lock.create status=401 result=refused")
    access = [it.getMessage() for it in caplog.records if it.name == "orchmgmt.access"]
    assert access == ["refused - lock.create from MQTT: 401 Invalid authorization header"]
    assert "secret" not in caplog.text


# --- the policies


def shown(*issued: Issued) -> str:
    return base64.b64encode("".join(it.pem for it in issued).encode()).decode()


@pytest.fixture
def certified(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[Authority, Peer, Path]]:
    """A service under `certificate`, the authority that it trusts, and the file that says so."""
    folder = tmp_path_factory.mktemp("certified")
    authority = Authority(folder)
    path = folder / "trusted.pem"
    path.write_text(authority.own.pem)
    broker = Broker(folder)
    with Service(
        mqtt=broker.url,
        authentication_policy="certificate",
        cloud=CLOUD,
        mqtt_ca_file=str(path),
    ):
        peer = Peer(broker.url)
        yield authority, peer, path
        peer.close()
    broker.stop()


@pytest.mark.sqlite
def test_a_certificate_is_verified_here(
    certified: tuple[Authority, Peer, Path], tmp_path: Path
) -> None:
    authority, peer, _ = certified
    operator, system = authority.operator(), authority.system()
    assert peer.ask("lock/query", authentication=shown(operator))["receiver"] == "Carol"
    answer = peer.ask("lock/query", authentication=shown(system))
    assert fault(answer, "lock/query") == (403, NO_PERMISSION)
    name = subject(f"carol.{DOMAIN}", qualifiers=("op",))
    stranger = Authority(tmp_path, "stranger")
    foreign = authority.issue(subject("carol.other.company.arrowhead.eu", qualifiers=("op",)))
    answer = peer.ask("lock/query", authentication=shown(foreign))
    assert fault(answer, "lock/query") == (403, "The client certificate is not of this cloud")
    for authentication, message in (
        (ABSENT, NONE),
        ("", NONE),
        ("SYSTEM//Sysop", INVALID),
        (operator.pem, INVALID),
        (base64.b64encode(operator.der).decode(), INVALID),
        (shown(operator)[:-8], INVALID),
        (shown(operator) + "\n", INVALID),
        (shown(stranger.operator()), INVALID),
        (shown(stranger.issue(name), authority.own), INVALID),
        (shown(authority.issue(name, self_signed=True)), INVALID),
        (shown(authority.issue(name, starts=NOW - 2 * DAY, ends=NOW - DAY)), INVALID),
        (shown(authority.issue(name, starts=NOW + DAY, ends=NOW + 2 * DAY)), INVALID),
        (shown(*[operator] * 50), INVALID),
        (base64.b64encode(b"\x00" * 1000).decode(), INVALID),
        (5, INVALID),
        ([shown(operator)], INVALID),
    ):
        answer = peer.ask("lock/query", authentication=authentication)
        assert fault(answer, "lock/query") == (401, message)


@pytest.mark.sqlite
def test_a_chain_is_followed_and_only_clients_are_believed(
    certified: tuple[Authority, Peer, Path], tmp_path: Path
) -> None:
    authority, peer, _ = certified
    intermediate = Authority(tmp_path, "intermediate")
    intermediate.own = authority.issue(subject("intermediate"), authority=True, self_signed=False)
    operator = intermediate.operator()
    answer = peer.ask("lock/query", authentication=shown(operator))
    assert fault(answer, "lock/query") == (401, INVALID)
    answer = peer.ask("lock/query", authentication=shown(operator, intermediate.own))
    assert answer["receiver"] == "Carol"
    server = authority.issue(subject(f"carol.{DOMAIN}", qualifiers=("op",)), server=True)
    answer = peer.ask("lock/query", authentication=shown(server))
    assert fault(answer, "lock/query") == (401, INVALID)


@pytest.mark.sqlite
def test_a_revoked_certificate_counts_no_more_once_the_list_is_there(
    certified: tuple[Authority, Peer, Path], caplog: pytest.LogCaptureFixture
) -> None:
    authority, peer, path = certified
    operator, revoked = authority.operator(), authority.operator("mallory")

    def status(issued: Issued) -> Any:
        return peer.ask("lock/query", authentication=shown(issued))["status"]

    assert (status(operator), status(revoked)) == (200, 200)
    trusted = authority.own.pem + Path(authority.revocations(revoked)).read_text()
    path.write_text(trusted)
    assert (status(operator), status(revoked)) == (200, 401)
    path.write_text("nonsense")
    assert (status(operator), status(revoked)) == (200, 401)
    assert "MQTT_CA_FILE cannot be used any more" in caplog.text
    old = Path(authority.revocations(revoked, ends=NOW - DAY)).read_text()
    path.write_text(authority.own.pem + old)
    assert (status(operator), status(revoked)) == (401, 401)  # as nginx has it


@pytest.mark.sqlite
def test_a_slow_identity_service_holds_up_nobody_else(
    broker: Broker, peer: Peer, cloud: Cloud
) -> None:
    settings = {key.lower(): it for key, it in cloud.settings.items()}
    with Service(
        mqtt=broker.url,
        authentication_policy="outsourced",
        management_policy="authorization",
        read_timeout_seconds=60,
        identity_cache_seconds=600,
        **settings,
    ):
        operator = f"IDENTITY-TOKEN//{cloud.token('Carol', sysop=True)}"
        assert peer.ask("lock/query", authentication=operator)["receiver"] == "Carol"
        alice = f"IDENTITY-TOKEN//{cloud.token('Alice')}"
        refused = peer.ask("lock/query", authentication=alice)
        assert fault(refused, "lock/query") == (403, NO_PERMISSION)
        cloud.allowed.add(("Alice", "serviceOrchestrationLockManagement", "query"))
        assert peer.ask("lock/query", authentication=alice)["receiver"] == "Alice"
        unknown = "IDENTITY-TOKEN//00000000-0000-4000-8000-000000000000"
        answer = peer.ask("lock/query", authentication=unknown)
        assert fault(answer, "lock/query") == (401, INVALID)
        cloud.open.clear()
        slow = [
            peer.request(authentication=f"IDENTITY-TOKEN//{cloud.token(f'Bob{n}', sysop=True)}")
            for n in range(20)
        ]
        for request in slow:
            peer.send("lock/query", request)
        cloud.wait_for(5)
        assert peer.ask("lock/query", authentication=operator)["status"] == 200
        cloud.open.set()
        assert {peer.answer(it)["status"] for it in slow} == {200}


@pytest.mark.sqlite
def test_a_busy_database_holds_up_no_query(broker: Broker, peer: Peer, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/orchmgmt.db"
    with Service(mqtt=broker.url, database_url=url, database_timeout_seconds=60) as service:
        assert service.locks() == []
        other = connect(url)
        other.execute("BEGIN IMMEDIATE")
        creates = [peer.request(create(lock(f"System{n}|a|1.0.0"))) for n in range(10)]
        for request in creates:
            peer.send("lock/create", request)
        assert peer.ask("lock/query")["payload"]["count"] == 0
        assert peer.silence()
        other.execute("COMMIT")
        other.close()
        assert {peer.answer(it)["status"] for it in creates} == {201}


# --- limits


@pytest.mark.sqlite
def test_a_message_may_have_as_many_bytes_as_a_body(broker: Broker, peer: Peer) -> None:
    with Service(mqtt=broker.url, max_body_bytes=10_000):
        for size, status in ((10_000, 200), (10_001, 413), (15_000, 413)):
            request = peer.request()
            request["more"] = ""
            request["more"] = "x" * (size - len(json.dumps(request)))
            peer.send("lock/query", request)
            answer = peer.answer(request)
            assert answer["status"] == status
        assert fault(answer, "lock/query")[1] == "The request body is larger than 10000 bytes"
        # Beyond that the broker lets nothing through.
        peer.send("lock/query", b" " * 100_000, qos=2)
        assert peer.ask("lock/query")["status"] == 200


@pytest.mark.sqlite
def test_an_answer_that_the_broker_does_not_take_is_an_error(tmp_path: Path, peer: Peer) -> None:
    small = Broker(tmp_path, "max_packet_size 20000")
    with Service(mqtt=small.url) as service:
        for number in range(200):
            service.add_lock(f"System{number}|a|1.0.0")
        asks = Peer(small.url)
        answer = asks.ask("lock/query")
        status, message = fault(answer, "lock/query")
        assert (status, message[:36]) == (413, "The answer is larger than the 15904 ")
        page = {"pagination": {"page": 0, "size": 10}}
        assert asks.ask("lock/query", page)["payload"]["count"] == 200
        asks.close()
    small.stop()


def test_many_requests_at_once_are_all_done_once(service: Service, peer: Peer) -> None:
    requests = [
        peer.request(create(lock(f"System{n}|a|1.0.0")), qosRequirement=n // 3 % 3)
        for n in range(500)
    ]
    for number, request in enumerate(requests):
        peer.send("lock/create", request, qos=number % 3)
    assert {peer.answer(it)["status"] for it in requests} == {201}
    assert len(service.locks()) == 500


# --- the broker


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [it.getMessage() for it in caplog.records if "MQTT" in it.getMessage()]


def connected(service: Service) -> bool:
    return bool({it.name: it.value() for it in service.store.figures}["mqtt_connected"])


@contextmanager
def bridge(caplog: pytest.LogCaptureFixture, **settings: str) -> Iterator[None]:
    """What answers over a broker that it cannot connect to, once it has said so."""
    service = service_of(create_app({"database_url": "sqlite:///:memory:", **settings}))
    (extension,) = service.extensions
    with service.store:
        extension.start("")
        until(lambda: lines(caplog))
        yield
        extension.stop()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses for people who do not wait."""
    monkeypatch.setattr(connection, "AGAIN", 0.05)
    monkeypatch.setattr(connection, "LONGEST_PAUSE", 0.4)


@pytest.mark.sqlite
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_the_broker_comes_back(
    tmp_path: Path, quick: None, caplog: pytest.LogCaptureFixture, number: int
) -> None:
    caplog.set_level("INFO")
    broker = Broker(tmp_path)
    with Service(mqtt=broker.url) as service:
        http = Client(service.url, service.headers)
        broker.stop(number)
        until(lambda: not connected(service))
        assert http.create(lock(INSTANCE)).status == 201
        assert http.send("GET", "/health").status == 200
        broker.start()
        until(lambda: connected(service))
        peer = Peer(broker.url)
        assert peer.ask("lock/query")["payload"]["count"] == 1
        peer.close()
    broker.stop()
    said = [it.split(broker.url)[0] for it in lines(caplog)]
    ends = [it for it in said if it.startswith("MQTT: not connected")]
    assert len(ends) in (1, 2)  # it was lost, and then nobody listened
    assert said == ["MQTT: connected to ", *ends, "MQTT: connected to ", "MQTT: disconnected from "]


@pytest.mark.sqlite
def test_a_line_that_is_cut_is_begun_anew(broker: Broker, peer: Peer, quick: None) -> None:
    """What is under way is answered all the same, once the line is there again."""
    line = Line(broker)
    with Service(mqtt=line.url) as service:
        for number in range(3):
            before = line.connections
            line.cut()
            until(lambda before=before: line.connections > before and connected(service))
            answer = peer.ask("lock/create", create(lock(f"System{number}|a|1.0.0")))
            assert answer["status"] == 201
    line.close()


@pytest.mark.sqlite
def test_the_answer_to_what_was_under_way_comes_after_the_line_was_cut(
    broker: Broker, peer: Peer, quick: None, tmp_path: Path
) -> None:
    line = Line(broker)
    url = f"sqlite:///{tmp_path}/orchmgmt.db"
    with Service(mqtt=line.url, database_url=url, database_timeout_seconds=60) as service:
        other = connect(url)
        other.execute("BEGIN IMMEDIATE")
        request = peer.request(create(lock(INSTANCE)), qosRequirement=1)
        peer.send("lock/create", request)
        assert peer.ask("lock/query")["status"] == 200  # so the other has been received
        line.cut()
        until(lambda: not connected(service))
        other.execute("COMMIT")
        other.close()
        assert peer.answer(request)["status"] == 201
    line.close()


@pytest.mark.sqlite
def test_a_broker_that_refuses_the_password_is_asked_again(
    tmp_path: Path, quick: None, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    passwords = tmp_path / "passwords"
    passwords.write_text("orchmgmt:right\n")
    subprocess.run([program("mosquitto_passwd"), "-U", str(passwords)], check=True)
    passwords.chmod(0o644)
    broker = Broker(tmp_path, "allow_anonymous false", f"password_file {passwords}")
    wrong = broker.url.replace("//", "//orchmgmt:wr%20ng@")
    with bridge(caplog, mqtt_url=wrong):
        until(lambda: broker.log.read_text().count("New connection") > 3)
    assert lines(caplog) == [
        f"MQTT: not connected to {broker.url}: it refuses the connection: Not authorized; retrying"
    ]
    assert "wr ng" not in caplog.text
    with Service(mqtt=broker.url.replace("//", "//orchmgmt:right@")) as service:
        assert connected(service)
    broker.stop()


@pytest.mark.sqlite
def test_an_old_broker_gives_all_requests_to_one_process(
    broker: Broker, peer: Peer, quick: None, caplog: pytest.LogCaptureFixture
) -> None:
    line = Line(broker, old=True)
    with Service(mqtt=line.url) as service:
        assert peer.ask("lock/create", create(lock(INSTANCE)), qosRequirement=2)["status"] == 201
        said = [it for it in lines(caplog) if "connected to" in it]
        assert said == [
            f"MQTT: connected to {line.url}, which has no shared subscriptions: only one process "
            "may serve over it"
        ]
        with Service(mqtt=line.url):  # it takes the place of the first
            until(lambda: any("not connected" in it for it in lines(caplog)))
        until(lambda: connected(service))
        assert peer.ask("lock/query")["payload"]["count"] == 1
    line.close()


# paho leaves it to Python to close the socket of a handshake that failed.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.sqlite
def test_tls_with_a_certificate_of_its_own(
    tmp_path: Path, authority: Authority, quick: None, caplog: pytest.LogCaptureFixture
) -> None:
    own = authority.system("orchmgmt").save(tmp_path / "own.pem")
    server = authority.server_file()
    for path in (tmp_path / "own.pem", Path(server)):
        path.chmod(0o644)
    secure = [
        f"cafile {authority.ca_file}",
        f"certfile {server}",
        f"keyfile {server}",
        "require_certificate true",
    ]
    broker = Broker(tmp_path, *secure, scheme="mqtts")
    ours = {"certificate_file": own, "mqtt_ca_file": authority.ca_file}
    with Service(mqtt=broker.url, **ours) as service:
        peer = Peer(broker.url, tls=lambda it: it.tls_set(authority.ca_file, own, own))
        made = peer.ask("lock/create", create(*(lock(f"S{n}|a|1.0.0") for n in range(900))))
        assert (made["status"], len(service.locks())) == (201, 900)
        peer.close()
    stranger = Authority(tmp_path, "stranger")
    with bridge(caplog, **{**ours, "mqtt_url": broker.url, "mqtt_ca_file": stranger.ca_file}):
        pass
    assert "certificate verify failed" in caplog.text
    broker.stop()


# --- processes


def log_of(folder: Path, number: int = 0) -> str:
    path = folder / f"server-{number}.log"
    return path.read_text() if path.exists() else ""


def has_connected(folder: Path, number: int = 0) -> bool:
    return "MQTT: connected" in log_of(folder, number)


def test_what_has_come_is_answered_before_the_process_ends(
    broker: Broker,
    peer: Peer,
    serve: Callable[..., Process],
    database_url: str,
    tmp_path: Path,
) -> None:
    process = serve(env={"ORCHMGMT_MQTT_URL": broker.url, "ORCHMGMT_DATABASE_URL": database_url})
    until(lambda: has_connected(tmp_path))
    requests = [peer.request(create(lock(f"System{n}|a|1.0.0"))) for n in range(300)]
    for request in requests:
        peer.send("lock/create", request)
    assert process.stop() == 0
    assert {peer.answer(it)["status"] for it in requests} == {201}
    assert "MQTT: disconnected" in log_of(tmp_path)
    with Store({"DATABASE_URL": database_url}) as store:
        assert store.locks.find(size=1).count == 300


@pytest.mark.sqlite
def test_two_processes_share_the_work_and_one_may_be_killed(
    broker: Broker,
    peer: Peer,
    serve: Callable[..., Process],
    tmp_path: Path,
) -> None:
    """With its key, a request may be sent again until there is an answer: it is done once."""
    url = f"sqlite:///{tmp_path}/orchmgmt.db"
    env = {"ORCHMGMT_MQTT_URL": broker.url, "ORCHMGMT_DATABASE_URL": url}
    bridges = [serve(env=env), serve(env=env)]
    until(lambda: has_connected(tmp_path, 0) and has_connected(tmp_path, 1))
    for number in range(100):
        peer.ask("lock/create", create(lock(f"Before{number}|a|1.0.0")))
    done = [log_of(tmp_path, it).count("operation=lock.create status=201") for it in range(2)]
    assert sum(done) == 100
    assert min(done) > 10
    requests = [
        peer.request(create(lock(f"System{n}|a|1.0.0")), idempotencyKey=f"key-{n}", traceId=f"{n}")
        for n in range(200)
    ]
    for number, request in enumerate(requests):
        peer.send("lock/create", request)
        if number == 100:
            bridges[0].process.send_signal(signal.SIGKILL)
            bridges[0].process.wait(60)
    first = {it["traceId"]: it for it in peer.answers_so_far()}
    for request in requests:
        peer.send("lock/create", request)
    for request in requests:
        answer = peer.answer(request)
        assert answer["status"] == 201
        assert first.get(request["traceId"], answer) == answer
    with Store({"DATABASE_URL": url}) as store:
        assert store.locks.find(size=1).count == 300


def test_the_bridge_is_a_process_of_its_own(
    broker: Broker,
    peer: Peer,
    serve: Callable[..., Process],
    database_url: str,
    tmp_path: Path,
) -> None:
    secret = broker.url.replace("//", "//user:secret@")
    env = {"ORCHMGMT_MQTT_URL": secret, "ORCHMGMT_DATABASE_URL": database_url}
    bridge = serve(command="mqtt", env=env)
    assert bridge.url == broker.url
    until(lambda: has_connected(tmp_path))
    assert " serves " in log_of(tmp_path).splitlines()[0]
    assert peer.ask("lock/create", create(lock(INSTANCE)))["status"] == 201
    assert bridge.stop() == 0
    assert log_of(tmp_path).endswith("stopped\n")
    with Store({"DATABASE_URL": database_url}) as store:
        assert [it.service_instance_id for it in all_of(store.locks.find)] == [INSTANCE]


@pytest.mark.sqlite
def test_the_bridge_does_not_say_that_it_listens_before_it_does(broker: Broker) -> None:
    line = Line(broker)
    line.refusing = True
    command = [sys.executable, "-m", "orchmgmt", "mqtt", "--mqtt-url", line.url]
    command += ["--database-url", "sqlite:///:memory:"]
    bridge = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=dict(os.environ)
    )
    until(lambda: line.connections)
    bridge.terminate()
    printed, logged = bridge.communicate(timeout=60)
    line.close()
    assert (bridge.returncode, printed) == (0, "")
    assert logged.endswith("stopped\n")


@pytest.mark.sqlite
def test_a_read_only_server_takes_no_requests_from_those_that_write(
    broker: Broker,
    peer: Peer,
    serve: Callable[..., Process],
    tmp_path: Path,
) -> None:
    copy = {"ORCHMGMT_DATABASE_URL": f"sqlite:///{tmp_path}/copy.db"}
    with Store({"DATABASE_URL": copy["ORCHMGMT_DATABASE_URL"]}):
        pass
    process = serve("--read-only", env={"ORCHMGMT_MQTT_URL": broker.url, **copy})
    with Service(mqtt=broker.url) as service:
        for n in range(8):
            answer = peer.ask("lock/create", create(lock(f"System{n}|a|1.0.0")))
            assert answer["status"] == 201
        assert len(service.locks()) == 8
    assert process.stop() == 0
    assert "MQTT" not in log_of(tmp_path)


@pytest.mark.sqlite
def test_a_broker_that_is_silent_at_the_end_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level("INFO")
    monkeypatch.setattr(connection, "DRAIN_TIMEOUT", 1.0)
    broker = Broker(tmp_path)
    with bridge(caplog, mqtt_url=broker.url):
        broker.send_signal(signal.SIGSTOP)
    broker.send_signal(signal.SIGCONT)
    broker.stop()
    assert "MQTT: the broker did not answer within 1 s" in lines(caplog)


@pytest.mark.sqlite
def test_what_is_wrong_with_the_settings_is_said_at_the_start(
    run: Callable[..., Any], tmp_path: Path
) -> None:
    empty = tmp_path / "empty.pem"
    empty.write_text("")
    wrong = "ORCHMGMT_MQTT_URL must be mqtt://HOST:PORT or mqtts://HOST:PORT"
    certificate = ["--authentication-policy", "certificate", "--cloud", CLOUD]
    for options, message in (
        ([], "ORCHMGMT_MQTT_URL must say where the broker is"),
        (["--mqtt-url", "localhost:1883"], wrong),
        (["--mqtt-url", "http://localhost"], wrong),
        (["--mqtt-url", "ssl://user:secret@localhost:8883"], wrong),
        (["--mqtt-url", "mqtt://"], wrong),
        (["--mqtt-url", "mqtt://host:0"], wrong),
        (["--mqtt-url", "mqtt://host:99999"], wrong),
        (["--mqtt-url", "mqtt://host/topic"], wrong),
        (["--mqtt-url", "mqtt://:secret@host"], wrong),
        (["--mqtt-url", "mqtt://a:b@secret secret"], wrong),
        (["--mqtt-url", "mqtt://h", *certificate], "needs ORCHMGMT_MQTT_CA_FILE"),
        (
            ["--mqtt-url", "mqtt://h", *certificate, "--mqtt-ca-file", str(empty)],
            "ORCHMGMT_MQTT_CA_FILE holds no certificate of a CA",
        ),
        (
            ["--mqtt-url", "mqtts://h", "--mqtt-ca-file", str(empty)],
            "ORCHMGMT_MQTT_CA_FILE cannot be used",
        ),
        (["--mqtt-url", "mqtts://h", "--ca-file", "none"], "ORCHMGMT_CA_FILE cannot be used"),
    ):
        result = run("mqtt", *options)
        assert (result.returncode, result.stdout) == (2, "")
        assert message in result.stderr
        assert len(result.stderr.splitlines()) == 1
        assert "secret" not in result.stderr


@pytest.mark.sqlite
def test_check_knows_the_broker(
    broker: Broker, peer: Peer, run: Callable[..., Any], tmp_path: Path
) -> None:
    def says(url: str, *options: str) -> str:
        result = run("check", "--mqtt-url", url, *options)
        (line,) = (it for it in result.stdout.splitlines() if "MQTT broker" in it)
        return line

    certificate = ["--authentication-policy", "certificate", "--cloud", CLOUD]
    assert says(broker.url, *certificate) == (
        "wrong  MQTT broker: the policy `certificate` needs ORCHMGMT_MQTT_CA_FILE"
    )
    line = Line(broker, old=True)
    with Service(mqtt=line.url):  # which is not disturbed
        assert says(broker.url.replace("//", "//user:secret@")) == (
            f"ok     MQTT broker: {broker.url} lets several processes share the work"
        )
        assert says(line.url) == (
            f"warn   MQTT broker: {line.url} has no shared subscriptions: only one process may "
            "serve over it"
        )
        assert peer.ask("lock/query")["status"] == 200
    line.refusing = True
    assert says(line.url).startswith(f"wrong  MQTT broker: {line.url} cannot be used: ")
    line.close()
    assert says(line.url) == (f"wrong  MQTT broker: {line.url} cannot be used: Connection refused")


# --- what a deployment has


@pytest.mark.sqlite
def test_mosquitto_pub_creates_a_lock_that_http_shows(broker: Broker) -> None:
    publish = [program("mosquitto_pub"), "-p", urlsplit(broker.url).netloc.partition(":")[2]]
    request = {
        "authentication": SYSOP,
        "responseTopic": "answers/nobody",
        "payload": create(lock(INSTANCE)),
    }
    with Service(mqtt=broker.url) as service:
        command = [*publish, "-q", "1", "-t", f"{BASE}lock/create", "-m", json.dumps(request)]
        subprocess.run(command, check=True, timeout=60)
        http = Client(service.url, service.headers)
        until(lambda: http.locks().json["count"])
        assert http.locks().entries[0]["serviceInstanceId"] == INSTANCE


@pytest.mark.sqlite
def test_the_configuration_says_who_reads_what(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    server = authority.server_file()
    folder = Path(__file__).parents[2] / "deploy" / "mosquitto"
    text = (folder / "orchmgmt.conf").read_text()
    for old, new in (
        ("/etc/orchmgmt/cloud-ca.pem", authority.ca_file),
        ("/etc/orchmgmt/cloud-crl.pem", authority.revocations()),
        ("/etc/orchmgmt/server.pem", server),
        ("/etc/orchmgmt/server.key", server),
        ("/etc/mosquitto/orchmgmt.acl", str(folder / "orchmgmt.acl")),
    ):
        assert old in text
        text = text.replace(old, new)
    broker = Broker(tmp_path, text=text, scheme="mqtts")

    def peer(issued: Issued, name: str) -> Peer:
        file = issued.save(tmp_path / f"{name}.pem")
        return Peer(
            broker.url,
            tls=lambda it: it.tls_set(authority.ca_file, file, file),
            topic=f"answers/{name}.{DOMAIN}",
        )

    operator = authority.operator("carol")
    own = authority.system("orchmgmt").save(tmp_path / "own.pem")
    with Service(
        mqtt=broker.url,
        authentication_policy="certificate",
        cloud=CLOUD,
        certificate_file=own,
        mqtt_ca_file=authority.ca_file,
    ):
        carol, mallory = peer(operator, "carol"), peer(authority.system("mallory"), "mallory")
        assert carol.ask("lock/query", authentication=shown(operator))["status"] == 200
        mallory.listen(f"{carol.topic}/#", f"{BASE}#", "#")
        assert carol.ask("lock/query", authentication=shown(operator))["status"] == 200
        refused = mallory.ask("lock/query", authentication=shown(authority.system("mallory")))
        assert refused["status"] == 403
        assert all(it.startswith(mallory.topic) for it in mallory.heard)
        carol.close()
        mallory.close()
    broker.stop()


@pytest.mark.sqlite
@pytest.mark.parametrize(
    ("package", "options", "line"),
    [
        ("paho", [], "ORCHMGMT_MQTT_URL needs a package: pip install 'orchmgmt[mqtt]'"),
        (
            "OpenSSL",
            ["--authentication-policy", "certificate", "--cloud", CLOUD, "--mqtt-ca-file", "x"],
            "the policy `certificate` over MQTT needs a package: "
            "pip install 'orchmgmt[certificate]'",
        ),
    ],
)
def test_a_missing_package_is_named(
    run: Callable[..., Any], tmp_path: Path, package: str, options: list[str], line: str
) -> None:
    (tmp_path / f"{package}.py").write_text("raise ImportError('none', name='a package')")
    env = {"PYTHONPATH": str(tmp_path)}
    ended = run("serve", "--port", "0", "--mqtt-url", "mqtt://127.0.0.1", *options, env=env)
    assert (ended.returncode, ended.stdout, ended.stderr) == (2, "", f"Error: {line}\n")


@pytest.mark.sqlite
def test_nothing_of_it_is_imported_while_it_is_off(tmp_path: Path) -> None:
    script = "import sys, orchmgmt.app\norchmgmt.app.create_app()\nprint(*sys.modules)"
    command = [sys.executable, "-c", script]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    modules = ended.stdout.split()
    assert "orchmgmt.interfaces" in modules
    assert not [it for it in modules if "mqtt" in it or "OpenSSL" in it]
