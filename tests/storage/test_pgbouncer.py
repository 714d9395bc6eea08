"""PgBouncer between services and PostgreSQL: sessions there are nobody's own."""

import os
import shutil
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import cluster
import psycopg
import pytest
from needs import program
from support import Connection, Process, lock, until

from orchmgmt.databases.queries import Page
from orchmgmt.store import Store

pytestmark = pytest.mark.postgresql


class Bouncer:
    """A running PgBouncer before a server.

    Args:
        server: the server.
        folder: where its files are.
        mode: `session` or `transaction`.
        connections: how many to the server there are at most.
    """

    def __init__(
        self, server: cluster.Cluster, folder: Path, mode: str, connections: int = 2
    ) -> None:
        self._server = server
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port: int = probe.getsockname()[1]
        self._config = folder / "pgbouncer.ini"
        users = folder / "users.txt"
        users.write_text(f'"orchmgmt" "{cluster.PASSWORD}"\n')
        self._config.write_text(
            f"""[databases]
            * = host=127.0.0.1 port={server.port}
            [pgbouncer]
            listen_addr = 127.0.0.1
            listen_port = {self._port}
            unix_socket_dir =
            auth_type = scram-sha-256
            auth_file = {users}
            pool_mode = {mode}
            default_pool_size = {connections}
            """
        )
        self._process: subprocess.Popen[bytes] | None = None
        self._user: dict[str, Any] = {}
        if os.getuid() == 0:  # which it refuses
            self._user = {"user": "postgres", "group": "postgres", "extra_groups": []}
            for file in (folder, users, self._config):
                shutil.chown(file, "postgres", "postgres")
            for parent in folder.parents[:-1]:
                with suppress(PermissionError):
                    parent.chmod(parent.stat().st_mode | 0o011)
        self.start()

    def start(self) -> None:
        """Start it; again if a connection of another test has its port for a moment."""

        def listens() -> bool:
            if self._process is None or self._process.poll() is not None:
                self._process = subprocess.Popen(
                    [program("pgbouncer"), str(self._config)],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    **self._user,
                )
            with suppress(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", self._port)).close()
                return self._process.poll() is None
            return False

        until(listens)

    def stop(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def url(self, url: str) -> str:
        """The URL of a database, through here."""
        return url.replace(f":{self._server.port}/", f":{self._port}/")


@pytest.fixture(params=["transaction", "session"])
def mode(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def before(
    postgresql: cluster.Cluster, tmp_path_factory: pytest.TempPathFactory, mode: str
) -> Iterator[Callable[..., Bouncer]]:
    """Start PgBouncers before the server: `before(connections=1)`."""
    started: list[Bouncer] = []

    def start(connections: int = 2) -> Bouncer:
        folder = tmp_path_factory.mktemp("pgbouncer")
        started.append(Bouncer(postgresql, folder, mode, connections))
        return started[-1]

    yield start
    for bouncer in started:
        bouncer.stop()


def test_two_processes_serve_whatever_session_a_transaction_gets(
    serve: Callable[..., Process],
    before: Callable[..., Bouncer],
    database_url: str,
    tmp_path: Path,
    mode: str,
) -> None:
    # In session mode a connection keeps one of the server's as long as it lasts.
    bouncer = before(connections=3 if mode == "transaction" else 20)
    url = bouncer.url(database_url)
    servers = [serve("--database-url", url) for _ in range(2)]
    statuses: list[int] = []

    def work(number: int) -> None:
        client = Connection(servers[number % 2].url)
        for step in range(40):
            name = f"P{number}s{step}|b|1.0.0"
            done = [
                client.create(lock(name, "Alice")),
                client.create(lock(name, "Bob")),
                client.send("POST", "/lock/query", {"serviceInstanceIds": [name]}),
                client.send("POST", "/lock/query", {"owners": ["Alice"], "pagination": PAGE}),
                client.send("POST", "/history/query", {"pagination": PAGE}),
                client.remove("Alice", name),
            ]
            statuses.extend(status for status, _ in done)
        client.close()

    with in_parallel(work, 6):
        pass
    assert sorted(set(statuses)) == [200, 201, 400]
    assert len(statuses) == 6 * 40 * 6
    assert statuses.count(400) == statuses.count(201) == 6 * 40
    for number, server in enumerate(servers):
        assert server.stop() == 0
        log = (tmp_path / f"server-{number}.log").read_text()
        assert "ERROR" not in log, log
        assert "couldn't stop" not in log


PAGE = {"page": 0, "size": 10}


@contextmanager
def in_parallel(work: Callable[[int], None], count: int) -> Iterator[None]:
    threads = [threading.Thread(target=work, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    yield
    for thread in threads:
        thread.join()


NAMES = [
    "idle_in_transaction_session_timeout",
    "lock_timeout",
    "statement_timeout",
    "synchronous_commit",
    "tcp_keepalives_idle",
    "tcp_user_timeout",
]
PROMISED = ["2s", "2s", "2s", "on", "30", "2000"]


def told(settings: list[tuple[str, str]]) -> list[str]:
    return [value for name, value in sorted(settings) if name in NAMES]


def test_what_it_promises_is_for_its_own_transactions(
    before: Callable[..., Bouncer], database_url: str, postgresql: cluster.Cluster, mode: str
) -> None:
    bouncer = before(connections=1)
    url = bouncer.url(database_url)
    listed = f"SELECT name, current_setting(name) FROM pg_settings WHERE name IN {tuple(NAMES)!r}"
    postgresql.reload(synchronous_commit="off")
    try:
        with psycopg.connect(url, autocommit=True) as other:
            untouched = told(other.execute(listed).fetchall())
            assert untouched[3] == "off"
        with Store({"DATABASE_URL": url, "DATABASE_TIMEOUT_SECONDS": 2}) as store:
            for work in (store.database.read, store.database.write):
                for _ in range(8):  # psycopg would prepare a statement that comes so often
                    found = work(store.database.rows, listed)
                assert told(found) == PROMISED
            store.history.create("PULL", "A", "A", "b")
            assert len(stream(store)) == 1
        with psycopg.connect(url, autocommit=True) as other:
            assert told(other.execute(listed).fetchall()) == untouched
            held = "SELECT count(*) FROM pg_prepared_statements"
            assert other.execute(held).fetchone() == (0,)
    finally:
        postgresql.reload(synchronous_commit="")


def stream(store: Store) -> list[list[Any]]:
    return store.database.read(lambda: list(store.job_table.stream()))


def test_a_pooler_that_is_restarted_is_a_503_until_it_is_back(
    start: Callable[..., Any], before: Callable[..., Bouncer], database_url: str
) -> None:
    bouncer = before()
    service = start(DATABASE_URL=bouncer.url(database_url), DATABASE_TIMEOUT_SECONDS=10)
    assert service.create(lock("A|b|1")).status == 201
    bouncer.stop()
    assert service.create(lock("B|b|1")).status == 503
    bouncer.start()
    while (answer := service.create(lock("C|b|1"))).status == 503:  # it has to log in anew
        pass
    assert answer.status == 201
    rows, _ = service.store.lock_table.find({}, Page(0, 10))
    assert [row[2] for row in rows] == ["C|b|1.0.0", "A|b|1.0.0"]
