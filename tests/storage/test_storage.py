"""The database: how it is made, what is refused, and what its absence means."""

import gc
import os
import shutil
import sqlite3
import subprocess
import sys
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
from conftest import COMMAND
from needs import bound_by_permissions
from support import FUTURE, connection_of, in_threads, job, lock, traced

from orchmgmt.app import create_app, store_of
from orchmgmt.databases.queries import BATCH, Page
from orchmgmt.databases.schema import SCHEMA_VERSION
from orchmgmt.errors import Unavailable
from orchmgmt.locks import AlreadyLocked
from orchmgmt.models import NewLock, UnusableDatabase
from orchmgmt.store import Store

pytestmark = pytest.mark.sqlite

TABLES = {
    "orchestration_job_count": ["status", "type", "jobs"],
    "orchestration_lock_count": ["locks"],
    "orchestration_lock": [
        "id",
        "orchestration_job_id",
        "service_instance_id",
        "owner",
        "expires_at",
        "temporary",
        "idempotency_key",
        "request",
    ],
    "orchestration_job": [
        "id",
        "status",
        "type",
        "requester_system",
        "target_system",
        "service_definition",
        "subscription_id",
        "message",
        "created_at",
        "started_at",
        "finished_at",
    ],
    "orchestration_schema": ["version"],
}
UUID = "0b7e6f1e-3e0f-4f5a-9d3e-0a1b2c3d4e5f"
LOCK_FILTERS = {
    "ids": [1, 2],
    "orchestration_job_ids": [UUID, UUID[::-1]],
    "service_instance_ids": ["A|b|1.0.0", "C|d|1.0.0"],
    "owners": ["Alice", "Bob"],
    "expires_before": FUTURE,
    "expires_after": FUTURE,
}
JOB_FILTERS = {
    "ids": [UUID, UUID[::-1]],
    "statuses": ["DONE", "ERROR"],
    "type": "PULL",
    "requester_systems": ["Alice", "Bob"],
    "target_systems": ["Alice", "Bob"],
    "service_definitions": ["kelvinInfo", "celsiusInfo"],
    "subscription_ids": [UUID, UUID[::-1]],
}
LOCK_SORTS = [None, "id", "owner", "service_instance_id", "expires_at"]
JOB_SORTS = [None, "id", "created_at", "started_at", "finished_at"]
FILTERS = [("locks", name) for name in LOCK_FILTERS] + [("history", name) for name in JOB_FILTERS]
SORTS = [("locks", it) for it in LOCK_SORTS] + [("history", it) for it in JOB_SORTS]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "orchmgmt.db"


@pytest.fixture
def store(path):
    with Store({"DATABASE_URL": f"sqlite:///{path}"}) as store:
        yield store


@pytest.fixture
def made(path):
    """The file of a database that somebody has used before."""
    Store({"DATABASE_URL": f"sqlite:///{path}"}).close()
    return path


def execute(path, *statements):
    with closing(sqlite3.connect(path)) as database:
        for statement in statements:
            database.execute(statement)
        database.commit()


def refused(ended, *words):
    """The command ended with one clear line."""
    assert ended.returncode == 3
    assert ended.stdout == ""
    lines = ended.stderr.splitlines()
    assert len(lines) == 1
    for word in ("Error: cannot use sqlite:///", *words):
        assert word in lines[0]
    return True


def test_schema_is_created_on_first_start(service, path):
    with closing(sqlite3.connect(path)) as database:
        tables = {
            name: [row[1] for row in database.execute(f"PRAGMA table_info({name})")]
            for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
            if not name.startswith("sqlite_")
        }
        version = database.execute("SELECT version FROM orchestration_schema").fetchall()
    assert tables == TABLES
    assert version == [(SCHEMA_VERSION,)]


def test_schema_is_left_alone_on_later_starts(run, made):
    execute(made, "CREATE TABLE mine (x)")
    with closing(sqlite3.connect(made)) as database:
        before = database.execute("SELECT * FROM sqlite_master").fetchall()
        assert run("clean").returncode == 0
        assert database.execute("SELECT * FROM sqlite_master").fetchall() == before


def test_database_has_a_write_ahead_log_and_full_synchronisation(store, path):
    (mode,) = store.database.read(store.database.rows, "PRAGMA journal_mode")
    (synchronous,) = store.database.read(store.database.rows, "PRAGMA synchronous")
    assert (mode, synchronous) == (("wal",), (2,))
    with closing(sqlite3.connect(path)) as database:
        assert database.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_every_thread_synchronises_fully(store):
    found = []

    def look():
        found.extend(store.database.read(store.database.rows, "PRAGMA synchronous"))

    threads = [threading.Thread(target=look) for _ in range(3)]
    for thread in threads:
        thread.start()
        thread.join()
    assert found == [(2,)] * 3


@pytest.mark.parametrize("command", [["serve", "--port", "0"], ["lock", "export"]])
def test_newer_schema_is_refused(run, made, command):
    execute(made, f"UPDATE orchestration_schema SET version = {SCHEMA_VERSION + 1}")
    before = made.read_bytes()
    words = (f"version {SCHEMA_VERSION + 1}", f"knows version {SCHEMA_VERSION}", "newer orchmgmt")
    assert refused(run(*command), *words)
    assert made.read_bytes() == before


def test_foreign_database_is_refused_and_not_touched(run, path):
    execute(path, "CREATE TABLE customer (name)", "INSERT INTO customer VALUES ('Alice')")
    before = path.read_bytes()
    assert refused(run("serve", "--port", "0"), "another program", "customer")
    assert path.read_bytes() == before
    assert [it.name for it in path.parent.iterdir()] == [path.name]


def test_file_that_is_no_database_is_refused_and_not_touched(run, path):
    path.write_text("Dear diary, " * 1000)
    before = path.read_bytes()
    assert refused(run("serve", "--port", "0"), "not a database")
    assert path.read_bytes() == before


def test_damaged_database_is_refused(run, made):
    with made.open("r+b") as file:
        file.seek(100)
        file.write(b"\xff" * (made.stat().st_size - 100))
    assert refused(run("serve", "--port", "0"), "malformed")


def test_empty_file_becomes_a_database(run, path):
    path.touch()
    assert run("lock", "import", "-", input="").returncode == 0
    assert path.read_bytes().startswith(b"SQLite format 3")


def test_missing_folder_is_named(run, tmp_path):
    url = f"sqlite:///{tmp_path}/no/such/orchmgmt.db"
    assert refused(run("serve", "--port", "0", "--database-url", url), f"{tmp_path}/no/such")
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize("path", ["a%00b", "/dev/null", "x" * 300])
def test_a_path_that_cannot_be_a_file_is_one_clear_line(run, path):
    assert refused(run("serve", "--port", "0", "--database-url", f"sqlite:///{path}"))


def test_folder_in_place_of_a_file_is_named(run, tmp_path):
    assert refused(run("clean", "--database-url", f"sqlite:///{tmp_path}"), "it is a folder")


def test_unreadable_url_of_a_special_file_is_one_clear_line(run):
    assert refused(run("serve", "--port", "0", "--database-url", "sqlite:////dev/null/x.db"))


@pytest.mark.parametrize("mode", [0o444, 0o000])
def test_file_without_permission_is_refused(run, made, mode):
    made.chmod(mode)
    probe = "import sys; open(sys.argv[1], 'r+b')"
    written = subprocess.run(
        [sys.executable, "-c", probe, str(made)], preexec_fn=bound_by_permissions, stderr=-3
    )
    if written.returncode == 0:
        pytest.skip("this user may write to a read-only file")
    assert refused(run("clean", preexec_fn=bound_by_permissions))


def test_two_applications_in_one_process_do_not_see_each_other(start, tmp_path):
    first = start(DATABASE_URL=f"sqlite:///{tmp_path}/1.db", MAX_PAGE_SIZE=1)
    second = start(DATABASE_URL=f"sqlite:///{tmp_path}/2.db", NORMALIZATION_MODE="simple")
    third = start(DATABASE_URL="sqlite:///:memory:")
    fourth = start(DATABASE_URL="sqlite:///:memory:")
    services = [first, second, third, fourth]
    for number, service in enumerate(services):
        for _ in range(number + 1):
            service.store.history.create("PULL", "Alice", "Alice", "kelvinInfo")
        assert service.create(lock("A|b|1.0.0", owner=f"Owner{number}")).status == 201
    for number, service in enumerate(services):
        assert [it["owner"] for it in service.locks().entries] == [f"Owner{number}"]
        assert service.jobs().json["count"] == number + 1
        assert service.remove(f"Owner{number}", "instanceIds=A%7Cb%7C1.0.0").status == 200
    assert len(first.jobs().entries) == 1
    assert first.create(lock("temperature-manager|b|1.0.0")).status == 201
    assert "convention" in second.create(lock("temperature-manager|b|1.0.0")).error


@pytest.mark.parametrize("url", ["sqlite:///:memory:", None], ids=["memory", "file"])
def test_many_threads_share_a_database(start_server, url):
    service = start_server(THREADS=8, **({"DATABASE_URL": url} if url else {}))
    statuses: Counter[int] = Counter()

    def work(worker):
        for number in range(20):
            own = lock(f"Own{worker}|service{number}|1.0.0", owner=f"Owner{worker}")
            shared = lock(f"Shared|service{number}|1.0.0", owner=f"Owner{worker}")
            assert service.create(own).status == 201
            statuses[service.create(shared).status] += 1
            assert service.locks(owners=[f"Owner{worker}"]).json["count"] > number

    in_threads(work, range(8))
    assert statuses == {201: 20, 400: 140}
    assert service.locks().json["count"] == 8 * 20 + 20


def test_connections_of_ended_threads_are_closed(store, path):
    def read():
        store.database.read(store.database.rows, "SELECT 1")

    for _ in range(20):
        thread = threading.Thread(target=read)
        thread.start()
        thread.join()
    gc.collect()
    opened = [os.readlink(link) for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
    assert opened.count(str(path)) <= 1


def table(store, part):
    return {"locks": store.lock_table, "history": store.job_table}[part]


def plans(store, statements):
    """For each SELECT, its SQL and the steps of its plan."""
    explain = connection_of(store).execute
    return [
        (sql, [row[3] for row in explain(f"EXPLAIN QUERY PLAN {sql}")])
        for sql in statements
        if sql.startswith("SELECT")
    ]


@pytest.mark.parametrize("several", [False, True], ids=["one", "several"])
@pytest.mark.parametrize(("part", "name"), FILTERS)
def test_each_filter_uses_an_index(store, part, name, several):
    store.database.write(store.job_table.put, [job(number) for number in range(30)])
    value = {"locks": LOCK_FILTERS, "history": JOB_FILTERS}[part][name]
    if isinstance(value, list) and not several:
        value = value[:1]
    # A filter by time is served by its index when that is the order, too; in any other order it may
    # be read in that order.
    sort = "expires_at" if name.startswith("expires") else None
    with traced(store) as statements:
        for number in range(2):  # a later page is counted first
            table(store, part).find({name: value}, Page(number, 10, sort))
    found = plans(store, statements)
    assert len(found) >= 2
    for sql, steps in found:
        if '"orchestration_job_count"' in sql:
            steps = steps[:1]  # the few sums that are there may be read one and all
        if '"orchestration_job" AS' not in sql and part == "history":
            continue
        for step in steps:
            indexed = "SEARCH t1 USING " in step or "SCAN t1 USING INDEX" in step
            sorting = several and step.startswith("USE TEMP B-TREE")
            listed = "json_each" in step or "SUBQUERY" in step
            assert indexed or sorting or listed, (sql, steps)


@pytest.mark.parametrize("descending", [False, True], ids=["ASC", "DESC"])
@pytest.mark.parametrize(("part", "sort"), SORTS)
def test_each_order_is_read_off_an_index(store, part, sort, descending):
    store.lock_table.create([NewLock("", "A|b|1.0.0", "Alice", FUTURE)])
    store.history.create("PULL", "Alice", "Alice", "kelvinInfo")
    with traced(store) as statements:
        table(store, part).find({}, Page(0, 10, sort, descending))
    *_, (sql, steps) = plans(store, statements)
    assert not any("TEMP B-TREE" in step for step in steps), (sql, steps)
    by_row_id = part == "locks" and sort in (None, "id")
    assert steps[0] == "SCAN t1" if by_row_id else "USING INDEX" in steps[0]
    assert "LIMIT 10" in sql


def test_cleaner_finds_its_rows_through_an_index(store):
    with traced(store) as statements:
        store.clean()
    deletes = [sql for sql in statements if sql.startswith("DELETE")]
    explain = connection_of(store).execute
    for sql in deletes:
        steps = [row[3] for row in explain(f"EXPLAIN QUERY PLAN {sql}")]
        assert not any(step.startswith("SCAN") for step in steps), steps
    assert len(deletes) == 2


def test_a_page_reads_no_more_rows_than_it_returns(store):
    store.lock_table.create([NewLock("", f"P{n}|s|1.0.0", "Alice", FUTURE) for n in range(300)])
    with traced(store) as statements:
        rows, count = store.lock_table.find({"owners": ["Alice"]}, Page(2, 7, "expires_at"))
    assert (len(rows), count) == (7, 300)
    selects = [sql for sql in statements if sql.startswith("SELECT")]
    assert selects[0].startswith("SELECT COUNT(*)")
    assert "LIMIT 7 OFFSET 14" in selects[1]


@pytest.mark.parametrize("locks", [1, 2, BATCH, BATCH + 1, 5 * BATCH])
def test_bulk_create_is_one_insert_per_batch_in_one_transaction(store, locks):
    new = [NewLock("", f"Provider{n}|service|1.0.0", "Alice", FUTURE) for n in range(locks)]
    with traced(store) as statements:
        store.lock_table.create(new)
    batches = -(-locks // BATCH)
    # A statement is told of once more for each trigger that it fires.
    words = [sql.split()[0] for sql in dict.fromkeys(statements)]
    assert words == ["BEGIN", *["INSERT"] * batches, "COMMIT"]


def test_bulk_create_over_expired_and_held_locks_is_all_or_nothing(store, path):
    names = [f"Provider{n}|service|1.0.0" for n in range(3 * BATCH)]
    past = "2020-01-01T00:00:00Z"
    old = [NewLock("", name, "Alice", past) for name in names[:BATCH]]
    store.database.write(store.lock_table.put, old)
    store.lock_table.create([NewLock("", name, "Alice", FUTURE) for name in names[-2:]])
    dump = "SELECT * FROM orchestration_lock"
    with closing(sqlite3.connect(path)) as database:
        before = database.execute(dump).fetchall()
        with pytest.raises(AlreadyLocked) as caught:
            store.lock_table.create([NewLock("", name, "Bob", FUTURE) for name in names])
        assert caught.value.service_instance_ids == names[-2:]
        assert database.execute(dump).fetchall() == before
        rows = store.lock_table.create([NewLock("", name, "Bob", FUTURE) for name in names[:-2]])
    assert [row[2] for row in rows] == names[:-2]
    assert [row[0] for row in rows] == sorted({row[0] for row in rows})
    assert rows[0][0] > max(row[0] for row in before)


def test_ids_are_never_used_again(service):
    ids = []
    for _ in range(3):
        (entry,) = service.create(lock("A|b|1.0.0")).entries
        ids.append(entry["id"])
        service.remove("Owner", "instanceIds=A%7Cb%7C1.0.0")
        assert service.locks().json["count"] == 0
    assert ids == sorted(set(ids))


def test_busy_database_is_a_503_and_nothing_is_half_done(start, path):
    service = start(DATABASE_TIMEOUT_SECONDS=0.05)
    wanted = [lock(f"Provider{n}|service|1.0.0") for n in range(200)]
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        answer = service.create(*wanted)
        assert answer.status == 503
        assert int(answer.headers["Retry-After"]) > 0
        assert answer.json["exceptionType"] == "EXTERNAL_SERVER_ERROR"
        assert "locked" not in answer.error
        assert service.remove("Owner", "instanceIds=A%7Cb%7C1.0.0").status == 503
        assert service.locks().json["count"] == 0  # readers do not wait for writers
        assert service.send("GET", "/health").status == 503  # it has waited in vain
        other.execute("ROLLBACK")
    assert service.locks().json["count"] == 0
    assert service.create(*wanted).status == 201
    assert service.send("GET", "/health").status == 200


def test_request_waits_for_a_busy_database_within_the_timeout(start, path):
    service = start(DATABASE_TIMEOUT_SECONDS=30)
    answers = []
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        client = threading.Thread(
            target=lambda: answers.append(service.create(lock("A|b|1.0.0")).status)
        )
        client.start()
        client.join(0.3)
        assert answers == []
        other.execute("COMMIT")
        client.join()
    assert answers == [201]


def test_damage_while_serving_is_a_503(start, path):
    service = start()
    service.create(*[lock(f"Provider{n}|service|1.0.0") for n in range(500)])
    execute(path, "PRAGMA wal_checkpoint(TRUNCATE)")
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * (path.stat().st_size - 4096))
    answer = service.locks(owners=["Owner"])
    assert answer.status == 503
    assert "malformed" not in answer.error


@pytest.mark.parametrize("replaced", [False, True], ids=["removed", "replaced"])
def test_missing_database_file_is_a_503_for_everything(start, path, replaced):
    service = start()
    assert service.create(lock("A|b|1.0.0")).status == 201
    aside = path.with_name("aside.db")
    path.rename(aside)
    if replaced:
        shutil.copyfile(aside, path)
    answers = [
        service.send("GET", "/health"),
        service.create(lock("C|d|1.0.0")),
        service.remove("Owner", "instanceIds=A%7Cb%7C1.0.0"),
        service.locks(),
        service.jobs(),
    ]
    assert [answer.status for answer in answers] == [503] * 5
    assert all(int(answer.headers["Retry-After"]) > 0 for answer in answers)
    assert not any(str(path) in answer.error for answer in answers)
    assert path.exists() == replaced  # no empty database comes up in its place
    aside.replace(path)
    assert service.send("GET", "/health").status == 200
    assert [it["serviceInstanceId"] for it in service.locks().entries] == ["A|b|1.0.0"]
    assert service.create(lock("C|d|1.0.0")).status == 201


OPEN_EACH_DATABASE = """
import sys
from orchmgmt.store import Store

print("ready", flush=True)
for line in sys.stdin:
    try:
        with Store({"DATABASE_URL": line.strip()}) as store:
            store.history.create("PULL", "Alice", "Alice", "kelvinInfo")
        print("ok", flush=True)
    except Exception as error:
        print(type(error).__name__, error, flush=True)
"""


def test_two_processes_start_at_once_on_a_new_file(tmp_path):
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", OPEN_EACH_DATABASE],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )
        for _ in range(2)
    ]
    try:
        assert [process.stdout.readline() for process in processes] == ["ready\n"] * 2
        for round in range(20):
            for process in processes:
                process.stdin.write(f"sqlite:///{tmp_path}/{round}.db\n")
            assert [process.stdout.readline() for process in processes] == ["ok\n"] * 2
    finally:
        for process in processes:
            process.stdin.close()
            process.wait(30)
            process.stdout.close()
    for round in range(20):
        with closing(sqlite3.connect(tmp_path / f"{round}.db")) as database:
            assert database.execute("SELECT * FROM orchestration_schema").fetchall() == [
                (SCHEMA_VERSION,)
            ]
            assert database.execute("SELECT count(*) FROM orchestration_job").fetchone() == (2,)


def test_two_servers_start_on_one_new_file(serve):
    first, second = serve(), serve()
    assert first.create(lock("A|b|1.0.0")).status == 201
    assert second.create(lock("A|b|1.0.0")).error == "Already locked: A|b|1.0.0"


def test_relative_path_means_the_folder_of_the_start(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with Store({"DATABASE_URL": "sqlite:///relative.db"}) as store:
        (tmp_path / "elsewhere").mkdir()
        monkeypatch.chdir(tmp_path / "elsewhere")
        thread = threading.Thread(target=store.history.create, args=("PULL", "A", "B", "c"))
        thread.start()
        thread.join()
        assert store.job_table.find({}, Page(0, 10))[1] == 1
    assert not (tmp_path / "elsewhere" / "relative.db").exists()


def test_create_app_raises_what_the_command_line_says(tmp_path):
    with pytest.raises(UnusableDatabase, match="it is a folder"):
        create_app({"DATABASE_URL": f"sqlite:///{tmp_path}"})


@pytest.mark.parametrize("place", [":memory:", "orchmgmt.db"])
def test_a_closed_store_says_that_it_is_closed(tmp_path, monkeypatch, place):
    monkeypatch.chdir(tmp_path)
    app = create_app({"DATABASE_URL": f"sqlite:///{place}"})
    with store_of(app) as store:
        made = store.history.create("PULL", "Alice", "Alice", "kelvinInfo")
    for use in (store.locks.find, lambda: store.history.start(made), store.clear, store.now):
        with pytest.raises(Unavailable, match="The store is closed"):
            use()
    answer = app.test_client().get("/health")
    assert (answer.status_code, answer.json["errorMessage"]) == (503, "The store is closed")
    store.close()


@pytest.mark.parametrize("place", [":memory:", "orchmgmt.db"])
def test_a_write_under_way_is_done_though_the_store_is_closed(tmp_path, monkeypatch, caplog, place):
    monkeypatch.chdir(tmp_path)
    store = Store({"DATABASE_URL": f"sqlite:///{place}"})
    made = store.history.create("PULL", "A", "A", "b")
    writing, closed = threading.Event(), threading.Event()

    def work():
        store.history.start(made)
        writing.set()
        closed.wait()
        return store.database.rows("SELECT status FROM orchestration_job")

    with ThreadPoolExecutor() as pool:
        under_way = pool.submit(store.database.write, work)
        writing.wait()
        waiting = pool.submit(store.history.fail, made)
        store.close()
        closed.set()
        assert under_way.result() == [("IN_PROGRESS",)]
        with pytest.raises(Unavailable, match="The store is closed"):
            waiting.result()
    assert not caplog.records
    if place != ":memory:":
        with Store({"DATABASE_URL": f"sqlite:///{place}"}) as store:
            assert store.history.get(made).status == "IN_PROGRESS"


@pytest.mark.parametrize("place", [":memory:", "orchmgmt.db"])
def test_a_transaction_within_another_is_part_of_it(tmp_path, monkeypatch, place):
    monkeypatch.chdir(tmp_path)
    with Store({"DATABASE_URL": f"sqlite:///{place}"}) as store:
        made = store.history.create("PULL", "A", "A", "b")

        def work():
            store.history.start(made)
            assert store.now()
            assert store.history.get(made).status == "IN_PROGRESS"
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            store.database.write(work)
        assert store.history.get(made).status == "PENDING"
        store.database.write(store.history.start, made)
        assert store.history.get(made).status == "IN_PROGRESS"


READING = [
    ("lock", "export"),
    ("history", "export"),
    ("upgrade", "--check"),
    ("backup", "{}/copy.db"),
]


@pytest.mark.parametrize("log", [False, True], ids=["closed", "with its log"])
@pytest.mark.parametrize("arguments", READING, ids=" ".join)
def test_what_only_reads_works_where_nothing_can_be_written(tmp_path, read_only, arguments, log):
    folder, command = read_only
    with ExitStack() as stack:
        if log:  # of a server, perhaps
            store = stack.enter_context(Store({"DATABASE_URL": f"sqlite:///{folder}/x.db"}))
            store.history.create("PULL", "A", "A", "c")
        before = {it.name: it.read_bytes() for it in folder.iterdir() if it.suffix != ".db-shm"}
        ended = subprocess.run(
            [*command, COMMAND, *(it.format(tmp_path) for it in arguments)],
            env={**os.environ, "ORCHMGMT_DATABASE_URL": f"sqlite:///{folder}/x.db"},
            cwd=tmp_path, capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert (ended.returncode, "Error" in ended.stderr) == (0, False), ended.stderr
        after = {it.name: it.read_bytes() for it in folder.iterdir() if it.suffix != ".db-shm"}
        assert after == before
        if arguments == ("history", "export"):
            assert ended.stdout.count("\n") == 1 + log


def test_an_empty_log_that_was_left_over_hides_nothing(tmp_path, read_only):
    folder, command = read_only
    (folder / "x.db-wal").touch()
    ended = subprocess.run(
        [*command, COMMAND, "history", "export", "--database-url", f"sqlite:///{folder}/x.db"],
        cwd=tmp_path, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert (ended.returncode, ended.stdout.count("\n")) == (0, 1), ended.stderr


def test_a_log_that_cannot_be_read_is_said(tmp_path, read_only):
    folder, command = read_only
    for name in ("x.db", "x.db-wal"):
        (folder / name).write_bytes((folder / "x.db").read_bytes() if name == "x.db" else b"x" * 50)
    ended = subprocess.run(
        [*command, COMMAND, "lock", "export", "--database-url", f"sqlite:///{folder}/x.db"],
        cwd=tmp_path, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert ended.returncode == 3
    assert "can only be read where the folder can be written to" in ended.stderr


def test_any_number_of_slashes_is_the_root(run, tmp_path):
    for slashes in ("///", "////", "/////"):
        url = f"sqlite:{slashes}{tmp_path}/x.db"
        assert run("lock", "import", "-", "--database-url", url).returncode == 0
        assert run("backup", "copy.db", "--database-url", url).returncode == 0
        (tmp_path / "copy.db").unlink()


def test_parameters_of_a_url_are_refused_with_what_to_do(run, tmp_path):
    for command in (("lock", "import", "-"), ("backup", "copy.db"), ("serve", "--port", "0")):
        ended = run(*command, "--database-url", "sqlite:///x.db?timeout=30")
        assert ended.returncode == 2
        assert "set ORCHMGMT_DATABASE_TIMEOUT_SECONDS" in ended.stderr
        assert len(ended.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []
