"""A mirror becomes equal to what it copies: an orchmgmt, or what answers as the Java system."""

import json
import os
import pwd
import random
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from conftest import COMMAND
from needs import terminal
from standin import Cloud
from support import MANAGEMENT, Process, Service, after, lock, served, until
from wire import JOB, LOCK, execute, job_entry, job_id, lock_entry, put

from orchmgmt.client import Client
from orchmgmt.commands import changes
from orchmgmt.commands.transfer import restore
from orchmgmt.databases.queries import Page
from orchmgmt.errors import InvalidParameter, NotFound
from orchmgmt.models import NewLock
from orchmgmt.store import Store

Run = Callable[..., "subprocess.CompletedProcess[str]"]
Content = tuple[list[Any], list[Any]]

EVERYTHING = Page(0, 1_000_000)
RUNNING = {"status": "IN_PROGRESS", "startedAt": "2025-11-08T12:00:01Z"}
ENDED = {**RUNNING, "status": "DONE", "finishedAt": "2025-11-08T12:00:02Z"}


@pytest.fixture(autouse=True)
def _without_audit_log(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a mirror says beside the audit log, of which one test asks."""
    monkeypatch.setenv("ORCHMGMT_LOG_LEVEL", "WARNING")


def content(store: Store) -> Content:
    """The active locks and the jobs of a store, as rows."""
    locks, _ = store.lock_table.find({}, EVERYTHING)
    jobs, _ = store.job_table.find({}, EVERYTHING)
    return [(*row[:-1], bool(row[-1])) for row in locks], jobs


def of(url: str) -> Content:
    """The same, of a database."""
    with Store({"DATABASE_URL": url}) as store:
        return content(store)


@contextmanager
def source(**settings: Any) -> Iterator[Service]:
    with served(**{"DATABASE_URL": "sqlite:///:memory:", **settings}) as service:
        yield service


@pytest.fixture
def there() -> Iterator[Service]:
    """What is copied."""
    with source(MAX_PAGE_SIZE=3) as service:
        put(
            service,
            LOCK,
            *(lock_entry(it, owner=f"Owner{it}") for it in (2, 3, 5, 8, 13)),
            lock_entry(21, orchestrationJobId=job_id(1), temporary=True),
            lock_entry(34, expiresAt="2020-01-01T00:00:00Z"),
        )
        put(
            service,
            JOB,
            job_entry(1, **RUNNING),
            job_entry(2, message="\u202e\n\x1b[2J"),
            *(job_entry(it, **ENDED) for it in range(3, 10)),
            job_entry(10, **{**ENDED, "status": "ERROR", "type": "PUSH"}),
        )
        yield service


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The database of the mirror, which commands take if they are told no other."""
    url = f"sqlite:///{tmp_path}/mirror.db"
    monkeypatch.setenv("ORCHMGMT_DATABASE_URL", url)
    return url


def copied(run: Run, service: Service, expected: str) -> None:
    ended = run("mirror", service.url)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, f"{expected}\n", "")


def test_a_mirror_is_equal_and_a_second_run_changes_only_what_has_changed(
    run: Run, there: Service, database_url: str
) -> None:
    env = {"ORCHMGMT_DATABASE_URL": database_url}

    def mirrored() -> str:
        ended = run("mirror", there.url, env=env)
        assert (ended.returncode, ended.stderr) == (0, "")
        assert of(database_url) == content(there.store)
        return ended.stdout

    assert mirrored() == "Locks: 6 copied, 0 removed. Jobs: 10 copied.\n"
    locks, jobs = of(database_url)
    assert [row[0] for row in locks] == [21, 13, 8, 5, 3, 2]
    assert len(jobs) == 10
    assert mirrored() == "Locks: 0 copied, 0 removed. Jobs: 0 copied.\n"
    there.remove("Owner5", "instanceIds=Provider5%7CkelvinInfo%7C1.0.0")
    there.remove("Owner8", "instanceIds=Provider8%7CkelvinInfo%7C1.0.0")
    there.create(lock("Provider8|kelvinInfo|1.0.0", "Owner9"))  # the same instance, another lock
    there.store.history.start(job_id(2))
    there.store.history.start(job_id(3), "again")
    assert mirrored() == "Locks: 1 copied, 2 removed. Jobs: 2 copied.\n"


def test_a_message_that_is_too_long_is_cut_and_counted(
    run: Run, there: Service, database_url: str
) -> None:
    put(there, JOB, job_entry(20, message="x" * 16384), job_entry(21, message="y" * 16385))
    for copied in (12, 0):
        ended = run("mirror", there.url, env={"ORCHMGMT_DATABASE_URL": database_url})
        assert (ended.returncode, ended.stderr) == (0, "")
        assert ended.stdout.endswith(
            f" Jobs: {copied} copied.\nMessages cut to 16384 characters: 1.\n"
        )
    messages = {row[0]: row[7] for row in of(database_url)[1]}
    assert messages[job_id(20)] == "x" * 16384
    assert messages[job_id(21)] == "y" * 16384


def test_ids_given_out_after_moving_over_are_larger_than_all_before(
    run: Run, database_url: str
) -> None:
    with source() as service:
        service.create(*[lock(f"Provider{number}|it|1.0.0") for number in range(9)])
        service.remove("Owner", "instanceIds=Provider8%7Cit%7C1.0.0")
        last = max(it["id"] for it in service.locks().entries) + 1
        for _ in range(2):
            assert run("mirror", service.url).returncode == 0
    with Store({"DATABASE_URL": database_url}) as store:
        ((number, *_),) = store.lock_table.create([_row("Provider8|it|1.0.0")])
        ((after, *_),) = store.lock_table.create([_row("Provider9|it|1.0.0")])
    assert last < number == after - 1


@pytest.mark.sqlite
def test_locks_that_are_no_copies_are_left_alone(run: Run, there: Service, here: str) -> None:
    with Store({"DATABASE_URL": here}) as own:
        own.database.write(restore, own, {99: _row("Own|it|1.0.0")})
        copied(run, there, "Locks: 6 copied, 0 removed. Jobs: 10 copied.")
        there.remove("Owner2", "instanceIds=Provider2%7CkelvinInfo%7C1.0.0")
        copied(run, there, "Locks: 0 copied, 1 removed. Jobs: 0 copied.")
        assert [row[0] for row in content(own)[0]] == [99, 21, 13, 8, 5, 3]


def _row(instance: str) -> NewLock:
    return NewLock("", instance, "Somebody", "2099-01-01T00:00:00Z", False)


@pytest.mark.sqlite
@pytest.mark.parametrize(
    ("number", "instance", "message"),
    [
        (99, "Provider5|kelvinInfo|1.0.0", "Already locked: Provider5|kelvinInfo|1.0.0"),
        (5, "Own|it|1.0.0", "lock 5 is of another service instance: Own|it|1.0.0"),
    ],
)
def test_a_lock_of_its_own_that_is_in_the_way_is_named_and_no_lock_is_copied(
    run: Run, there: Service, here: str, number: int, instance: str, message: str
) -> None:
    with Store({"DATABASE_URL": here}) as own:
        own.database.write(restore, own, {number: _row(instance)})
    ended = run("mirror", there.url)
    assert (ended.returncode, ended.stdout) == (1, "")
    hint = "it is not a copy; remove it, or mirror into another database"
    assert ended.stderr == f"Error: {message}: {hint}\n"
    assert [row[0] for row in of(here)[0]] == [number]


@pytest.mark.sqlite
def test_a_job_that_is_gone_there_stays(run: Run, there: Service, here: str) -> None:
    before = content(there.store)[1]
    copied(run, there, "Locks: 6 copied, 0 removed. Jobs: 10 copied.")
    there.store.clean()
    assert len(content(there.store)[1]) == 2
    copied(run, there, "Locks: 0 copied, 0 removed. Jobs: 0 copied.")
    assert of(here)[1] == before


@contextmanager
def following(url: str, *options: str, **settings: Any) -> Iterator["subprocess.Popen[str]"]:
    process = subprocess.Popen(
        [COMMAND, "mirror", url, "--follow", "--interval", "0.1", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **settings,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def test_a_mirror_that_follows_a_service_under_load_ends_equal_to_it(
    database_url: str,
) -> None:
    with source(MAX_PAGE_SIZE=20) as service:
        stopped = threading.Event()

        def work(seed: int) -> None:
            chance = random.Random(seed)
            history, locks = service.store.history, service.store.locks
            jobs: list[str] = []
            while not stopped.wait(0.002):
                instance = f"Provider{chance.randrange(60)}|kelvinInfo|1.0.0"
                with suppress(
                    InvalidParameter, NotFound
                ):  # a lock or a job that is not as it was hoped
                    if chance.random() < 0.4:
                        jobs.append(history.create("PULL", "Alice", "Bob", "kelvinInfo"))
                        history.start(jobs[-1])
                        locks.reserve(jobs[-1], instance, "Alice", after(chance.randrange(1, 60)))
                    elif jobs and chance.random() < 0.5:
                        job = chance.choice(jobs)
                        chance.choice([history.start, history.finish, history.fail])(job)
                        locks.release(job)
                    elif chance.random() < 0.5:
                        service.create(lock(instance, f"Owner{seed}"))
                    else:
                        query = "instanceIds=" + instance.replace("|", "%7C")
                        service.remove(f"Owner{seed}", query)

        with following(service.url, "--database-url", database_url) as mirror:
            workers = [threading.Thread(target=work, args=(seed,)) for seed in (1, 2)]
            for worker in workers:
                worker.start()
            assert mirror.stdout
            assert mirror.stdout.readline().startswith("Locks: ")  # it runs beside the load
            time.sleep(1)
            stopped.set()
            for worker in workers:
                worker.join()
            assert len(content(service.store)[1]) > 20
            with Store({"DATABASE_URL": database_url}) as mirrored:
                until(lambda: content(mirrored) == content(service.store))
            mirror.send_signal(signal.SIGTERM)
            output, log = mirror.communicate(timeout=30)
        assert (mirror.returncode, log) == (0, "")
        assert output.endswith("Stopped.\n")


@pytest.mark.sqlite
def test_a_mirror_that_is_killed_in_the_middle_is_simply_run_again(run: Run, here: str) -> None:
    with source(MAX_PAGE_SIZE=100) as service:
        put(service, LOCK, *(lock_entry(it) for it in range(1, 150)))
        put(service, JOB, *(job_entry(it, **ENDED) for it in range(5000)))
        with Store({"DATABASE_URL": here}) as mirrored:
            mirror = subprocess.Popen([COMMAND, "mirror", service.url])
            until(lambda: len(content(mirrored)[1]) > 0)
            mirror.send_signal(signal.SIGKILL)
            assert mirror.wait() == -signal.SIGKILL
            assert len(content(mirrored)[0]) == 149
            some = len(content(mirrored)[1])
            assert 0 < some < 5000
            copied(run, service, f"Locks: 0 copied, 0 removed. Jobs: {5000 - some} copied.")
            assert content(mirrored) == content(service.store)


@pytest.mark.sqlite
def test_a_mirror_goes_on_while_the_other_one_is_away(
    serve: Callable[..., Process], here: str, tmp_path: Path
) -> None:
    database = ("--database-url", f"sqlite:///{tmp_path}/source.db")
    first = serve(*database)
    first.create(lock("First|it|1.0.0"))
    with following(first.url) as mirror:
        assert mirror.stdout
        assert mirror.stderr
        assert mirror.stdout.readline() == "Locks: 1 copied, 0 removed. Jobs: 0 copied.\n"
        first.stop()
        assert mirror.stderr.readline().endswith("refused; retrying\n")
        serve(*database, "--port", first.url.rpartition(":")[2]).create(lock("Second|it|1.0.0"))
        until(lambda: len(of(here)[0]) == 2)
        mirror.send_signal(signal.SIGINT)
        assert mirror.communicate(timeout=30)[0].endswith("Stopped.\n")
        assert mirror.returncode == 0


def test_what_is_recorded_late_is_seen_within_a_round_and_the_rest_at_the_end(
    database_url: str,
) -> None:
    with source(MAX_PAGE_SIZE=3) as service:
        put(service, JOB, *(job_entry(it, **ENDED) for it in range(4)))
        service.store.history.create("PULL", "Alice", "Bob", "kelvinInfo")
        with following(service.url, "--database-url", database_url) as mirror:
            assert mirror.stdout
            assert mirror.stdout.readline() == "Locks: 0 copied, 0 removed. Jobs: 5 copied.\n"
            put(service, JOB, job_entry(5, **ENDED))  # hours ago
            assert mirror.stdout.readline() == "Locks: 0 copied, 0 removed. Jobs: 1 copied.\n"
            # No time and no number tells of these.
            execute(service.store, f"UPDATE {JOB} SET message = 'new' WHERE id = ?", [job_id(1)])
            mirror.send_signal(signal.SIGTERM)
            output, log = mirror.communicate(timeout=30)
        assert (mirror.returncode, log) == (0, "")
        last = "Locks: 0 copied, 0 removed. Jobs: 1 copied.\n"
        assert output == f"Comparing everything once more.\n{last}Stopped.\n"
        assert of(database_url) == content(service.store)


@pytest.mark.sqlite
def test_a_mirror_that_cannot_compare_everything_at_its_end_says_so(
    serve: Callable[..., Process], here: str, tmp_path: Path
) -> None:
    service = serve("--database-url", f"sqlite:///{tmp_path}/source.db")
    with following(service.url) as mirror:
        assert mirror.stdout
        mirror.stdout.readline()
        service.stop()
        mirror.send_signal(signal.SIGHUP)
        output, log = mirror.communicate(timeout=30)
    assert mirror.returncode == 5
    assert output == "Comparing everything once more.\n"
    assert "everything was not compared once more, so something may be missing: run it again" in log
    assert log.splitlines()[-1].startswith(f"Error: no connection to {service.url}: ")


@pytest.mark.sqlite
def test_a_mirror_whose_terminal_is_closed_compares_everything_all_the_same(here: str) -> None:
    with source() as service:
        put(service, JOB, job_entry(1, **ENDED))
        service.store.history.create("PULL", "Alice", "Bob", "kelvinInfo")
        with following(service.url) as mirror:
            assert mirror.stdout
            assert mirror.stderr
            mirror.stdout.readline()
            mirror.stdout.close()
            execute(service.store, f"UPDATE {JOB} SET message = 'new' WHERE id = ?", [job_id(1)])
            mirror.send_signal(signal.SIGHUP)
            mirror.wait(30)
            assert mirror.stderr.read() == ""
            mirror.stdout = None
        assert of(here) == content(service.store)


@pytest.mark.sqlite
def test_a_second_signal_ends_a_mirror_at_once(java: "Java", here: str) -> None:
    with following(java.url) as mirror:
        assert mirror.stdout
        mirror.stdout.readline()
        java.silent.set()
        mirror.send_signal(signal.SIGINT)
        assert mirror.stdout.readline() == "Comparing everything once more.\n"
        mirror.send_signal(signal.SIGINT)
        output, log = mirror.communicate(timeout=30)
    assert (mirror.returncode, output) == (1, "")
    assert "everything was not compared once more" in log
    assert "Traceback" not in log


@pytest.mark.sqlite
def test_a_mirror_reads_all_jobs_again_only_when_it_must(java: "Java", here: str) -> None:
    with following(java.url) as mirror:
        assert mirror.stdout
        mirror.stdout.readline()
        until(lambda: len(java.asked) > 20)
        assert java.asked.count(("id", 0)) == 1
        del java.asked[:]
        java.jobs.append(_filled(job_entry(2000, createdAt="2025-11-08T11:00:00Z")))
        assert mirror.stdout.readline() == "Locks: 0 copied, 0 removed. Jobs: 1 copied.\n"
        until(lambda: len(java.asked) > 40)
        assert java.asked.count(("id", 0)) == 1
    assert len(of(here)[1]) == 1501


@pytest.mark.sqlite
def test_what_only_a_look_at_everything_finds_is_found_in_time(
    here: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with source() as service, Client(service.url, name="Sysop") as client:
        put(service, JOB, job_entry(1, **ENDED))
        service.store.history.create("PULL", "Alice", "Bob", "kelvinInfo")
        looks = changes.Changes(client)
        assert len(list(looks.look())) == 2
        looks.settle(2)
        execute(service.store, f"UPDATE {JOB} SET message = 'new' WHERE id = ?", [job_id(1)])
        assert len(list(looks.look())) == 1  # the one of the last minute
        looks.settle(0)
        monkeypatch.setattr(changes, "ALL_AGAIN", 0.0)
        assert len(list(looks.look(everything=True))) == 2
        execute(service.store, f"UPDATE {JOB} SET message = 'newer' WHERE id = ?", [job_id(1)])
        assert "newer" in [job.message for job in looks.look()]


class Java(ThreadingHTTPServer):
    """What answers as the Java implementation: empty keys left out, and the oldest first.

    Attributes:
        locks: entries, also those that have expired: it shows them until its cleaner has run.
        jobs: likewise.
        asked: the sort field and the page of each query of the history.
        silent: when it is set, no query is answered.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Java)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.locks: list[dict[str, Any]] = []
        self.jobs: list[dict[str, Any]] = []
        self.asked: list[tuple[str, int]] = []
        self.silent = threading.Event()


class _Java(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Java

    def log_message(self, *args: Any) -> None:
        pass

    def do_POST(self) -> None:
        query = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        kinds = {"/lock/query": self.server.locks, "/history/query": self.server.jobs}
        entries = kinds[self.path.removeprefix(MANAGEMENT)]
        assert self.headers["Authorization"] == "Bearer SYSTEM//Sysop"
        assert query.keys() == {"pagination"}
        page = query["pagination"]
        key = page.get("sortField", "id")
        found = sorted(entries, key=lambda it: (it.get(key, ""), it["id"]))
        if page.get("direction") == "DESC":
            found.reverse()
        size = page["size"] if page["size"] > 0 else 1000
        if entries is self.server.jobs:
            self.server.asked.append((page.get("sortField", ""), page["page"]))
        if self.server.silent.is_set():
            time.sleep(60)
        part = found[page["page"] * size :][:size]
        answer = json.dumps({"entries": part, "count": len(found)}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)


@pytest.fixture
def java() -> Iterator[Java]:
    with Java() as java:
        thread = threading.Thread(target=java.serve_forever, args=(0.02,))
        thread.start()
        java.locks = [
            _filled(lock_entry(it, expiresAt=f"2{it}00-01-01T00:00:00Z")) for it in range(5)
        ]
        java.locks[0] = _filled(lock_entry(7, expiresAt="2020-01-01T00:00:00Z"))
        java.jobs = [_filled(job_entry(it)) for it in range(1, 1500)]
        java.jobs.append(_filled(job_entry(0, **ENDED, message="done")))
        yield java
        java.shutdown()
        thread.join()


def _filled(entry: dict[str, Any]) -> dict[str, Any]:
    return {key: it for key, it in entry.items() if it != ""}


@pytest.mark.sqlite
def test_what_answers_as_the_java_system_is_copied_too(run: Run, java: Java, here: str) -> None:
    ended = run("mirror", java.url)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout == "Locks: 4 copied, 0 removed. Jobs: 1500 copied.\n"
    locks, jobs = of(here)
    assert [(row[0], row[4]) for row in locks] == [
        (it, f"2{it}00-01-01T00:00:00Z") for it in (4, 3, 2, 1)
    ]
    assert len(jobs) == 1500
    assert (job_id(0), "DONE", "PULL", "Consumer", "Consumer", "kelvinInfo", "", "done") in [
        row[:8] for row in jobs
    ]


@pytest.mark.sqlite
def test_what_cannot_be_kept_is_named_and_the_rest_is_copied(
    run: Run, java: Java, here: str
) -> None:
    java.locks = [lock_entry(1, owner="no name\x1b[2J"), lock_entry(2)]
    java.jobs = [job_entry(1, status="DONE"), job_entry(2)]
    ended = run("mirror", java.url)
    assert (ended.returncode, ended.stdout) == (
        1,
        "Locks: 1 copied, 0 removed. Jobs: 1 copied.\n",
    )
    first, second, last = ended.stderr.splitlines()
    assert "1 is skipped: The specified system name does not match" in first
    assert f"{job_id(1)} is skipped: A finished job must have finishedAt" in second
    assert last == "Error: 2 entries cannot be stored here; the log says which"
    assert "\x1b" not in ended.stderr
    assert [[row[0] for row in rows] for rows in of(here)] == [[2], [job_id(2)]]


@pytest.mark.sqlite
def test_a_second_lock_on_an_instance_is_named_once_and_counted(
    run: Run, java: Java, here: str
) -> None:
    heat = {"serviceInstanceId": "Boiler|heat|1.0.0"}
    java.locks = [
        lock_entry(5, owner="First", **heat),
        lock_entry(9, owner="Second", **heat),
        lock_entry(12, owner="Gone", **heat, expiresAt="2020-01-01T00:00:00Z"),
    ]
    java.jobs = []
    named = (
        "Boiler|heat|1.0.0 is locked twice there, by First with lock 5 and by Second with lock 9; "
        "only lock 9 is copied, because it is the later one"
    )
    for options, code in (([], 0), (["--strict"], 6)):
        ended = run("mirror", java.url, *options)
        assert ended.returncode == code
        copied = 0 if options else 1
        assert ended.stdout == (
            f"Locks: {copied} copied, 0 removed. Jobs: 0 copied.\n"
            "Locks left out because a later one is on their instance: 1.\n"
        )
        assert ended.stderr.count(named) == 1
    assert ended.stderr.splitlines()[-1] == "Error: not everything was copied exactly"
    with following(java.url) as mirror:
        assert mirror.stderr
        assert named in mirror.stderr.readline()
        java.locks.append(lock_entry(10, owner="Third", **heat))
        line = mirror.stderr.readline()
        assert "by Second with lock 9 and by Third with lock 10; only lock 10" in line
        until(lambda: [row[0] for row in of(here)[0]] == [10])
        mirror.send_signal(signal.SIGTERM)
        output, log = mirror.communicate(timeout=30)
    assert output.endswith("Locks left out because a later one is on their instance: 2.\n")
    # What is kept in the stead of the first has changed, which is no reason to name it again.
    assert (mirror.returncode, log) == (0, "")


@pytest.mark.sqlite
def test_a_mirror_logs_in_and_waits_longer_each_time_that_somebody_else_does(
    cloud: Cloud, here: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cloud.operators["Sysop"] = "hunter2"
    (tmp_path / "password").write_text("hunter2\n")
    monkeypatch.setenv("ORCHMGMT_SYSTEM_PASSWORD_FILE", str(tmp_path / "password"))
    monkeypatch.setenv("ORCHMGMT_IDENTITY_URL", cloud.settings["IDENTITY_URL"])
    policy = {"AUTHENTICATION_POLICY": "outsourced", "IDENTITY_CACHE_SECONDS": 0}
    settings = {**cloud.settings, **policy, "SYSTEM_PASSWORD_FILE": ""}
    with source(**settings) as service:
        service.store.history.create("PULL", "Alice", "Bob", "kelvinInfo")
        logins = cloud.count("/login")
        with following(service.url, "--system-name", "Sysop") as mirror:
            assert mirror.stdout
            assert mirror.stderr
            assert mirror.stdout.readline() == "Locks: 0 copied, 0 removed. Jobs: 1 copied.\n"
            cloud.end_sessions("Sysop")
            line = mirror.stderr.readline()
            assert "the login of Sysop has ended early" in line
            service.store.history.create("PULL", "Alice", "Bob", "kelvinInfo")
            assert mirror.stdout.readline() == "Locks: 0 copied, 0 removed. Jobs: 1 copied.\n"
            cloud.end_sessions("Sysop")  # again, too soon
            asked = len(cloud.requests)
            until(lambda: len(cloud.requests) > asked + 5)
            mirror.kill()
            assert mirror.communicate() == ("", "")
            assert "hunter2" not in line
        assert cloud.count("/login") - logins == 3  # the service's own, and two of the mirror


@pytest.mark.sqlite
def test_a_mirror_that_may_not_log_in_says_so(
    run: Run, cloud: Cloud, here: str, java: Java
) -> None:
    env = {"ORCHMGMT_IDENTITY_URL": cloud.settings["IDENTITY_URL"]}
    login = ("mirror", java.url, "--system-name", "Carol")
    ended = run(*login, env=env)
    assert ended.returncode == 2
    assert ended.stderr.endswith("needs ORCHMGMT_SYSTEM_PASSWORD\n")
    ended = run(*login, env={**env, "ORCHMGMT_SYSTEM_PASSWORD": "wrong"})
    assert ended.returncode == 5
    assert "it refuses this system's name or password" in ended.stderr
    ended = run(*login, "--name", "Carol", env=env)
    assert ended.returncode == 2
    assert "--system-name identifies you" in ended.stderr


@pytest.mark.sqlite
def test_what_is_no_orchestration_is_no_source(run: Run, java: Java, here: str) -> None:
    java.locks = [{"id": 1}]
    ended = run("mirror", java.url)
    message = f"Error: {java.url} does not answer as an orchestration service does\n"
    assert (ended.returncode, ended.stdout, ended.stderr) == (1, "", message)
    ended = run("mirror", "http://127.0.0.1:1")
    assert ended.returncode == 5
    assert ended.stderr.startswith("Error: no connection to http://127.0.0.1:1: ")
    assert of(here) == ([], [])


@pytest.mark.sqlite
def test_each_round_that_changes_something_is_audited(there: Service, here: str) -> None:
    env = {**os.environ, "ORCHMGMT_LOG_LEVEL": "INFO"}
    line = (
        f"user={pwd.getpwuid(os.getuid()).pw_name} operation=mirror result=done "
        f"source={there.url} locks={{}} removed={{}} jobs={{}}\n"
    )
    with following(there.url, env=env) as mirror:
        assert mirror.stdout
        assert mirror.stderr
        assert mirror.stderr.readline().endswith(" INFO orchmgmt.audit: " + line.format(6, 0, 10))
        there.remove("Owner5", "instanceIds=Provider5%7CkelvinInfo%7C1.0.0")
        assert mirror.stderr.readline().endswith(line.format(0, 1, 0))
        mirror.send_signal(signal.SIGTERM)
        _, log = mirror.communicate(timeout=30)
    assert log.endswith(line.format(0, 0, 0))
    assert len(log.splitlines()) == 1


@pytest.mark.sqlite
def test_who_watches_sees_how_far_it_is(there: Service, here: str) -> None:
    ours, theirs = terminal()
    mirror = subprocess.Popen(
        [COMMAND, "mirror", there.url], stderr=theirs, stdout=subprocess.PIPE, text=True
    )
    os.close(theirs)
    shown = b""
    with suppress(OSError):  # which is how a terminal ends
        while block := os.read(ours, 4096):
            shown += block
    os.close(ours)
    assert mirror.communicate(timeout=30)[0].startswith("Locks: 6 copied")
    assert b"Locks" in shown
    assert b"Jobs" in shown
    assert b"100%" in shown


def test_a_mirror_of_itself_makes_no_copies_of_its_own_locks(
    run: Run, service: Service, database_url: str
) -> None:
    service.create(lock("Boiler|heat|1.0.0"))
    own = content(service.store)
    assert run("mirror", service.url).stdout == "Locks: 0 copied, 0 removed. Jobs: 0 copied.\n"
    with source() as empty:
        assert run("mirror", empty.url).stdout == "Locks: 0 copied, 0 removed. Jobs: 0 copied.\n"
    assert content(service.store) == own
