"""Keys that the contract does not name: ignored, or refused with the nearest that it names."""

import pytest
from support import lock

pytestmark = pytest.mark.sqlite

LOCK = lock("A|b|1.0.0")


@pytest.fixture
def strict(start):
    return start(UNKNOWN_KEYS="refuse")


REFUSED = [
    ("/lock/create", {"locks": [LOCK], "lock": 1}, "lock (did you mean locks?)"),
    ("/lock/create", {"locks": [LOCK, {**LOCK, "x": 1}]}, "x"),
    ("/lock/create", {"locks": [{**LOCK, "id": 1}]}, "id"),
    ("/lock/create", {"locks": [{"ownr": "Alice"}]}, "ownr (did you mean owner?)"),
    ("/lock/create", {"Locks": [LOCK]}, "Locks (did you mean locks?)"),
    ("/lock/query", {"owner": ["Alice"]}, "owner (did you mean owners?)"),
    ("/lock/query", {"owners": 7, "zzz": None}, "zzz"),
    ("/lock/query", {"pagination": {"page": 0, "Size": 1}}, "Size (did you mean size?)"),
    ("/history/query", {"ids": ["bad"], "pagination": {"order": 1}}, "order"),
    ("/history/query", {"status": ["DONE"]}, "status (did you mean statuses?)"),
    ("/history/query", {"": 1}, ""),
]


@pytest.mark.parametrize(("path", "payload", "key"), REFUSED)
def test_unknown_key_is_refused(strict, path, payload, key):
    answer = strict.post(path, payload)
    assert answer.status == 400
    assert answer.error == f"Unknown key: {key}"
    assert strict.locks().json["count"] == 0


@pytest.mark.parametrize("query", ["instanceIds=A%7Cb%7C1.0.0&instanceId=C%7Cd%7C1", "instanceId="])
def test_unknown_key_of_a_query_string_is_refused(strict, query):
    strict.create(LOCK)
    answer = strict.remove("Owner", query)
    assert answer.status == 400
    assert answer.error == "Unknown key: instanceId (did you mean instanceIds?)"
    assert strict.locks().json["count"] == 1


def test_the_owner_is_no_key_of_the_query_string(strict):
    answer = strict.remove("Owner", "instanceIds=A%7Cb%7C1.0.0&owner=Other")
    assert answer.error == "Unknown key: owner"


def test_what_the_contract_names_is_not_refused(strict):
    assert strict.create(LOCK).status == 201
    pagination = {"page": 0, "size": 1, "direction": "ASC", "sortField": "id"}
    assert strict.locks(owners=["Owner"], pagination=pagination).json["count"] == 1
    assert strict.post("/history/query", {"statuses": [], "pagination": None}).status == 200
    assert strict.post("/lock/query", None).status == 200
    assert strict.remove("Owner", "instanceIds=A%7Cb%7C1.0.0").status == 200
    assert strict.locks().json["count"] == 0


@pytest.mark.parametrize(("path", "payload", "key"), REFUSED)
def test_unknown_keys_are_ignored_unless_told_otherwise(service, path, payload, key):
    assert "Unknown key" not in str(service.post(path, payload).body)
    service.create(LOCK)
    assert service.remove("Owner", "instanceIds=A%7Cb%7C1.0.0&other=1").status == 200
