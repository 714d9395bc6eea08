"""Exclusiveness under contention: several real servers on one database, eight clients at once."""

import os
import random
import threading
import time
from collections import Counter
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest
from support import FUTURE, Connection, in_threads, lock
from wire import connect

CLIENTS = 8
ROUNDS = int(os.environ.get("RACE_ROUNDS", 300))


@dataclass
class Race:
    """What the clients saw."""

    statuses: Counter[int] = field(default_factory=Counter)
    faults: list[object] = field(default_factory=list)

    def check(self):
        assert self.faults == []
        assert max(self.statuses) < 500, self.statuses


@pytest.fixture
def servers(serve, database_url):
    """Processes on one database, which they make as they start."""
    options = ("--database-url", database_url, "--threads", "8")
    options += ("--database-timeout-seconds", "60", "--cleaner-interval-seconds", "0.05")
    return [serve(*options) for _ in range(2 if database_url.startswith("sqlite") else 3)]


@pytest.fixture
def database(servers, database_url):
    with closing(connect(database_url)) as database:
        yield database


def race(servers, work):
    """Run `work(number, connection, race)` in every client; half of them on each server."""
    seen = Race()

    def run(number):
        connection = Connection(servers[number % len(servers)].url)
        try:
            work(number, connection, seen)
        except Exception as error:
            seen.faults.append(error)
        finally:
            connection.close()

    in_threads(run, range(CLIENTS))
    return seen


def test_simultaneous_creates_of_one_instance_have_one_winner(servers, database):
    together = threading.Barrier(CLIENTS, timeout=60)
    winners: list[list[int]] = [[] for _ in range(ROUNDS)]

    def work(number, connection, seen):
        for round in range(ROUNDS):
            together.wait()
            instance = f"Provider|service{round}|1.0.0"
            status, answer = connection.create(lock(instance, owner=f"Owner{number}"))
            seen.statuses[status] += 1
            if status == 201:
                winners[round].append(number)
            elif answer["errorMessage"] != f"Already locked: {instance}":
                seen.faults.append(answer)

    seen = race(servers, work)
    seen.check()
    assert [len(found) for found in winners] == [1] * ROUNDS
    assert seen.statuses == {201: ROUNDS, 400: ROUNDS * (CLIENTS - 1)}
    rows = database.execute("SELECT service_instance_id, owner FROM orchestration_lock ORDER BY id")
    expected = [(f"Provider|service{n}|1.0.0", f"Owner{won}") for n, (won,) in enumerate(winners)]
    assert sorted(rows) == sorted(expected)


def test_overlapping_bulk_creates_are_all_or_nothing(servers, database):
    rounds = 60
    together = threading.Barrier(CLIENTS, timeout=60)
    won: list[tuple[str, list[str]]] = []

    def work(number, connection, seen):
        chance = random.Random(number)
        for round in range(rounds):
            wanted = chance.sample([f"P{n}|round{round}|1.0.0" for n in range(12)], 4)
            owner = f"Owner{number}"
            together.wait()
            status, answer = connection.create(*[lock(it, owner=owner) for it in wanted])
            seen.statuses[status] += 1
            if status == 201:
                won.append((owner, wanted))
                if [entry["serviceInstanceId"] for entry in answer["entries"]] != wanted:
                    seen.faults.append(answer)
            else:
                message = answer["errorMessage"]
                held = message.removeprefix("Already locked: ").split(", ")
                if [it for it in wanted if it in held] != held:
                    seen.faults.append(answer)

    seen = race(servers, work)
    seen.check()
    assert seen.statuses[201] >= rounds  # in every round, at least the first to come
    assert seen.statuses[400] > 0
    rows = database.execute("SELECT owner, service_instance_id FROM orchestration_lock").fetchall()
    assert sorted(rows) == sorted((owner, it) for owner, wanted in won for it in wanted)


def test_creates_and_removes_of_one_instance_never_overlap(servers, database, database_url):
    instance = "Provider|service|1.0.0"
    holder = threading.Lock()  # held by whoever the servers say holds the instance

    def work(number, connection, seen):
        owner = f"Owner{number}"
        for _ in range(60):
            status, _ = connection.create(lock(instance, owner=owner))
            seen.statuses[status] += 1
            if status == 201:
                if not holder.acquire(blocking=False):
                    seen.faults.append("two holders")
                    return
                rows = database_of(number).execute("SELECT owner FROM orchestration_lock")
                if rows.fetchall() != [(owner,)]:
                    seen.faults.append("another holder in the database")
                holder.release()
                status, _ = connection.remove(owner, instance)
                seen.statuses[status] += 1
            else:
                # Only the owner removes: this must leave the other's lock alone.
                status, _ = connection.remove(f"Other{number}", instance)
                seen.statuses[status] += 1

    connections = [connect(database_url) for _ in range(CLIENTS)]
    database_of = connections.__getitem__
    try:
        seen = race(servers, work)
    finally:
        for connection in connections:
            connection.close()
    seen.check()
    assert seen.statuses[201] >= CLIENTS
    assert database.execute("SELECT count(*) FROM orchestration_lock").fetchone() == (0,)


def test_an_instance_has_no_new_holder_before_its_lock_expires(servers, database):
    instance = "Provider|service|1.0.0"
    wanted = 3
    won: list[tuple[int, datetime, datetime]] = []  # id, expiry, when the answer was here

    def work(number, connection, seen):
        while len(won) < wanted:
            now = datetime.now(UTC)
            expires_at = now.replace(microsecond=0) + timedelta(seconds=1 + (now.microsecond > 5e5))
            text = expires_at.strftime("%Y-%m-%dT%H:%M:%SZ")
            status, answer = connection.create(lock(instance, f"Owner{number}", text))
            seen.statuses[status] += 1
            if status == 201:
                lock_id = answer["entries"][0]["id"]
                won.append((lock_id, expires_at, datetime.now(UTC)))
            elif not answer["errorMessage"].startswith(("Already locked", "Expires at is in the")):
                seen.faults.append(answer)

    seen = race(servers, work)
    seen.check()
    won.sort()
    assert len({lock_id for lock_id, _, _ in won}) == len(won) >= wanted
    for (_, expired, _), (_, _, answered) in pairwise(won):
        assert answered >= expired


def test_an_expired_lock_has_one_successor(servers, database):
    rounds = 60
    database.execute(
        "INSERT INTO orchestration_lock"
        " (orchestration_job_id, service_instance_id, owner, expires_at, temporary) VALUES "
        + ",".join(
            f"('', 'Provider|service{round}|1.0.0', 'Old', '2020-01-01T00:00:00Z', FALSE)"
            for round in range(rounds)
        )
    )
    together = threading.Barrier(CLIENTS, timeout=60)

    def work(number, connection, seen):
        for round in range(rounds):
            together.wait()
            instance = f"Provider|service{round}|1.0.0"
            seen.statuses[connection.create(lock(instance, f"Owner{number}"))[0]] += 1

    seen = race(servers, work)
    seen.check()
    assert seen.statuses == {201: rounds, 400: rounds * (CLIENTS - 1)}
    query = "SELECT count(*), min(expires_at) FROM orchestration_lock"
    assert database.execute(query).fetchone() == (rounds, FUTURE)


def test_at_most_one_active_lock_per_instance_at_any_moment(servers, database_url):
    done = threading.Event()
    doubled: list[object] = []

    def watch():
        with closing(connect(database_url)) as watcher:
            while not done.is_set():
                now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
                doubled.extend(
                    watcher.execute(
                        "SELECT service_instance_id, count(*) FROM orchestration_lock"
                        f" WHERE expires_at > '{now}' GROUP BY 1 HAVING count(*) > 1"
                    )
                )
                time.sleep(0.001)

    def work(number, connection, seen):
        chance = random.Random(number)
        for _ in range(80):
            instances = [f"P{n}|service|1.0.0" for n in chance.sample(range(5), 2)]
            owner = f"Owner{chance.randrange(4)}"
            if chance.random() < 0.5:
                soon = datetime.now(UTC) + timedelta(seconds=chance.choice([1, 3600]))
                text = soon.strftime("%Y-%m-%dT%H:%M:%SZ")
                status, _ = connection.create(*[lock(it, owner, text) for it in instances])
            else:
                status, _ = connection.remove(owner, *instances)
            seen.statuses[status] += 1

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        seen = race(servers, work)
    finally:
        done.set()
        watcher.join()
    seen.check()
    assert doubled == []
    assert seen.statuses[201] > 0
