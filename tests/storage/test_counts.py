"""PostgreSQL's counts, which many write at a time: exact in every snapshot, and always few rows."""

import functools
import os
import random
import select
import subprocess
import sys
import threading
import time
from collections import Counter

import pytest
from support import FUTURE, job, until

from orchmgmt.databases import counts
from orchmgmt.databases.queries import Page
from orchmgmt.models import STATUSES, TYPES, NewLock
from orchmgmt.store import Store

pytestmark = pytest.mark.postgresql

#: How long the writers are killed, in seconds.
SECONDS = float(os.environ.get("FIRE_SECONDS", "4"))

JOBS = "SELECT status, type, sum(jobs) FROM orchestration_job_count GROUP BY status, type"
LOCKS = "SELECT coalesce(sum(locks), 0) FROM orchestration_lock_count"


@pytest.fixture
def store(database_url):
    # One of the tests stays in the middle of a transaction.
    with Store({"DATABASE_URL": database_url, "DATABASE_TIMEOUT_SECONDS": 60}) as store:
        yield store


def assert_exact(store):
    """What is counted is what is there, in one snapshot; so is what a query says."""

    def compare():
        rows = store.database.rows
        there = Counter(rows("SELECT status, type FROM orchestration_job"))
        assert Counter({(status, kind): n for status, kind, n in rows(JOBS) if n}) == there
        assert rows(LOCKS) == rows("SELECT count(*) FROM orchestration_lock")
        assert store.job_table._known({}) == there.total()

    store.database.read(compare)


def test_counts_stay_exact_whatever_happens(store):
    chance = random.Random(1)

    def jobs(*numbers):
        kinds = {"status": STATUSES, "type": TYPES}
        return [job(n, **{it: chance.choice(some) for it, some in kinds.items()}) for n in numbers]

    def put_and_fail():
        store.job_table.put(jobs(900))
        raise ZeroDivisionError

    store.database.write(store.job_table.put, jobs(*range(40)))
    for _ in range(60):
        number = chance.randrange(60)
        happening = chance.randrange(4)
        if happening == 0:
            store.database.write(store.job_table.put, jobs(*range(number, number + 9)))
        elif happening == 1:
            locks = [NewLock("", f"A{number}|b|1.0.0", "Owner", FUTURE)]
            if store.lock_table.find({"service_instance_ids": [f"A{number}|b|1.0.0"]}, Page(0, 1))[
                1
            ]:
                store.lock_table.remove("Owner", [f"A{number}|b|1.0.0"])
            else:
                store.lock_table.create(locks)
        elif happening == 2:
            with pytest.raises(ZeroDivisionError):
                store.database.write(put_and_fail)
        else:
            some = f"WHERE id LIKE '%{number:02x}'"
            change = chance.choice(
                [
                    f"DELETE FROM orchestration_job {some}",
                    f"UPDATE orchestration_job SET status = 'ERROR', type = 'PUSH' {some}",
                    f"UPDATE orchestration_job SET message = 'the kind is the same' {some}",
                ]
            ).replace("%", "%%")
            store.database.write(store.database.change, change, {})
        assert_exact(store)
    for table in ("orchestration_job", "orchestration_lock"):
        store.database.write(store.database.change, f"TRUNCATE {table}")
        assert_exact(store)


def test_differences_are_added_up(store):
    """Also where the tables are published to another server."""
    change = functools.partial(store.database.write, store.database.change)
    change("CREATE PUBLICATION everything FOR ALL TABLES")
    try:
        for _ in range(8 * counts.ONE_IN):
            store.history.create("PULL", "Alice", "Alice", "kelvinInfo")
    finally:
        change("DROP PUBLICATION everything")
    (left,) = store.database.read(
        store.database.rows, "SELECT count(*) FROM orchestration_job_count"
    )
    assert left[0] < 8 * counts.ONE_IN  # that none of them adds up has a chance of 1 in 3,000
    assert_exact(store)


def test_who_adds_up_holds_up_nobody(store):
    """Also if it does not end: others go on writing, and their counts are exact."""
    store.history.create("PULL", "Alice", "Alice", "kelvinInfo")
    added_up, over = threading.Event(), threading.Event()

    def add_up():
        relation = "SELECT pg_advisory_xact_lock('orchestration_job'::regclass::oid::bigint)"
        store.database.rows(relation)
        store.database.rows("DELETE FROM orchestration_job_count RETURNING *")
        store.database.change("INSERT INTO orchestration_job_count VALUES ('PENDING', 'PULL', 1)")
        added_up.set()
        assert over.wait(60)

    thread = threading.Thread(target=store.database.write_once, args=[add_up])
    thread.start()
    assert added_up.wait(60)
    try:
        for _ in range(3 * counts.ONE_IN):
            store.history.create("PULL", "Alice", "Alice", "kelvinInfo")
        assert_exact(store)
    finally:
        over.set()
        thread.join()
    assert_exact(store)


WRITER = """
import random, sys
from datetime import UTC, datetime, timedelta
from orchmgmt.entries import Lock
from orchmgmt.store import Store

chance = random.Random()
with Store({"DATABASE_URL": sys.argv[1], "HISTORY_MAX_AGE_DAYS": 1}) as store:
    print("writing", flush=True)
    while True:
        kinds = [chance.choice(["PULL", "PUSH"]) for _ in range(3)]
        ids = [store.history.create(kind, "A", "A", "s") for kind in kinds]
        for job_id in ids:
            store.history.start(job_id)
        store.history.finish(ids[0])
        store.history.fail(ids[1])
        end = datetime.now(UTC) + timedelta(minutes=1)
        names = [f"A{chance.getrandbits(60)}|b|1.0.0" for _ in range(5)]
        create = [Lock(service_instance_id=it, owner="O", expires_at=end) for it in names]
        store.locks.create(create)
        store.locks.remove("O", names[1:])
        store.clean()
"""


@pytest.fixture
def eager(store):
    """Let every other writer add up, as one in a hundred does."""
    function = "SELECT pg_get_functiondef('{}'::regproc)"
    functions = [
        store.database.read(store.database.rows, function.format(it))[0][0]
        for it in ("orchestration_job_count", "orchestration_lock_count")
    ]
    for function in functions:
        often = function.replace(f"random() * {counts.ONE_IN} < 1", "random() * 2 < 1")
        assert often != function
        store.database.write(store.database.change, often)
    yield
    for function in functions:
        store.database.write(store.database.change, function)


@pytest.mark.usefixtures("eager")
def test_counts_are_exact_while_writers_are_killed(database_url, store):
    writers = []

    def begin():
        writers.append(
            subprocess.Popen(
                [sys.executable, "-c", WRITER, database_url], stdout=subprocess.PIPE, text=True
            )
        )

    for _ in range(3):
        begin()
    compared = 0
    try:
        for writer in writers:
            assert writer.stdout.readline() == "writing\n"
        deadline = time.monotonic() + SECONDS
        while time.monotonic() < deadline:
            begin()
            until_killed = time.monotonic() + random.uniform(0.1, 0.6)
            started = [writers[-1].stdout], [], [], 0  # so there are always three that write
            while time.monotonic() < until_killed or not select.select(*started)[0]:
                assert_exact(store)
                compared += 1
            _kill(writers.pop(0))
    finally:
        for writer in writers:
            _kill(writer)
    until(lambda: store.database.read(store.database.rows, OTHERS) == [(0,)])
    assert_exact(store)
    print(compared, store.history.find(size=1).count, store.locks.find(size=1).count)
    assert store.history.find(size=1).count > 20


OTHERS = (
    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND state <> 'idle'"
    " AND pid <> pg_backend_pid() AND backend_type = 'client backend'"
)


def _kill(writer):
    writer.kill()
    writer.wait()
    writer.stdout.close()
