"""PostgreSQL that is frozen, cut off, read-only or without its standby, and clients that are."""

import signal
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path

import pytest
from cluster import Cluster, Proxy, name_of
from support import FUTURE, lock, until
from wire import LOCK, connect

from orchmgmt.app import create_app, store_of
from orchmgmt.databases import STREAM_BATCH, pool
from orchmgmt.databases.queries import Page
from orchmgmt.errors import Unavailable
from orchmgmt.models import NewLock
from orchmgmt.store import Store

pytestmark = pytest.mark.postgresql

TIMEOUT = 0.5

#: Far above the timeout and what a busy machine adds, below what a test's client waits for.
SOON = 20

ECHO = "/serviceorchestration/monitor/echo"

OPERATIONS = Path(__file__).resolve().parents[2] / "docs" / "operations.md"


def logged(caplog, *phrases):
    """Whether the log says each of these, and docs/operations.md that it does."""
    page = OPERATIONS.read_text().split("\n## PostgreSQL\n")[1]
    return all(f"`{it}" in page and it in caplog.text for it in phrases)


@pytest.fixture(scope="module")
def server():
    """A server of this module's own, which keeps its promise to have written to disk."""
    server = Cluster(fsync="on")
    yield server
    server.remove()


@pytest.fixture
def url(server):
    return server.create_database()


@pytest.fixture
def proxy(server):
    proxy = Proxy(server.port)
    yield proxy
    proxy.close()


@pytest.fixture
def client():
    """A process in the middle of a transaction, having run a statement: `client(url, sql)`."""
    started = []

    def client(url, statement):
        process = subprocess.Popen(
            [sys.executable, "-c", CLIENT, url, statement],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        assert process.stdout.readline() == "within\n"
        return process

    yield client
    for process in started:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()


REQUESTS = {
    "health": lambda service: service.send("GET", "/health"),
    "create": lambda service: service.create(lock("A|b|1.0.0")),
    "remove": lambda service: service.remove("Owner", "instanceIds=A%7Cb%7C1.0.0"),
    "locks": lambda service: service.locks(),
    "jobs": lambda service: service.jobs(),
}


def refused_soon(request):
    """The request is answered in time, with a 503 as it should be."""
    begun = time.monotonic()
    answer = request()
    took = time.monotonic() - begun
    assert answer.status == 503
    assert int(answer.headers["Retry-After"]) > 0
    assert "try again later" in answer.error
    assert took < SOON
    return True


def works(service, name):
    return service.create(lock(f"{name}|s|1.0.0")).status == 201


def reconnect(server, url):
    """Have the service's connections made anew."""
    with server.connect() as other:
        other.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s"
            " AND application_name = 'orchmgmt'",
            (name_of(url),),
        )
    time.sleep(0.1)


# Frozen clients

CLIENT = f"""if True:
    import sys
    from orchmgmt.store import Store

    def work():
        store.database.change(sys.argv[2])
        list(store.lock_table.stream())  # as a mirror does, to compare
        print("within", flush=True)
        sys.stdin.readline()

    store = Store({{"DATABASE_URL": sys.argv[1], "DATABASE_TIMEOUT_SECONDS": {TIMEOUT}}})
    store.database.write_once(work)
"""
INSERT = (
    f"INSERT INTO {LOCK} (orchestration_job_id, service_instance_id, owner, expires_at, temporary)"
    f" VALUES ('', 'A|s|1.0.0', 'Other', '{FUTURE}', FALSE)"
)


@pytest.mark.parametrize("statement", [INSERT, f"LOCK TABLE {LOCK} IN SHARE ROW EXCLUSIVE MODE"])
def test_client_that_stops_within_a_transaction_lets_go(start, url, client, statement):
    service = start(DATABASE_URL=url, DATABASE_TIMEOUT_SECONDS=TIMEOUT)
    client(url, statement).send_signal(signal.SIGSTOP)
    stopped = time.monotonic()
    until(lambda: works(service, "A"))
    assert time.monotonic() - stopped < SOON


def test_export_waits_for_its_reader_as_long_as_it_takes(url):
    with Store({"DATABASE_URL": url, "DATABASE_TIMEOUT_SECONDS": TIMEOUT}) as store:
        count = STREAM_BATCH + 1
        store.lock_table.create(
            [NewLock("", f"P{n}|s|1.0.0", "Alice", FUTURE) for n in range(count)]
        )

        def read():
            ids = []
            for row in store.lock_table.stream():
                ids.append(row[0])
                if len(ids) in (1, count - 1):
                    time.sleep(1.5)  # longer than a transaction that holds others up may rest
            return ids

        assert store.database.read(read) == list(range(1, count + 1))


def test_server_is_told_to_look_after_its_clients(url):
    names = [
        "idle_in_transaction_session_timeout",
        "tcp_user_timeout",
        "tcp_keepalives_idle",
        "tcp_keepalives_interval",
        "tcp_keepalives_count",
    ]
    with Store({"DATABASE_URL": url, "DATABASE_TIMEOUT_SECONDS": 3}) as store:
        settings = ",".join(f"current_setting('{name}')" for name in names)
        rows = store.database.read(store.database.rows, f"SELECT {settings}")
    assert rows == [("3s", "3000", "30", "10", "3")]


# Frozen servers


@pytest.mark.parametrize("request_", REQUESTS.values(), ids=REQUESTS)
def test_frozen_server_is_a_503_in_time(start, server, url, request_, caplog):
    service = start(DATABASE_URL=url, DATABASE_TIMEOUT_SECONDS=TIMEOUT)
    until(lambda: service.send("GET", "/health").status == 200)
    with server.frozen():
        for _ in range(2):  # on an open connection, and on none
            assert refused_soon(lambda: request_(service))
            assert service.send("GET", ECHO).body == b"Got it!"
    assert logged(caplog, "the database does not answer: ", "wait timeout expired")
    assert logged(caplog, "couldn't get a connection")
    until(lambda: works(service, "Back"))


def test_frozen_server_does_not_hold_those_who_wait_their_turn(start_server, server, url):
    """More clients than threads, and none waits for the time that others have waited too."""
    service = start_server(DATABASE_URL=url, DATABASE_TIMEOUT_SECONDS=2, THREADS=2)
    assert service.locks().status == 200
    with server.frozen():
        begun = time.monotonic()
        threads = [threading.Thread(target=REQUESTS["locks"], args=[service]) for _ in range(40)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert time.monotonic() - begun < 20  # one after the other they would take 40
    until(lambda: works(service, "Back"))


@pytest.mark.parametrize(
    ("statement", "request_"),
    [("BEGIN", "locks"), ("UPDATE", "health"), ("INSERT", "create"), ("COMMIT", "create")],
)
def test_server_frozen_within_a_request_is_a_503_in_time(start, proxy, url, statement, request_):
    service = start(DATABASE_URL=proxy.url(url), DATABASE_TIMEOUT_SECONDS=TIMEOUT)
    until(lambda: service.jobs().status == 200)
    proxy.stop_at = statement.encode()
    assert refused_soon(lambda: REQUESTS[request_](service))
    assert proxy.silent
    assert service.send("GET", ECHO).body == b"Got it!"
    proxy.go_on()
    until(lambda: works(service, "Back"))


def test_refusal_does_not_wait_for_a_server_that_is_frozen_as_it_is_undone(start, proxy, url):
    service = start(DATABASE_URL=proxy.url(url), DATABASE_TIMEOUT_SECONDS=TIMEOUT)
    until(lambda: works(service, "A"))
    proxy.stop_at = b"ROLLBACK"
    begun = time.monotonic()
    assert service.create(lock("A|s|1.0.0")).error == "Already locked: A|s|1.0.0"
    assert time.monotonic() - begun < SOON
    assert proxy.silent
    proxy.go_on()
    until(lambda: works(service, "Back"))


@pytest.mark.parametrize("answers", [0, 1, 2])
def test_server_that_falls_silent_while_a_client_logs_in_is_a_503_in_time(
    start, server, proxy, url, answers
):
    service = start(DATABASE_URL=proxy.url(url), DATABASE_TIMEOUT_SECONDS=TIMEOUT)
    until(lambda: service.jobs().status == 200)
    reconnect(server, url)
    proxy.stop_after = answers
    for _ in range(3):
        assert refused_soon(service.jobs)
    assert proxy.silent
    proxy.go_on()
    until(lambda: works(service, "Back"))


def test_frozen_server_does_not_hold_a_stop(serve, server, url):
    process = serve(
        *("--database-url", url, "--database-timeout-seconds", str(TIMEOUT)),
        *("--cleaner-interval-seconds", "0.05"),
    )
    assert works(process, "A")
    with server.frozen():
        threads = [threading.Thread(target=REQUESTS["locks"], args=[process]) for _ in range(3)]
        for thread in threads:
            thread.start()
        time.sleep(0.1)
        begun = time.monotonic()
        assert process.stop() == 0
        assert time.monotonic() - begun < SOON
        for thread in threads:
            thread.join()


def test_server_that_refuses_is_a_503_at_once_and_one_that_is_back_serves_at_once(start, server):
    url = server.create_database()
    services = [start(DATABASE_URL=url, DATABASE_TIMEOUT_SECONDS=60) for _ in range(2)]
    assert all(works(service, f"P{n}") for n, service in enumerate(services))
    server.stop()
    try:
        begun = time.monotonic()
        while time.monotonic() < begun + 3:  # so long that a pause that doubles is long
            for service in services:
                for request in REQUESTS.values():
                    assert refused_soon(lambda service=service, request=request: request(service))
    finally:
        server.start()
    for service in services:
        tries = 0  # while the server starts, some are refused; a pause would refuse many more
        while not works(service, f"Back{id(service)}"):
            tries += 1
            assert tries < 20
            time.sleep(0.1)


def test_clients_that_wait_all_get_a_connection_in_the_end(start_server, server, url):
    """Few connections, many threads, and the server ends connections all the time."""
    service = start_server(DATABASE_URL=url, DATABASE_CONNECTIONS=3, THREADS=8)
    statuses = []

    def work(number):
        for n in range(15):
            statuses.append(service.create(lock(f"P{number}x{n}|s|1.0.0")).status)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    ended = set()  # some of them are there for a moment longer
    with server.connect() as other:
        while any(thread.is_alive() for thread in threads):
            terminated = other.execute(
                "SELECT pid, pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE application_name = 'orchmgmt' AND datname = %s AND random() < 0.3",
                (name_of(url),),
            )
            ended |= {pid for pid, _ in terminated}
            time.sleep(0.1)
            connected = other.execute(
                "SELECT pid FROM pg_stat_activity WHERE datname = %s"
                " AND application_name = 'orchmgmt'",
                (name_of(url),),
            )
            assert len({pid for (pid,) in connected} - ended) <= 3
    for thread in threads:
        thread.join()
    assert set(statuses) <= {201, 503}
    assert statuses.count(201) > len(statuses) / 2
    assert service.locks().json["count"] >= statuses.count(201)


# Promises of the server


@pytest.fixture
def replicated():
    """A server whose standby is about to be away."""
    server = Cluster()
    yield server
    server.remove()


WAITING = "SELECT pid FROM pg_stat_activity WHERE wait_event = 'SyncRep'"


def test_commit_that_a_standby_has_not_confirmed_is_no_success(
    start, replicated, caplog, monkeypatch
):
    monkeypatch.setattr(pool, "CANCEL_TIME", 20)  # on a busy machine 0.2 s can pass
    url = replicated.create_database()
    service = start(DATABASE_URL=url, DATABASE_TIMEOUT_SECONDS=TIMEOUT)
    patient = start(DATABASE_URL=url, DATABASE_TIMEOUT_SECONDS=30)
    assert works(service, "Before")
    assert works(patient, "Also")
    replicated.reload(synchronous_standby_names="away")
    with replicated.connect() as other:
        for number in range(3):
            assert refused_soon(lambda number=number: service.create(lock(f"A{number}|b|1.0.0")))
            assert service.locks().status == 200
            assert service.send("GET", "/health").status == 200
        assert logged(caplog, "the database does not answer: ", "wait timeout expired")
        assert "canceling" not in caplog.text
        # Those whose commits were given up leave nothing behind that waits on the server.
        until(lambda: not other.execute(WAITING).fetchall())

        # Whoever ends the wait makes the commit of this server alone, of which nobody is told.
        for number, end in enumerate(("pg_cancel_backend", "pg_terminate_backend")):
            answers = []
            thread = threading.Thread(
                target=lambda number=number, answers=answers: answers.append(
                    patient.create(lock(f"B{number}|b|1.0.0")).status
                )
            )
            thread.start()
            until(lambda: other.execute(WAITING).fetchall())
            other.execute(f"SELECT {end}(pid) FROM ({WAITING}) AS waiting")
            thread.join()
            assert answers == [503]
    assert logged(caplog, "canceling wait for synchronous replication")
    replicated.reload(synchronous_standby_names="''")
    until(lambda: works(service, "After") and works(patient, "Afterwards"))


@pytest.mark.parametrize("where", ["DATABASE {name}", "ROLE orchmgmt IN DATABASE {name}"])
def test_commit_is_on_disk_whatever_the_server_says(server, url, where):
    shown = "SELECT current_setting('synchronous_commit')"
    with server.connect() as other:
        for said, is_ in [("off", "on"), ("local", "local"), ("remote_apply", "remote_apply")]:
            other.execute(
                f"ALTER {where.format(name=name_of(url))} SET synchronous_commit = {said}"
            )
            with Store({"DATABASE_URL": url}) as store:
                assert store.database.read(store.database.rows, shown) == [(is_,)]


# Read-only servers


def test_database_that_was_read_only_for_a_while_serves_again(start, server, url, caplog):
    service = start(DATABASE_URL=url)
    assert works(service, "Before")
    with server.connect() as other:
        other.execute(f"ALTER DATABASE {name_of(url)} SET default_transaction_read_only = on")
        reconnect(server, url)
        for _ in range(2):
            assert service.locks().json["count"] == 1
            for name in ("create", "remove", "health"):
                assert refused_soon(lambda name=name: REQUESTS[name](service))
        assert logged(caplog, "the database does not answer: ", "read-only transaction")
        other.execute(f"ALTER DATABASE {name_of(url)} RESET default_transaction_read_only")
    # The connections that reads have made and used meanwhile would be read-only for ever.
    until(lambda: works(service, "After"))
    until(lambda: service.send("GET", "/health").status == 200)
    assert service.locks().json["count"] == 2


@pytest.fixture
def pair():
    """Two servers, of which the first can be written to, as if the second were its standby."""
    servers = [Cluster(), Cluster()]
    yield servers
    for server in servers:
        server.remove()


def test_service_goes_over_to_the_host_that_can_write(start, pair):
    urls = [server.create_database() for server in pair]
    for url in urls:
        Store({"DATABASE_URL": url}).close()
    first, second = pair
    second.reload(default_transaction_read_only="on")
    hosts = ",".join(f"127.0.0.1:{server.port}" for server in pair)
    url = urls[0].replace(f"127.0.0.1:{first.port}", hosts)
    service = start(DATABASE_URL=url)
    told = start(DATABASE_URL=f"{url}?target_session_attrs=any")

    def locks(url):
        with closing(connect(url)) as database:
            return database.execute(f"SELECT count(*) FROM {LOCK}").fetchone()[0]

    assert works(service, "A")
    assert (locks(urls[0]), locks(urls[1])) == (1, 0)
    assert told.locks().json["count"] == 1

    first.reload(default_transaction_read_only="on")
    second.reload(default_transaction_read_only="")
    until(lambda: works(service, "B"))
    assert (locks(urls[0]), locks(urls[1])) == (1, 1)
    assert service.send("GET", "/health").status == 200

    for _ in range(3):  # it stays with the first
        assert told.send("GET", "/health").status == 503
        assert told.locks().json["count"] == 1

    second.stop("immediate")
    first.reload(default_transaction_read_only="")
    until(lambda: works(service, "C"))
    assert locks(urls[0]) == 2
    second.start()


# Connections and threads


def pid_of(store):
    return store.database.read(store.database.rows, "SELECT pg_backend_pid()")


def test_connection_is_used_again_but_not_for_ever(url, monkeypatch):
    with Store({"DATABASE_URL": url}) as store:
        first = pid_of(store)
        assert pid_of(store) == first
    monkeypatch.setattr(pool, "MAX_AGE", 0.2)
    with Store({"DATABASE_URL": url}) as store:
        first = pid_of(store)
        time.sleep(0.3)
        pid_of(store)
        assert pid_of(store) != first


def test_threads_begin_with_the_first_request_and_end_with_the_store(url):
    before = set(threading.enumerate())
    with store_of(create_app({"DATABASE_URL": url})) as store:
        assert set(threading.enumerate()) == before
        store.database.check()
    assert set(threading.enumerate()) == before
    with pytest.raises(Unavailable, match="The store is closed"):
        store.database.check()
    assert set(threading.enumerate()) == before


def test_process_ends_at_once_and_in_silence_though_it_closes_nothing(url):
    program = """if True:
        import sys
        from orchmgmt.store import Store
        store = Store({"DATABASE_URL": sys.argv[1]})
        store.database.check()
        print("checked", flush=True)
    """
    with subprocess.Popen(
        [sys.executable, "-X", "dev", "-W", "error", "-c", program, url],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout.readline() == "checked\n"
        begun = time.monotonic()
        assert process.communicate(timeout=30) == ("", "")
        assert process.returncode == 0
        assert time.monotonic() - begun < SOON


def test_processes_that_are_forked_from_one_application_serve(url):
    program = """if True:
        import os, sys
        from orchmgmt.app import create_app
        app = create_app({"DATABASE_URL": sys.argv[1]})
        path = "/serviceorchestration/orchestration/mgmt/lock/create"
        children = []
        for number in range(3):
            if not (child := os.fork()):
                lock = {"owner": "Alice", "expiresAt": "2099-01-01T00:00:00Z"}
                for n in range(20):
                    lock["serviceInstanceId"] = f"P{number}x{n}|s|1.0.0"
                    answer = app.test_client().post(
                        path,
                        json={"locks": [lock]},
                        headers={"Authorization": "Bearer SYSTEM//Sysop"},
                    )
                    assert answer.status_code == 201, answer.json
                sys.exit()
            children.append(child)
        sys.exit(any(os.waitpid(child, 0)[1] for child in children))
    """
    ended = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error::ResourceWarning", "-c", program, url],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    with Store({"DATABASE_URL": url}) as store:
        assert store.lock_table.find({}, Page(0, 1))[1] == 60


def test_connection_is_found_fit_without_asking_the_server(proxy, url):
    with Store({"DATABASE_URL": proxy.url(url)}) as store:
        pid_of(store)
        before = proxy.asked
        pid_of(store)
        assert proxy.asked == before + 3  # to begin, the query and to commit
