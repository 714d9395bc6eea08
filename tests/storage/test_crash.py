"""kill -9 in the middle of creates: what was acknowledged is there, and nothing by halves."""

import http.client
import random
import signal
import threading
from collections import defaultdict
from contextlib import closing

from support import FUTURE, lock
from wire import connect

KILLS = 6
CLIENTS = 4
BULK = 250  # several INSERT statements


def bombard(process, kill, enough):
    """Create locks until the server is killed; return what it acknowledged and all it was asked."""
    acknowledged: list[str] = []
    asked: list[list[str]] = []
    ready, killed = threading.Event(), threading.Event()
    unexpected: list[object] = []

    def work(client):
        number = 0
        while True:
            number += 1
            size = BULK if client % 2 else 1
            owner = f"Kill{kill}client{client}request{number}"
            instances = [f"{owner}|service{n}|1.0.0" for n in range(size)]
            asked.append(instances)
            try:
                answer = process.create(*[lock(instance, owner) for instance in instances])
            except (OSError, http.client.HTTPException) as error:
                if not killed.is_set():
                    unexpected.append(error)
                return
            if answer.status != 201:
                unexpected.append(answer)
                return
            acknowledged.extend(instances)
            if len(asked) > enough:
                ready.set()

    threads = [threading.Thread(target=work, args=(client,)) for client in range(CLIENTS)]
    for thread in threads:
        thread.start()
    assert ready.wait(60), unexpected
    killed.set()
    process.process.kill()
    for thread in threads:
        thread.join()
    assert process.process.wait(30) == -signal.SIGKILL
    assert unexpected == []
    return acknowledged, asked


def test_killed_server_has_kept_every_acknowledged_lock_and_no_half_bulk(serve, database_url):
    chance = random.Random(5)
    acknowledged: set[str] = set()
    cut_off = 0
    for kill in range(KILLS):
        process = serve("--threads", "4")
        done, asked = bombard(process, kill, enough=chance.randrange(5, 40))
        acknowledged.update(done)
        cut_off += sum(not set(request) <= acknowledged for request in asked)
        stored = defaultdict(set)
        with closing(connect(database_url)) as database:
            if database_url.startswith("sqlite"):
                assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            for owner, instance in database.execute(
                "SELECT owner, service_instance_id FROM orchestration_lock"
            ):
                stored[owner].add(instance)
        assert acknowledged <= set().union(*stored.values())
        sizes = [len(stored[request[0].split("|")[0]]) for request in asked]
        assert [
            (size, len(request))
            for size, request in zip(sizes, asked, strict=True)
            if size not in (0, len(request))
        ] == []
    assert cut_off > 0  # or it was not in the middle of creates
    survivor = serve("--max-page-size", "1000000")
    entries = survivor.locks().entries
    assert acknowledged <= {entry["serviceInstanceId"] for entry in entries}
    assert {entry["expiresAt"] for entry in entries} == {FUTURE}
    assert survivor.create(lock("After|service|1.0.0")).status == 201
    assert survivor.stop() == 0
