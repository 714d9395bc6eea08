"""What keeps a page as quick in a long history as in a short one: counts that are always exact."""

import random
import shutil
import sqlite3
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from support import connection_of, job, traced

from orchmgmt.databases.queries import Page
from orchmgmt.databases.schema import SCHEMA_VERSION
from orchmgmt.locks import ENTRY
from orchmgmt.models import STATUSES, TYPES
from orchmgmt.store import Store

pytestmark = pytest.mark.sqlite

EARLIER = sorted((Path(__file__).parents[1] / "data").glob("schema-*.sqlite"))

KINDS = {
    "requester_systems": ("requester_system", ["Alice", "Bob", "Carol"]),
    "target_systems": ("target_system", ["Alice", "Bob", "Carol"]),
    "service_definitions": ("service_definition", ["kelvinInfo", "celsiusInfo"]),
    "statuses": ("status", list(STATUSES)),
    "type": ("type", list(TYPES)),
}


@pytest.fixture
def store(tmp_path):
    with Store({"DATABASE_URL": f"sqlite:///{tmp_path}/orchmgmt.db"}) as store:
        yield store


def some_job(chance: random.Random, number: int) -> dict[str, str]:
    return job(number, **{column: chance.choice(some) for column, some in KINDS.values()})


def put_and_fail(store: Store, row: dict[str, str]) -> None:
    store.job_table.put([row])
    raise ZeroDivisionError


def assert_counts_are_exact(store: Store) -> None:
    def rows(sql: str) -> list[Any]:
        return store.database.read(store.database.rows, sql)

    jobs = Counter(rows("SELECT status, type FROM orchestration_job"))
    kept = rows("SELECT status, type, jobs FROM orchestration_job_count")
    assert {row[:-1]: row[-1] for row in kept if row[-1]} == jobs
    assert rows("SELECT locks FROM orchestration_lock_count") == rows(
        "SELECT count(*) FROM orchestration_lock"
    )


@pytest.mark.parametrize("seed", range(5))
def test_counts_stay_exact_whatever_happens_to_jobs(store, seed):
    chance = random.Random(seed)
    store.database.write(store.job_table.put, [some_job(chance, n) for n in range(40)])
    made = [store.history.create("PULL", "Alice", "Bob", "kelvinInfo") for _ in range(5)]
    for _ in range(120):
        number = chance.randrange(60)
        happening = chance.randrange(6)
        if happening == 0:
            store.database.write(store.job_table.put, [some_job(chance, number)])
        elif happening == 1:
            store.history.start(chance.choice(made))
        elif happening == 2:
            started = chance.choice(made)
            store.history.start(started)
            chance.choice([store.history.finish, store.history.fail])(started)
        elif happening == 3:
            some = [some_job(chance, chance.randrange(60)) for _ in range(10)]
            store.database.write(store.job_table.put, some)
        elif happening == 4:
            with pytest.raises(ZeroDivisionError):
                store.database.write(put_and_fail, store, job(number))
        else:
            job_id = job(number)["id"]
            change = chance.choice(
                [
                    "DELETE FROM orchestration_job WHERE id = ?",
                    "UPDATE orchestration_job SET status = 'ERROR', type = 'PUSH' WHERE id = ?",
                    "UPDATE orchestration_job SET message = 'the kind is the same' WHERE id = ?",
                ]
            )
            store.database.write(store.database.change, change, [job_id])
        assert_counts_are_exact(store)
    store.clean()
    assert_counts_are_exact(store)


def test_cleaning_takes_old_jobs_out_of_the_counts(store):
    old = [job(n, finished_at="2020-01-01T00:00:00Z") for n in range(30)]
    store.database.write(store.job_table.put, [*old, job(99, status="PENDING")])
    assert store.clean() == (0, 30)
    assert_counts_are_exact(store)
    assert store.job_table.find({}, Page(0, 1)) == store.job_table.find(
        {"statuses": ["PENDING"]}, Page(0, 1)
    )


def test_counting_all_or_by_status_and_type_reads_no_jobs_and_no_active_locks(store):
    chance = random.Random(1)
    store.database.write(store.job_table.put, [some_job(chance, n) for n in range(100)])
    by_count = [{}, {"statuses": ["DONE"]}, {"type": "PULL"}]
    by_count.append({"type": "PUSH", "statuses": ["DONE", "ERROR"]})
    with traced(store) as statements:
        for wanted in by_count:
            store.job_table.find(wanted, Page(0, 1))
        store.lock_table.find({}, Page(0, 1))
    jobs = [sql for sql in statements if '"orchestration_job" AS' in sql]
    assert len(jobs) == len(by_count)
    assert all("LIMIT 1" in sql for sql in jobs)
    (locks,) = [sql for sql in statements if "COUNT(" in sql]
    plan = store.database.read(store.database.rows, f"EXPLAIN QUERY PLAN {locks}")
    assert any("expires_at<?" in row[-1] for row in plan), plan


def test_as_many_kinds_of_jobs_as_jobs_cost_a_write_no_more(store):
    """Instructions of SQLite, which do not depend on the machine: as many for the last as first."""
    connection = connection_of(store)

    def steps(work):
        count = [0]

        def step():
            count[0] += 1

        connection.set_progress_handler(step, 1)
        try:
            work()
        finally:
            connection.set_progress_handler(None, 0)
        return count[0]

    def put(numbers):
        kinds = ("requester_system", "target_system", "service_definition")
        jobs = [job(n, **{kind: f"{kind[:1]}{n}" for kind in kinds}) for n in numbers]
        store.database.write(store.job_table.put, jobs)

    def start():
        store.history.start(job(0)["id"])

    first = steps(lambda: put([0])), steps(start)
    put(range(1, 20_000))
    last = steps(lambda: put([20_000])), steps(start)
    assert all(after <= 1.2 * before for before, after in zip(first, last, strict=True))


@pytest.mark.parametrize("sort", [None, "id", "started_at", "finished_at"])
@pytest.mark.parametrize("descending", [False, True])
def test_every_way_through_the_indexes_gives_the_same_page(store, sort, descending):
    """So many jobs that each way of reading them is the cheapest for some page."""
    chance = random.Random(3)
    jobs = [some_job(chance, n) for n in range(5000)]
    for number in range(0, 5000, 700):
        jobs[number]["requester_system"] = "Rare"
    store.database.write(store.job_table.put, jobs)
    by = sort or "created_at"
    in_order = sorted(jobs, key=lambda it: (it[by], it["id"]), reverse=descending)
    for _ in range(40):
        wanted: dict[str, Any] = {}
        for name, (_, some) in KINDS.items():
            if chance.random() < 0.4:
                wanted[name] = chance.sample(some, chance.choice((1, 2)))
        if chance.random() < 0.3:
            wanted["requester_systems"] = ["Rare"]
        if "type" in wanted:
            wanted["type"] = wanted["type"][0]
        page = Page(chance.choice((0, 0, 1, 40)), chance.choice((1, 10, 100)), sort, descending)
        matching = [
            it["id"]
            for it in in_order
            if all(it[KINDS[name][0]] in some for name, some in wanted.items())
        ]
        rows, count = store.job_table.find(wanted, page)
        assert count == len(matching)
        start = page.number * page.size
        assert [row[0] for row in rows] == matching[start : start + page.size]


@pytest.mark.parametrize("file", EARLIER, ids=[file.stem for file in EARLIER])
def test_a_database_of_an_earlier_version_is_upgraded_in_place(file, tmp_path):
    path = tmp_path / "earlier.db"
    shutil.copyfile(file, path)
    entry = ", ".join(column.name for column in ENTRY)

    def contents() -> list[Any]:
        with closing(sqlite3.connect(path)) as database:
            return [
                database.execute(f"SELECT {columns} FROM {table} ORDER BY id").fetchall()
                for table, columns in (("orchestration_lock", entry), ("orchestration_job", "*"))
            ]

    def schema(path: Path) -> list[Any]:
        with closing(sqlite3.connect(path)) as database:
            found = database.execute("SELECT name, sql FROM sqlite_master ORDER BY name").fetchall()
            return found + database.execute("SELECT version FROM orchestration_schema").fetchall()

    before = contents()
    assert all(before)
    with Store({"DATABASE_URL": f"sqlite:///{path}"}) as store:
        assert_counts_are_exact(store)
        assert store.job_table.find({}, Page(0, 1))[1] == len(before[1])
    assert contents() == before
    Store({"DATABASE_URL": f"sqlite:///{tmp_path}/new.db"}).close()
    assert schema(path) == schema(tmp_path / "new.db")


def test_a_file_of_every_earlier_version_is_kept():
    assert [file.stem for file in EARLIER] == [f"schema-{n}" for n in range(1, SCHEMA_VERSION)]
