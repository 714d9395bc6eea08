"""Query the orchestration jobs: every filter, alone and together, and a job's life."""

import random
import re
from collections.abc import Callable
from typing import Any

import pytest
from support import MANAGEMENT, OPERATOR, Service
from wire import JOB, expected, job_entry, job_id, put

LISTS = {
    "ids": "id",
    "statuses": "status",
    "requesterSystems": "requesterSystem",
    "targetSystems": "targetSystem",
    "serviceDefinitions": "serviceDefinition",
    "subscriptionIds": "subscriptionId",
}
SORT_FIELDS = ["id", "createdAt", "startedAt", "finishedAt"]
SYSTEMS = ["A", "Aa", "B", "ZETA", "Zeta", "Z9"]
MOMENTS = [f"2025-11-0{day}T00:00:00Z" for day in range(1, 6)]
NAMING = "does not match the naming convention"
SECOND = re.compile("[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z").fullmatch


def some_jobs(chance: random.Random, count: int) -> list[dict[str, Any]]:
    jobs = []
    for number in chance.sample(range(1, 10**12), count):
        status = chance.choice(["PENDING", "IN_PROGRESS", "DONE", "ERROR"])
        jobs.append(
            job_entry(
                number,
                status=status,
                type=chance.choice(["PULL", "PUSH"]),
                requesterSystem=chance.choice(SYSTEMS),
                targetSystem=chance.choice(SYSTEMS),
                serviceDefinition=chance.choice(["a", "aA", "b", "kelvinInfo"]),
                subscriptionId=chance.choice(["", job_id(1), job_id(2), job_id(3)]),
                message=chance.choice(["", "free text", "\u20ac \U0001f600 \"'\\"]),
                createdAt=chance.choice(MOMENTS),
                startedAt="" if status == "PENDING" else chance.choice(MOMENTS),
                finishedAt=chance.choice(MOMENTS) if status in ("DONE", "ERROR") else "",
            )
        )
    return jobs


def a_query(chance: random.Random, entries: list[dict[str, Any]]) -> dict[str, Any]:
    query: dict[str, Any] = {}
    for name, key in LISTS.items():
        if chance.random() < 0.3:
            values = [entry[key] for entry in chance.sample(entries, chance.choice([1, 1, 3, 30]))]
            query[name] = [value for value in values if value != ""]
    if chance.random() < 0.25:
        query["type"] = chance.choice(["PULL", "PUSH"])
    if chance.random() < 0.8:
        query["pagination"] = {"sortField": chance.choice(SORT_FIELDS)}
        if chance.random() < 0.7:
            query["pagination"]["direction"] = chance.choice(["ASC", "DESC"])
        if chance.random() < 0.7:
            query["pagination"] |= {"page": chance.randrange(4), "size": chance.choice([1, 7, 20])}
    return query


@pytest.mark.parametrize("seed", range(4))
def test_any_query_finds_what_the_contract_says(service: Service, seed: int) -> None:
    chance = random.Random(seed)
    entries = some_jobs(chance, 60)
    put(service, JOB, *entries)
    for _ in range(60):
        query = a_query(chance, entries)
        assert service.jobs(**query).json == expected(entries, query, LISTS, "createdAt"), query


@pytest.mark.parametrize("name", [*LISTS, "type"])
def test_each_filter_alone(service: Service, name: str) -> None:
    entries = some_jobs(random.Random(name), 40)
    put(service, JOB, *entries)
    values = sorted({entry[LISTS.get(name, "type")] for entry in entries} - {""})
    queries: list[dict[str, Any]] = [{name: value} for value in values]
    if name != "type":
        queries = [{name: [value]} for value in values]
        queries += [{name: values}, {name: values[:2]}, {name: [values[0], values[0]]}]
    for query in queries:
        answer = service.jobs(**query)
        assert answer.json == expected(entries, query, LISTS, "createdAt"), query
        assert answer.json["count"] > 0


def test_a_job_is_returned_with_all_its_keys(service: Service) -> None:
    entry = {
        "id": "5cf0f11a-6bea-46c7-8550-403c96d27bbc",
        "status": "IN_PROGRESS",
        "type": "PUSH",
        "requesterSystem": "TemperatureManager",
        "targetSystem": "TemperatureConsumer",
        "serviceDefinition": "kelvinInfo",
        "subscriptionId": "3a07c069-e070-4831-a5ad-5307c112354f",
        "message": "",
        "createdAt": "2025-11-08T12:00:00Z",
        "startedAt": "2025-11-08T12:01:00Z",
        "finishedAt": "",
    }
    put(service, JOB, entry)
    answer = service.jobs(
        pagination={"page": 0, "size": 10, "direction": "ASC", "sortField": "createdAt"},
        ids=["5cf0f11a-6bea-46c7-8550-403c96d27bbc"],
        statuses=["PENDING", "IN_PROGRESS"],
        type="PUSH",
        requesterSystems=["TemperatureManager"],
        targetSystems=["TemperatureConsumer"],
        serviceDefinitions=["kelvinInfo"],
        subscriptionIds=["3a07c069-e070-4831-a5ad-5307c112354f"],
    )
    assert answer.headers["Content-Type"] == "application/json"
    assert list(answer.entries[0].items()) == list(entry.items())
    assert answer.json["count"] == 1


def test_a_key_without_a_value_is_left_out_on_request(start: Callable[..., Service]) -> None:
    service = start(OMIT_EMPTY=True)
    put(service, JOB, job_entry(1))
    (entry,) = service.jobs().entries
    assert entry == {key: value for key, value in job_entry(1).items() if value != ""}


def test_a_job_lives_from_pending_to_its_end(service: Service) -> None:
    history = service.store.history
    names = ["a-consumer", " Target ", "Kelvin_info"]
    first = history.create("pull", *names, message=" first ")
    (created,) = service.jobs().entries
    assert created == {
        **job_entry(0, requesterSystem="AConsumer", targetSystem="Target", message="first"),
        "id": first,
        "createdAt": created["createdAt"],
    }
    assert SECOND(created["createdAt"])

    history.start(first, " \t")
    (started,) = service.jobs(statuses=["IN_PROGRESS"]).entries
    assert started == {**created, "status": "IN_PROGRESS", "startedAt": started["startedAt"]}
    assert SECOND(started["startedAt"])

    history.fail(first, "no provider")
    (failed,) = service.jobs(statuses=["ERROR"]).entries
    assert failed == {
        **started,
        "status": "ERROR",
        "message": "no provider",
        "finishedAt": failed["finishedAt"],
    }
    assert SECOND(failed["finishedAt"])

    history.start(first)
    (again,) = service.jobs(statuses=["IN_PROGRESS"]).entries
    assert (again["finishedAt"], again["message"]) == ("", "no provider")

    history.finish(first, "found")
    (done,) = service.jobs(statuses=["DONE"]).entries
    assert SECOND(done["finishedAt"])
    assert done["message"] == "found"


@pytest.mark.parametrize("body", [None, b"", b"null", b" {} "])
def test_an_empty_query_finds_everything(service: Service, body: bytes | None) -> None:
    entries = some_jobs(random.Random(1), 9)
    put(service, JOB, *entries)
    headers = {"Authorization": OPERATOR, "Content-Type": "application/json"}
    answer = service.send("POST", f"{MANAGEMENT}/history/query", body, headers)
    assert answer.status == 200
    assert answer.json == expected(entries, {}, LISTS, "createdAt")


@pytest.mark.parametrize(
    "query",
    [
        {name: [] for name in LISTS},
        dict.fromkeys(LISTS),
        {"type": None, "pagination": None},
        {"type": " \t", "pagination": {}},
        {"status": ["DONE"], "Type": "PUSH", "owners": [7], "message": {}},
    ],
)
def test_an_empty_filter_does_not_filter(service: Service, query: dict[str, Any]) -> None:
    entries = some_jobs(random.Random(2), 5)
    put(service, JOB, *entries)
    assert service.jobs(**query).json == expected(entries, {}, LISTS, "createdAt")


@pytest.mark.parametrize(
    "query",
    [
        {"statuses": ["in_progress"]},
        {"statuses": [" In_Progress\n", "DONE"]},
        {"type": "push"},
        {"type": "\tPuSh "},
        {"ids": [f" {job_id(0xABC).upper()} "]},
        {"subscriptionIds": [job_id(0xDEF).upper()]},
        {"requesterSystems": ["a_requester"]},
        {"targetSystems": ["the target"]},
        {"serviceDefinitions": ["Kelvin-info"]},
    ],
)
def test_filters_are_normalised(service: Service, query: dict[str, Any]) -> None:
    wanted = job_entry(
        0xABC,
        status="IN_PROGRESS",
        type="PUSH",
        requesterSystem="ARequester",
        targetSystem="TheTarget",
        subscriptionId=job_id(0xDEF),
    )
    other = job_entry(2, serviceDefinition="kelvininfo")
    put(service, JOB, wanted, other)
    assert service.jobs(**query).json == {"entries": [wanted], "count": 1}


@pytest.mark.parametrize(
    ("query", "message"),
    [
        *(
            ({name: [good, blank]}, f"{label} list contains empty element")
            for name, label, good in [
                ("ids", "ID", job_id(1)),
                ("statuses", "Status", "DONE"),
                ("requesterSystems", "Requester system", "A"),
                ("targetSystems", "Target system", "A"),
                ("serviceDefinitions", "Service definition", "a"),
                ("subscriptionIds", "Subscription ID", job_id(1)),
            ]
            for blank in (None, "", " \t\x00")
        ),
        ({"ids": [" abc123 "]}, "Invalid orchestration job id: abc123"),
        ({"ids": [job_id(1), job_id(2)[1:]]}, f"Invalid orchestration job id: {job_id(2)[1:]}"),
        ({"ids": ["1"]}, "Invalid orchestration job id: 1"),
        ({"statuses": ["DONE", "FINISHED"]}, "Invalid status: FINISHED"),
        ({"statuses": ["IN PROGRESS"]}, "Invalid status: IN PROGRESS"),
        ({"type": "POLL"}, "Invalid type: POLL"),
        ({"type": "PUſH"}, "Invalid type: PUſH"),
        ({"subscriptionIds": ["x-y"]}, "Invalid subscription id: x-y"),
        ({"requesterSystems": ["9"]}, f"The specified system name {NAMING}: 9"),
        ({"targetSystems": ["A", "é"]}, f"The specified system name {NAMING}: é"),
        ({"serviceDefinitions": ["9"]}, f"The specified service definition name {NAMING}: 9"),
    ],
)
def test_a_bad_filter_is_refused(service: Service, query: dict[str, Any], message: str) -> None:
    answer = service.jobs(**query)
    assert (answer.status, answer.error) == (400, message)


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("ids", "id", job_id),
        ("requesterSystems", "requesterSystem", lambda number: f"S{number}"),
        ("serviceDefinitions", "serviceDefinition", lambda number: f"s{number}"),
        ("subscriptionIds", "subscriptionId", job_id),
    ],
)
def test_a_filter_may_have_70000_values(service: Service, name: str, key: str, value: Any) -> None:
    put(service, JOB, *({**job_entry(n), key: value(n)} for n in (69_999, 70_000)))
    answer = service.jobs(**{name: [value(number) for number in range(70_000)]})
    assert [entry[key] for entry in answer.entries] == [value(69_999)]
