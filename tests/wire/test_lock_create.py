"""Create locks: exclusive, all or nothing."""

import random
from collections.abc import Callable
from typing import Any

import pytest
from support import FUTURE, Service, after, lock
from wire import LOCK, PAST, lock_entry, put

BLANK = [None, "", " ", "\t\r\n \x00\x1f"]
VALUES = {
    "serviceInstanceId": "Service instance id is missing",
    "owner": "Owner is missing",
    "expiresAt": "Expiration time is missing",
}
NAMING = "does not match the naming convention"


def test_a_lock_is_returned_with_all_its_keys_and_found_again(service: Service) -> None:
    answer = service.create(
        {
            "serviceInstanceId": "TemperatureProvider2|kelvinInfo|1.0.0",
            "owner": "TemperatureManager",
            "expiresAt": "2098-11-08T11:24:43Z",
        }
    )
    assert answer.status == 201
    assert answer.headers["Content-Type"] == "application/json"
    (entry,) = answer.entries
    assert list(entry.items()) == [
        ("id", entry["id"]),
        ("orchestrationJobId", ""),
        ("serviceInstanceId", "TemperatureProvider2|kelvinInfo|1.0.0"),
        ("owner", "TemperatureManager"),
        ("expiresAt", "2098-11-08T11:24:43Z"),
        ("temporary", False),
    ]
    assert type(entry["id"]) is int
    assert answer.json["count"] == 1
    assert service.locks().json == answer.json


def test_a_key_without_a_value_is_left_out_on_request(start: Callable[..., Service]) -> None:
    answer = start(OMIT_EMPTY=True).create(lock("A|b|1"))
    assert list(answer.entries[0]) == [
        "id",
        "serviceInstanceId",
        "owner",
        "expiresAt",
        "temporary",
    ]


@pytest.mark.parametrize("count", [2, 90, 91, 300])
def test_entries_come_in_the_order_of_the_request(service: Service, count: int) -> None:
    instances = [f"P{number}|b|1.0.0" for number in range(count)]
    random.Random(count).shuffle(instances)
    answer = service.create(*map(lock, instances))
    assert [entry["serviceInstanceId"] for entry in answer.entries] == instances
    assert answer.json["count"] == count == len({entry["id"] for entry in answer.entries})
    stored = {entry["serviceInstanceId"]: entry for entry in service.locks().entries}
    assert answer.entries == [stored[instance] for instance in instances]


def test_keys_that_the_contract_does_not_name_are_ignored(service: Service) -> None:
    element = {**lock("A|b|1"), "id": 77, "temporary": True, "orchestrationJobId": "x", "more": {}}
    answer = service.post("/lock/create", {"count": "x", "locks": [element]})
    (entry,) = answer.entries
    assert (entry["id"], entry["temporary"], entry["orchestrationJobId"]) == (1, False, "")


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        (None, "Request payload is null"),
        ({}, "Request payload is empty"),
        ({"locks": None}, "Request payload is empty"),
        ({"locks": []}, "Request payload is empty"),
        ({"locks": [None]}, "Request payload contains null element"),
        ({"locks": [lock("A|b|1"), None]}, "Request payload contains null element"),
        ({"locks": [None, {}]}, "Request payload contains null element"),
        ({"locks": [{}, None]}, "Service instance id is missing"),
    ],
)
def test_a_request_without_locks_is_refused(service: Service, payload: Any, message: str) -> None:
    answer = service.post("/lock/create", payload)
    assert (answer.status, answer.error) == (400, message)
    assert service.locks().json == {"entries": [], "count": 0}


def test_a_request_without_a_body_is_refused(service: Service) -> None:
    answer = service.send("POST", "/serviceorchestration/orchestration/mgmt/lock/create")
    assert (answer.status, answer.error) == (400, "Request payload is null")


@pytest.mark.parametrize("key", VALUES)
def test_a_value_is_missing_when_absent_null_empty_or_blank(service: Service, key: str) -> None:
    whole = lock("A|b|1")
    absent = {name: value for name, value in whole.items() if name != key}
    for element in [absent, *({**whole, key: blank} for blank in BLANK)]:
        answer = service.create(element)
        assert (answer.status, answer.error) == (400, VALUES[key]), element
    assert service.locks().entries == []


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({}, "Service instance id is missing"),
        ({"serviceInstanceId": "A|b"}, "Owner is missing"),
        ({"serviceInstanceId": "A|b", "owner": "9"}, "Expiration time is missing"),
        (lock("A|b", "9", " soon "), "Invalid expires at format: soon"),
        (lock("A|b", "9", f" {PAST}\t"), f"Expires at is in the past: {PAST}"),
        (
            lock("a-b|C", "9"),
            f"The specified service instance identifier {NAMING}: AB|c",
        ),
        (lock("9|-|x"), f"The specified system name {NAMING}: 9"),
        (lock("A|b|1", "9-x"), f"The specified system name {NAMING}: 9X"),
        (lock("A|-|x"), f"The specified service definition name {NAMING}: _"),
        (
            lock("A|b|x"),
            "Version verification failure: the version should only contain numbers and separator . "
            "characters",
        ),
    ],
)
def test_the_gravest_fault_of_an_element_is_named(
    service: Service, wrong: dict[str, Any], message: str
) -> None:
    answer = service.create(lock("Good|one|1"), wrong, {})
    assert (answer.status, answer.error) == (400, message)
    assert service.locks().entries == []


@pytest.mark.parametrize(
    ("elements", "message"),
    [
        ([lock("A|b|1", "9"), {}], f"The specified system name {NAMING}: 9"),
        ([lock("A|b|1", expires_at="x"), lock("A")], "Invalid expires at format: x"),
        ([lock("A|b|x"), None], "Version verification failure: "),
        ([*[lock(f"A{n}|b|1") for n in range(12)], lock("A|b|1", ""), {}], "Owner is missing"),
    ],
)
def test_the_first_bad_element_counts(service: Service, elements: list[Any], message: str) -> None:
    assert service.create(*elements).error.startswith(message)


@pytest.mark.parametrize(
    ("sent", "returned"),
    [
        ("2099-01-01T00:00:00Z", "2099-01-01T00:00:00Z"),
        ("\t 2099-01-01T00:00:00Z\r\n", "2099-01-01T00:00:00Z"),
        ("2099-01-01t00:00:00z", "2099-01-01T00:00:00Z"),
        ("2099-01-01T00:00:00.0Z", "2099-01-01T00:00:00Z"),
        ("2099-01-01T00:00:00.1Z", "2099-01-01T00:00:01Z"),
        ("2099-01-01T00:00:00.000000000001Z", "2099-01-01T00:00:01Z"),
        (f"2099-01-01T00:00:00.{'0' * 5000}1Z", "2099-01-01T00:00:01Z"),
        ("2099-12-31T23:59:59.999Z", "2100-01-01T00:00:00Z"),
        ("2099-01-01T02:00:00+02:00", "2099-01-01T00:00:00Z"),
        ("2099-01-01T00:00:00-05:30", "2099-01-01T05:30:00Z"),
        ("2099-01-01T00:00:00-00:00", "2099-01-01T00:00:00Z"),
        ("2099-01-01T18:00:00.5+18:00", "2099-01-01T00:00:01Z"),
        ("2099-01-01T00:00:00-18:00", "2099-01-01T18:00:00Z"),
        ("2099-01-01T00:00:00-17:59", "2099-01-01T17:59:00Z"),
        ("2096-02-29T00:00:00Z", "2096-02-29T00:00:00Z"),
        ("2400-02-29T23:59:59.5Z", "2400-03-01T00:00:00Z"),
        ("9999-12-31T23:59:59Z", "9999-12-31T23:59:59Z"),
        ("9999-12-31T23:59:59+18:00", "9999-12-31T05:59:59Z"),
    ],
)
def test_the_expiry_is_kept_in_utc_and_never_early(
    service: Service, sent: str, returned: str
) -> None:
    assert service.create(lock("A|b|1", expires_at=sent)).entries[0]["expiresAt"] == returned
    assert service.locks().entries[0]["expiresAt"] == returned


@pytest.mark.parametrize(
    "value",
    [
        "soon",
        "2099-01-01",
        "2099-01-01T00:00:00",
        "2099-01-01T00:00Z",
        "2099-01-01T00Z",
        "2099-01-01 00:00:00Z",
        "2099-01-01T00:00:00.Z",
        "2099-01-01T00:00:00,5Z",
        "2099-01-01T00:00:00 Z",
        "2099-01-01T00:00:00ZZ",
        "2099-01-01T00:00:00Z[UTC]",
        "2099-01-01T00:00:00+02",
        "2099-01-01T00:00:00+0200",
        "2099-01-01T00:00:00+00:60",
        "2099-01-01T00:00:00+18:01",
        "2099-01-01T00:00:00-18:01",
        "2099-01-01T00:00:00+19:00",
        "2099-01-01T00:00:00+99:00",
        "2099-00-01T00:00:00Z",
        "2099-13-01T00:00:00Z",
        "2099-01-00T00:00:00Z",
        "2099-04-31T00:00:00Z",
        "2099-02-29T00:00:00Z",
        "2100-02-29T00:00:00Z",
        "2099-01-01T24:00:00Z",
        "2099-01-01T00:60:00Z",
        "2099-01-01T00:00:60Z",
        "2099-1-1T00:00:00Z",
        "99-01-01T00:00:00Z",
        "12099-01-01T00:00:00Z",
        "+2099-01-01T00:00:00Z",
        "20990101T000000Z",
        "2099-W01-1T00:00:00Z",
        "２０９９-01-01T00:00:00Z",
        "4070908800",
        "9999-12-31T23:59:59.1Z",
        "9999-12-31T23:59:59-00:01",
    ],
)
def test_an_expiry_that_is_no_datetime_is_refused(service: Service, value: str) -> None:
    answer = service.create(lock("A|b|1", expires_at=f"\n{value} "))
    assert (answer.status, answer.error) == (400, f"Invalid expires at format: {value}")


@pytest.mark.parametrize(
    "value",
    [
        "2025-11-08T11:24:43Z",
        "1969-12-31T23:59:59.9z",
        "0001-01-01T00:00:00+18:00",
        "0001-01-01T00:00:00Z",
        "0000-01-01T00:00:00Z",
        "0000-02-29T00:00:00-18:00",
        "2024-02-29T23:59:59-18:00",
    ],
)
def test_an_expiry_in_the_past_is_refused(service: Service, value: str) -> None:
    answer = service.create(lock("A|b|1", expires_at=value))
    assert (answer.status, answer.error) == (400, f"Expires at is in the past: {value}")


def test_a_held_instance_cannot_be_locked_again(service: Service) -> None:
    held = service.create(lock("A|b|1"), lock("C|d|2"), lock("E|f|3")).entries
    answer = service.create(
        lock("New|b|1"), lock("e|F|3", "Other"), lock("A|b|2"), lock("a|b|1.0.0"), lock("C|d|2.0")
    )
    assert answer.status == 400
    assert answer.error == "Already locked: E|f|3.0.0, A|b|1.0.0, C|d|2.0.0"
    assert service.locks(pagination={"direction": "ASC"}).entries == held


def test_a_temporary_lock_is_as_exclusive(service: Service) -> None:
    job = service.store.history.create("PULL", "A", "A", "b")
    service.store.locks.reserve(job, "A|b|1", "Owner", FUTURE)
    assert service.create(lock("A|b|1")).error == "Already locked: A|b|1.0.0"


@pytest.mark.parametrize("twin", ["Ab|kelvinInfo|1.0.0", " ab | Kelvin_info |1", "ab_|kelvinInfo|"])
def test_an_instance_named_twice_is_refused(service: Service, twin: str) -> None:
    answer = service.create(lock("X|y|1"), lock("Ab|kelvinInfo|1"), lock(twin, "Other"))
    assert answer.status == 400
    assert answer.error == "Duplicated service instance id: Ab|kelvinInfo|1.0.0"
    assert service.locks().entries == []


def test_one_bad_element_keeps_all_from_being_created(service: Service) -> None:
    answer = service.create(*[lock(f"P{n}|b|1") for n in range(200)], lock("P|b|1", "9"))
    assert answer.status == 400
    assert service.locks().json == {"entries": [], "count": 0}


def test_an_expired_lock_does_not_block_and_its_id_is_not_used_again(service: Service) -> None:
    expired = lock_entry(41, expiresAt=PAST)
    put(service, LOCK, expired, lock_entry(40))
    answer = service.create(lock("New|b|1"), lock(expired["serviceInstanceId"], "Next"))
    assert [entry["owner"] for entry in answer.entries] == ["Owner", "Next"]
    assert min(entry["id"] for entry in answer.entries) > 41
    assert {entry["id"] for entry in service.locks().entries} == {
        40,
        *(entry["id"] for entry in answer.entries),
    }


def test_an_expired_lock_beside_a_held_one_does_not_count(service: Service) -> None:
    expired, held = lock_entry(1, expiresAt=PAST), lock_entry(2)
    put(service, LOCK, expired, held)
    answer = service.create(lock(expired["serviceInstanceId"]), lock(held["serviceInstanceId"]))
    assert answer.error == f"Already locked: {held['serviceInstanceId']}"
    assert service.locks().entries == [held]


def test_ids_are_never_used_again(service: Service) -> None:
    seen = []
    for _ in range(3):
        seen += [entry["id"] for entry in service.create(lock("A|b|1"), lock("C|d|1")).entries]
        service.remove("Owner", "instanceIds=A%7Cb%7C1,C%7Cd%7C1")
        assert service.locks().entries == []
    assert seen == sorted(set(seen))


def test_a_lock_ends_by_itself(service: Service) -> None:
    element = lock("A|b|1", expires_at=after(60))
    first = service.create(element, lock("C|d|1")).entries
    assert service.create(lock("A|b|1")).error == "Already locked: A|b|1.0.0"
    service.clock.advance(60)
    assert service.locks().entries == first[1:]
    assert service.create(lock("A|b|1")).entries[0]["id"] > first[1]["id"]
