"""Query locks: every filter, alone and together."""

import random
from typing import Any

import pytest
from support import MANAGEMENT, OPERATOR, Service, lock
from wire import LOCK, LOCK_LISTS, LOCK_SORT_FIELDS, PAST, expected, job_id, lock_entry, put

OWNERS = ["A", "Aa", "B", "ZETA", "Zeta", "Z9"]
MOMENTS = [f"2099-01-0{day}T00:00:00Z" for day in range(1, 6)]
NAMING = "does not match the naming convention"


def some_locks(chance: random.Random, count: int) -> list[dict[str, Any]]:
    return [
        lock_entry(
            number,
            serviceInstanceId=f"{chance.choice(OWNERS)}|s{chance.randrange(10**9)}|1.0.{number}",
            owner=chance.choice(OWNERS),
            expiresAt=chance.choice(MOMENTS),
            orchestrationJobId=chance.choice(["", "", job_id(1), job_id(2), job_id(3)]),
            temporary=chance.random() < 0.3,
        )
        for number in chance.sample(range(1, 1000), count)
    ]


def a_query(chance: random.Random, entries: list[dict[str, Any]]) -> dict[str, Any]:
    query: dict[str, Any] = {}
    for name, key in LOCK_LISTS.items():
        if chance.random() < 0.35:
            values = [entry[key] for entry in chance.sample(entries, chance.choice([1, 1, 3, 30]))]
            query[name] = [value for value in values if value != ""]
    for name in ("expiresBefore", "expiresAfter"):
        if chance.random() < 0.25:
            query[name] = chance.choice(MOMENTS)
    if chance.random() < 0.8:
        query["pagination"] = {"sortField": chance.choice(LOCK_SORT_FIELDS)}
        if chance.random() < 0.7:
            query["pagination"]["direction"] = chance.choice(["ASC", "DESC"])
        if chance.random() < 0.7:
            query["pagination"] |= {"page": chance.randrange(4), "size": chance.choice([1, 7, 20])}
    return query


@pytest.mark.parametrize("seed", range(4))
def test_any_query_finds_what_the_contract_says(service: Service, seed: int) -> None:
    chance = random.Random(seed)
    entries = some_locks(chance, 60)
    expired = [lock_entry(1000 + n, owner=chance.choice(OWNERS), expiresAt=PAST) for n in range(9)]
    put(service, LOCK, *entries, *expired)
    for _ in range(60):
        query = a_query(chance, entries + expired)
        assert service.locks(**query).json == expected(entries, query, LOCK_LISTS, "id"), query


@pytest.mark.parametrize("name", [*LOCK_LISTS, "expiresBefore", "expiresAfter"])
def test_each_filter_alone(service: Service, name: str) -> None:
    entries = some_locks(random.Random(name), 40)
    put(service, LOCK, *entries)
    values = sorted({entry[LOCK_LISTS.get(name, "expiresAt")] for entry in entries} - {""})
    single = name not in LOCK_LISTS
    queries = [{name: value if single else [value]} for value in values]
    if not single:
        queries += [{name: values}, {name: values[:2]}, {name: [values[0], values[0]]}]
    for query in queries:
        answer = service.locks(**query)
        assert answer.json == expected(entries, query, LOCK_LISTS, "id"), query
        assert single or answer.json["count"] > 0


@pytest.mark.parametrize("body", [None, b"", b"null", b" {} "])
def test_an_empty_query_finds_everything(service: Service, body: bytes | None) -> None:
    entries = some_locks(random.Random(1), 9)
    put(service, LOCK, *entries)
    headers = {"Authorization": OPERATOR, "Content-Type": "application/json"}
    answer = service.send("POST", f"{MANAGEMENT}/lock/query", body, headers)
    assert answer.status == 200
    assert answer.headers["Content-Type"] == "application/json"
    assert answer.json == expected(entries, {}, LOCK_LISTS, "id")


@pytest.mark.parametrize(
    "query",
    [
        {"ids": [], "orchestrationJobIds": [], "serviceInstanceIds": [], "owners": []},
        {"ids": None, "orchestrationJobIds": None, "serviceInstanceIds": None, "owners": None},
        {"expiresBefore": None, "expiresAfter": "", "pagination": None},
        {"expiresBefore": " \t", "expiresAfter": "\n", "pagination": {}},
        {"Owners": ["B"], "id": [1], "unknown": {"owners": ["B"]}},
    ],
)
def test_an_empty_filter_does_not_filter(service: Service, query: dict[str, Any]) -> None:
    entries = some_locks(random.Random(2), 5)
    put(service, LOCK, *entries)
    assert service.locks(**query).json == expected(entries, {}, LOCK_LISTS, "id")


def test_filters_are_normalised_as_names_are_at_creation(service: Service) -> None:
    entry = service.create(lock("TemperatureProvider2|kelvinInfo|1.0.0", "TemperatureManager"))
    put(service, LOCK, lock_entry(9, orchestrationJobId=job_id(0xABC)))
    for query in [
        {"owners": [" temperature-manager\t"]},
        {"serviceInstanceIds": ["temperature_provider2|Kelvin info|1"]},
    ]:
        assert service.locks(**query).json == entry.json, query
    (found,) = service.locks(orchestrationJobIds=[f" {job_id(0xABC).upper()} "]).entries
    assert found["id"] == 9


def test_a_lock_without_a_job_never_matches_a_job(service: Service) -> None:
    put(service, LOCK, lock_entry(1), lock_entry(2, orchestrationJobId=job_id(1)))
    found = service.locks(orchestrationJobIds=[job_id(1), job_id(2)]).entries
    assert [entry["id"] for entry in found] == [2]


@pytest.mark.parametrize(
    ("name", "value", "found"),
    [
        ("expiresBefore", "2099-01-01T00:00:10Z", [9]),
        ("expiresBefore", "2099-01-01T00:00:10.001Z", [9, 10]),
        ("expiresBefore", "2099-01-01T00:00:10.000Z", [9]),
        ("expiresBefore", "2099-01-01T02:00:10+02:00", [9]),
        ("expiresBefore", "2098-12-31t18:30:10.5-05:30", [9, 10]),
        ("expiresBefore", "0000-02-29T00:00:00Z", []),
        ("expiresBefore", "0001-01-01T00:00:00+18:00", []),
        ("expiresBefore", "9999-12-31T23:59:59Z", [9, 10, 11]),
        ("expiresBefore", "9999-12-31T23:59:59.5z", [9, 10, 11, 12]),
        ("expiresBefore", "9999-12-31T23:59:59-18:00", [9, 10, 11, 12]),
        ("expiresAfter", "2099-01-01T00:00:10Z", [11, 12]),
        ("expiresAfter", "2099-01-01T00:00:10.999Z", [11, 12]),
        ("expiresAfter", "2099-01-01T00:00:09.999Z", [10, 11, 12]),
        ("expiresAfter", "2099-01-01T02:00:10+02:00", [11, 12]),
        ("expiresAfter", "0000-01-01T00:00:00Z", [9, 10, 11, 12]),
        ("expiresAfter", "0001-01-01T00:00:00+18:00", [9, 10, 11, 12]),
        ("expiresAfter", "9999-12-31T23:59:58.5Z", [12]),
        ("expiresAfter", "9999-12-31T23:59:59Z", []),
        ("expiresAfter", "9999-12-31T23:59:59.5Z", []),
        ("expiresAfter", "9999-12-31T23:59:59-18:00", []),
    ],
)
def test_the_bounds_of_the_expiry_are_exclusive(
    service: Service, name: str, value: str, found: list[int]
) -> None:
    seconds = [lock_entry(n, expiresAt=f"2099-01-01T00:00:{n:02}Z") for n in (9, 10, 11)]
    put(service, LOCK, *seconds, lock_entry(12, expiresAt="9999-12-31T23:59:59Z"))
    answer = service.locks(**{name: value})
    assert sorted(entry["id"] for entry in answer.entries) == found
    assert answer.json["count"] == len(found)


def test_an_expired_lock_is_not_found_by_any_filter(service: Service) -> None:
    expired = lock_entry(1, expiresAt=PAST, orchestrationJobId=job_id(1))
    put(service, LOCK, expired)
    for query in [
        *({name: [expired[key]]} for name, key in LOCK_LISTS.items()),
        {"expiresBefore": "2099-01-01T00:00:00Z"},
        {"expiresAfter": "2019-01-01T00:00:00Z"},
    ]:
        assert service.locks(**query).json == {"entries": [], "count": 0}, query


@pytest.mark.parametrize("written", [5, "5", " 5\n", "005"])
def test_an_id_may_be_written_as_a_string_of_digits(service: Service, written: Any) -> None:
    put(service, LOCK, lock_entry(5), lock_entry(6))
    assert [entry["id"] for entry in service.locks(ids=[written]).entries] == [5]


@pytest.mark.parametrize("number", [0, -1, 2**53 + 1, 2**63 - 1, -(2**63), str(2**63 - 1)])
def test_an_id_that_no_lock_has_finds_nothing(service: Service, number: Any) -> None:
    put(service, LOCK, lock_entry(1))
    assert service.locks(ids=[number]).json == {"entries": [], "count": 0}
    assert service.locks(ids=[number, 1]).json["count"] == 1


@pytest.mark.parametrize(
    "number",
    [
        True,
        False,
        5.5,
        1e300,
        2**63,
        -(2**63) - 1,
        2**64,
        str(2**63),
        10**30,
        "5.0",
        "5.5",
        "1e1",
        "0x5",
        "five",
        "٥",
        "5 5",
        "5_0",
        "9" * 5000,
        [],
        [5],
        {},
    ],
    ids=lambda value: repr(value)[:20],
)
def test_an_id_that_is_no_integer_is_refused(service: Service, number: Any) -> None:
    for ids in ([number], [1, 2, number]):
        answer = service.locks(ids=ids)
        assert answer.status == 400
        assert answer.error


@pytest.mark.parametrize(
    ("query", "message"),
    [
        *(
            ({name: [good, blank]}, f"{label} list contains empty element")
            for name, label, good in [
                ("ids", "ID", 1),
                ("orchestrationJobIds", "Orchestration job id", job_id(1)),
                ("serviceInstanceIds", "Service instance id", "A|b|1"),
                ("owners", "Owner", "Owner"),
            ]
            for blank in (None, "", " \t\x00")
        ),
        ({"orchestrationJobIds": [" abc123\n"]}, "Invalid orchestration job id: abc123"),
        (
            {"orchestrationJobIds": [f"{{{job_id(1)}}}"]},
            f"Invalid orchestration job id: {{{job_id(1)}}}",
        ),
        (
            {"orchestrationJobIds": ["URN:UUID:" + job_id(1)]},
            f"Invalid orchestration job id: URN:UUID:{job_id(1)}",
        ),
        (
            {"orchestrationJobIds": [job_id(1), job_id(1).replace("-", "")]},
            f"Invalid orchestration job id: {job_id(1).replace('-', '')}",
        ),
        ({"orchestrationJobIds": ["1-1-1-1-1"]}, "Invalid orchestration job id: 1-1-1-1-1"),
        ({"orchestrationJobIds": [job_id(1) + "0"]}, f"Invalid orchestration job id: {job_id(1)}0"),
        (
            {"orchestrationJobIds": [job_id(1)[:-1] + "G"]},
            f"Invalid orchestration job id: {job_id(1)[:-1]}G",
        ),
        ({"expiresBefore": " soon "}, "Invalid expires before: soon"),
        ({"expiresBefore": "2099-01-01T00:00:00"}, "Invalid expires before: 2099-01-01T00:00:00"),
        ({"expiresAfter": "2099-02-29T00:00:00Z"}, "Invalid expires after: 2099-02-29T00:00:00Z"),
        (
            {"expiresAfter": "2099-01-01T00:00:00+18:01"},
            "Invalid expires after: 2099-01-01T00:00:00+18:01",
        ),
        (
            {"serviceInstanceIds": ["A|b|1", "c|D"]},
            f"The specified service instance identifier {NAMING}: C|d",
        ),
        ({"serviceInstanceIds": ["9|b|1"]}, f"The specified system name {NAMING}: 9"),
        ({"serviceInstanceIds": ["A|9|1"]}, f"The specified service definition name {NAMING}: 9"),
        (
            {"serviceInstanceIds": ["A|b|1.2.3.4"]},
            "Version verification failure: version must contain exactly 2 separator . characters",
        ),
        ({"owners": ["Owner", "own€r"]}, f"The specified system name {NAMING}: Own€r"),
    ],
)
def test_a_bad_filter_is_refused(service: Service, query: dict[str, Any], message: str) -> None:
    answer = service.locks(**query)
    assert (answer.status, answer.error) == (400, message)


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("ids", "id", lambda number: number + 1),
        ("orchestrationJobIds", "orchestrationJobId", job_id),
        ("serviceInstanceIds", "serviceInstanceId", lambda number: f"P{number}|b|1.0.0"),
        ("owners", "owner", lambda number: f"O{number}"),
    ],
)
def test_a_filter_may_have_70000_values(service: Service, name: str, key: str, value: Any) -> None:
    put(service, LOCK, {**lock_entry(1), key: value(69_999)}, {**lock_entry(2), key: value(70_000)})
    answer = service.locks(**{name: [value(number) for number in range(70_000)]})
    assert [entry[key] for entry in answer.entries] == [value(69_999)]


@pytest.mark.parametrize(
    "number", ["5.0", "5e0", "50e-1", "0.5e1", "5.000000000000000000000000", "5"]
)
def test_a_number_without_a_fraction_is_an_integer_however_it_is_written(
    service: Service, number: str
) -> None:
    put(service, LOCK, lock_entry(5), lock_entry(6))
    body = f'{{"ids": [{number}], "pagination": {{"page": 0.0, "size": 1e1}}}}'.encode()
    headers = {**service.headers, "Content-Type": "application/json"}
    answer = service.send("POST", f"{MANAGEMENT}/lock/query", body, headers)
    assert [it["id"] for it in answer.entries] == [5]


@pytest.mark.parametrize(
    "number",
    [
        "5.5",
        "5e-1",
        "1e-400",
        "1e-99999999999999999999",
        "1e400",
        "1e99999999999999999999",
        "9223372036854775808.0",
        "9223372036854775807.5",
        "1" + "0" * 400 + ".0",
    ],
)
def test_a_number_with_a_fraction_or_beyond_64_bits_is_none(service: Service, number: str) -> None:
    headers = {**service.headers, "Content-Type": "application/json"}
    body = f'{{"ids": [{number}]}}'.encode()
    answer = service.send("POST", f"{MANAGEMENT}/lock/query", body, headers)
    assert answer.status == 400
    assert answer.error.startswith("an element of ids must be ")


def test_a_large_number_with_a_point_is_exact(service: Service) -> None:
    put(service, LOCK, lock_entry(2**53 + 1), lock_entry(2**53))
    headers = {**service.headers, "Content-Type": "application/json"}
    body = f'{{"ids": [{2**53 + 1}.0]}}'.encode()
    answer = service.send("POST", f"{MANAGEMENT}/lock/query", body, headers)
    assert [it["id"] for it in answer.entries] == [2**53 + 1]
