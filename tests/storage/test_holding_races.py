"""Renewals and idempotency keys under contention: several real servers on one database."""

import http.client
import json
import random
import threading
from contextlib import closing
from urllib.parse import urlsplit

import pytest
from support import FUTURE, MANAGEMENT, OPERATOR, Connection, in_threads, lock
from wire import connect

CLIENTS = 8
ROUNDS = 60


@pytest.fixture
def servers(serve, database_url):
    """Processes on one database, which they make as they start."""
    options = ("--database-url", database_url, "--threads", "8")
    options += ("--database-timeout-seconds", "60", "--cleaner-interval-seconds", "0.05")
    return [serve(*options) for _ in range(2 if database_url.startswith("sqlite") else 3)]


def race(servers, work):
    """Run `work(number, connection)` in every client; return what went wrong."""
    faults: list[object] = []

    def run(number):
        connection = Connection(servers[number % len(servers)].url)
        try:
            work(number, connection)
        except Exception as error:
            faults.append(error)
        finally:
            connection.close()

    in_threads(run, range(CLIENTS))
    return faults


def keyed(url, key, locks):
    """Create with an idempotency key."""
    with closing(http.client.HTTPConnection(urlsplit(url).netloc, timeout=60)) as connection:
        headers = {
            "Authorization": OPERATOR,
            "Content-Type": "application/json",
            "Idempotency-Key": key,
        }
        body = json.dumps({"locks": locks})
        connection.request("POST", f"{MANAGEMENT}/lock/create", body, headers)
        response = connection.getresponse()
        return response.status, json.loads(response.read())


def test_one_request_sent_by_all_at_once_is_done_once(servers, database_url):
    together = threading.Barrier(CLIENTS, timeout=60)
    answers: list[list[object]] = [[] for _ in range(ROUNDS)]

    def work(number, connection):
        for round in range(ROUNDS):
            wanted = [lock(f"P{n}|round{round}|1.0.0") for n in range(3)]
            together.wait()
            answers[round].append(keyed(servers[number % len(servers)].url, f"key-{round}", wanted))

    assert race(servers, work) == []
    for found in answers:
        assert len(found) == CLIENTS
        assert found == [found[0]] * CLIENTS
        assert found[0][0] == 201
    with closing(connect(database_url)) as database:
        ((count,),) = database.execute("SELECT count(*) FROM orchestration_lock").fetchall()
    assert count == 3 * ROUNDS


def test_of_different_requests_with_one_key_one_is_done(servers):
    together = threading.Barrier(CLIENTS, timeout=60)
    answers: list[list[tuple[int, dict[str, object]]]] = [[] for _ in range(ROUNDS)]

    def work(number, connection):
        for round in range(ROUNDS):
            together.wait()
            wanted = [lock(f"P{number}|round{round}|1.0.0")]
            answers[round].append(keyed(servers[number % len(servers)].url, f"key-{round}", wanted))

    assert race(servers, work) == []
    for found in answers:
        assert sorted(status for status, _ in found) == [201] + [400] * (CLIENTS - 1)
        used = {answer["errorMessage"] for status, answer in found if status == 400}
        assert used == {"The idempotency key was used for another request"}


def test_renewals_beside_other_writers_are_all_or_nothing_and_wait_for_nobody_for_ever(servers):
    names = [f"P{n}|s|1.0.0" for n in range(8)]
    statuses: list[int] = []
    faults: list[object] = []

    def work(number, connection):
        chance = random.Random(number)
        owner = f"Owner{number % 2}"
        for round in range(ROUNDS):
            wanted = chance.sample(names, 4)
            end = f"2099-01-01T00:{round:02}:{number:02}Z"
            locks = [lock(it, owner, end) for it in wanted]
            if number < 4:
                status, answer = connection.send("POST", "/lock/renew", {"locks": locks})
                if status == 200:
                    if [
                        (it["serviceInstanceId"], it["owner"], it["expiresAt"])
                        for it in answer["entries"]
                    ] != [(it, owner, end) for it in wanted]:
                        faults.append(answer)
                elif not answer["errorMessage"].startswith(f"Not locked by {owner}: "):
                    faults.append(answer)
            elif number < 6:
                status, _ = connection.create(*[lock(it, owner, FUTURE) for it in wanted])
            elif number == 6:
                status, _ = keyed(servers[0].url, f"key-{round % 3}", locks)
            else:
                status, _ = connection.remove(chance.choice(["Owner0", "Owner1"]), *wanted[:2])
            statuses.append(status)

    assert race(servers, work) == []
    assert faults == []
    assert set(statuses) <= {200, 201, 400}
    assert {200, 201} <= set(statuses)


def test_of_a_renewal_and_a_removal_at_once_each_is_whole(servers):
    """A renewal that succeeded found the very lock; one after the removal finds none."""
    together = threading.Barrier(CLIENTS, timeout=60)
    ids: dict[int, int] = {}
    found: list[tuple[int, int, int]] = []

    def work(number, connection):
        for round in range(ROUNDS):
            instance = f"P|round{round}|1.0.0"
            if number == 0:
                status, answer = connection.create(lock(instance, "Alice"))
                ids[round] = answer["entries"][0]["id"]
            together.wait()
            if number == 0:
                connection.remove("Alice", instance)
                connection.create(lock(instance, "Alice"))
            else:
                end = {**lock(instance, "Alice"), "id": ids[round]}
                status, answer = connection.send("POST", "/lock/renew", {"locks": [end]})
                number_now = answer["entries"][0]["id"] if status == 200 else 0
                found.append((status, number_now, ids[round]))
            together.wait()

    assert race(servers, work) == []
    assert len(found) == ROUNDS * (CLIENTS - 1)
    for status, number_now, first in found:
        assert (status, number_now) in ((200, first), (400, 0))
