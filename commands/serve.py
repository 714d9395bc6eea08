"""`orchmgmt serve`, and what serves for other commands too."""

import logging
from collections.abc import Callable
from contextlib import ExitStack
from importlib.metadata import version
from typing import Any, Protocol

import click

from orchmgmt.app import create_app, service_of
from orchmgmt.cli import OF_EVERYTHING, NoAddress, begin, takes_settings
from orchmgmt.databases.opening import shown
from orchmgmt.policies import authentication_policy
from orchmgmt.serving.cleaner import Cleaner
from orchmgmt.serving.server import Server, hold_signals
from orchmgmt.serving.sockets import CannotListen
from orchmgmt.settings import Settings
from orchmgmt.store import Store

log = logging.getLogger("orchmgmt")


class Background(Protocol):
    """What a server does beside answering requests: extensions have it, and the cleaner is such."""

    def start(self, url: str) -> None:
        """Begin, now that the server listens at `url`."""

    def stop(self) -> None:
        """End, once the server has answered its last request."""


@click.command()
@click.option(
    "--read-only",
    is_flag=True,
    help="Only answer queries, and leave the database as it is: a backup, a standby, a read-only "
    "disk. Nothing is cleaned, upgraded or registered, and there is no MQTT.",
)
@takes_settings(*OF_EVERYTHING)
def serve(read_only: bool, **options: Any) -> None:
    """Serve locks and history over HTTP, until SIGTERM, SIGINT or SIGHUP."""
    hold_signals()
    run_server(begin(options), read_only=read_only)


def announce(settings: Settings, where: str) -> None:
    """Log what is served, and under which policies.

    Args:
        settings: what is served.
        where: how it is reached.
    """
    log.info(
        "orchmgmt %s serves %s %s; authentication policy %s, management policy %s",
        version("orchmgmt"),
        shown(settings.database_url),
        where,
        settings.authentication_policy,
        settings.management_policy,
    )


def run_server(
    settings: Settings,
    greeting: str = "Listening on {}",
    read_only: bool = False,
    also: Callable[[Store], Background] | None = None,
) -> None:
    """Serve until a signal says stop.

    Args:
        settings: what is served, and where.
        greeting: what is printed once it listens, with the address in it.
        read_only: whether the database is only read, as it is.
        also: makes something more that the process does meanwhile.
    """
    with ExitStack() as stack:
        try:
            # Before the database, which stays as it is where another server has the port.
            server = stack.enter_context(Server(settings))
        except CannotListen as error:
            raise NoAddress(str(error)) from None
        service = service_of(create_app(settings, read_only=read_only))
        stack.enter_context(service.store)
        background: list[Background] = []
        if not read_only:
            background += service.extensions
            background.append(Cleaner(service.store, settings.cleaner_interval_seconds))
        if also:
            background.append(also(service.store))
        for it in background:
            it.start(server.url)
        announce(settings, f"on {server.url}{', read-only' if read_only else ''}")
        if not authentication_policy(settings).verifies and server.reachable:
            log.warning(
                "the authentication policy `%s` verifies nothing, and %s can be reached from "
                "other machines: anybody who reaches it can claim to be an operator",
                settings.authentication_policy,
                settings.host,
            )
        click.echo(greeting.format(server.url))
        server.run(service.app)
        for it in reversed(background):
            it.stop()
        log.info("stopped")
