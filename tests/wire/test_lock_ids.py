"""Ids of locks fence: of two locks on one instance, the later one has the larger id."""

import random
import threading
import time
from contextlib import ExitStack, closing
from itertools import pairwise

import psycopg
import pytest
from support import FUTURE, Connection, in_threads, lock, served
from wire import LOCK, connect, insert, lock_entry

PAST = "2020-01-01T00:00:00Z"


def test_ids_rise_in_the_order_of_the_request(service):
    names = [f"P{n}|s|1.0.0" for n in random.Random(1).sample(range(500), 200)]
    insert(service.store, LOCK, *(lock_entry(1000 + n, serviceInstanceId=names[n], expiresAt=PAST)
                                  for n in range(0, 200, 7)))  # fmt: skip
    entries = service.create(*map(lock, names)).entries
    assert [it["serviceInstanceId"] for it in entries] == names
    ids = [it["id"] for it in entries]
    assert ids == sorted(set(ids))
    assert ids[0] > 1000 + 196
    newest = service.locks(pagination={"page": 0, "size": 3}).entries
    assert [it["serviceInstanceId"] for it in newest] == names[:-4:-1]


def test_a_refused_create_uses_no_ids_up(service):
    (first,) = service.create(lock("A|b|1.0.0")).entries
    assert service.create(*[lock(f"P{n}|s|1.0.0") for n in range(50)], lock("A|b|1.0.0")).error
    (second,) = service.create(lock("B|c|1.0.0")).entries
    assert second["id"] == first["id"] + 1


@pytest.fixture
def apart(database_url):
    """Start services that nobody shares."""
    with ExitStack() as running:
        yield lambda: running.enter_context(served(DATABASE_URL=database_url))


@pytest.mark.postgresql
def test_who_waited_for_an_instance_gets_the_larger_id(apart, database_url):
    services = [apart(), apart()]
    answers = []

    def wait_for_it():
        answers.append(services[0].create(lock("A|b|1.0.0", "Waiting")))

    with closing(psycopg.connect(database_url)) as other:
        other.execute(
            f"INSERT INTO {LOCK} VALUES (DEFAULT, '', 'A|b|1.0.0', 'Other', %s, FALSE)", (FUTURE,)
        )
        client = threading.Thread(target=wait_for_it)
        client.start()
        with closing(connect(database_url)) as watched:
            while not watched.execute("SELECT 1 FROM pg_locks WHERE NOT granted").fetchall():
                time.sleep(0.01)
        # While it waits, others come and go on other instances.
        (entry,) = services[1].create(lock("B|c|1.0.0")).entries
        other.rollback()
    client.join()
    assert answers[0].entries[0]["id"] > entry["id"]


@pytest.fixture
def processes(serve, database_url):
    options = ("--database-url", database_url, "--cleaner-interval-seconds", "0.05")
    return [serve(*options, "--database-timeout-seconds", "20") for _ in range(3)]


def test_bulks_that_overlap_neither_block_each_other_nor_go_back(processes, database_url):
    """Creates and removes of 1 to 12 of 16 instances, in any order: no deadlock, and ids rise."""
    instances = [f"Provider{n}|service|1.0.0" for n in range(16)]
    deadlocks = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
    statuses: set[int] = set()
    held: list[tuple[float, float, str, int]] = []  # when it was certainly held, which, its id
    end = time.monotonic() + 4

    def work(number):
        chance = random.Random(number)
        connection = Connection(processes[number % 3].url)
        owner = f"Owner{number}"
        while time.monotonic() < end:
            wanted = chance.sample(instances, chance.randint(1, 12))
            status, answer = connection.create(*[lock(it, owner) for it in wanted])
            statuses.add(status)
            if status != 201:
                continue
            made = time.monotonic()
            chance.shuffle(wanted)
            before = time.monotonic()
            assert connection.remove(owner, *wanted)[0] == 200
            held.extend(
                (made, before, it["serviceInstanceId"], it["id"]) for it in answer["entries"]
            )
        connection.close()

    in_threads(work, range(12))
    assert statuses == {201, 400}
    for instance in instances:
        mine = sorted(it for it in held if it[2] == instance)
        assert len(mine) > 5
        ids = [it[3] for it in mine]
        assert ids == sorted(set(ids))
        assert all(one[1] <= other[0] for one, other in pairwise(mine))
    if database_url.startswith("postgresql"):
        with closing(connect(database_url)) as database:
            assert database.execute(deadlocks).fetchone() == (0,)


@pytest.mark.postgresql
def test_ids_go_on_after_a_restart_of_the_service(serve, database_url):
    ids = []
    for _ in range(3):
        process = serve("--database-url", database_url)
        ids += [it["id"] for it in process.create(lock("A|b|1.0.0"), lock("B|c|1.0.0")).entries]
        process.remove("Owner", "instanceIds=A%7Cb%7C1.0.0,B%7Cc%7C1.0.0")
        assert process.stop() == 0
    assert ids == sorted(set(ids))


@pytest.mark.postgresql
def test_ids_that_others_put_in_are_counted_on_from(apart, database_url):
    """As after a restore of the rows without their sequence."""
    service = apart()
    service.create(lock("A|b|1.0.0"))
    put_in = f"INSERT INTO {LOCK} VALUES (%s, '', %s, 'Other', %s, FALSE)"
    with closing(psycopg.connect(database_url, autocommit=True)) as other:
        for number in range(2, 30):
            other.execute(put_in, (number, f"Restored|r{number}|1.0.0", FUTURE))
        bulk = service.create(*[lock(f"P{n}|s|1.0.0") for n in range(5)])
        assert [it["id"] for it in bulk.entries] == list(range(30, 35))
        other.execute(put_in, (1000, "Restored|late|1.0.0", FUTURE))
    (entry,) = apart().create(lock("B|c|1.0.0")).entries
    assert entry["id"] == 1001
