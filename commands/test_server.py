"""`orchmgmt test-server`."""

import json
import os
import signal
import stat
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import click

from orchmgmt.cli import OF_EVERYTHING, Failure, NoAddress, takes_settings
from orchmgmt.logs import start_logging
from orchmgmt.serving.server import SIGNALS, hold_signals
from orchmgmt.settings import EXTENSIONS
from orchmgmt.testing import Service
from orchmgmt.testing.control import Control, is_loopback, tell_ready

OF_THE_TEST_SERVER = tuple(
    name
    for name in OF_EVERYTHING
    if not name.startswith("service_")
    and name not in ("unix_socket", "threads", "cleaner_interval_seconds")
)

#: The pause between two looks whether the parent is still there, in seconds.
LOOK = 0.2


@click.command()
@click.option(
    "--ready-file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="File to which it writes its URLs and the process id, as JSON, once it listens.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the same line instead of the address.")
@click.option(
    "--keep",
    is_flag=True,
    help="Go on when the process that started it, or its standard input, ends.",
)
@click.option(
    "--control-host",
    metavar="<text>",
    help="Address of the control. Only with one that other machines reach may --host be such a "
    "one; they control it then.  [default: that of --host]",
)
@click.option(
    "--control-port",
    type=click.IntRange(0, 65535),
    default=0,
    metavar="<integer>",
    help="Port of the control, or 0 for a free one.  [default: 0]",
)
@takes_settings(
    *OF_THE_TEST_SERVER,
    database_url="sqlite:///:memory:",
    port="0",
    openapi="true, where its extra is installed",
)
def test_server(
    ready_file: Path | None,
    as_json: bool,
    keep: bool,
    control_host: str | None,
    control_port: int,
    **options: Any,
) -> None:
    """Serve for tests, which control the clock, faults and more below /test/ (docs/testing.md).

    It ends with the process that started it, and with its standard input if that is a pipe.
    ORCHMGMT_* variables have no effect.
    """
    if ready_file:
        with _writing(ready_file), suppress(FileNotFoundError, NotADirectoryError):
            ready_file.unlink()  # of an earlier run
    hold_signals()
    if not keep:
        _end_with_others()
    given = {name: it for name, it in options.items() if it is not None}
    service = Service(**{"openapi": EXTENSIONS["openapi"].is_installed(), **given})
    settings = service.settings
    if not is_loopback(settings.host) and (not control_host or is_loopback(control_host)):
        raise Failure(
            "anybody who reaches a test server controls it, so it only listens on a loopback "
            f"address such as 127.0.0.1, not on {settings.host}; to allow that, for example in a "
            f"container, also say --control-host {settings.host}"
        )
    control_host = control_host or settings.host
    start_logging(settings)
    with _listening(settings.host, settings.port):
        service.start()
    with ExitStack() as serving:
        serving.enter_context(service)
        with _listening(control_host, control_port):
            control = serving.enter_context(closing(Control(service, control_host, control_port)))
        ready = json.dumps({"url": service.url, "control": control.url, "pid": os.getpid()})
        with _writing(ready_file), tell_ready(ready_file, ready):
            click.echo(ready if as_json else f"Listening on {service.url}")
            signal.sigwait(SIGNALS)


@contextmanager
def _listening(host: str, port: int) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise NoAddress(
            f"cannot listen on {host}, port {port}: {error.strerror or error}"
        ) from None


@contextmanager
def _writing(ready_file: Path | None) -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:  # of the standard output
        raise
    except OSError as error:
        raise Failure(f"cannot write to {ready_file}: {error.strerror or error}") from None


def _end_with_others() -> None:
    """Let this process end when its parent has ended, or the pipe that is its standard input."""
    parent = os.getppid()

    def follow_parent() -> None:
        while os.getppid() == parent:
            time.sleep(LOOK)

    def read_input() -> None:
        while os.read(0, 4096):
            pass

    waits = [follow_parent]
    with suppress(OSError):  # it is closed from the start
        mode = os.fstat(0).st_mode
        if stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode):  # Node.js gives a socket
            waits.append(read_input)
    for wait in waits:
        threading.Thread(target=_end_after, args=[wait], daemon=True).start()


def _end_after(wait: Callable[[], None]) -> None:
    with suppress(OSError):
        wait()
    os.kill(os.getpid(), signal.SIGTERM)
