"""`orchmgmt serve`, and what serves for other commands too."""

import logging
from contextlib import ExitStack
from importlib.metadata import version
from typing import Any
from urllib.parse import urlsplit

import click

from orchmgmt.app import SERVICES, create_app, store_of
from orchmgmt.cli import OF_EVERYTHING, NoAddress, begin, takes_settings
from orchmgmt.databases.opening import shown
from orchmgmt.serving.cleaner import Cleaner
from orchmgmt.serving.server import Server, hold_signals
from orchmgmt.serving.sockets import CannotListen
from orchmgmt.settings import Settings

log = logging.getLogger("orchmgmt")


@click.command()
@click.option(
    "--read-only",
    is_flag=True,
    help="Answer queries alone, and leave the database as it is: a backup, a standby, a read-only "
    "disk. Nothing is cleaned, upgraded or registered.",
)
@takes_settings(*OF_EVERYTHING)
def serve(read_only: bool, **options: Any) -> None:
    """Serve locks and history over HTTP, until SIGTERM, SIGINT or SIGHUP."""
    hold_signals()
    run_server(begin(options), read_only=read_only)


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
            from orchmgmt.extensions.registration import Registration

            registration = Registration(app, SERVICES, settings)
        factory = None
        if pace:
            from orchmgmt.commands.factory import Factory, bring_to_the_present

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
