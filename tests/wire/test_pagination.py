"""Page through locks and jobs, in any order."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from support import Answer, Service
from wire import JOB, LOCK, job_entry, lock_entry, put

LOCK_FIELDS = ["id", "owner", "serviceInstanceId", "expiresAt"]
JOB_FIELDS = ["id", "createdAt", "startedAt", "finishedAt"]
MOMENTS = ["2099-01-01T00:00:00Z", "2099-01-02T00:00:00Z"]


@dataclass
class Table:
    """One of the two queries, on a service that has some rows with many equal values."""

    service: Service
    path: str
    entries: list[dict[str, Any]]
    default: str
    fields: str

    def ask(self, **pagination: Any) -> Answer:
        return self.service.post(self.path, {"pagination": pagination})

    def ordered(self, key: str, descending: bool) -> list[dict[str, Any]]:
        return sorted(self.entries, key=lambda it: (it[key], it["id"]), reverse=descending)


def locks_on(service: Service) -> Table:
    chance = random.Random(3)
    entries = [
        lock_entry(n, owner=chance.choice(["A", "B", "a"]), expiresAt=chance.choice(MOMENTS))
        for n in chance.sample(range(1, 200), 23)
    ]
    put(service, LOCK, *entries)
    return Table(service, "/lock/query", entries, "id", ", ".join(LOCK_FIELDS))


def jobs_on(service: Service) -> Table:
    chance = random.Random(4)
    entries = [
        job_entry(
            n,
            createdAt=chance.choice(MOMENTS),
            startedAt=chance.choice(["", "", *MOMENTS]),
            finishedAt=chance.choice(["", "", *MOMENTS]),
        )
        for n in chance.sample(range(1, 10**12), 23)
    ]
    put(service, JOB, *entries)
    return Table(service, "/history/query", entries, "createdAt", ", ".join(JOB_FIELDS))


TABLES = {"locks": locks_on, "jobs": jobs_on}


@pytest.fixture(params=TABLES)
def table(request: pytest.FixtureRequest, service: Service) -> Table:
    return TABLES[request.param](service)


@pytest.mark.parametrize("direction", ["ASC", "DESC"])
@pytest.mark.parametrize(
    ("name", "field"),
    [*(("locks", it) for it in LOCK_FIELDS), *(("jobs", it) for it in JOB_FIELDS)],
)
def test_the_pages_of_any_order_hold_every_entry_once(
    service: Service, name: str, field: str, direction: str
) -> None:
    table = TABLES[name](service)
    everything = table.ordered(field, direction == "DESC")
    assert len({entry[field] for entry in everything}) > 1
    for size in (1, 5, 22, 23, 24):
        pages = -(-23 // size)
        for page in range(pages + 2):
            answer = table.ask(page=page, size=size, direction=direction, sortField=field)
            assert answer.entries == everything[page * size : (page + 1) * size]
            assert answer.json["count"] == 23


def test_what_has_no_value_sorts_first_in_asc(service: Service) -> None:
    table = jobs_on(service)
    unfinished = sum(not entry["finishedAt"] for entry in table.entries)
    found = table.ask(direction="ASC", sortField="finishedAt").entries
    assert 0 < unfinished < 23
    assert not any(entry["finishedAt"] for entry in found[:unfinished])
    assert all(entry["finishedAt"] for entry in found[unfinished:])


def test_text_sorts_by_code_point(service: Service) -> None:
    owners = ["Z", "a", "B", "AB", "Aa", "A9", "A"]
    put(service, LOCK, *(lock_entry(n, owner=owner) for n, owner in enumerate(owners, 1)))
    found = service.locks(pagination={"sortField": "owner", "direction": "ASC"}).entries
    assert [entry["owner"] for entry in found] == ["A", "A9", "AB", "Aa", "B", "Z", "a"]


@pytest.mark.parametrize(
    "pagination",
    [
        {},
        {"page": None, "size": None, "direction": None, "sortField": None},
        {"page": "", "size": " ", "direction": "\t", "sortField": "\n"},
        {"page": 0, "size": 1000},
        {"page": "0", "size": " 23 "},
        {"page": -3, "size": 0},
        {"page": -(2**63), "size": -(2**63)},
        {"page": 0, "size": -1},
        {"direction": "DESC"},
        {"direction": " desc "},
        {"offset": 5, "sortfield": "x"},
    ],
)
def test_the_newest_come_first_all_on_one_page(table: Table, pagination: dict[str, Any]) -> None:
    answer = table.ask(**pagination)
    assert answer.entries == table.ordered(table.default, descending=True)
    assert answer.json["count"] == 23


def test_the_parts_of_a_pagination_stand_alone(table: Table) -> None:
    newest = table.ordered(table.default, descending=True)
    assert table.ask(direction="asc").entries == newest[::-1]
    assert table.ask(sortField=" id\t").entries == table.ordered("id", descending=True)
    assert table.ask(page=1, size=4).entries == newest[4:8]
    assert table.ask(page="1", size="4").entries == newest[4:8]
    assert table.ask(page=-1, size=4).entries == newest[:4]


@pytest.mark.parametrize("page", [1, 2**31, 2**53, 2**63 - 1])
def test_a_page_beyond_the_end_is_empty_and_still_counts(table: Table, page: int) -> None:
    for size in (0, 1, 999, 1000):
        if page * (size or 1000) >= 23:
            assert table.ask(page=page, size=size).json == {"entries": [], "count": 23}


@pytest.mark.parametrize("name", TABLES)
def test_the_maximum_size_is_a_setting(start: Callable[..., Service], name: str) -> None:
    table = TABLES[name](start(MAX_PAGE_SIZE=10))
    newest = table.ordered(table.default, descending=True)
    for answer in (table.ask(), table.ask(page=0, size=0), table.ask(page=0, size=10)):
        assert answer.json == {"entries": newest[:10], "count": 23}
    assert table.ask(page=1, size=-5).entries == newest[10:20]
    answer = table.ask(page=0, size=11)
    assert (answer.status, answer.error) == (400, "The page size cannot be larger than 10")


WITHOUT_PAGE = "If size parameter is defined then page parameter cannot be undefined"
WITHOUT_SIZE = "If page parameter is defined then size parameter cannot be undefined"
DIRECTION = "Direction is invalid. Only ASC or DESC are allowed"


@pytest.mark.parametrize(
    ("pagination", "message"),
    [
        ({"size": 5}, WITHOUT_PAGE),
        ({"size": 5000, "page": None, "direction": "up"}, WITHOUT_PAGE),
        ({"size": 0, "page": ""}, WITHOUT_PAGE),
        ({"page": 0}, WITHOUT_SIZE),
        ({"page": -1, "size": " ", "sortField": "x"}, WITHOUT_SIZE),
        ({"page": 0, "size": 1001}, "The page size cannot be larger than 1000"),
        ({"page": 0, "size": "1001"}, "The page size cannot be larger than 1000"),
        ({"page": 0, "size": 2**63 - 1, "direction": "x"}, "The page size cannot be larger than"),
        ({"direction": "up"}, DIRECTION),
        ({"direction": "ASCENDING", "sortField": "x"}, DIRECTION),
        ({"direction": "deſc"}, DIRECTION),
        ({"sortField": "unknown"}, "Sort field is invalid. "),
        ({"sortField": "ID"}, "Sort field is invalid. "),
        ({"sortField": "created_at"}, "Sort field is invalid. "),
        ({"sortField": "expires_at"}, "Sort field is invalid. "),
        ({"sortField": "id; DROP TABLE orchestration_lock"}, "Sort field is invalid. "),
    ],
)
def test_a_bad_pagination_is_refused(
    table: Table, pagination: dict[str, Any], message: str
) -> None:
    if message.startswith("Sort field"):
        message += f"Only the following are allowed: [{table.fields}]"
    answer = table.ask(**pagination)
    assert answer.status == 400
    assert answer.error.startswith(message)


@pytest.mark.parametrize("field", ["owner", "serviceInstanceId", "expiresAt"])
def test_jobs_do_not_sort_by_a_locks_field(service: Service, field: str) -> None:
    answer = service.jobs(pagination={"sortField": field})
    assert answer.error == (
        "Sort field is invalid. Only the following are allowed: "
        "[id, createdAt, startedAt, finishedAt]"
    )


@pytest.mark.parametrize("name", ["page", "size"])
@pytest.mark.parametrize(
    "number", [True, 1.5, "1.0", "one", 2**63, "9" * 30, 1e300, [], {}], ids=repr
)
def test_a_page_or_size_that_is_no_integer_is_refused(table: Table, name: str, number: Any) -> None:
    answer = table.ask(**{"page": 1, "size": 1, name: number})
    assert answer.status == 400
    assert name in answer.error
