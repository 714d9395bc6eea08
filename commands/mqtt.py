"""`orchmgmt mqtt`: the service over MQTT alone, beside any WSGI server."""

import logging
import signal
from typing import Any

import click

from orchmgmt.app import create_app, service_of
from orchmgmt.cli import OF_EVERYTHING, begin, takes_settings
from orchmgmt.commands.serve import announce
from orchmgmt.extensions.mqtt.broker import Broker
from orchmgmt.serving.server import SIGNALS, hold_signals
from orchmgmt.settings import EXTENSIONS, PREFIX, SettingError

log = logging.getLogger("orchmgmt")

#: How often it looks whether the broker has been reached, in seconds.
CHECK_INTERVAL = 0.1


@click.command()
@takes_settings(*OF_EVERYTHING)
def mqtt(**options: Any) -> None:
    """Answer requests over MQTT, until SIGTERM, SIGINT or SIGHUP.

    Another server, such as gunicorn, answers those over HTTP. `orchmgmt serve` does both.
    """
    hold_signals()
    settings = begin(options)
    if not settings.mqtt_url:
        raise SettingError(f"{PREFIX}MQTT_URL must say where the broker is")
    service = service_of(create_app(settings))
    kind = EXTENSIONS["mqtt_url"].load("it")
    (bridge,) = (it for it in service.extensions if isinstance(it, kind))
    with service.store:
        broker = Broker.of(settings)
        announce(settings, f"over {broker}")
        bridge.start("")
        told_to_stop = None
        while not (bridge.ready() or told_to_stop):
            told_to_stop = signal.sigtimedwait(SIGNALS, CHECK_INTERVAL)
        if not told_to_stop:
            click.echo(f"Listening on {broker}")
            signal.sigwait(SIGNALS)
        bridge.stop()
        log.info("stopped")
