"""A PostgreSQL server of the tests' own, in a folder that goes away with it."""

import os
import pwd
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psycopg
from needs import lacking

INSTALLED = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda it: int(it.parent.name))
PASSWORD = "s3cret:w%rd/@"
QUOTED_PASSWORD = "s3cret%3Aw%25rd%2F%40"

OUR_TABLES = ("orchestration_lock", "orchestration_job")
OF_A_MIRROR = "orchestration_mirrored_lock"


def missing() -> str:
    """Why there can be no server here; empty if there can."""
    if not INSTALLED:
        return "there is no /usr/lib/postgresql/*/bin: install Debian's package postgresql"
    if os.getuid() == 0 and "postgres" not in (user.pw_name for user in pwd.getpwall()):
        return "initdb refuses root, and there is no user postgres"
    return ""


class Cluster:
    """A running server, on a port of the loopback address.

    Args:
        initdb: more options of `initdb`.
        primary: whose standby it is, if it is one.
        settings: more lines of `postgresql.conf`.
    """

    def __init__(self, *initdb: str, primary: "Cluster | None" = None, **settings: str) -> None:
        if reason := missing():
            lacking(reason)
        self._user: dict[str, Any] = {}
        if os.getuid() == 0:  # which initdb refuses
            self._user = {"user": "postgres", "group": "postgres", "extra_groups": []}
        self.folder = Path(tempfile.mkdtemp(prefix="orchmgmt-postgresql-"))
        if self._user:
            shutil.chown(self.folder, "postgres", "postgres")
        password = self.folder / "password"
        password.write_text(PASSWORD)
        password.chmod(0o644)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self.data = self.folder / "data"
        if primary:
            self._run(
                *("pg_basebackup", "--pgdata", str(self.data), "--no-sync", "--checkpoint", "fast"),
                *("--write-recovery-conf", "--dbname", primary.url("postgres")),
            )
        else:
            self._run(
                *("initdb", "--pgdata", str(self.data), "--no-sync", "--encoding", "UTF8"),
                *("--auth", "scram-sha-256", "--pwfile", str(password)),
                *("--username", "orchmgmt", *initdb),
            )
        lines = {
            "port": str(self.port),
            "listen_addresses": "'127.0.0.1'",
            "unix_socket_directories": f"'{self.folder}'",
            "fsync": "off",  # the machine will not crash: the processes do
            **settings,
        }
        with (self.data / "postgresql.auto.conf").open("a") as file:
            file.writelines(f"{name} = {value}\n" for name, value in lines.items())
        self._databases = 0
        self._kept: psycopg.Connection[Any] | None = None
        self.start()

    def url(self, database: str) -> str:
        return f"postgresql://orchmgmt:{QUOTED_PASSWORD}@127.0.0.1:{self.port}/{database}"

    def connect(self, database: str = "postgres") -> "psycopg.Connection[Any]":
        return psycopg.connect(self.url(database), autocommit=True)

    def create_database(self, options: str = "") -> str:
        """Make a new, empty database and return its URL."""
        self._databases += 1
        name = f"test{self._databases}"
        with self.connect() as connection:
            connection.execute(f"CREATE DATABASE {name} {options}")
        return self.url(name)

    def empty_database(self) -> str:
        """Empty the one database that this gives every time, which is quick, and return its URL."""
        if self._kept is None:
            self._kept = self.connect(name_of(self.create_database()))
            self._kept.execute("SET lock_timeout = '10s'")
        tables = "SELECT relname FROM pg_class WHERE relname = ANY(%s)"
        for (table,) in self._kept.execute(tables, [[*OUR_TABLES, OF_A_MIRROR]]).fetchall():
            self._kept.execute(f"TRUNCATE {table} RESTART IDENTITY")
        return self.url(self._kept.info.dbname)

    def start(self) -> None:
        self._run("pg_ctl", "start", "--wait", "--silent", "--log", str(self.folder / "log"))

    def stop(self, mode: str = "fast") -> None:
        self._run("pg_ctl", "stop", "--wait", "--silent", "--mode", mode)

    def reload(self, **settings: str) -> None:
        """Change settings of the running server; an empty one goes back to the default."""
        with self.connect() as connection:
            for name, value in settings.items():
                change = f"SET {name} = {value}" if value else f"RESET {name}"
                connection.execute(f"ALTER SYSTEM {change}")
            connection.execute("SELECT pg_reload_conf()")

    def processes(self) -> list[int]:
        """The server's processes, the one that makes the others first."""
        first = int((self.data / "postmaster.pid").read_text().split()[0])
        children = Path(f"/proc/{first}/task/{first}/children").read_text().split()
        return [first, *map(int, children)]

    def freeze(self) -> None:
        """Stop the processes in their tracks: the kernel goes on taking what is sent to them."""
        for process in self.processes():
            os.kill(process, signal.SIGSTOP)

    def thaw(self) -> None:
        for process in reversed(self.processes()):
            os.kill(process, signal.SIGCONT)

    @contextmanager
    def frozen(self) -> Iterator[None]:
        self.freeze()
        try:
            yield
        finally:
            self.thaw()

    def remove(self) -> None:
        if self._kept is not None:
            self._kept.close()
        self.stop("immediate")
        shutil.rmtree(self.folder)

    def _run(self, command: str, *arguments: str) -> None:
        subprocess.run(
            [str(INSTALLED[-1] / command), *arguments],
            env={"PATH": os.environ["PATH"], "LC_ALL": "C", "PGDATA": str(self.data)},
            check=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            cwd=self.folder,
            timeout=60,
            **self._user,
        )


def name_of(url: str) -> str:
    """The database of a URL."""
    return re.sub(".*/", "", url)


class Proxy:
    """A network between a service and its server, which can fall silent and lose no connection.

    Attributes:
        port: where it listens.
        asked: how often a client has sent something.
        stop_at: falls silent once a client sends this, which is not passed on.
        stop_after: falls silent once the server has answered so often on a new connection.
    """

    def __init__(self, port: int) -> None:
        self._to = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.asked = 0
        self.stop_at = b""
        self.stop_after: int | None = None
        self._passes = threading.Event()
        self._passes.set()
        self._sockets = [self._listener]
        self._threads: list[threading.Thread] = []
        self._start(self._accept)

    def url(self, url: str) -> str:
        """The URL of a database, through here."""
        return url.replace(f":{self._to}/", f":{self.port}/")

    def silence(self) -> None:
        self._passes.clear()

    def go_on(self) -> None:
        self.stop_at = b""
        self.stop_after = None
        self._passes.set()

    @property
    def silent(self) -> bool:
        return not self._passes.is_set()

    def close(self) -> None:
        self.go_on()
        for _ in range(2):  # those that were accepted meanwhile too
            for end in list(self._sockets):
                with suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
            self._threads[0].join()
        for thread in self._threads:
            thread.join()
        for end in self._sockets:
            end.close()

    def _start(self, work: Callable[..., None], *arguments: Any) -> None:
        thread = threading.Thread(target=work, args=arguments)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client = self._listener.accept()[0]
                self._sockets.append(client)
                server = socket.create_connection(("127.0.0.1", self._to))
                self._sockets.append(server)
                self._start(self._pump, client, server, True)
                self._start(self._pump, server, client, False)

    def _pump(self, source: socket.socket, target: socket.socket, asks: bool) -> None:
        answers = 0
        with suppress(OSError):
            while data := source.recv(65536):
                self.asked += asks
                if asks and self.stop_at and self.stop_at in data:
                    self.silence()
                if not asks and self.stop_after is not None and answers >= self.stop_after:
                    self.silence()
                answers += 1
                self._passes.wait()
                target.sendall(data)
        with suppress(OSError):
            target.shutdown(socket.SHUT_RDWR)
