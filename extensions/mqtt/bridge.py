"""The extension that answers requests over a broker."""

from orchmgmt.app import Service
from orchmgmt.extensions import Extension
from orchmgmt.extensions.mqtt.connection import Connection
from orchmgmt.extensions.mqtt.messages import Messages
from orchmgmt.store import Figure


class Mqtt(Extension):
    """Answers the requests that come over a broker, in threads of its own, until it is stopped.

    Args:
        service: its operations are offered.

    Raises:
        SettingError: a setting is missing or wrong.
    """

    def __init__(self, service: Service) -> None:
        messages = Messages(service)
        self._connection = Connection(service.store.settings, messages)
        service.store.figures += [
            Figure(
                "mqtt_connected",
                "Whether requests can come over the MQTT broker now",
                lambda: self._connection.connected,
                counts=False,
            ),
            Figure(
                "mqtt_ignored",
                "MQTT messages that were no request to be answered: retained, malformed, or "
                "without a topic for the answer",
                lambda: messages.ignored,
            ),
        ]

    def start(self, url: str) -> None:
        """Connect to the broker, and again whenever that is necessary."""
        self._connection.start()

    def ready(self) -> bool:
        """Return whether requests can come."""
        return self._connection.connected

    def stop(self) -> None:
        """Take no more requests, answer those that have come, and disconnect."""
        self._connection.stop()
