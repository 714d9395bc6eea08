"""One clock decides for all who share a database, whatever the clocks of their machines say."""

import os
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing, contextmanager

import psycopg
import pytest
from support import after, lock
from wire import LOCK, connect, insert, lock_entry

from orchmgmt.errors import InvalidParameter
from orchmgmt.store import Store

HOUR = 3600


@pytest.fixture
def apart(serve, new_clock, database_url):
    """Three processes on one database: one is right, one 30 s ahead, one an hour behind."""
    options = ("--database-url", database_url, "--cleaner-interval-seconds", "0.05")
    return [serve(*options, env=new_clock(ahead).env) for ahead in (0, 30, -HOUR)]


@pytest.mark.postgresql
def test_no_process_takes_a_lock_early_and_none_leaves_one_stuck(apart):
    name = "Boiler|heat|1.0.0"
    for maker in apart:
        expires = after(17)  # seconds: in the past of the one that is ahead
        assert maker.create(lock(name, "Holder", expires)).status == 201
        for other in apart:
            assert other.create(lock(name, "Thief", after(90))).error == f"Already locked: {name}"
            (entry,) = other.locks(serviceInstanceIds=[name]).entries
            assert (entry["owner"], entry["expiresAt"]) == ("Holder", expires)
        assert maker.remove("Holder", "instanceIds=Boiler%7Cheat%7C1.0.0").status == 200

    time.sleep(0.5)  # ten rounds of each cleaner
    expires = after(4)
    assert apart[1].create(lock(name, "Holder", expires)).status == 201
    while after(0) <= expires:
        time.sleep(0.05)
    for process in apart:
        assert process.locks().json["count"] == 0
    assert [it.create(lock(name, "Next", after(60))).status for it in apart] == [201, 400, 400]


@pytest.mark.postgresql
def test_all_processes_agree_on_what_is_past(apart):
    for number, process in enumerate(apart):
        past = after(-2)
        answer = process.create(lock(f"P{number}|late|1.0.0", expires_at=past))
        assert answer.error == f"Expires at is in the past: {past}"
        assert process.create(lock(f"P{number}|ok|1.0.0", expires_at=after(10))).status == 201


@pytest.mark.postgresql
def test_jobs_have_the_times_of_the_server(apart, new_clock, database_url):
    script = (
        "from orchmgmt.store import Store\n"
        "with Store() as store:\n"
        "    job = store.history.create('PULL', 'Alice', 'Alice', 'kelvinInfo')\n"
        "    store.history.start(job)\n"
        "    store.history.finish(job)\n"
    )
    begun = after(-1)
    for ahead in (30, -HOUR):
        env = {**os.environ, **new_clock(ahead).env, "ORCHMGMT_DATABASE_URL": database_url}
        subprocess.run([sys.executable, "-c", script], env=env, check=True, timeout=60)
    for entry in apart[0].jobs().entries:
        assert all(
            begun <= entry[it] <= after(1) for it in ("createdAt", "startedAt", "finishedAt")
        )


@contextmanager
def held_by_another(url, instance):
    """Another writer is about to make a lock, and then gives it up."""
    if url.startswith("sqlite"):
        with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as other:
            other.execute("BEGIN IMMEDIATE")
            yield
            other.rollback()
    else:
        with closing(psycopg.connect(url)) as other:
            other.execute(
                f"INSERT INTO {LOCK} VALUES (DEFAULT, '', %s, 'Other', %s, FALSE)",
                (instance, after(60)),
            )
            yield
            other.rollback()


def test_a_create_that_waits_past_its_own_end_is_refused(start, database_url):
    service = start()
    answers = []
    expires = after(4)
    locks = [lock("A|b|1.0.0"), lock("B|c|1.0.0", expires_at=expires.replace("Z", "+00:00"))]
    with held_by_another(database_url, "B|c|1.0.0"):
        client = threading.Thread(target=lambda: answers.append(service.create(*locks)))
        client.start()
        while after(0) <= expires:
            time.sleep(0.05)
        assert answers == []
    client.join()
    assert answers[0].error == f"Expires at is in the past: {expires.replace('Z', '+00:00')}"
    assert service.locks().json["count"] == 0


def test_a_reservation_that_waits_past_its_own_end_is_refused(start, database_url):
    store = start().store
    job = store.history.create("PULL", "Alice", "Alice", "kelvinInfo")
    expires = after(4)
    failures = []

    def reserve():
        try:
            store.locks.reserve(job, "B|c|1.0.0", "Alice", expires)
        except InvalidParameter as error:
            failures.append(str(error))

    with held_by_another(database_url, "B|c|1.0.0"):
        client = threading.Thread(target=reserve)
        client.start()
        while after(0) <= expires:
            time.sleep(0.05)
    client.join()
    assert failures == [f"Expires at is in the past: {expires}"]


def test_what_is_past_counts_in_the_order_of_the_list_and_before_names(service):
    past = "2020-01-01T01:00:00+01:00"
    late = lock("A|b|1.0.0", expires_at=past)
    says = f"Expires at is in the past: {past}"
    for wanted in (
        [late],
        [lock("B|c|1.0.0"), late],
        [late, None],
        [late, lock("bad")],
        [late, late],
        [lock("bad", expires_at=past)],
        [lock("A|b|1.0.0", owner="?", expires_at=past)],
    ):
        assert service.create(*wanted).error == says
    naming = "The specified service instance identifier does not match the naming convention: Bad"
    assert service.create(lock("bad"), late).error == naming
    assert service.create(lock("A|b|1.0.0", owner=""), late).error == "Owner is missing"
    assert service.create(lock("A|b|1.0.0", owner="", expires_at=past)).error == "Owner is missing"
    assert service.locks().json["count"] == 0


@pytest.mark.sqlite
def test_a_clock_that_is_an_hour_ahead_for_a_while_deletes_nothing(serve, clock, database_url):
    server = serve(
        "--database-url", database_url, "--cleaner-interval-seconds", "0.05",
        "--history-max-age-days", "0.02", env=clock.env,
    )  # fmt: skip
    assert server.create(lock("A|b|1.0.0", expires_at=after(20 * 60))).status == 201
    with Store({"DATABASE_URL": database_url}) as store:
        job = store.history.create("PULL", "Alice", "Alice", "kelvinInfo")
        store.history.start(job)
        store.history.finish(job)
        insert(store, LOCK, lock_entry(99, expiresAt=after(-60)))
        while server_rows(database_url) != [1]:  # the cleaner is at work
            time.sleep(0.05)
        clock.set(HOUR)
        assert server.locks().json["count"] == 0
        time.sleep(3)
        clock.set(0)
        time.sleep(0.5)
        assert server.locks().json["count"] == 1
        assert server.jobs().json["count"] == 1


def server_rows(url):
    with closing(connect(url)) as database:
        return [row[0] for row in database.execute(f"SELECT id FROM {LOCK}")]


def test_the_clock_that_a_store_is_given_decides_everything(start):
    service = start()
    service.clock.freeze()
    service.clock.set("2027-01-15T08:00:00Z")
    store = service.store
    assert service.create(lock("A|b|1.0.0", expires_at="2027-01-15T08:01:00Z")).status == 201
    assert service.create(lock("B|c|1.0.0", expires_at="2027-01-15T08:00:00Z")).status == 400
    job = store.history.create("PULL", "Alice", "Alice", "kelvinInfo")
    service.clock.advance(59)
    store.history.start(job)
    store.history.finish(job)
    (entry,) = service.jobs().entries
    assert entry["createdAt"] == "2027-01-15T08:00:00Z"
    assert entry["finishedAt"] == entry["startedAt"] == "2027-01-15T08:00:59Z"
    assert service.locks().json["count"] == 1
    service.clock.advance(1)
    assert service.locks().json["count"] == 0
    assert store.clean() == (1, 0)
    service.clock.advance(16 * 86400)
    assert store.clean() == (0, 1)
