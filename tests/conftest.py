"""What the tests share: a service on a real socket, and the real command line."""

import gc
import itertools
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import cluster
import pytest
from certificates import Authority
from command import Started, run_command
from needs import lacking
from standin import Cloud
from support import FAKETIME, Clock, Process, Service, on_waitress, served

from orchmgmt.store import Store

# What a background job or nohup ignores, its children would ignore too, and they are sent both.
for number in (signal.SIGINT, signal.SIGHUP):
    if signal.getsignal(number) == signal.SIG_IGN:
        signal.signal(number, lambda *_: None)


@pytest.fixture(scope="session", autouse=True)
def _no_settings_from_outside() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as monkeypatch:
        for name in list(os.environ):
            if name.startswith("ORCHMGMT_"):
                monkeypatch.delenv(name)
        yield


def pytest_collection_finish() -> None:
    """Let the collector of garbage pass over the thousands of tests, now and at the end."""
    gc.freeze()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run what needs a database on each kind of it, or on the one that it is marked with."""
    if "engine" in metafunc.fixturenames:
        engines = ["sqlite", "postgresql"]
        marked = [name for name in engines if metafunc.definition.get_closest_marker(name)]
        metafunc.parametrize("engine", marked or engines)


@pytest.fixture(scope="session")
def postgresql() -> Iterator[cluster.Cluster]:
    """A PostgreSQL server for all tests that only use it."""
    server = cluster.Cluster()
    yield server
    server.remove()


@pytest.fixture
def database_url(
    engine: str, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> str:
    """An empty database, which commands and services take if they are told no other."""
    if engine == "sqlite":
        return f"sqlite:///{tmp_path}/orchmgmt.db"
    url: str = request.getfixturevalue("postgresql").empty_database()
    monkeypatch.setenv("ORCHMGMT_DATABASE_URL", url)
    return url


@pytest.fixture
def start(database_url: str) -> Iterator[Callable[..., Service]]:
    """Start services: `start(MAX_PAGE_SIZE=10)` gives one with these settings."""
    with ExitStack() as running:
        yield lambda **settings: running.enter_context(
            served(**{"DATABASE_URL": database_url, **settings})
        )


@pytest.fixture
def start_server(database_url: str) -> Iterator[Callable[..., Service]]:
    """As `start`, with the server of `orchmgmt serve`."""
    with ExitStack() as running:
        yield lambda **settings: running.enter_context(
            on_waitress(**{"DATABASE_URL": database_url, **settings})
        )


@pytest.fixture(scope="session")
def _kept() -> Iterator[Callable[..., Service]]:
    services: dict[str, Service] = {}
    with ExitStack() as running:

        def keep(**settings: Any) -> Service:
            key = repr(sorted(settings.items()))
            if key not in services:
                services[key] = running.enter_context(served(**settings))
            service = services[key]
            service.harness.clock.reset()
            service.harness.requests.clear()
            return service

        yield keep


@pytest.fixture(scope="session")
def _file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("shared") / "orchmgmt.db"


@pytest.fixture
def shared_database_url(engine: str, request: pytest.FixtureRequest) -> str:
    """As `database_url`, but the same in all tests, which leave it as it is but for rows."""
    if engine == "postgresql":
        return str(request.getfixturevalue("database_url"))
    path: Path = request.getfixturevalue("_file")
    if path.exists():
        with closing(sqlite3.connect(path, isolation_level=None)) as database:
            for table in (*cluster.OUR_TABLES, "sqlite_sequence"):
                database.execute(f"DELETE FROM {table}")
    return f"sqlite:///{path}"


@pytest.fixture
def shared_start(shared_database_url: str, _kept: Callable[..., Service]) -> Callable[..., Service]:
    """As `start`, but with a service that all tests of these settings share, on empty tables."""
    return lambda **settings: _kept(**{"DATABASE_URL": shared_database_url, **settings})


@pytest.fixture
def service(start: Callable[..., Service]) -> Service:
    """A service with default settings and an empty database."""
    return start()


COMMAND = str(Path(sys.executable).with_name("orchmgmt"))


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., "subprocess.CompletedProcess[str]"]:
    """Run the real command to its end: `run("lock", "export", env={...}, input="...")`.

    With other options of `subprocess.run`, or a PYTHONPATH, it has an interpreter of its own.
    """

    def run(
        *arguments: str, env: dict[str, str] | None = None, input: Any = None, **options: Any
    ) -> "subprocess.CompletedProcess[str]":
        environ = {**os.environ, **(env or {})}
        if not options and "PYTHONPATH" not in (env or {}):
            return run_command(arguments, environ, tmp_path, input or "")
        return subprocess.run(
            [COMMAND, *arguments],
            env=environ,
            input=input,
            **{"cwd": tmp_path, "capture_output": True, "text": True, "timeout": 60, **options},
        )

    return run


@contextmanager
def serving(folder: Path) -> Iterator[Callable[..., Process]]:
    """Start commands that serve, as the fixture `serve` says, and stop them in the end."""
    started: list[Process] = []

    def serve(
        *arguments: str, command: str = "serve", env: dict[str, str] | None = None
    ) -> Process:
        log = folder / f"server-{len(started)}.log"
        arguments = (command, "--port", "0", *arguments)
        environ = {**os.environ, **(env or {})}
        process: Started | subprocess.Popen[str]
        if any(it.startswith(("LD_", "PYTHON", "FAKETIME")) for it in env or {}):
            with log.open("w") as stderr:
                process = subprocess.Popen(
                    [COMMAND, *arguments],
                    cwd=folder,
                    env=environ,
                    stdout=subprocess.PIPE,
                    stderr=stderr,
                    text=True,
                )
        else:
            process = Started(arguments, environ, folder, log)
        started.append(Process(process))
        return started[-1]

    yield serve
    for process in started:
        if process.process.poll() is None:
            process.stop()
        assert process.process.stdout is not None
        process.process.stdout.close()


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Process]]:
    """Start the real `orchmgmt serve` (or another command that serves) on a free port.

    With variables that Python or the linker reads, it has an interpreter of its own.
    """
    with serving(tmp_path) as serve:
        yield serve


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """One that all share who ask how the real server reads HTTP, and store nothing there."""
    with serving(tmp_path_factory.mktemp("server")) as serve:
        yield serve()


@pytest.fixture
def read_only(tmp_path: Path) -> tuple[Path, list[str]]:
    """A folder with a database that nobody can write to, also root, and what makes it so."""
    folder = tmp_path / "archive"
    folder.mkdir()
    with Store({"DATABASE_URL": f"sqlite:///{folder}/x.db"}) as store:
        store.history.create("PULL", "A", "A", "b")
    script = 'mount --bind $0 $0 && mount -o remount,bind,ro $0 && exec "$@"'
    command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script, str(folder)]
    if shutil.which("unshare") is None or subprocess.run([*command, "true"]).returncode:
        pytest.skip("this user cannot mount a folder read-only, as in most containers")
    return folder, command


@pytest.fixture
def new_clock(tmp_path: Path) -> Callable[..., Clock]:
    """Make clocks for servers: `new_clock(30)` is that many seconds ahead."""
    if not FAKETIME:
        lacking("libfaketime is not installed")
    numbers = itertools.count()
    return lambda ahead=0: Clock(tmp_path / f"faketime-{next(numbers)}", ahead)


@pytest.fixture
def clock(new_clock: Callable[..., Clock]) -> Clock:
    return new_clock()


@pytest.fixture
def cloud() -> Iterator[Cloud]:
    """A stand-in for the identity service and ConsumerAuthorization."""
    cloud = Cloud()
    yield cloud
    cloud.stop()


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """The cloud's certificate authority."""
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture
def begin(
    request: pytest.FixtureRequest, start: Callable[..., Service], cloud: Cloud
) -> Callable[..., Service]:
    """Start services under the test module's `POLICY` that ask the stand-in."""
    return lambda **settings: start(**{**request.module.POLICY, **cloud.settings, **settings})


@pytest.fixture(scope="module")
def _running(request: pytest.FixtureRequest) -> Iterator[tuple[Service, Cloud]]:
    cloud = Cloud()
    with served(**request.module.POLICY, **cloud.settings) as service:
        yield service, cloud
    cloud.stop()


@pytest.fixture
def shared(_running: tuple[Service, Cloud]) -> tuple[Service, Cloud]:
    """One such service and its stand-in, for tests that ask much and change nothing."""
    _, cloud = _running
    cloud.answer = lambda path: None
    cloud.requests.clear()
    return _running
