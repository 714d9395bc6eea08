"""Measure what could grow with what is stored: pages, writes, the cleaner, an import.

Each figure is taken at two sizes, so that a row tells by itself whether it grows. Run it on two
versions of the code to compare them.

Usage: growth.py [--small ROWS] [--large ROWS] [--postgresql [URL]]
It measures SQLite, or PostgreSQL: on its own server, or in the database of the URL, whose locks
and jobs it deletes.
"""

import argparse
import http.client
import json
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from run import ORCHMGMT, running

from orchmgmt.databases.queries import Page
from orchmgmt.models import NewLock
from orchmgmt.store import Store

PAST, FUTURE = "2020-01-01T00:00:00Z", "2099-01-01T00:00:00Z"
FIRST = Page(0, 10)
CREATES = 300

#: Stands for a PostgreSQL server of its own.
OWN = "own"

# PostgreSQL and SQLite make the numbers from 1 to n in ways of their own.
NUMBERS = {
    "sqlite": "WITH RECURSIVE numbers (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers"
    " WHERE n < {rows}) ",
    "postgresql": "WITH numbers AS (SELECT generate_series(1, {rows}) AS n) ",
}


def kind_of(store: Store) -> str:
    return store.settings.database_url.partition(":")[0]


def insert(store: Store, table: str, rows: int, select: str) -> None:
    sql = f"INSERT INTO {table} {NUMBERS[kind_of(store)].format(rows=rows)}{select} FROM numbers"
    if kind_of(store) == "postgresql":
        sql = sql.replace("%", "%%")
    store.database.write(store.database.change, sql)


def put_jobs(store: Store, rows: int, status: str, kinds: int, offset: int = 0) -> None:
    """Jobs of so many kinds, each of its own requester, target and service."""
    kind = f"(n % {kinds})"
    end = f"'{PAST}'" if status == "DONE" else "''"
    job_id = f"'00000000-0000-4000-8000-' || substr('{offset:04}00000000', 1, 12 - length(n || ''))"
    insert(
        store, "orchestration_job", rows,
        f"SELECT {job_id} || n, '{status}', 'PULL', 'R' || {kind}, 'T' || {kind}, 's' || {kind},"
        f" '', '', '{PAST}', '{PAST}', {end}",
    )  # fmt: skip


def put_locks(store: Store, rows: int, expires: str, name: str) -> None:
    columns = "(orchestration_job_id, service_instance_id, owner, expires_at, temporary)"
    insert(
        store, f"orchestration_lock {columns}", rows,
        f"SELECT '', '{name}' || n || '|s|1.0.0', 'O' || (n % 1000), '{expires}', FALSE",
    )  # fmt: skip


def settle(store: Store) -> None:
    """Give PostgreSQL the statistics that it has a while after a load."""
    if kind_of(store) == "postgresql":
        import psycopg

        with psycopg.connect(store.settings.database_url, autocommit=True) as connection:
            connection.execute("VACUUM ANALYZE")


def milliseconds(work: Callable[[], object], times: int = 30) -> float:
    """The median time of some work."""
    taken = []
    for _ in range(times):
        begun = time.perf_counter()
        work()
        taken.append(1000 * (time.perf_counter() - begun))
        if sum(taken) > 20_000:
            break
    return statistics.median(taken)


def pages(store: Store) -> Iterator[tuple[str, float]]:
    find = store.job_table.find
    for name, wanted in (
        ("first page of jobs", {}),
        ("the same by type", {"type": "PULL"}),
        ("the same by status", {"statuses": ["PENDING"]}),
        ("the same by status and type", {"statuses": ["PENDING"], "type": "PULL"}),
        ("the same by requester", {"requester_systems": ["R7"]}),
        ("the same by requester and type", {"requester_systems": ["R7"], "type": "PULL"}),
    ):
        yield name, milliseconds(lambda wanted=wanted: find(wanted, FIRST))
    by_end = Page(0, 10, "finished_at")
    yield "the same in the order of finishedAt", milliseconds(lambda: find({}, by_end))
    yield "first page of locks", milliseconds(lambda: store.lock_table.find({}, FIRST))
    for order in ("expires_at", "owner"):
        by = Page(0, 10, order)
        name = f"the same in the order of {order}"
        yield name, milliseconds(lambda by=by: store.lock_table.find({}, by))
    owners = {"owners": ["O7"]}
    yield "the same by owner", milliseconds(lambda: store.lock_table.find(owners, FIRST))


def writes(store: Store) -> Iterator[tuple[str, float]]:
    made = store.history.create("PULL", "R0", "T0", "s0")

    def start_and_finish() -> None:
        store.history.start(made)
        store.history.finish(made)

    yield "start and finish of a job", milliseconds(start_and_finish)
    number = iter(range(1000))
    yield (
        "create of a lock",
        milliseconds(
            lambda: store.lock_table.create(
                [NewLock("", f"N{next(number)}|s|1.0.0", "Owner", FUTURE)]
            )
        ),
    )


def figures(url: str, size: int, kinds: int) -> dict[str, float]:
    """Pages and writes with so many locks and jobs, these of so many kinds, in milliseconds."""
    with opened(url) as store:
        put_jobs(store, size, "PENDING", kinds)
        put_locks(store, size, FUTURE, "P")
        settle(store)
        return dict([*pages(store), *writes(store)])


def grown(url: str, sizes: list[int]) -> None:
    """Pages and writes with few kinds of jobs and with as many as jobs."""
    for many in (False, True):
        found = [figures(url, size, size if many else 100) for size in sizes]
        for name in found[0]:
            kinds = "as many kinds as jobs" if many else "100 kinds"
            row(f"{name}, {kinds}", *(f"{it[name]:.2f} ms" for it in found))


@contextmanager
def opened(url: str) -> Iterator[Store]:
    """A store with nothing in it."""
    with tempfile.TemporaryDirectory() as folder:
        settings = {"DATABASE_URL": url or f"sqlite:///{folder}/orchmgmt.db"}
        with Store({**settings, "DATABASE_TIMEOUT_SECONDS": 600}) as store:
            if url:
                tables = "orchestration_job, orchestration_lock"
                store.database.write(store.database.change, f"TRUNCATE {tables}")
            yield store


def cleaned(url: str, rows: int) -> None:
    """Old jobs deleted per second, beside unfinished ones."""
    with opened(url) as store:
        put_jobs(store, rows // 2, "PENDING", 100)
        put_jobs(store, rows, "DONE", 100, offset=1000)
        settle(store)
        begun = time.monotonic()
        deleted = store.clean()[1]
        row(f"{deleted:,} old jobs cleaned", f"{deleted / (time.monotonic() - begun):,.0f}/s")


def beside_the_cleaner(rows: int) -> None:
    """Creates while expired locks are deleted, over a socket."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "orchmgmt.db")
        with Store({"DATABASE_URL": f"sqlite:///{path}"}) as store:
            put_locks(store, rows, PAST, "P")
        options = ["--database-url", f"sqlite:///{path}", "--cleaner-interval-seconds", "0.05"]
        with running([ORCHMGMT, "serve", "--port", "0", *options]) as server:
            taken = list(creates(server.url))
        with closing(sqlite3.connect(path)) as database:
            (left,) = database.execute(
                "SELECT count(*) FROM orchestration_lock WHERE expires_at = ?", (PAST,)
            ).fetchone()
        p50, p99 = statistics.median(taken), statistics.quantiles(taken, n=100)[98]
        row(
            f"create beside the cleaner, {rows:,} expired locks, {left:,} left at the end",
            f"p50 {p50:.1f} ms", f"p99 {p99:.1f} ms", f"max {max(taken):.1f} ms",
        )  # fmt: skip


def creates(url: str) -> Iterator[float]:
    address = urlsplit(url)
    client = http.client.HTTPConnection(str(address.hostname), address.port, timeout=60)
    headers = {"Authorization": "Bearer SYSTEM//Sysop", "Content-Type": "application/json"}
    for number in range(CREATES):
        element = {
            "serviceInstanceId": f"Q{number}|s|1.0.0", "owner": "Owner", "expiresAt": FUTURE,
        }  # fmt: skip
        begun = time.perf_counter()
        client.request(
            "POST", "/serviceorchestration/orchestration/mgmt/lock/create",
            json.dumps({"locks": [element]}), headers,
        )  # fmt: skip
        answer = client.getresponse()
        answer.read()
        assert answer.status == 201
        yield 1000 * (time.perf_counter() - begun)
        time.sleep(0.005)


def imported(rows: int) -> None:
    """The memory of `lock import`."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "locks.jsonl")
        with file.open("w") as stream:
            for n in range(1, rows + 1):
                stream.write(
                    f'{{"id": {n}, "serviceInstanceId": "P{n}|s|1.0.0", "owner": "Owner",'
                    f' "expiresAt": "{FUTURE}"}}\n'
                )
        url = f"sqlite:///{folder}/orchmgmt.db"
        begun = time.monotonic()
        with subprocess.Popen([ORCHMGMT, "lock", "import", str(file), "--database-url", url]) as it:
            most = 0
            while it.poll() is None:
                status = Path(f"/proc/{it.pid}/status").read_text()
                if "VmHWM" in status:
                    most = int(status.split("VmHWM:")[1].split()[0])
                time.sleep(0.05)
        row(
            f"lock import, {rows:,} locks",
            f"{most / 1024:.0f} MiB", f"{rows / (time.monotonic() - begun):,.0f}/s",
        )  # fmt: skip


@contextmanager
def postgresql(url: str) -> Iterator[str]:
    """The URL of a database, on a server of its own if that is wanted."""
    if url != OWN:
        yield url
        return
    sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
    import cluster

    server = cluster.Cluster(fsync="on")
    try:
        yield server.create_database()
    finally:
        server.remove()


def row(*cells: str) -> None:
    print("|", " | ".join(cells), "|", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--small", type=int, default=10_000)
    parser.add_argument("--large", type=int, default=1_000_000)
    parser.add_argument("--postgresql", default="", nargs="?", const=OWN, metavar="URL")
    options = parser.parse_args()
    sizes = [options.small, options.large]
    with postgresql(options.postgresql) as url:
        grown(url, sizes)
        cleaned(url, options.large // 2)
    if not url:
        beside_the_cleaner(options.large)
        for rows in sizes:
            imported(rows)


if __name__ == "__main__":
    main()
