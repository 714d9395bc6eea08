"""The command `orchmgmt`."""

import errno
import json
import logging
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import fields
from importlib.metadata import version
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, BinaryIO, TextIO, TypeVar
from urllib.parse import quote, urlsplit

import click

from orchmgmt.databases.backup import CannotBackUp, back_up
from orchmgmt.databases.opening import shown
from orchmgmt.databases.unfinished import unfinished
from orchmgmt.env_file import environment_of
from orchmgmt.errors import Unavailable
from orchmgmt.models import (
    READY,
    SCHEMA_VERSION,
    TO_READ,
    OldSchema,
    Opening,
    UnusableDatabase,
    WrongUrl,
)
from orchmgmt.serving.audit import command
from orchmgmt.serving.logs import start_logging
from orchmgmt.settings import PREFIX, SettingError, Settings, describe, write
from orchmgmt.store import Store
from orchmgmt.transfer import (
    LONGEST_LINE,
    BadLine,
    export_jobs,
    export_locks,
    import_jobs,
    import_locks,
)

log = logging.getLogger("orchmgmt")

EXAMPLE = Path(__file__).with_name("db.sqlite.example")

#: The demonstration's own defaults. The example's jobs are older than any sensible limit, and are
#: to stay; the log has nothing for an audience.
DEMO = {"history_max_age_days": "1000000", "log_level": "WARNING", "ui": "true"}

#: The same as the help says it.
DEMO_SAID = {**DEMO, "openapi": "true, where its extra is installed"}

#: Those of the extra `openapi`.
OPENAPI_PACKAGES = ("apispec", "flask_swagger_ui")

OF_EVERYTHING = tuple(setting.name for setting in fields(Settings))
OF_THE_DEMO = tuple(name for name in OF_EVERYTHING if name != "database_url")
OF_THE_TEST_SERVER = tuple(
    name
    for name in OF_EVERYTHING
    if not name.startswith("service_")
    and name not in ("unix_socket", "threads", "cleaner_interval_seconds")
)
OF_THE_LOG = ("log_level", "log_format")
OF_THE_STORE = ("database_url", "database_timeout_seconds", "normalization_mode", *OF_THE_LOG)

Command = TypeVar("Command", bound=Callable[..., Any])


#: What `upgrade --check` exits with when there is something to do.
SOMETHING_TO_DO = 1

#: For commands that use a database as it is.
AS_IT_IS = Opening(create=False, upgrade=False)


class Failure(click.ClickException):
    """What ends a command with one clear line: what it was told cannot be done."""

    exit_code = 2  # as click's own of a wrong command line


class NoDatabase(Failure):
    """The database cannot be used."""

    exit_code = 3


class NoAddress(Failure):
    """The address cannot be listened on."""

    exit_code = 4


def takes_settings(*names: str, **defaults: str) -> Callable[[Command], Command]:
    """Give a command an option for each of these settings, passed on as text.

    Args:
        names: the settings.
        defaults: the defaults that are the command's own.
    """
    rows = {row.name.removeprefix(PREFIX).lower(): row for row in describe()}

    def decorate(command: Command) -> Command:
        for name in reversed(names):
            row, default = rows[name], defaults.get(name, rows[name].default)
            click.option(
                "--" + name.replace("_", "-"),
                metavar=f"<{row.type}>",
                shell_complete=_completer(row.type.split(" or ") if " or " in row.type else []),
                help=f"{row.help}.  [{row.name}; default: {default or 'none'}]",
            )(command)
        return command

    return decorate


def _completer(
    words: list[str],
) -> Callable[[click.Context, click.Parameter, str], list[str]]:
    """Complete the value of an option, where it is one of a few words."""
    return lambda _context, _parameter, begun: [it for it in words if it.startswith(begun)]


def _use_env_file(context: click.Context, _: click.Parameter, path: Path | None) -> None:
    if path:
        context.with_resource(environment_of(path))


#: Read before all other options, which win.
ENV_FILE = click.Option(
    ["--env-file"],
    type=click.Path(path_type=Path),
    metavar="FILE",
    is_eager=True,
    expose_value=False,
    callback=_use_env_file,
    help="File of variables, as the systemd unit reads it: /etc/orchmgmt/orchmgmt.env.",
)

#: Commands that no variable has an effect on.
WITHOUT_ENVIRONMENT = ("completion", "deploy-files", "test-server")


class Group(click.Group):
    """Commands that end with one clear line where the user can mend the cause.

    Args:
        lazy: where commands are, as `module:command`, that are only imported when they are used.
    """

    group_class = type  # a group in a group is of the same kind

    def __init__(self, *args: Any, lazy: Mapping[str, str] | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._lazy = lazy or {}

    def list_commands(self, context: click.Context) -> list[str]:
        """Return the names of all commands."""
        return sorted([*super().list_commands(context), *self._lazy])

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        """Return a command by its name."""
        command: click.Command | None
        if name in self._lazy:
            command = resolve_name(self._lazy[name])
        else:
            command = super().get_command(context, name)
        if (
            command
            and not isinstance(command, click.Group)
            and name not in WITHOUT_ENVIRONMENT
            and ENV_FILE not in command.params
        ):
            command.params.append(ENV_FILE)
        return command

    def invoke(self, context: click.Context) -> Any:
        """Run the command that was asked for."""
        try:
            return super().invoke(context)
        except (SettingError, WrongUrl, CannotBackUp, BadLine) as error:
            raise Failure(printable(str(error))) from None
        except (UnusableDatabase, Unavailable) as error:
            raise NoDatabase(printable(str(error))) from None
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            # What could not be written would be tried again, and complained of, at the exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            what = error.filename or "the output"
            raise Failure(f"cannot write {what}: {error.strerror}") from None


def printable(text: str) -> str:
    """Return `text` on one line, with nothing that a terminal would obey."""
    return "".join(it if it.isprintable() else "\N{REPLACEMENT CHARACTER}" for it in text)


def many(count: int, noun: str) -> str:
    """Return `1 lock`, `2 locks`."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def begin(options: dict[str, Any], environ: Mapping[str, str] = os.environ) -> Settings:
    """Read the settings, and start to log."""
    settings = Settings.read(options, environ=environ)
    start_logging(settings)
    return settings


def opened(options: dict[str, Any], opening: Opening = AS_IT_IS) -> Store:
    """Open the store that the settings name."""
    return Store(begin(options), opening=opening)


@click.group(
    cls=Group,
    lazy={
        "check": "orchmgmt.operating.check:check",
        "completion": "orchmgmt.operating.completion:completion",
        "config": "orchmgmt.operating.config:config",
        "deploy-files": "orchmgmt.deploy_files:deploy_files",
        "mirror": "orchmgmt.operating.mirror:mirror",
    },
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(version("orchmgmt"), prog_name="orchmgmt", message="%(prog)s %(version)s")
def main() -> None:
    """Orchestration lock and history management of an Eclipse Arrowhead 5 local cloud."""


@main.command()
@click.option(
    "--read-only",
    is_flag=True,
    help="Answer queries alone, and leave the database as it is: a backup, a standby, a read-only "
    "disk. Nothing is cleaned, upgraded or registered.",
)
@takes_settings(*OF_EVERYTHING)
def serve(read_only: bool, **options: Any) -> None:
    """Serve locks and history over HTTP, until SIGTERM, SIGINT or SIGHUP."""
    from orchmgmt.serving.server import hold_signals

    hold_signals()
    run_server(begin(options), read_only=read_only)


@main.command()
@click.option(
    "--rate",
    default=15.0,
    show_default=True,
    type=click.FloatRange(0.1, 6000),
    help="New jobs a minute.",
)
@click.option(
    "--speed",
    default=1.0,
    show_default=True,
    type=click.FloatRange(0.1, 100),
    help="How many times as fast as usual a job and its reservation go by.",
)
@click.option(
    "--still",
    is_flag=True,
    help="Leave the example and its times as they are, and let nothing happen.",
)
@takes_settings(*OF_THE_DEMO, **DEMO_SAID)
def demo(rate: float, speed: float, still: bool, **options: Any) -> None:
    """Show the service at work, on a fresh copy of the example; nothing of it is kept.

    The example's times are brought to the present, and a small simulated factory has jobs done,
    reserves for 5 to 60 seconds, collides, fails and releases.
    """
    from orchmgmt.serving.server import hold_signals

    hold_signals()
    defaults = {**DEMO, "openapi": write(all(map(find_spec, OPENAPI_PACKAGES)))}
    environ = {PREFIX + name.upper(): value for name, value in defaults.items()} | dict(os.environ)
    with unfinished(Path(tempfile.gettempdir())) as folder:
        copy = folder / "orchmgmt.db"
        shutil.copyfile(EXAMPLE, copy)
        options["database_url"] = f"sqlite:///{quote(str(copy))}"
        settings = begin(options, environ)
        run_server(settings, None if still else (rate, speed), "Open {}/")


def run_server(
    settings: Settings,
    pace: tuple[float, float] | None = None,
    greeting: str = "Listening on {}",
    read_only: bool = False,
) -> None:
    """Serve until a signal says stop.

    Args:
        settings: what is served, and where.
        pace: the rate and the speed of the factory of a demonstration, if there is one.
        greeting: what is printed once it listens, with the address in it.
        read_only: whether the database is only read, as it is.
    """
    # Only a server needs these: the other commands start faster without them.
    from orchmgmt.app import SERVICES, create_app, store_of
    from orchmgmt.serving.cleaner import Cleaner
    from orchmgmt.serving.server import Server
    from orchmgmt.serving.sockets import CannotListen

    with ExitStack() as stack:
        try:
            # Before the database, which stays as it is where another server has the port.
            server = stack.enter_context(Server(settings))
        except CannotListen as error:
            raise NoAddress(str(error)) from None
        app = create_app(settings, read_only=read_only)
        store = stack.enter_context(store_of(app))
        registration = None
        if settings.service_registry_url and not read_only:
            from orchmgmt.serving.registration import Registration

            registration = Registration(app, SERVICES, settings)
        factory = None
        if pace:
            from orchmgmt.demo import Factory, bring_to_the_present

            bring_to_the_present(store)
            factory = Factory(store, server.url, *pace)
        cleaner = None if read_only else Cleaner(store, settings.cleaner_interval_seconds)
        if settings.metrics:
            app.extensions["orchmgmt-metrics"].cleaner = cleaner
            app.extensions["orchmgmt-metrics"].registration = registration
        if cleaner:
            cleaner.start()
        if factory:
            factory.start()
        if registration:
            registration.start(urlsplit(server.url).port)
        log.info(
            "orchmgmt %s serves %s on %s%s; authentication policy %s, management policy %s",
            version("orchmgmt"),
            shown(settings.database_url),
            server.url,
            ", read-only" if read_only else "",
            settings.authentication_policy,
            settings.management_policy,
        )
        if settings.authentication_policy == "declared" and server.reachable:
            log.warning(
                "the authentication policy `declared` verifies nothing, and %s can be reached from "
                "other machines: whoever reaches it is an operator by saying so",
                settings.host,
            )
        click.echo(greeting.format(server.url))
        server.run(app)
        if factory:
            factory.stop()
        if registration:
            registration.stop()
        if cleaner:
            cleaner.stop()
        log.info("stopped")


@main.command()
@click.option(
    "--ready-file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Where to write the URL and the process id, as JSON, once it listens.",
)
@takes_settings(
    *OF_THE_TEST_SERVER,
    database_url="sqlite:///:memory:",
    port="0",
    openapi="true, where its extra is installed",
)
def test_server(ready_file: Path | None, **options: Any) -> None:
    """Serve for tests: a clock, faults and more can be controlled below /test/ (docs/testing.md).

    Only this machine may reach it. ORCHMGMT_* variables have no effect.
    """
    from orchmgmt.serving.server import SIGNALS, hold_signals
    from orchmgmt.testing import Service
    from orchmgmt.testing.control import Control, is_loopback, tell_ready

    hold_signals()
    given = {name: it for name, it in options.items() if it is not None}
    service = Service(**{"openapi": all(map(find_spec, OPENAPI_PACKAGES)), **given})
    settings = service.settings
    if not is_loopback(settings.host):
        raise Failure(
            "whoever reaches a test server controls it: it listens on a loopback address such as "
            f"127.0.0.1, not on {settings.host}"
        )
    start_logging(settings)
    try:
        service.start()
    except OSError as error:
        where = f"{settings.host}, port {settings.port}"
        raise NoAddress(f"cannot listen on {where}: {error.strerror or error}") from None
    with service, closing(Control(service)) as control:
        try:
            with tell_ready(ready_file, service.url, control.url):
                click.echo(f"Listening on {service.url}")
                signal.sigwait(SIGNALS)
        except BrokenPipeError:
            raise
        except OSError as error:
            raise Failure(f"cannot write to {ready_file}: {error.strerror or error}") from None


@main.command()
@takes_settings(*OF_THE_STORE, "history_max_age_days")
def clean(**options: Any) -> None:
    """Delete expired locks and old finished jobs, once."""
    with opened(options) as store, command("clean") as tell:
        locks, jobs = store.clean()
        tell(locks=locks, jobs=jobs)
    click.echo(f"Deleted {many(locks, 'expired lock')} and {many(jobs, 'old job')}.")


@main.command()
@click.option(
    "--check", is_flag=True, help="Only tell whether there is anything to do (exit code 1)."
)
@takes_settings(*OF_THE_STORE)
def upgrade(check: bool, **options: Any) -> None:
    """Bring the schema of the database up to date, as servers and imports do when they start."""
    settings = begin(options)
    try:
        with Store(settings, opening=TO_READ):
            click.echo(f"The schema has version {SCHEMA_VERSION}: there is nothing to do.")
            return
    except OldSchema as error:
        earlier = error.version
    if check:
        click.echo(f"The schema has version {earlier}: an upgrade to {SCHEMA_VERSION} is to do.")
        sys.exit(SOMETHING_TO_DO)
    with command("upgrade") as tell:
        tell(before=earlier, after=SCHEMA_VERSION)
        Store(settings, opening=Opening(create=False)).close()
    click.echo(f"Upgraded the schema from version {earlier} to {SCHEMA_VERSION}.")


@main.command()
@click.argument("file", type=click.Path(path_type=Path))
@takes_settings("database_url", "database_timeout_seconds", *OF_THE_LOG)
def backup(file: Path, **options: Any) -> None:
    """Copy the database to a new FILE (- is standard output), as it is at one moment.

    Servers go on using it meanwhile.
    """
    settings = begin(options)
    source, timeout = settings.database_url, settings.database_timeout_seconds
    if str(file) != "-":
        size = back_up(source, file, timeout)
        click.echo(f"Copied {size} bytes to {file}.")
        return
    if sys.stdout.isatty():
        raise Failure("cannot back up to a terminal: send the output to a file or a command")
    size = back_up(source, sys.stdout.buffer, timeout)
    click.echo(f"Copied {size} bytes.", err=True)


@main.command()
@takes_settings(
    "authentication_policy", "max_page_size", "omit_empty", "unknown_keys", "recorder", *OF_THE_LOG
)
def openapi(**options: Any) -> None:
    """Print what OpenAPI 3.1 says of the operations under these settings."""
    from orchmgmt.openapi import document

    click.echo(json.dumps(document(begin(options)), indent=2))


@main.group(lazy={"list": "orchmgmt.operating.commands:list_jobs"})
def history() -> None:
    """Show the jobs of a running service; import and export those of a database."""


@history.command("import")
@click.argument("file", type=click.File("rb"))
@click.option("--replace", is_flag=True, help="Let a job that is there go back in its life too.")
@takes_settings(*OF_THE_STORE)
def import_history(file: BinaryIO, replace: bool, **options: Any) -> None:
    """Insert the jobs in FILE (- is standard input), or update those whose id is there.

    All of them, or none when a line is bad, or would take a job that is there back in its life.
    """
    with (
        opened(options, READY) as store,
        progress(file) as lines,
        command("history.import") as tell,
    ):
        count = import_jobs(store, lines, replace)
        tell(jobs=count)
    click.echo(f"Imported {many(count, 'job')} into {shown(store.settings.database_url)}.")


@history.command("export")
@click.argument("file", default="-")
@takes_settings(*OF_THE_STORE, "omit_empty")
def export_history(file: str, **options: Any) -> None:
    """Write all jobs to FILE (- or none is standard output)."""
    with opened(options, TO_READ) as store, output(file) as stream:
        count = export_jobs(store, stream.write)
    click.echo(f"Exported {many(count, 'job')}.", err=True)


@main.group(
    lazy={
        "create": "orchmgmt.operating.commands:create_locks",
        "list": "orchmgmt.operating.commands:list_locks",
        "remove": "orchmgmt.operating.commands:remove_locks",
    }
)
def lock() -> None:
    """Manage the locks of a running service; import and export those of a database."""


@lock.command("import")
@click.argument("file", type=click.File("rb"))
@takes_settings(*OF_THE_STORE)
def import_lock(file: BinaryIO, **options: Any) -> None:
    """Create the locks in FILE (- is standard input); one with a known id is replaced.

    All of them, or none when a line is bad or an instance is held.
    """
    with opened(options, READY) as store, progress(file) as lines, command("lock.import") as tell:
        imported, expired = import_locks(store, lines)
        tell(locks=imported, expired=expired)
    click.echo(
        f"Imported {many(imported, 'lock')} into {shown(store.settings.database_url)}; "
        f"{expired} had expired and {'was' if expired == 1 else 'were'} passed over."
    )


@lock.command("export")
@click.argument("file", default="-")
@takes_settings(*OF_THE_STORE, "omit_empty")
def export_lock(file: str, **options: Any) -> None:
    """Write all active locks to FILE (- or none is standard output)."""
    with opened(options, TO_READ) as store, output(file) as stream:
        count = export_locks(store, stream.write)
    click.echo(f"Exported {many(count, 'lock')}.", err=True)


@contextmanager
def output(name: str) -> Iterator[TextIO]:
    """Open what an export writes to; a file comes into its place once it is complete."""
    path = Path(name).resolve()
    try:
        # Standard output, a device or a pipe stays what it is.
        if name == "-" or (path.exists() and not path.is_file()):
            target = sys.stdout.fileno() if name == "-" else path
            with open(target, "w", encoding="utf-8", closefd=name != "-") as stream:
                yield stream
        else:
            # click's own atomic files replace what was there even where the export fails.
            with unfinished(path.parent) as folder:
                whole = folder / "export"
                with whole.open("w", encoding="utf-8") as file:
                    yield file
                if path.exists():
                    shutil.copymode(path, whole)
                whole.replace(path)
    except BrokenPipeError:
        raise  # the reader has had enough: click ends the command without a word
    except OSError as error:
        raise Failure(f"cannot write to {name}: {error.strerror or error}") from None


@contextmanager
def progress(file: BinaryIO) -> Iterator[Iterator[bytes]]:
    """Read a file's lines, showing how far it is if somebody watches."""
    watched = sys.stderr if sys.stderr.isatty() else StringIO()
    with tempfile.TemporaryFile() as spool:
        if not file.seekable():
            # An import keeps all others from writing: it must not wait for a slow pipe.
            try:
                shutil.copyfileobj(file, spool)
                spool.seek(0)
            except OSError as error:
                place = tempfile.gettempdir()
                raise Failure(f"cannot keep the input in {place}: {error.strerror}") from None
            file = spool
        size = os.fstat(file.fileno()).st_size
        with click.progressbar(length=size, label="Importing", file=watched) as bar:

            def lines() -> Iterator[bytes]:
                while line := file.readline(LONGEST_LINE + 1):
                    yield line
                    bar.update(len(line))

            yield lines()
