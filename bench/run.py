"""Measure the service beside the limit server, and under Granian, and write RESULTS.md.

All are measured in one run and in turn, so that what the machine does besides falls on all; what
counts are the ratios. wrk makes the load, on the same machine.

Usage: run.py [--seconds N] [--rounds N] [--largest JOBS] [--only CASE] [--output FILE]
"""

import argparse
import json
import os
import platform
import random
import shutil
import signal
import socket
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.parse import urlsplit
from urllib.request import urlopen

from orchmgmt.models import NewLock
from orchmgmt.settings import Settings
from orchmgmt.store import Store
from orchmgmt.values import write_instant

HERE = Path(__file__).parent
LIMIT = [sys.executable, str(HERE / "limit_server.py")]
ORCHMGMT = str(Path(sys.executable).with_name("orchmgmt"))

CONNECTIONS = 8
LOCKS = 10_000
JOBS = 10_000
OWNERS = LOCKS // 10
REQUESTERS = 100
SERVICES = 20
FIRST_DAY = datetime(2026, 11, 1)
PERIOD = timedelta(days=14)

# Each case with the least ratio of our requests/s to the limit server's that we accept.
CASES = {
    "lock_by_id": 0.6,
    "locks_of_owner": 0.6,
    "page_of_1000_locks": 0.4,
    "page_of_10_jobs": 0.5,
    "page_of_10_jobs_filtered": 0.5,
    "page_of_1000_jobs": 0.4,
    "create_1": 0.5,
    "create_100": 0.5,
}
#: Granian with two workers answers at least so many times the queries of `orchmgmt serve`.
TWO_WORKERS = 1.7

GROWTH = ("page_of_10_jobs", "page_of_10_jobs_filtered", "job_by_id", "deep_page_of_10_jobs")


@dataclass
class Figures:
    """What wrk saw: requests a second, latencies in milliseconds, and failed requests."""

    rate: float
    p50: float
    p99: float
    errors: int

    @classmethod
    def median(cls, runs: "list[Figures]") -> "Figures":
        return cls(
            statistics.median(run.rate for run in runs),
            statistics.median(run.p50 for run in runs),
            statistics.median(run.p99 for run in runs),
            sum(run.errors for run in runs),
        )


@dataclass
class Running:
    """A server that is being measured."""

    url: str
    process: "subprocess.Popen[str]"

    @property
    def resident_mib(self) -> float:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.split("VmRSS:")[1].split()[0]) / 1024

    def load(self, case: str, rows: int, seconds: float, connections: int) -> Figures:
        unique = f"{time.monotonic_ns():x}"
        output = subprocess.run(
            ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "-s", str(HERE / "requests.lua"),
             self.url, "--", case, str(rows), unique],
            capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip
        seen = json.loads(output.strip().splitlines()[-1])
        rate = seen["requests"] / seen["microseconds"] * 1e6
        return Figures(rate, seen["p50"] / 1000, seen["p99"] / 1000, seen["errors"])


@contextmanager
def running(command: list[str]) -> Iterator[Running]:
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert process.stdout is not None
    try:
        yield Running(process.stdout.readline().split()[-1], process)
    finally:
        process.terminate()
        process.wait()


def ours(path: Path) -> list[str]:
    return [ORCHMGMT, "serve", "--port", "0", "--database-url", f"sqlite:///{path}",
            "--history-max-age-days", "100000"]  # fmt: skip


@contextmanager
def granian(path: Path, workers: int) -> Iterator[Running]:
    """The application under Granian, as docs/deploy.md has it, a thread for each worker."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [str(Path(sys.executable).with_name("granian")), "--interface", "wsgi", "--factory",
         "orchmgmt.app:create_app", "--workers", str(workers), "--blocking-threads", "1",
         "--port", str(port)],
        env={**os.environ, "ORCHMGMT_DATABASE_URL": f"sqlite:///{path}",
             "ORCHMGMT_LOG_LEVEL": "ERROR"},
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, text=True, start_new_session=True,
    )  # fmt: skip
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(3 * workers):  # all of them have started
            wait_for(f"{url}/health", process)
            time.sleep(0.3)
        yield Running(url, process)
    finally:
        os.killpg(process.pid, signal.SIGKILL)  # its workers too
        process.wait()


def wait_for(url: str, process: "subprocess.Popen[str]") -> None:
    while True:
        try:
            urlopen(url).read()
        except URLError:
            if process.poll() is not None:
                raise RuntimeError(f"{process.args} ended before it answered") from None
            time.sleep(0.001)
        else:
            return


def job(chance: random.Random, number: int, of: int) -> dict[str, str]:
    """One of `of` jobs; a requester asks for few services, as it does in a cloud."""
    requester = chance.randrange(REQUESTERS)
    push = chance.random() < 0.3
    status = chance.choices(("DONE", "ERROR", "IN_PROGRESS", "PENDING"), (90, 7, 2, 1))[0]
    created = FIRST_DAY + PERIOD * (number / of)
    finished = status in ("DONE", "ERROR")
    return {
        "id": f"00000000-0000-4000-8000-{number:012x}",
        "status": status,
        "type": "PUSH" if push else "PULL",
        "requester_system": f"Requester{requester}",
        "target_system": f"Requester{(requester + push) % REQUESTERS}",
        "service_definition": f"service{(requester + chance.randrange(4)) % SERVICES}",
        "subscription_id": f"00000000-0000-4000-9000-{requester:012x}" if push else "",
        "message": "No provider is available" if status == "ERROR" else "",
        "created_at": write_instant(created),
        "started_at": "" if status == "PENDING" else write_instant(created + timedelta(seconds=1)),
        "finished_at": write_instant(created + timedelta(seconds=5)) if finished else "",
    }


def fill(path: Path, jobs: int, locks: int) -> None:
    fill_store(Settings(database_url=f"sqlite:///{path}"), jobs, locks)


def fill_store(settings: Settings, jobs: int, locks: int) -> None:
    chance = random.Random(jobs)
    with Store(settings) as store:
        for start in range(0, jobs, 10_000):
            some = [job(chance, number, jobs) for number in range(start, min(start + 10_000, jobs))]
            store.database.write(store.job_table.put, some)
        made = [
            NewLock("", f"Provider{n}|service{n % SERVICES}|1.0.0", f"Owner{n % OWNERS}",
                    write_instant(datetime(2099, 1, 1) + timedelta(seconds=n)))
            for n in range(locks)
        ]  # fmt: skip
        store.database.write(store.lock_table.put, made)


def copy(source: Path, target: Path) -> Path:
    shutil.copyfile(source, target)
    return target


def compare(folder: Path, options: argparse.Namespace) -> Iterator[list[str]]:
    """The main table: each case, the service and the limit server in turn."""
    data = folder / "data.db"
    fill(data, JOBS, LOCKS)
    with (
        running(ours(copy(data, folder / "ours.db"))) as service,
        running([*LIMIT, str(copy(data, folder / "limit.db"))]) as limit,
    ):
        for case, wanted in CASES.items():
            if options.only not in ("", case):
                continue
            seen: dict[str, list[Figures]] = {"service": [], "limit": []}
            for _ in range(options.rounds):
                for name, server in (("service", service), ("limit", limit)):
                    seen[name].append(server.load(case, LOCKS, options.seconds, CONNECTIONS))
            us, them = Figures.median(seen["service"]), Figures.median(seen["limit"])
            ratio = statistics.median(
                a.rate / b.rate for a, b in zip(seen["service"], seen["limit"], strict=True)
            )
            verdict = "" if ratio >= wanted else " **below**"
            yield [
                case, f"{us.rate:,.0f}", f"{us.p50:.2f}", f"{us.p99:.2f}", str(us.errors),
                f"{them.rate:,.0f}", f"{them.p50:.2f}", f"{them.p99:.2f}", str(them.errors),
                f"{ratio:.2f}{verdict}", f"{wanted:g}",
            ]  # fmt: skip


def servers(folder: Path, options: argparse.Namespace) -> Iterator[list[str]]:
    """The application under Granian, with one worker and with two, beside `orchmgmt serve`."""
    data = folder / "servers.db"
    fill(data, JOBS, LOCKS)
    with (
        running(ours(copy(data, folder / "default.db"))) as default,
        granian(copy(data, folder / "one.db"), 1) as one,
        granian(copy(data, folder / "two.db"), 2) as two,
    ):
        for case in CASES:
            if options.only not in ("", case):
                continue
            rates: list[list[float]] = []
            errors = 0
            for _ in range(options.rounds):
                seen = [
                    server.load(case, LOCKS, options.seconds, CONNECTIONS)
                    for server in (default, one, two)
                ]
                rates.append([it.rate for it in seen])
                errors += sum(it.errors for it in seen)
            medians = [statistics.median(column) for column in zip(*rates, strict=True)]
            ratio = statistics.median(row[2] / row[0] for row in rates)
            query = not case.startswith("create")
            verdict = " **below**" if query and ratio < TWO_WORKERS else ""
            yield [case, *(f"{it:,.0f}" for it in medians), str(errors),
                   f"{ratio:.2f}{verdict}", f"{TWO_WORKERS:g}" if query else ""]  # fmt: skip


def grow(folder: Path, options: argparse.Namespace) -> Iterator[list[str]]:
    """How one connection's median answer time grows with the history."""
    for jobs in (10_000, 100_000, 1_000_000):
        if jobs > options.largest:
            return
        path = folder / f"jobs-{jobs}.db"
        fill(path, jobs, 0)
        with running(ours(path)) as service, running([*LIMIT, str(path)]) as limit:
            for case in GROWTH:
                if case.startswith("deep") and jobs < 100_000:
                    continue
                us = service.load(case, jobs, options.seconds, 1)
                them = limit.load(case, jobs, options.seconds, 1) if case in CASES else None
                yield [f"{jobs:,}", case, f"{us.p50:.2f}", f"{us.p99:.2f}", str(us.errors),
                       f"{them.p50:.2f}" if them else ""]  # fmt: skip


def engines(options: argparse.Namespace) -> Iterator[list[str]]:
    """What pages and writes take in the process, on both kinds of database, small and large."""
    sys.path.insert(0, str(HERE.parent / "tests"))
    import cluster
    import growth

    found = []
    reason = cluster.missing()
    for kind in ("",) if reason else ("", growth.OWN):
        with growth.postgresql(kind) as url:
            found += [growth.figures(url, size, 100) for size in (JOBS, options.largest)]
    for name in found[0]:
        yield [name, *(f"{it[name]:.2f}" for it in found), *[reason] * (4 - len(found))]


@contextmanager
def company(kind: str, url: str) -> Iterator[None]:
    """Keep connections open to a server that do nothing, or very little, while it is measured."""
    address = urlsplit(url)
    head = (
        "POST /serviceorchestration/orchestration/mgmt/history/query HTTP/1.1\r\nHost: bench\r\n"
        "Authorization: Bearer SYSTEM//Sysop\r\nContent-Type: application/json\r\n"
    )
    sockets = []
    for _ in range({"nobody": 0, "idle connections": 500}.get(kind, 50)):
        client = socket.socket()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect((address.hostname, address.port))
        sockets.append(client)
        if kind == "slow readers":  # each asks for a large page and does not read it
            client.sendall(f"{head}Content-Length: 2\r\n\r\n{{}}".encode())
        if kind == "slow senders":
            client.sendall(f"{head}Content-Length: 100000\r\n\r\n".encode())
    if kind == "slow readers":
        time.sleep(2)  # what they asked for is being made; from now on it only waits for them
    ended = threading.Event()

    def trickle() -> None:
        while kind == "slow senders" and not ended.wait(0.2):
            for client in sockets:
                client.send(b" ")

    thread = threading.Thread(target=trickle)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        for client in sockets:
            client.close()


def slow_clients(folder: Path, options: argparse.Namespace) -> Iterator[list[str]]:
    """The query by id beside clients that are slow."""
    path = folder / "slow.db"
    fill(path, JOBS, LOCKS)
    with running(ours(path)) as service:
        for kind in ("nobody", "idle connections", "slow readers", "slow senders"):
            seen, ratios = [], []
            for _ in range(options.rounds):
                alone = service.load("lock_by_id", LOCKS, options.seconds, CONNECTIONS)
                with company(kind, service.url):
                    seen.append(service.load("lock_by_id", LOCKS, options.seconds, CONNECTIONS))
                ratios.append(seen[-1].rate / alone.rate)
            us = Figures.median(seen)
            yield [kind, f"{us.rate:,.0f}", f"{us.p50:.2f}", f"{us.p99:.2f}", str(us.errors),
                   f"{statistics.median(ratios):.2f}"]  # fmt: skip


def processes(options: argparse.Namespace) -> Iterator[list[str]]:
    """Throughput of one, two and three processes on one PostgreSQL server, fsync and all."""
    sys.path.insert(0, str(HERE.parent / "tests"))
    import cluster

    if reason := cluster.missing():
        yield ["not measured", reason, "", "", "", ""]
        return
    postgresql = cluster.Cluster(fsync="on")
    try:
        url = postgresql.create_database()
        fill_store(Settings(database_url=url), JOBS, LOCKS)
        with ExitStack() as stack:
            servers: list[Running] = []
            while len(servers) < 3:
                command = [ORCHMGMT, "serve", "--port", "0", "--database-url", url]
                servers.append(stack.enter_context(running(command)))
                for case in ("lock_by_id", "create_1", "create_100"):
                    share = max(1, CONNECTIONS // len(servers))
                    with ThreadPoolExecutor() as loads:
                        seen = list(
                            loads.map(
                                lambda it: it[0].load(*it[1:]),
                                [(it, case, LOCKS, options.seconds, share) for it in servers],
                            )
                        )
                    rate = sum(it.rate for it in seen)
                    worst = max(it.p99 for it in seen)
                    errors = sum(it.errors for it in seen)
                    yield [str(len(servers)), case, f"{rate:,.0f}",
                           f"{statistics.mean(it.p50 for it in seen):.2f}", f"{worst:.2f}",
                           str(errors)]  # fmt: skip
    finally:
        postgresql.remove()


def start_time(folder: Path) -> float:
    """Seconds from the start of the command to its first answer, the median of seven."""
    times = []
    for number in range(7):
        begin = time.perf_counter()
        with running(ours(folder / f"start-{number}.db")) as service:
            wait_for(f"{service.url}/health", service.process)
            times.append(time.perf_counter() - begin)
    return statistics.median(times)


def memory(folder: Path, options: argparse.Namespace) -> tuple[float, float]:
    """Resident MiB after start, and after every case's load."""
    path = folder / "memory.db"
    fill(path, JOBS, LOCKS)
    with running(ours(path)) as service:
        urlopen(f"{service.url}/health").read()
        start = service.resident_mib
        for case in CASES:
            service.load(case, LOCKS, options.seconds, CONNECTIONS)
        return start, service.resident_mib


def import_rate(folder: Path) -> float:
    """Jobs a second that `orchmgmt history import` takes in, its start included."""
    rows, chance, source = 200_000, random.Random(1), folder / "jobs.jsonl"
    names: dict[str, str] = {}
    with source.open("w") as lines:
        for number in range(rows):
            entry = job(chance, number, rows)
            for key in entry:
                head, *tail = key.split("_")
                names[key] = head + "".join(part.title() for part in tail)
            lines.write(json.dumps({names[key]: value for key, value in entry.items()}) + "\n")
    begin = time.perf_counter()
    subprocess.run(
        [ORCHMGMT, "history", "import", "--database-url", f"sqlite:///{folder}/import.db", source],
        check=True, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    return rows / (time.perf_counter() - begin)


def table(heads: str, rows: Iterator[list[str]]) -> str:
    """A Markdown table, shown on the terminal while it is being made."""
    lines = [heads, "|".join([""] + ["---"] * (heads.count("|") - 1) + [""])]
    for line in lines:
        print(line, flush=True)
    for row in rows:
        lines.append(f"| {' | '.join(row)} |")
        print(lines[-1], flush=True)
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the service beside the limit server.")
    parser.add_argument("--seconds", type=float, default=4, help="length of one measurement")
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each case")
    parser.add_argument("--largest", type=int, default=1_000_000, help="largest history to measure")
    parser.add_argument("--only", default="", help="one case of the main table, and nothing else")
    parser.add_argument("--output", type=Path, help="file for the report")
    options = parser.parse_args()
    options.seconds = max(1, round(options.seconds))
    if shutil.which("wrk") is None:
        sys.exit("wrk makes the load and is not installed: apt-get install wrk")

    with tempfile.TemporaryDirectory(prefix="orchmgmt-bench-") as name:
        folder = Path(name)
        main_table = table(
            "| case | requests/s | p50 ms | p99 ms | errors | limit requests/s | p50 ms | p99 ms |"
            " errors | ratio | wanted |",
            compare(folder, options),
        )
        server_table = table(
            "| case | serve | Granian, 1 worker | 2 workers | errors | 2 to serve | wanted |",
            servers(folder, options),
        )
        if options.only:
            return
        growth_table = table(
            "| jobs | case | p50 ms | p99 ms | errors | limit p50 ms |", grow(folder, options)
        )
        engine_table = table(
            f"| case | SQLite, {JOBS:,} | SQLite, {options.largest:,} | PostgreSQL, {JOBS:,} |"
            f" PostgreSQL, {options.largest:,} |",
            engines(options),
        )
        slow_table = table(
            "| beside | requests/s | p50 ms | p99 ms | errors | ratio to alone |",
            slow_clients(folder, options),
        )
        process_table = table(
            "| processes | case | requests/s | p50 ms | worst p99 ms | errors |", processes(options)
        )
        after_start, after_load = memory(folder, options)
        others: list[list[Any]] = [
            ["start to first answer, s", f"{start_time(folder):.2f}", "0.6"],
            ["resident memory after start, MiB", f"{after_start:.0f}", "60"],
            ["resident memory after all the load, MiB", f"{after_load:.0f}", "120"],
            ["import, jobs/s", f"{import_rate(folder):,.0f}", "15,000"],
        ]
        other_table = table("| figure | measured | wanted |", iter(others))

    versions = ", ".join(
        f"{it} {version(it)}" for it in ("flask", "marshmallow", "peewee", "waitress")
    )
    report = f"""# Measured speed

{date.today()}, {os.cpu_count()} cores, {platform.system()} {platform.machine()}, Python \
{platform.python_version()}, SQLite {sqlite3.sqlite_version}, {versions}.

Made by `make bench`: wrk with {CONNECTIONS} connections on the same machine; the service and the
limit server (a bare Flask route with hand-written SQL on the same tables, behind plain waitress
with one thread) in turn, {options.rounds} rounds of {options.seconds} s each. The ratio is the
median of the rounds' ratios. {LOCKS:,} locks, {JOBS:,} jobs.

{main_table}

## Granian

Requests a second of the same application under `orchmgmt serve`, and under Granian \
{version("granian")} with one worker and with two, each with one thread, in turn as above.

{server_table}

## Growth

One connection.

{growth_table}

## Growth on both engines

Milliseconds in the process, medians, with so many locks and as many jobs.

{engine_table}

## Slow clients

The query by id, {CONNECTIONS} connections, beside 500 connections that are idle, beside 50 clients
that ask for 1,000 jobs each and do not read them, and beside 50 that send a body a byte at a time.

{slow_table}

## Several processes on PostgreSQL

One, two and three processes on one local PostgreSQL server with `fsync = on`, all on the same
{os.cpu_count()} cores as the load; {CONNECTIONS} connections in all.

{process_table}

## Start, memory, import

{other_table}
"""
    if options.output:
        options.output.write_text(report)


if __name__ == "__main__":
    main()
