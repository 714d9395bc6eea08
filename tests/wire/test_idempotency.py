"""Creating locks safely twice: the header Idempotency-Key."""

import json
from urllib.parse import quote

import pytest
from support import FUTURE, MANAGEMENT, UUID, lock

NAME = "Boiler|heat|1.0.0"
OTHER = "Tank|level|1.0.0"
KEY = '"8e03978e-40d5-43dd-bc93-6894a57f9324"'
LATER = "2099-06-01T00:00:00Z"
USED = "The idempotency key was used for another request"
INVALID = "Invalid idempotency key"


def create(service, *locks, key=KEY, path="/lock/create", **headers):
    return service.post(path, {"locks": list(locks)}, **{"Idempotency-Key": key, **headers})


def remove(service, *instances):
    assert service.remove("Alice", f"instanceIds={quote(','.join(instances))}").status == 200


@pytest.fixture
def made(service):
    """Two locks that were made with the key."""
    return create(service, lock(NAME, "Alice"), lock(OTHER, "Alice"))


def test_the_same_request_is_done_once_and_answered_twice(service, made):
    again = create(service, lock(" boiler|heat|1", "alice", "2099-01-01T01:00:00+01:00"),
                   lock(OTHER, "Alice"))  # fmt: skip
    assert (again.status, again.body) == (made.status, made.body) == (201, made.body)
    assert service.locks().entries == made.entries[::-1]


def test_the_quotes_may_be_left_out(service, made):
    again = create(service, lock(NAME, "Alice"), lock(OTHER, "Alice"), key=KEY.strip('"'))
    assert again.body == made.body


def test_without_its_key_the_same_request_is_refused(service, made):
    answer = service.create(lock(NAME, "Alice"), lock(OTHER, "Alice"))
    assert answer.error == f"Already locked: {NAME}, {OTHER}"


def test_locks_come_as_they_are_now(service, made):
    end = {"serviceInstanceId": OTHER, "owner": "Alice", "expiresAt": LATER}
    (renewed,) = service.post("/lock/renew", {"locks": [end]}).entries
    again = create(service, lock(NAME, "Alice"), lock(OTHER, "Alice"))
    assert (again.status, again.entries) == (201, [made.entries[0], renewed])


@pytest.mark.parametrize(
    "locks",
    [
        [lock(OTHER, "Alice"), lock(NAME, "Alice")],
        [lock(NAME, "Alice")],
        [lock(NAME, "Alice"), lock(OTHER, "Alice"), lock("X|s|1", "Alice")],
        [lock(NAME, "Alice"), lock(OTHER, "Alice", LATER)],
        [lock(NAME, "Alice"), lock(OTHER, "Bob")],
        [lock("X|s|1", "Alice")],
        [lock("X|s|1", "Alice", "2020-01-01T00:00:00Z")],
    ],
    ids=["order", "fewer", "more", "end", "owner", "instance", "past"],
)
def test_another_request_with_the_key_is_refused(service, made, locks):
    answer = create(service, *locks)
    assert (answer.status, answer.error) == (400, USED)
    assert service.locks().entries == made.entries[::-1]


def test_another_requester_has_another_request(start):
    service = start(MANAGEMENT_POLICY="whitelist", MANAGEMENT_WHITELIST="Other")
    assert create(service, lock(NAME, "Alice")).status == 201
    answer = create(service, lock(NAME, "Alice"), Authorization="Bearer SYSTEM//Other")
    assert (answer.status, answer.error) == (400, USED)


def test_a_faulty_payload_is_so_with_a_used_key_too(service, made):
    assert create(service, lock(NAME, "")).error == "Owner is missing"


def test_once_a_lock_is_gone_the_key_is_new(service, made):
    remove(service, NAME)
    fresh = lock("X|s|1.0.0", "Alice")
    (entry,) = create(service, fresh).entries
    assert entry["id"] > made.entries[1]["id"]
    assert create(service, fresh).entries == [entry]
    assert create(service, lock(NAME, "Alice"), lock(OTHER, "Alice")).error == USED
    remove(service, "X|s|1.0.0", OTHER)
    again = create(service, lock(NAME, "Alice"), lock(OTHER, "Alice")).entries
    assert again[0]["id"] > entry["id"]


def test_a_removed_lock_that_another_request_made_again_is_not_taken_for_the_first(service):
    first = create(service, lock(NAME, "Alice")).entries
    remove(service, NAME)
    service.create(lock(NAME, "Alice"))
    assert create(service, lock(NAME, "Alice")).error == f"Already locked: {NAME}"
    remove(service, NAME)
    assert create(service, lock(NAME, "Alice")).entries[0]["id"] > first[0]["id"]


def test_once_a_lock_has_expired_the_key_is_new(start):
    service = start()
    service.clock.freeze()
    service.clock.set("2027-01-15T08:00:00Z")
    short = {"serviceInstanceId": NAME, "owner": "Alice", "expiresIn": 10}
    (first,) = create(service, short).entries
    service.clock.advance(5)
    assert create(service, short).entries == [first]  # it counts as it was sent
    service.clock.advance(6)
    (second,) = create(service, short).entries
    assert second["id"] > first["id"]
    assert second["expiresAt"] == "2027-01-15T08:00:21Z"
    service.clock.advance(11)
    # The next one on the instance has no key, and the row of the last no more.
    (third,) = service.create(short).entries
    assert create(service, short).error == f"Already locked: {NAME}"
    assert service.locks().entries == [third]


def test_a_repetition_finds_a_renewed_lock_after_the_end_that_it_asks_for(start):
    service = start()
    service.clock.freeze()
    service.clock.set("2027-01-15T08:00:00Z")
    asked = lock(NAME, "Alice", "2027-01-15T08:00:10Z")
    create(service, asked)
    end = {"serviceInstanceId": NAME, "owner": "Alice", "expiresIn": 60}
    renewed = service.post("/lock/renew", {"locks": [end]}).entries
    service.clock.advance(30)
    assert create(service, asked).entries == renewed


@pytest.mark.parametrize("key", ['"a"', "a", "!", "~" * 64, f'"{"k" * 64}"', "a,b", r'"a\"b\\"'])
def test_a_key_has_up_to_64_visible_characters(service, key):
    first = create(service, lock(NAME, "Alice"), key=key)
    assert first.status == 201
    assert create(service, lock(NAME, "Alice"), key=key).body == first.body


@pytest.mark.parametrize(
    "key",
    ["", '""', " ", '"', "k" * 65, f'"{"k" * 65}"', '"a', '"a"b"', '"a b"', "a b", "é", "a\tb",
     '"a", "b"', r'"a\b"'],
)  # fmt: skip
def test_any_other_key_is_refused(service, key):
    answer = create(service, lock(NAME, "Alice"), key=key)
    assert (answer.status, answer.error) == (400, INVALID)
    assert service.locks().entries == []


def test_identity_and_permission_come_before_the_key(service):
    refused = create(service, lock(NAME, "Alice"), key="", Authorization="Bearer SYSTEM//Other")
    assert refused.status == 403


def test_other_operations_do_not_look_at_it(service, made):
    end = {"serviceInstanceId": NAME, "owner": "Alice", "expiresAt": LATER}
    assert create(service, end, path="/lock/renew", key="é").status == 200
    assert service.post("/lock/query", {}, **{"Idempotency-Key": ""}).status == 200
    headers = {**service.headers, "Idempotency-Key": ""}
    path = f"{MANAGEMENT}/lock/remove/Alice?instanceIds={quote(NAME)}"
    assert service.send("DELETE", path, headers=headers).status == 200


def test_reserve_takes_a_key_too(start):
    service = start(RECORDER="true")
    job = service.store.history.create("PULL", "Alice", "Alice", "heat")
    wanted = {**lock(NAME, "Alice"), "orchestrationJobId": job}
    first = create(service, wanted, path="/lock/reserve")
    assert first.status == 201
    service.store.history.start(job)
    assert create(service, wanted, path="/lock/reserve").body == first.body
    assert create(service, lock(NAME, "Alice")).error == USED
    assert (
        create(service, {**wanted, "orchestrationJobId": UUID}, path="/lock/reserve").error == USED
    )
    service.store.locks.release(job)
    assert create(service, lock(NAME, "Alice")).status == 201


def test_many_locks_with_one_key(service):
    names = [f"P{n}|s|1.0.0" for n in range(300)]
    wanted = [lock(it, "Alice", FUTURE) for it in names]
    first = create(service, *wanted)
    assert json.loads(first.body)["count"] == 300
    assert create(service, *wanted).body == first.body
