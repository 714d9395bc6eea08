"""Remove locks by owner and service instance."""

from collections.abc import Callable
from typing import Any
from urllib.parse import quote, urlencode

import pytest
from support import FUTURE, MANAGEMENT, Process, Service, lock
from wire import LOCK, PAST, lock_entry, put

NAMING = "does not match the naming convention"


def instances(*ids: str) -> str:
    return urlencode([("instanceIds", it) for it in ids])


def left(service: Service) -> list[str]:
    found = service.locks(pagination={"direction": "ASC", "sortField": "serviceInstanceId"})
    return [entry["serviceInstanceId"][0] + entry["owner"][0] for entry in found.entries]


@pytest.fixture
def locked(service: Service) -> Service:
    """Instances A, B and C of the owner Mine; D of the owner Other."""
    mine = [lock(f"{name}|b|1.0.0", "Mine") for name in "ABC"]
    assert service.create(*mine, lock("D|b|1.0.0", "Other")).status == 201
    return service


@pytest.mark.parametrize(
    ("query", "remaining"),
    [
        (instances("A|b|1.0.0"), ["BM", "CM", "DO"]),
        ("instanceIds=A|b|1.0.0".replace("|", "%7c"), ["BM", "CM", "DO"]),
        (instances("A|b|1.0.0", "C|b|1.0.0"), ["BM", "DO"]),
        (instances("A|b|1.0.0,C|b|1.0.0"), ["BM", "DO"]),
        (instances(" A|b|1.0.0 ,\tB|b|1.0.0", "C|b|1.0.0"), ["DO"]),
        (instances("a|B|1", "b | b | 1.0"), ["CM", "DO"]),
        (instances("A|b|1.0.0", "A|b|1.0.0"), ["BM", "CM", "DO"]),
        (instances("D|b|1.0.0"), ["AM", "BM", "CM", "DO"]),
        (instances("A|b|2.0.0", "X|y|1"), ["AM", "BM", "CM", "DO"]),
        (instances("A|b|1.0.0", "D|b|1.0.0", "X|y|1"), ["BM", "CM", "DO"]),
        (instances("A|b|1.0.0") + "&owner=Other&other=1", ["BM", "CM", "DO"]),
    ],
)
def test_the_owners_locks_on_these_instances_are_removed(
    locked: Service, query: str, remaining: list[str]
) -> None:
    answer = locked.remove("Mine", query)
    assert (answer.status, answer.body) == (200, b"")
    assert left(locked) == remaining
    assert locked.remove("Mine", query).status == 200
    assert left(locked) == remaining


@pytest.mark.parametrize("owner", ["Mine", "mine", "%20mine%09", "mi%6ee", "mine_"])
def test_the_owner_is_normalised(locked: Service, owner: str) -> None:
    assert locked.remove(owner, instances("A|b|1")).status == 200
    assert left(locked) == ["BM", "CM", "DO"]


def test_in_simple_mode_it_is_not(start: Callable[..., Service]) -> None:
    service = start(NORMALIZATION_MODE="simple")
    service.create(lock("A|b|1", "Mine"))
    answer = service.remove("mine", instances("A|b|1"))
    assert (answer.status, answer.error) == (400, f"The specified system name {NAMING}: mine")
    assert left(service) == ["AM"]
    assert service.remove("%20Mine%0a", instances(" A|b|1 ")).status == 200
    assert left(service) == []


def test_a_temporary_lock_stays(service: Service) -> None:
    job = service.store.history.create("PULL", "Mine", "Mine", "b")
    service.store.locks.reserve(job, "A|b|1", "Mine", FUTURE)
    service.create(lock("B|b|1", "Mine"))
    assert service.remove("Mine", instances("A|b|1", "B|b|1")).status == 200
    (entry,) = service.locks().entries
    assert (entry["temporary"], entry["orchestrationJobId"]) == (True, job)


def test_an_expired_lock_may_be_removed(service: Service) -> None:
    put(service, LOCK, lock_entry(1, expiresAt=PAST))
    assert service.remove("Owner", instances("Provider1|kelvinInfo|1")).status == 200


def test_many_instances_at_once(serve: Callable[..., Process], database_url: str) -> None:
    names = [f"P{number}|b|1.0.0" for number in range(3000)]
    server = serve("--database-url", database_url)
    assert server.create(*(lock(it) for it in names)).status == 201
    assert server.remove("Owner", instances(",".join(names[:1500]), *names[1500:2999])).body == b""
    assert [entry["serviceInstanceId"] for entry in server.locks().entries] == [names[2999]]


@pytest.mark.parametrize(
    ("owner", "query", "message"),
    [
        ("", "", "Owner is missing"),
        ("", instances("A|b|1"), "Owner is missing"),
        ("%20", instances("A|b|1"), "Owner is missing"),
        ("%00%09", instances("9"), "Owner is missing"),
        ("Mine", "", "Service instance id list empty"),
        ("9", "other=A%7Cb%7C1", "Service instance id list empty"),
        ("9", "instanceIds=", "Service instance id list empty"),
        ("9", instances("9", ""), "Service instance id list contains empty element"),
        ("Mine", instances("A|b|1,,B|b|1"), "Service instance id list contains empty element"),
        ("Mine", instances("A|b|1,"), "Service instance id list contains empty element"),
        ("Mine", instances("A|b|1", " \t"), "Service instance id list contains empty element"),
        ("Mine", instances("A|b"), f"The specified service instance identifier {NAMING}: A|b"),
        ("Mine", instances("9|b|1"), f"The specified system name {NAMING}: 9"),
        ("Mine", instances("A|9|1"), f"The specified service definition name {NAMING}: 9"),
        (
            "Mine",
            instances("A|b|1.x"),
            "Version verification failure: the version should only contain numbers and separator . "
            "characters",
        ),
        ("9-mine", instances("A|b|1"), f"The specified system name {NAMING}: 9Mine"),
        ("Mine%3F", instances("A|b|1"), f"The specified system name {NAMING}: Mine?"),
        ("Min%C3%A9", instances("A|b|1"), f"The specified system name {NAMING}: Miné"),
    ],
)
def test_a_bad_request_removes_nothing(
    locked: Service, owner: str, query: str, message: str
) -> None:
    answer = locked.remove(owner, query)
    assert (answer.status, answer.error) == (400, message)
    assert len(left(locked)) == 4


def test_the_path_without_an_owner_is_known(locked: Service) -> None:
    answer = locked.send("DELETE", f"{MANAGEMENT}/lock/remove?instanceIds=A%7Cb%7C1")
    assert (answer.status, answer.error) == (400, "Owner is missing")
    assert len(left(locked)) == 4


@pytest.mark.parametrize("undecodable", [b"\xff", b"\xc0\xaf", b"\xed\xa0\x80", b"\x00\xff\xfe"])
@pytest.mark.parametrize("place", ["owner", "instance"])
def test_bytes_that_are_no_text_are_refused(
    locked: Service, undecodable: bytes, place: str
) -> None:
    text: Any = quote(undecodable)
    owner, query = ("Mine" + text, "A%7Cb%7C1") if place == "owner" else ("Mine", text)
    answer = locked.remove(owner, f"instanceIds={query}")
    assert answer.status == 400
    assert NAMING in answer.error
    assert len(left(locked)) == 4


@pytest.mark.parametrize("body", [b"", b"[", b'{"owner": 1}', b"\xff"])
def test_a_body_is_not_looked_at(locked: Service, body: bytes) -> None:
    path = f"{MANAGEMENT}/lock/remove/Mine?{instances('A|b|1')}"
    assert locked.send("DELETE", path, body).status == 200
    assert left(locked) == ["BM", "CM", "DO"]


def test_repeated_instances_may_be_written_with_brackets(start):
    service = start(UNKNOWN_KEYS="refuse")
    service.create(*(lock(f"{name}|b|1") for name in "ABCD"))
    query = "instanceIds[]=A%7Cb%7C1&instanceIds%5B%5D=B%7Cb%7C1,C%7Cb%7C1&instanceIds=D%7Cb%7C1"
    assert service.remove("Owner", query).status == 200
    assert service.locks().json["count"] == 0
    assert service.remove("Owner", "instanceIds[]=").error == "Service instance id list empty"
    refused = service.remove("Owner", "instanceIds[0]=A%7Cb%7C1")
    assert refused.error == "Unknown key: instanceIds[0] (did you mean instanceIds[]?)"
