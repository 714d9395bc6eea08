"""`orchmgmt test-server`."""

import signal
from contextlib import closing
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


@click.command()
@click.option(
    "--ready-file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="File to which it writes the URL and the process id, as JSON, once it listens.",
)
@takes_settings(
    *OF_THE_TEST_SERVER,
    database_url="sqlite:///:memory:",
    port="0",
    openapi="true, where its extra is installed",
)
def test_server(ready_file: Path | None, **options: Any) -> None:
    """Serve for tests, which control the clock, faults and more below /test/ (docs/testing.md).

    It only listens on a loopback address. ORCHMGMT_* variables have no effect.
    """
    hold_signals()
    given = {name: it for name, it in options.items() if it is not None}
    service = Service(**{"openapi": EXTENSIONS["openapi"].is_installed(), **given})
    settings = service.settings
    if not is_loopback(settings.host):
        raise Failure(
            "anybody who reaches a test server controls it, so it only listens on a loopback "
            f"address such as 127.0.0.1, not on {settings.host}"
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
