"""The cleaner: what it deletes, what it leaves, and that it goes on."""

import logging
import sqlite3
import threading
import time
from contextlib import closing
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest
from support import FUTURE, connection_of, lock, until

from orchmgmt.app import create_app, store_of
from orchmgmt.databases.queries import DELETE_BATCH
from orchmgmt.serving.cleaner import Cleaner
from orchmgmt.store import Store

pytestmark = pytest.mark.sqlite

PAST = "2020-01-01T00:00:00Z"


def ago(**age):
    moment = datetime.now(UTC) - timedelta(**age)
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "orchmgmt.db"
    Store({"DATABASE_URL": f"sqlite:///{path}"}).close()
    return path


@pytest.fixture
def open_store(path):
    """Open the store with further settings."""
    stores = []

    def open_store(**settings):
        stores.append(Store({"DATABASE_URL": f"sqlite:///{path}", **settings}))
        return stores[-1]

    yield open_store
    for store in stores:
        store.close()


COLUMNS = "(orchestration_job_id, service_instance_id, owner, expires_at, temporary)"


def fill(path, locks=(), jobs=()):
    """Put in locks, each as (instance, expiry), and jobs, each as (id, status, end)."""
    with closing(sqlite3.connect(path)) as database:
        database.executemany(
            f"INSERT INTO orchestration_lock {COLUMNS} VALUES ('', ?, 'Owner', ?, 0)", locks
        )
        database.executemany(
            "INSERT INTO orchestration_job VALUES"
            f" (?, ?, 'PULL', 'A', 'B', 'c', '', '', '{PAST}', '', ?)",
            jobs,
        )
        database.commit()


def count_of(path, table):
    with closing(sqlite3.connect(path)) as database:
        return database.execute(f"SELECT count(*) FROM {table}").fetchone()[0]


def rows(path, table):
    with closing(sqlite3.connect(path)) as database:
        return database.execute(f"SELECT * FROM {table}").fetchall()


def kept(path):
    """The instances and the jobs that are there."""
    return (
        [row[2] for row in rows(path, "orchestration_lock")],
        [row[0] for row in rows(path, "orchestration_job")],
    )


LOCKS = [
    ("Long|expired|1.0.0", PAST),
    ("Just|expired|1.0.0", ago(seconds=1)),
    ("Soon|expiring|1.0.0", ago(hours=-1)),
    ("Lasting|lock|1.0.0", FUTURE),
]
JOBS = [
    ("old-done", "DONE", ago(days=15, hours=1)),
    ("old-error", "ERROR", PAST),
    ("young-done", "DONE", ago(days=15, hours=-1)),
    ("young-error", "ERROR", ago(seconds=0)),
    ("old-pending", "PENDING", ""),
    ("old-in-progress", "IN_PROGRESS", ""),
]
KEPT = (
    ["Soon|expiring|1.0.0", "Lasting|lock|1.0.0"],
    ["young-done", "young-error", "old-pending", "old-in-progress"],
)


def test_clean_deletes_what_has_served_its_time_and_counts(run, path):
    fill(path, LOCKS, JOBS)
    ended = run("clean")
    assert ended.returncode == 0
    assert ended.stdout == "Deleted 2 expired locks and 2 old jobs.\n"
    assert ended.stderr.endswith(" operation=clean result=done locks=2 jobs=2\n")
    assert kept(path) == KEPT
    assert run("clean").stdout == "Deleted 0 expired locks and 0 old jobs.\n"


@pytest.mark.parametrize(
    ("days", "left"),
    [
        (0, 2),  # all that has ended, but in this very second
        (14.9, 3),
        (16, 5),
        (3650, 6),
        (1e6, 6),  # from before the calendar began
    ],
)
def test_the_maximum_age_decides_which_jobs_are_old(open_store, path, days, left):
    fill(path, jobs=[*JOBS[:3], ("x", "DONE", ago(minutes=5)), *JOBS[4:]])
    open_store(HISTORY_MAX_AGE_DAYS=days).clean()
    assert len(kept(path)[1]) == left
    assert kept(path)[1][-2:] == ["old-pending", "old-in-progress"]


def test_server_cleans_in_the_background(serve, path, tmp_path):
    fill(path, LOCKS, JOBS)
    process = serve("--cleaner-interval-seconds", "0.05")
    until(lambda: kept(path) == KEPT)
    fill(path, [("Later|expired|1.0.0", PAST)])
    until(lambda: kept(path) == KEPT)
    assert process.locks().json["count"] == 2
    assert process.stop() == 0
    log = (tmp_path / "server-0.log").read_text()
    assert "cleaned 1 expired locks and 0 old jobs" in log


def test_server_goes_on_cleaning_after_a_failed_round(serve, path, tmp_path):
    log = tmp_path / "server-0.log"
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        process = serve("--cleaner-interval-seconds", "0.05", "--database-timeout-seconds", "0.01")
        other.execute("BEGIN IMMEDIATE")
        other.execute(
            f"INSERT INTO orchestration_lock {COLUMNS} VALUES ('', 'A|b|1.0.0', 'Owner', ?, 0)",
            (PAST,),
        )
        until(lambda: "round failed" in log.read_text())
        assert process.send("GET", "/health").status == 503  # as for any write
        other.execute("COMMIT")
        until(lambda: kept(path) == ([], []))
        until(lambda: process.send("GET", "/health").status == 200)
    assert process.stop() == 0
    assert "Traceback" not in log.read_text()


def test_failure_of_the_database_is_logged_and_the_next_round_runs(path, open_store, caplog):
    store = open_store()
    with closing(sqlite3.connect(path)) as database:
        database.execute("ALTER TABLE orchestration_lock RENAME TO aside")
    cleaner = Cleaner(store, 0.01)
    with caplog.at_level(logging.ERROR, "orchmgmt"):
        cleaner.start("")
        try:
            until(lambda: sum("round failed" in it.message for it in caplog.records) >= 2)
            with closing(sqlite3.connect(path)) as database:
                database.execute("ALTER TABLE aside RENAME TO orchestration_lock")
            fill(path, LOCKS)
            until(lambda: kept(path)[0] == KEPT[0])
        finally:
            cleaner.stop()
    failed = [it for it in caplog.records if "round failed" in it.message]
    assert not any(it.exc_info for it in failed)  # the database's own line has the reason
    assert any("no such table" in it.message for it in caplog.records)


def test_a_fault_is_logged_with_its_traceback_and_the_next_round_runs(
    path, open_store, caplog, monkeypatch
):
    store = open_store()
    cleaner = Cleaner(store, 0.01)
    with caplog.at_level(logging.ERROR, "orchmgmt"), monkeypatch.context() as broken:
        broken.setattr(store, "clean", None)
        cleaner.start("")
        try:
            until(lambda: sum("round failed" in it.message for it in caplog.records) >= 2)
            broken.undo()
            fill(path, LOCKS)
            until(lambda: kept(path)[0] == KEPT[0])
        finally:
            cleaner.stop()
    assert all(it.exc_info for it in caplog.records)


@pytest.mark.parametrize("table", ["orchestration_lock", "orchestration_job"])
def test_deletes_in_small_batches_each_a_transaction_with_a_pause(open_store, path, table):
    count = 2 * DELETE_BATCH + 1
    fill(
        path,
        [(f"P{n}|s|1.0.0", PAST) for n in range(count)] if table == "orchestration_lock" else (),
        [(f"job-{n}", "DONE", PAST) for n in range(count)] if table == "orchestration_job" else (),
    )
    store = open_store()
    left: list[int] = []

    def look(sql):
        if sql == "COMMIT" or sql.startswith(("BEGIN", "DELETE")):
            left.append(count_of(path, table))

    connection = connection_of(store)
    connection.set_trace_callback(look)
    pauses: list[float] = []
    assert sum(store.clean(pause=pauses.append)) == count
    connection.set_trace_callback(None)
    left.append(count_of(path, table))
    batches = [before - after for before, after in pairwise(left) if before > after]
    assert 3 <= len(batches) <= len(pauses) + 1  # the last one may have found nothing
    assert max(batches) <= DELETE_BATCH <= 1000
    assert min(pauses) > 0
    assert left[-1] == 0


def test_a_batch_that_takes_long_is_followed_by_a_smaller_one(open_store, path):
    fill(path, [(f"P{n}|s|1.0.0", PAST) for n in range(3 * DELETE_BATCH)])
    store = open_store()
    connection_of(store).create_function("slow", 0, lambda: time.sleep(0.0005))
    connection_of(store).execute(
        "CREATE TEMP TRIGGER slow AFTER DELETE ON orchestration_lock BEGIN SELECT slow(); END"
    )
    left = [3 * DELETE_BATCH]
    store.clean(pause=lambda seconds: left.append(count_of(path, "orchestration_lock")))
    sizes = [before - after for before, after in pairwise(left)]
    assert sizes[0] == DELETE_BATCH
    assert max(sizes[1:]) <= DELETE_BATCH / 10


def test_stopping_ends_between_two_batches(open_store, path):
    fill(path, [(f"P{n}|s|1.0.0", PAST) for n in range(3 * DELETE_BATCH)])
    assert open_store().clean(pause=lambda seconds: True) == (DELETE_BATCH, 0)
    assert count_of(path, "orchestration_lock") == 2 * DELETE_BATCH


def test_writers_are_served_while_much_is_cleaned(start, path):
    service = start(DATABASE_URL=f"sqlite:///{path}")
    fill(path, [(f"Provider{n}|old|1.0.0", PAST) for n in range(20_000)])
    cleaned = []
    cleaner = threading.Thread(target=lambda: cleaned.append(service.store.clean()))
    cleaner.start()
    statuses = {service.create(lock(f"Provider{n}|new|1.0.0")).status for n in range(20)}
    cleaner.join()
    assert statuses == {201}
    assert cleaned == [(20_000, 0)]
    assert service.locks().json["count"] == 20


def test_create_app_starts_no_thread(path):
    before = threading.enumerate()
    app = create_app({"DATABASE_URL": f"sqlite:///{path}", "CLEANER_INTERVAL_SECONDS": 0.05})
    assert app.test_client().get("/health").status_code == 200
    assert threading.enumerate() == before
    store_of(app).close()


def test_cleaner_is_a_daemon_and_stops_at_once(open_store):
    before = set(threading.enumerate())
    cleaner = Cleaner(open_store(), 3600)
    cleaner.start("")
    (thread,) = set(threading.enumerate()) - before
    assert thread.daemon
    cleaner.stop()
    assert not thread.is_alive()
