"""The service over MQTT, on a real Mosquitto (contract, "MQTT")."""

import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
from broker import ABSENT, BASE, Broker, Line, Peer
from support import FUTURE, Client, lock, until
from wire import job_entry

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
