"""What only a server brings with it: logins, limits, restarts, other languages, deadlocks."""

import http.client
import re
import subprocess
import sys
import threading
import time
from collections import Counter, defaultdict
from contextlib import closing, suppress
from pathlib import Path

import psycopg
import pytest
from cluster import PASSWORD, Cluster, name_of
from support import FUTURE, in_threads, job, lock, until
from wire import JOB, LOCK, PAST, connect, execute, job_entry, job_id, lock_entry, put

from orchmgmt.commands.transfer import Conflicts, restore
from orchmgmt.databases import ATTEMPTS, Overtaken, counts
from orchmgmt.databases.queries import Page
from orchmgmt.databases.schema import SCHEMA_VERSION
from orchmgmt.models import NewLock
from orchmgmt.store import Store

pytestmark = pytest.mark.postgresql


@pytest.fixture
def url(database_url):
    return database_url


@pytest.fixture
def new_url(postgresql):
    return postgresql.create_database()


@pytest.fixture
def store(url):
    with Store({"DATABASE_URL": url}) as store:
        yield store


@pytest.fixture
def restartable(postgresql):
    """A server that may be stopped: one that keeps its promise to have written to disk."""
    server = Cluster(fsync="on")
    yield server
    server.remove()


def refused(ended, *words, code=3):
    """The command ended with one clear line that tells no secret."""
    assert ended.returncode == code
    assert ended.stdout == ""
    (line,) = ended.stderr.splitlines()
    for word in ("Error: cannot use postgresql://", *words):
        assert word in line
    assert "s3cret" not in line
    return True


def test_wrong_password_is_one_clear_line(run, url):
    wrong = url.replace("s3cret", "s3cret-not")
    assert refused(
        run("serve", "--port", "0", "--database-url", wrong),
        "postgresql://orchmgmt:***@127.0.0.1",
        "password authentication failed",
    )


def test_missing_database_is_one_clear_line(run, url):
    missing = url.replace(name_of(url), "nowhere")
    assert refused(run("clean", "--database-url", missing), 'database "nowhere" does not exist')


@pytest.mark.parametrize(
    ("url", "says", "code"),
    [
        ("postgresql://me:s3cret@127.0.0.1:1/locks", "refused", 3),
        ("postgresql://me:s3cret@no.such.host.invalid/locks", "no.such.host.invalid", 3),
        ("postgresql://127.0.0.1:1/locks?user=me&password=s3cret", "refused", 3),
        ("postgresql://me:s3cret@127.0.0.1:1", "names no database", 2),
        ("postgresql://me:%zzs3cret@127.0.0.1/locks", "//USER:PASSWORD@HOST:PORT/NAME", 2),
        ("postgresql://me:s3cret/@127.0.0.1:x/locks", "//USER:PASSWORD@HOST:PORT/NAME", 2),
        ("postgresql://me:s3cret@127.0.0.1/locks?colour=red", "PASSWORD@HOST", 2),
    ],
)
def test_unusable_url_is_one_clear_line(run, url, says, code):
    assert refused(run("serve", "--port", "0", "--database-url", url), says, code=code)


def test_missing_driver_is_one_clear_line(url, tmp_path):
    (tmp_path / "psycopg.py").write_text("raise ImportError('no psycopg here')")
    ended = subprocess.run(
        [sys.executable, "-c", "from orchmgmt.cli import main; main(['clean'])"],
        env={"PYTHONPATH": str(tmp_path), "ORCHMGMT_DATABASE_URL": url},
        capture_output=True,
        text=True,
    )
    assert refused(ended, "psycopg", "pip install 'orchmgmt[postgresql]'")


def test_foreign_tables_of_our_names_are_refused_and_not_touched(run, new_url):
    with closing(connect(new_url)) as database:
        database.execute("CREATE TABLE orchestration_lock (id int, what text)")
        assert refused(run("clean", "--database-url", new_url), "another program", LOCK)
        tables = database.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
        assert tables.fetchall() == [(LOCK,)]


def test_other_tables_may_lie_beside_ours(run, new_url):
    with closing(connect(new_url)) as database:
        database.execute("CREATE TABLE customer (name text)")
    assert run("lock", "import", "-", "--database-url", new_url, input="").returncode == 0


def test_newer_schema_is_refused(run, new_url):
    assert run("lock", "import", "-", "--database-url", new_url, input="").returncode == 0
    with closing(connect(new_url)) as database:
        database.execute(f"UPDATE orchestration_schema SET version = {SCHEMA_VERSION + 1}")
    words = (f"version {SCHEMA_VERSION + 1}", f"knows version {SCHEMA_VERSION}", "newer orchmgmt")
    assert refused(run("serve", "--port", "0", "--database-url", new_url), *words)


def test_encoding_that_cannot_hold_all_text_is_refused(run, postgresql):
    url = postgresql.create_database("ENCODING 'LATIN1' TEMPLATE template0 LOCALE 'C'")
    assert refused(run("clean", "--database-url", url), "LATIN1", "UTF8 is needed")


def test_user_without_rights_is_refused(run, postgresql, new_url):
    with postgresql.connect(name_of(new_url)) as connection:
        connection.execute("CREATE ROLE guest LOGIN PASSWORD 's3cret'")
        connection.execute("REVOKE CREATE ON SCHEMA public FROM PUBLIC")
    url = f"postgresql://guest:s3cret@127.0.0.1:{postgresql.port}/{name_of(new_url)}"
    assert refused(run("serve", "--port", "0", "--database-url", url), "permission denied")


def test_processes_start_at_once_on_a_new_database(postgresql):
    opens = """if True:
        import sys
        from orchmgmt.store import Store
        print("ready", flush=True)
        for line in sys.stdin:
            with Store({"DATABASE_URL": line.strip()}) as store:
                store.history.create("PULL", "Alice", "Alice", "kelvinInfo")
            print("ok", flush=True)
    """
    pipe = subprocess.PIPE
    processes = [
        subprocess.Popen([sys.executable, "-c", opens], stdin=pipe, stdout=pipe, text=True)
        for _ in range(3)
    ]
    try:
        assert {process.stdout.readline() for process in processes} == {"ready\n"}
        for _ in range(8):
            url = postgresql.create_database()
            for process in processes:
                process.stdin.write(f"{url}\n")
                process.stdin.flush()
            assert {process.stdout.readline() for process in processes} == {"ok\n"}
            with closing(connect(url)) as database:
                versions = database.execute("SELECT version FROM orchestration_schema").fetchall()
                assert versions == [(SCHEMA_VERSION,)]
                assert database.execute(f"SELECT count(*) FROM {JOB}").fetchone() == (3,)
    finally:
        for process in processes:
            process.stdin.close()
            process.wait(30)
            process.stdout.close()


def test_language_and_time_zone_of_the_server_change_no_answer(start, tmp_path):
    server = Cluster(
        *("--locale-provider", "icu", "--icu-locale", "en-US"),
        timezone="'Asia/Kathmandu'",
        datestyle="'SQL, DMY'",
    )
    try:
        with server.connect() as connection:
            words = "SELECT array_agg(it ORDER BY it) FROM unnest(ARRAY['AB', 'Aa', 'a']) AS it"
            assert connection.execute(words).fetchone() == (["a", "Aa", "AB"],)  # as people sort
        services = [
            start(DATABASE_URL=server.create_database()),
            start(DATABASE_URL=f"sqlite:///{tmp_path}/beside.db"),
        ]
        owners = ["AB", "Aa", "Z", "A0", "A", "ZZ", "Za", "AZ", "Aaa", "B"]
        times = ["2099-01-01T00:00:00Z", "2098-12-31T18:15:00Z", "2099-01-01T05:45:00Z"]
        for service in services:
            put(
                service,
                LOCK,
                *(
                    lock_entry(n, owner=owner, expiresAt=times[n % 3], orchestrationJobId="")
                    for n, owner in enumerate(owners, 1)
                ),
            )
            put(service, JOB, *(job_entry(n, message="Ω😀ß\n") for n in (0xA, 0xB1, 0x9F)))
        page = {"page": 0, "size": 100}
        for field in ("id", "owner", "serviceInstanceId", "expiresAt"):
            for direction in ("ASC", "DESC"):
                order = {**page, "sortField": field, "direction": direction}
                first, second = (service.locks(pagination=order).json for service in services)
                assert first == second
        assert [
            it["owner"]
            for it in services[0]
            .locks(pagination={**page, "sortField": "owner", "direction": "ASC"})
            .entries
        ] == sorted(owners)
        for query in ({"expiresBefore": times[0]}, {"expiresAfter": "2099-01-01T05:45:00+05:45"}):
            first, second = (service.locks(**query).json for service in services)
            assert first == second
            assert first["count"] in (3, 4, 6, 7)
        first, second = (service.jobs().json for service in services)
        assert first == second
    finally:
        server.remove()


def test_values_with_signs_of_sql_are_values(store):
    message = "100% '; DROP TABLE orchestration_job; -- %s {} \\ \x7f \ufffd"
    made = store.history.create("PULL", "Alice", "Alice", "kelvinInfo", message=message)
    ((found, *_),), count = store.job_table.find({"ids": [made]}, Page(0, 1))
    assert (found, count) == (made, 1)
    assert store.job_table.find({}, Page(0, 1))[0][0][7] == message


def test_ids_go_on_while_locks_with_ids_are_imported(store):
    failed = []

    def create():
        try:
            for number in range(60):
                store.lock_table.create([NewLock("", f"New{number}|s|1.0.0", "Alice", FUTURE)])
        except Exception as error:
            failed.append(error)

    creator = threading.Thread(target=create)
    creator.start()
    for number in range(60):
        ((highest,),) = store.database.read(
            store.database.rows, f"SELECT COALESCE(max(id), 0) FROM {LOCK}"
        )
        known = {
            highest + 1 + n: NewLock("", f"Old{number}x{n}|s|1.0.0", "Bob", FUTURE)
            for n in range(3)
        }
        with suppress(Conflicts):  # one may have gone to a new lock meanwhile
            store.database.write_once(restore, store, known)
    creator.join()
    assert failed == []


def test_as_many_connections_as_allowed_serve_any_number_of_threads(url, postgresql):
    with Store({"DATABASE_URL": url, "DATABASE_CONNECTIONS": 2}) as store:
        count = (
            "SELECT count(*) FROM pg_stat_activity"
            " WHERE backend_type = 'client backend' AND datname = %s AND pid <> %s"
        )  # autovacuum comes when it will
        most = []
        failed = []

        def work(number):
            try:
                for n in range(20):
                    store.lock_table.create(
                        [NewLock("", f"P{number}x{n}|s|1.0.0", "Alice", FUTURE)]
                    )
            except Exception as error:
                failed.append(error)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
        with postgresql.connect() as other:
            before = other.execute(count, (name_of(url), 0)).fetchone()[0]
            for thread in threads:
                thread.start()
            while any(thread.is_alive() for thread in threads):
                most.append(other.execute(count, (name_of(url), 0)).fetchone()[0] - before)
        for thread in threads:
            thread.join()
        assert failed == []
        assert max(most) <= 2
        assert store.lock_table.find({}, Page(0, 1))[1] == 160


def test_connection_limit_of_the_server_is_a_503_while_it_is_reached(start, postgresql, new_url):
    with postgresql.connect(name_of(new_url)) as connection:
        connection.execute("CREATE ROLE limited LOGIN PASSWORD 'x' CONNECTION LIMIT 1")
        connection.execute("GRANT ALL ON SCHEMA public TO limited")
    url = f"postgresql://limited:x@127.0.0.1:{postgresql.port}/{name_of(new_url)}"
    service = start(DATABASE_URL=url)
    with closing(connect(url)):
        for answer in (
            service.create(lock("A|b|1.0.0")),
            service.locks(),
            service.jobs(),
            service.remove("Owner", "instanceIds=A%7Cb%7C1.0.0"),
            service.send("GET", "/health"),
        ):
            assert answer.status == 503
            assert int(answer.headers["Retry-After"]) > 0
            assert "limited" not in answer.error

    def served():
        return service.create(lock("A|b|1.0.0")).status == 201

    until(served)  # the server takes a moment to see that the other has gone
    assert service.locks().json["count"] == 1


def test_another_user_can_serve_with_the_grants_of_the_page(start, postgresql, url):
    page = Path(__file__).parents[2] / "docs" / "operations.md"
    (grants,) = re.findall(r"```sql\n(GRANT .*?)```", page.read_text(), re.DOTALL)
    start(DATABASE_URL=url)
    with postgresql.connect(name_of(url)) as connection:
        connection.execute("CREATE ROLE service LOGIN PASSWORD 'x'")
        connection.execute(grants)
    other = f"postgresql://service:x@127.0.0.1:{postgresql.port}/{name_of(url)}"
    service = start(DATABASE_URL=other, RECORDER="true")
    assert service.send("GET", "/health").status == 200
    for _ in range(2 * counts.ONE_IN):  # so that it adds up the differences too
        assert service.create(lock("A|b|1.0.0")).status == 201
        assert service.remove("Owner", "instanceIds=A%7Cb%7C1.0.0").status == 200
    made = service.store.history.create("PULL", "Alice", "Alice", "kelvinInfo")
    service.store.history.start(made)
    assert service.store.clean() == (0, 0)
    assert service.jobs().json["count"] == 1


def test_connection_that_the_server_ended_is_not_used_again(start, postgresql, url):
    service = start(DATABASE_URL=url)
    assert service.create(lock("A|b|1.0.0")).status == 201
    with postgresql.connect() as other:
        end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        for _ in range(5):
            ended = other.execute(f"{end} WHERE application_name = 'orchmgmt'").fetchall()
            assert ended
            time.sleep(0.05)
            assert service.locks().json["count"] == 1


def test_lock_that_somebody_else_is_at_is_a_503_after_the_timeout(start, url):
    service = start(DATABASE_URL=url, DATABASE_TIMEOUT_SECONDS=0.2)
    with closing(psycopg.connect(url)) as other:
        other.execute(
            f"INSERT INTO {LOCK} (orchestration_job_id, service_instance_id, owner, expires_at,"
            f" temporary) VALUES ('', 'A|b|1.0.0', 'Other', '{FUTURE}', FALSE)"
        )
        begun = time.monotonic()
        answer = service.create(lock("Z|b|1.0.0"), lock("A|b|1.0.0"))
        assert answer.status == 503
        assert int(answer.headers["Retry-After"]) > 0
        assert time.monotonic() - begun > 0.1
        assert service.locks().json["count"] == 0  # nothing by halves, and readers do not wait
        other.rollback()
    until(lambda: service.create(lock("Z|b|1.0.0"), lock("A|b|1.0.0")).status == 201)


def test_statement_that_takes_too_long_is_a_503(start, url):
    with Store({"DATABASE_URL": url}) as store:  # which may take its time
        store.history.create("PULL", "Alice", "Alice", "kelvinInfo")
    service = start(DATABASE_URL=url, DATABASE_TIMEOUT_SECONDS=0.2)
    with closing(psycopg.connect(url)) as other:
        other.execute(f"LOCK TABLE {JOB}")
        assert service.jobs().status == 503
    until(lambda: service.jobs().status == 200)


def test_what_two_writers_want_in_opposite_order_is_done_by_both(store):
    """Each locks a row, then wants the other's: PostgreSQL ends one of them."""
    store.database.write(store.job_table.put, [job(1), job(2)])
    both_have_one, one_is_done = threading.Barrier(2), threading.Event()
    tries: Counter[int] = Counter()
    failed = []

    def touch(first, second, number):
        tries[number] += 1
        if tries[number] > 1:  # or it could lock its row again before the other one wakes
            assert one_is_done.wait(60)
        for which in (first, second):
            store.database.change(
                f"UPDATE {JOB} SET message = message || %s WHERE id = %s",
                (str(number), job(which)["id"]),
            )
            if which == first and tries[number] == 1:
                both_have_one.wait(60)

    def work(first, second):
        try:
            store.database.write(touch, first, second, first)
            one_is_done.set()
        except Exception as error:
            failed.append(error)

    in_threads(work, (1, 2), (2, 1))
    assert failed == []
    assert sorted(tries.values()) == [1, 2]
    messages = [row[7] for row in store.job_table.find({}, Page(0, 2))[0]]
    assert [sorted(message) for message in messages] == [["1", "2"]] * 2


def conflict(tries):
    tries.append(1)
    raise Overtaken


def test_tries_have_an_end_and_some_work_is_tried_once(store):
    tries = []
    with pytest.raises(Overtaken):
        store.database.write(conflict, tries)
    assert len(tries) == ATTEMPTS
    with pytest.raises(Overtaken):
        store.database.write_once(conflict, tries)
    assert len(tries) == ATTEMPTS + 1


def test_bulks_that_overlap_in_opposite_order_never_fail(start, url):
    services = [start(DATABASE_URL=url), start(DATABASE_URL=url)]
    statuses: Counter[int] = Counter()
    rounds, clients = 25, 6
    together = threading.Barrier(clients, timeout=60)

    def work(number):
        for round in range(rounds):
            bulk = [f"P{n:03}|round{round}|1.0.0" for n in range(120)]
            if round % 3 == 0 and number == 0:  # some of them have expired
                put(
                    services[0],
                    LOCK,
                    *(
                        lock_entry(10**6 * (round + 1) + n, serviceInstanceId=it, expiresAt=PAST)
                        for n, it in enumerate(bulk[::7])
                    ),
                )
            together.wait()
            wanted = bulk if number % 2 else bulk[::-1]
            answer = services[number % 2].create(*[lock(it, f"Owner{number}") for it in wanted])
            statuses[answer.status] += 1

    in_threads(work, range(clients))
    assert statuses == {201: rounds, 400: rounds * (clients - 1)}
    with closing(connect(url)) as database:
        owners = "SELECT count(DISTINCT owner), count(*) FROM orchestration_lock GROUP BY"
        split = database.execute(f"{owners} split_part(service_instance_id, '|', 2)").fetchall()
    assert split == [(1, 120)] * rounds


def test_cleaners_of_several_processes_do_not_wait_for_each_other(url):
    stores = [Store({"DATABASE_URL": url}) for _ in range(3)]
    rows = [(f"P{n}|s|1.0.0",) for n in range(4000)]
    insert = (
        f"INSERT INTO {LOCK} (orchestration_job_id, service_instance_id, owner, expires_at,"
        f" temporary) VALUES ('', ?, 'Old', '{PAST}', FALSE)"
    )
    execute(stores[0], insert, *rows)
    found = []
    threads = [
        threading.Thread(target=lambda store=store: found.append(store.clean()[0]))
        for store in stores
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(found) == 4000
    assert stores[0].lock_table.find({}, Page(0, 1))[1] == 0
    for store in stores:
        store.close()


def test_cleaner_leaves_a_job_that_starts_anew_meanwhile(store, url):
    store.database.write(store.job_table.put, [job(1, finished_at=PAST), job(2, finished_at=PAST)])
    with closing(psycopg.connect(url)) as other:
        other.execute(f"UPDATE {JOB} SET finished_at = '' WHERE id = %s", (job_id(1),))
        assert store.clean() == (0, 1)
        other.commit()
    assert [row[0] for row in store.job_table.find({}, Page(0, 9))[0]] == [job_id(1)]


def test_job_that_ends_meanwhile_gets_no_reservation(store, url):
    made = store.history.create("PULL", "Alice", "Alice", "kelvinInfo")
    store.history.start(made)
    result = []

    def reserve():
        try:
            store.locks.reserve(made, "A|b|1.0.0", "Alice", FUTURE)
        except Exception as error:
            result.append(str(error))

    with closing(psycopg.connect(url)) as other:
        other.execute(f"UPDATE {JOB} SET finished_at = '{PAST}', status = 'DONE'")
        thread = threading.Thread(target=reserve)
        thread.start()
        thread.join(0.2)
        assert thread.is_alive()  # it waits to see how the job ends
        other.commit()
        thread.join()
    assert result == [f"There is no unfinished orchestration job {made}"]


@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_restart_of_the_server_under_load_loses_nothing(serve, restartable, mode, tmp_path):
    url = restartable.create_database()
    processes = [serve("--database-url", url, "--max-page-size", "1000000") for _ in range(2)]
    acknowledged: set[str] = set()
    asked: list[list[str]] = []
    seen: list[tuple[float, int]] = []
    unexpected: list[object] = []
    done = threading.Event()

    def work(client):
        number = 0
        while not done.is_set():
            number += 1
            owner = f"Client{client}request{number}"
            instances = [f"{owner}|service{n}|1.0.0" for n in range(100 if client % 2 else 1)]
            asked.append(instances)
            try:
                answer = processes[client % 2].create(*[lock(it, owner) for it in instances])
            except (OSError, http.client.HTTPException) as error:
                unexpected.append(error)
                return
            seen.append((time.monotonic(), answer.status))
            if answer.status == 201:
                acknowledged.update(instances)
            elif answer.status != 503 or not answer.headers["Retry-After"]:
                unexpected.append(answer)
            else:
                time.sleep(0.01)

    threads = [threading.Thread(target=work, args=(client,)) for client in range(6)]
    for thread in threads:
        thread.start()
    try:
        until(lambda: len(acknowledged) > 500)
        stopped = time.monotonic()
        restartable.stop(mode)
        time.sleep(0.5)
        restartable.start()
        started = time.monotonic()
        enough = len(acknowledged) + 500
        until(lambda: len(acknowledged) > enough)
    finally:
        done.set()
        for thread in threads:
            thread.join()
    assert unexpected == []
    refused = [moment for moment, status in seen if status == 503]
    assert refused
    assert stopped < min(refused) <= max(refused) < started + 1
    stored = defaultdict(set)
    with closing(connect(url)) as database:
        for owner, instance in database.execute(f"SELECT owner, service_instance_id FROM {LOCK}"):
            stored[owner].add(instance)
    assert acknowledged <= set().union(*stored.values())
    sizes = {len(request): set() for request in asked}
    for request in asked:
        sizes[len(request)].add(len(stored[request[0].split("|")[0]]))
    assert all(found <= {0, size} for size, found in sizes.items())
    for process in processes:
        assert process.create(lock(f"After{process.process.pid}|s|1.0.0")).status == 201
        assert process.stop() == 0
    logs = "".join(log.read_text() for log in tmp_path.glob("server-*.log"))
    assert "does not answer" in logs
    assert "Traceback" not in logs
    assert PASSWORD[:6] not in logs
    print(f"{len(acknowledged)} acknowledged, {len(refused)} times 503")
