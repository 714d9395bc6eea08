"""Show what the service loses, and for how long it refuses, while PostgreSQL's primary is lost.

etcd, two nodes of Patroni and, if wanted, HAProxy run on this machine with the files of deploy/.
Three processes of the service are under load. Each time one thing happens to the leader, and then
everything that was acknowledged is compared with what the database has.

Usage: availability.py [--only EVENT] [--through hosts|haproxy] [--asynchronous]
"""

import argparse
import itertools
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import psycopg

from orchmgmt.client import AlreadyLocked, Client, Lock, Refused, Unavailable

DEPLOY = Path(__file__).resolve().parent.parent / "deploy"
ORCHMGMT = str(Path(sys.executable).with_name("orchmgmt"))
BINARIES = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda it: int(it.parent.name))
PROGRAMS = ("etcd", "patroni", "patronictl", "haproxy")

SERVICES = 3
CLIENTS = 12
#: Instances that all clients want.
CONTENDED = 4
TIMEOUT = 2.0
#: Seconds under load before and after each event, and the longest that anything may take.
QUIET = 3.0
LONGEST = 120.0
#: How long the standby hangs behind before the primary is lost, in seconds (asynchronous).
BEHIND = 0.5


def missing() -> str:
    """Return what this machine lacks; empty if nothing."""
    lacking = [it for it in PROGRAMS if not shutil.which(it)]
    if not BINARIES:
        lacking.append("PostgreSQL")
    return f"install {', '.join(lacking)}" if lacking else ""


def until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + LONGEST
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"in vain: {what}")
        time.sleep(0.1)


def free_ports(count: int) -> list[int]:
    with ExitStack() as probes:
        sockets = [probes.enter_context(socket.socket()) for _ in range(count)]
        for it in sockets:
            it.bind(("127.0.0.1", 0))
        return [it.getsockname()[1] for it in sockets]


class Machine:
    """A process with all its children, which can be killed and frozen like a machine.

    Args:
        command: what to run.
        env: variables beside those of this process.
        folder: where it runs and logs.
        name: the log's name.
    """

    def __init__(self, command: list[str], env: dict[str, str], folder: Path, name: str) -> None:
        self._command, self._folder, self._name = command, folder, name
        self.env = {"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8", **env}
        self.start()

    def start(self) -> None:
        user: dict[str, Any] = {}
        if os.getuid() == 0:  # which PostgreSQL refuses
            user = {"user": "postgres", "group": "postgres", "extra_groups": []}
        with (self._folder / f"{self._name}.log").open("a") as log:
            self.process = subprocess.Popen(
                self._command,
                env=self.env,
                cwd=self._folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                **user,
            )

    def kill(self) -> None:
        """Kill the first process alone."""
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.kill()


class Node(Machine):
    """One node of the cluster: Patroni, and the PostgreSQL that it runs.

    Args:
        number: 1 or 2.
        etcd: the port of etcd.
        folder: where the cluster lives.
        config: Patroni's configuration.
    """

    def __init__(self, number: int, etcd: int, folder: Path, config: Path) -> None:
        self.name = f"node{number}"
        self.port, self.api = free_ports(2)
        self.data = folder / self.name
        env = {
            "PATRONI_NAME": self.name,
            "PATRONI_RESTAPI_LISTEN": f"127.0.0.1:{self.api}",
            "PATRONI_RESTAPI_CONNECT_ADDRESS": f"127.0.0.1:{self.api}",
            "PATRONI_POSTGRESQL_LISTEN": f"127.0.0.1:{self.port}",
            "PATRONI_POSTGRESQL_CONNECT_ADDRESS": f"127.0.0.1:{self.port}",
            "PATRONI_POSTGRESQL_DATA_DIR": str(self.data),
            "PATRONI_POSTGRESQL_BIN_DIR": str(BINARIES[-1]),
            "PATRONI_ETCD_HOSTS": f"127.0.0.1:{etcd}",
            "PATRONI_SUPERUSER_USERNAME": "postgres",
            "PATRONI_SUPERUSER_PASSWORD": "secret",
            "PATRONI_REPLICATION_USERNAME": "replicator",
            "PATRONI_REPLICATION_PASSWORD": "secret",
        }
        super().__init__(["patroni", str(config)], env, folder, self.name)

    def is_(self, role: str) -> bool:
        """Whether Patroni says that this node is `primary`, `sync` or `replica`."""
        try:
            with urlopen(f"http://127.0.0.1:{self.api}/{role}", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    @property
    def postmaster(self) -> int:
        """PostgreSQL's first process, or 0."""
        try:
            number = int((self.data / "postmaster.pid").read_text().split()[0])
            os.kill(number, 0)
        except (OSError, ValueError, IndexError):
            return 0
        return number

    def processes(self) -> list[int]:
        first = self.postmaster
        found = [first] if first else []
        with suppress(OSError):
            found += map(int, Path(f"/proc/{first}/task/{first}/children").read_text().split())
        return [self.process.pid, *found]

    def signal(self, number: int) -> None:
        """Send a signal to all processes of the node."""
        for process in self.processes():
            with suppress(ProcessLookupError):
                os.kill(process, number)

    def crash(self) -> None:
        """Let the whole machine be lost."""
        self.signal(signal.SIGKILL)
        self.process.wait()

    def connect(self, database: str = "orchmgmt") -> "psycopg.Connection[Any]":
        return psycopg.connect(
            host="127.0.0.1",
            port=self.port,
            user="postgres",
            password="secret",
            dbname=database,
            autocommit=True,
        )


class Cluster:
    """Both nodes, etcd, and HAProxy if it is wanted.

    Args:
        stack: ends it all.
        through: `hosts`, if the service knows both nodes, or `haproxy`.
        synchronous: whether a commit waits for the other node.

    Attributes:
        nodes: both nodes.
        url: the service's `DATABASE_URL`.
    """

    def __init__(self, stack: ExitStack, through: str, synchronous: bool) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="orchmgmt-availability-"))
        stack.callback(shutil.rmtree, self._folder, ignore_errors=True)
        if os.getuid() == 0:
            shutil.chown(self._folder, "postgres", "postgres")
        changes = {"/var/run/postgresql": str(self._folder)}
        if not synchronous:
            changes["synchronous_mode: true"] = "synchronous_mode: false"
        self._config = self._configure("patroni/patroni.yml", changes)
        clients, peers, door = free_ports(3)
        here = "http://127.0.0.1:"
        etcd = {
            "ETCD_ENABLE_V2": "true",
            "ETCD_DATA_DIR": str(self._folder / "etcd"),
            "ETCD_LISTEN_CLIENT_URLS": f"{here}{clients}",
            "ETCD_ADVERTISE_CLIENT_URLS": f"{here}{clients}",
            "ETCD_LISTEN_PEER_URLS": f"{here}{peers}",
            "ETCD_INITIAL_ADVERTISE_PEER_URLS": f"{here}{peers}",
            "ETCD_INITIAL_CLUSTER": f"default={here}{peers}",
        }
        stack.callback(Machine(["etcd"], etcd, self._folder, "etcd").stop)
        self.nodes: list[Node] = []
        for number in (1, 2):
            self.nodes.append(Node(number, clients, self._folder, self._config))
            stack.callback(self.nodes[-1].crash)
            until(lambda: self.nodes[0].is_("primary"), "a first leader")
        with self.nodes[0].connect("postgres") as connection:
            connection.execute("CREATE ROLE orchmgmt LOGIN PASSWORD 'secret'")
            connection.execute("CREATE DATABASE orchmgmt OWNER orchmgmt")
        until(lambda: self.nodes[1].is_("sync" if synchronous else "replica"), "a second node")
        hosts = ",".join(f"127.0.0.1:{it.port}" for it in self.nodes)
        if through == "haproxy":
            hosts = f"127.0.0.1:{door}"
            places = {"127.0.0.1:5000": hosts}
            for number, node in enumerate(self.nodes, 1):
                there = f"127.0.0.1:{node.port} check port {node.api}"
                places[f"192.0.2.1{number}:5432 check port 8008"] = there
            config = self._configure("haproxy/haproxy.cfg", places)
            haproxy = ["haproxy", "-db", "-f", str(config)]
            stack.callback(Machine(haproxy, {}, self._folder, "haproxy").stop)
        self.url = f"postgresql://orchmgmt:secret@{hosts}/orchmgmt"
        until(self._leads_to_the_leader, "a way to the leader")

    def _leads_to_the_leader(self) -> bool:
        """Whether two connections in turn reach it: HAProxy leads to both nodes until it knows."""
        with suppress(psycopg.OperationalError):
            for _ in self.nodes:
                psycopg.connect(
                    self.url, connect_timeout=2, target_session_attrs="read-write"
                ).close()
            return True
        return False

    def _configure(self, name: str, changes: dict[str, str]) -> Path:
        """Return a file of deploy/ with what is different here."""
        text = (DEPLOY / name).read_text()
        for old, new in changes.items():
            if old not in text:
                raise ValueError(f"{name} has no {old}")
            text = text.replace(old, new)
        file = self._folder / Path(name).name
        file.write_text(text)
        return file

    @property
    def leader(self) -> Node:
        """The node that Patroni calls the primary."""
        return next(it for it in self.nodes if it.is_("primary"))

    @property
    def other(self) -> Node:
        """The node that is not the primary."""
        return next(it for it in self.nodes if not it.is_("primary"))

    @contextmanager
    def succeeded(self) -> Iterator[Node]:
        """Lend the leader; then wait until the other node has led for a while."""
        leader, other = self.leader, self.other
        yield leader
        until(lambda: other.is_("primary"), "a new leader")
        time.sleep(QUIET)

    def switch_over(self) -> None:
        """Let the other node lead, as an operator does."""
        names = ["--master", self.leader.name, "--candidate", self.other.name, "--force"]
        command = ["patronictl", "-c", str(self._config), "switchover", *names]
        subprocess.run(command, env=self.nodes[0].env, check=True, capture_output=True)


@dataclass
class Made:
    """A create that a client sent.

    Attributes:
        begun: when, in seconds of the monotonic clock.
        ended: when it was answered.
        instance: what was to be locked.
        id: the lock's id; 0 if the answer was a failure.
        freed: when its removal was sent; 0 if it was not.
        gone: whether that was acknowledged.
    """

    begun: float
    ended: float
    instance: str
    id: int = 0
    freed: float = 0
    gone: bool = False


class Load:
    """Clients that make locks: each some of its own, and some that all want and that it removes.

    Args:
        urls: where the service is.

    Attributes:
        made: the creates of each client, in order.
        failures: answers that should not be.
    """

    numbers = itertools.count()

    def __init__(self, urls: list[str]) -> None:
        self._over = threading.Event()
        self.made: list[list[Made]] = [[] for _ in range(CLIENTS)]
        self.failures: set[str] = set()
        self._threads = [
            threading.Thread(target=self._run, args=[urls[it % len(urls)], f"Owner{it}", made])
            for it, made in enumerate(self.made)
        ]

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def all_served(self, since: float) -> bool:
        """Whether each client has made a lock since a moment."""
        return all(any(it.id and it.begun > since for it in made[-50:]) for made in self.made)

    def _run(self, url: str, owner: str, made: list[Made]) -> None:
        with Client(url, name="Sysop", timeout=10, retries=0) as client:
            while not self._over.is_set():
                number = next(self.numbers)
                self._create(client, owner, f"Own|lock{number}|1.0.0", made)
                wanted = f"All|lock{number % CONTENDED}|1.0.0"
                if self._create(client, owner, wanted, made):
                    self._remove(client, owner, made[-1])

    def _create(self, client: Client, owner: str, instance: str, made: list[Made]) -> bool:
        """Return whether the lock is there, or may be."""
        end = datetime.now(UTC) + timedelta(days=1)
        wanted = Lock(service_instance_id=instance, owner=owner, expires_at=end)
        new = Made(time.monotonic(), 0, instance)
        try:
            (lock,) = client.create_locks([wanted])
            new.id = lock.id
        except AlreadyLocked:
            return False
        except (Refused, Unavailable) as failure:
            self._note(failure)
        new.ended = time.monotonic()
        made.append(new)
        return True

    def _remove(self, client: Client, owner: str, lock: Made) -> None:
        lock.freed = time.monotonic()
        while time.monotonic() < lock.freed + LONGEST:
            try:
                client.remove_locks(owner, lock.instance)
                lock.gone = True
                return
            except (Refused, Unavailable) as failure:
                self._note(failure)

    def _note(self, failure: Refused | Unavailable) -> None:
        if failure.status != 503:
            self.failures.add(str(failure))
        time.sleep(0.05)


@dataclass
class Result:
    """What an event did.

    Attributes:
        event: which one.
        acknowledged: how many locks were acknowledged.
        lost: how many of these are gone, or are back though their removal was acknowledged.
        double: how often two clients held one instance at once.
        fallen: how often an id was not above one that was acknowledged before it was asked for.
        refused: for how long each client got only failures, in seconds.
        failures: answers other than 201, 200, 400 and 503.
    """

    event: str
    acknowledged: int
    lost: int
    double: int
    fallen: int
    refused: list[float]
    failures: set[str]

    @property
    def row(self) -> str:
        """A row of the table."""
        p50, longest = statistics.median(self.refused), max(self.refused)
        cells = [self.event, self.acknowledged, self.lost, self.double, self.fallen]
        return f"| {' | '.join(map(str, cells))} | {p50:.1f} | {longest:.1f} |"


HEADER = """\
| event | acknowledged | lost | double | ids fallen | 503 for, p50 (s) | longest (s) |
| --- | --- | --- | --- | --- | --- | --- |"""


def judge(event: str, load: Load, rows: list[tuple[int, str]]) -> Result:
    """Compare what was acknowledged with what is there.

    Args:
        event: what happened.
        load: what was acknowledged.
        rows: the id and instance of all locks.
    """
    there = set(rows)
    acknowledged = [it for made in load.made for it in made if it.id]
    lost = sum(
        ((it.id, it.instance) in there) == it.gone for it in acknowledged if it.gone or not it.freed
    )
    holds = defaultdict(list)
    for it in acknowledged:
        if it.freed:
            holds[it.instance].append((it.ended, it.freed))
    double = 0
    for periods in holds.values():
        periods.sort()
        double += sum(now[1] > after[0] for now, after in itertools.pairwise(periods))
    fallen, highest = 0, 0
    ended = sorted(acknowledged, key=lambda it: it.ended)
    before = iter(ended)
    waiting = next(before, None)
    for it in sorted(acknowledged, key=lambda it: it.begun):
        while waiting and waiting.ended < it.begun:
            highest = max(highest, waiting.id)
            waiting = next(before, None)
        fallen += it.id <= highest
    refused = [refused_for(made) for made in load.made]
    return Result(event, len(acknowledged), lost, double, fallen, refused, load.failures)


def refused_for(made: list[Made]) -> float:
    """Return the longest time in which a client got nothing but failures, in seconds."""
    longest, begun = 0.0, 0.0
    for it in made:
        if it.id and begun:
            longest, begun = max(longest, it.ended - begun), 0.0
        elif not it.id:
            begun = begun or it.begun
    return longest


def postgresql_killed(cluster: Cluster) -> None:
    """PostgreSQL's first process is killed, and Patroni lives."""
    os.kill(cluster.leader.postmaster, signal.SIGKILL)


def patroni_killed(cluster: Cluster) -> None:
    """Patroni is killed; systemd kills PostgreSQL (override.conf) and starts Patroni again."""
    leader = cluster.leader
    leader.crash()
    time.sleep(1)
    leader.start()


def patroni_killed_alone(cluster: Cluster) -> None:
    """Patroni is killed, PostgreSQL is left to itself, and Patroni is started again too late."""
    with cluster.succeeded() as leader:
        leader.kill()
    leader.start()


def switched_over(cluster: Cluster) -> None:
    """An operator lets the other node lead."""
    cluster.switch_over()


def machine_lost(cluster: Cluster) -> None:
    """All processes of the node are killed."""
    with cluster.succeeded() as leader:
        leader.crash()
    leader.start()


def machine_frozen(cluster: Cluster) -> None:
    """All processes of the node stop in their tracks, and go on when the other one leads."""
    with cluster.succeeded() as leader:
        leader.signal(signal.SIGSTOP)
    leader.signal(signal.SIGCONT)


def lost_while_behind(cluster: Cluster) -> None:
    """The machine is lost while the other one hangs behind."""
    other = cluster.other
    with cluster.succeeded() as leader:
        other.signal(signal.SIGSTOP)
        time.sleep(BEHIND)
        leader.crash()
        other.signal(signal.SIGCONT)
    leader.start()


EVENTS: dict[str, Callable[[Cluster], None]] = {
    "PostgreSQL killed": postgresql_killed,
    "Patroni killed": patroni_killed,
    "switch-over": switched_over,
    "machine lost": machine_lost,
    "machine frozen": machine_frozen,
    "lost while behind": lost_while_behind,
}
#: What deploy/patroni/override.conf is for.
WITHOUT_OVERRIDE = {"Patroni killed alone": patroni_killed_alone}


@contextmanager
def services(url: str) -> Iterator[list[str]]:
    """Run the service on a database, in several processes."""
    command = [ORCHMGMT, "serve", "--port", "0", "--database-timeout-seconds", str(TIMEOUT)]
    env = {**os.environ, "ORCHMGMT_DATABASE_URL": url}
    with ExitStack() as stack:
        urls = []
        for _ in range(SERVICES):
            process = subprocess.Popen(
                command, env=env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
            )
            stack.callback(process.wait)
            stack.callback(process.terminate)
            assert process.stdout is not None
            stack.enter_context(process.stdout)
            urls.append(process.stdout.readline().split()[-1])
        yield urls


def measure(cluster: Cluster, event: str, urls: list[str]) -> Result:
    """Let an event happen under load, and return what it did."""
    with Load(urls) as load:
        time.sleep(QUIET)
        (EVENTS | WITHOUT_OVERRIDE)[event](cluster)
        moment = time.monotonic()
        until(lambda: load.all_served(since=moment), "an answer to all clients")
        time.sleep(QUIET)
    # A node that was frozen takes itself for the leader for a while.
    until(lambda: sum(it.is_("primary") for it in cluster.nodes) == 1, "a single leader")
    with cluster.leader.connect() as connection:
        query = "SELECT id, service_instance_id FROM orchestration_lock"
        return judge(event, load, connection.execute(query).fetchall())


def run(through: str, synchronous: bool, events: list[str]) -> Iterator[Result]:
    """Let each event happen to a cluster of its own."""
    for event in events:
        with ExitStack() as stack:
            cluster = Cluster(stack, through, synchronous)
            urls = stack.enter_context(services(cluster.url))
            result = measure(cluster, event, urls)
        yield result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--only", action="append", choices=EVENTS | WITHOUT_OVERRIDE, help="an event; repeatable"
    )
    parser.add_argument("--through", choices=("hosts", "haproxy"), default="hosts")
    parser.add_argument("--asynchronous", action="store_true", help="commits wait for nobody")
    given = parser.parse_args()
    if reason := missing():
        parser.error(reason)
    print(HEADER, flush=True)
    bad = False
    for result in run(given.through, not given.asynchronous, given.only or list(EVENTS)):
        print(result.row, *sorted(result.failures), sep="\n", flush=True)
        bad |= bool(result.lost or result.double or result.fallen or result.failures)
    sys.exit(bad and not given.asynchronous)


if __name__ == "__main__":
    main()
