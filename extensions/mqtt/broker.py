"""Where the broker is, and what is found there. Needs no package."""

from collections.abc import Iterable
from typing import Any, NamedTuple, Self
from urllib.parse import unquote, urlsplit

from orchmgmt.settings import PREFIX, SettingError, Settings

PORTS = {"mqtt": 1883, "mqtts": 8883}


def base_topic(group: str) -> str:
    """Return what the topics of a service's operations begin with."""
    return f"arrowhead/serviceorchestration/orchestration/management/{group}/"


class Broker(NamedTuple):
    """The broker of the setting `MQTT_URL`.

    Attributes:
        host: its name or address.
        port: its port.
        tls: whether it is reached over TLS.
        user: by which name it knows this system, if it asks.
        password: with which password, likewise.
    """

    host: str
    port: int
    tls: bool
    user: str | None
    password: str | None

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """Return the broker of the settings.

        Raises:
            SettingError: the URL is wrong. The message does not show it, since it may have a
                password.
        """
        try:
            return cls(*_parts(settings.mqtt_url))
        except (ValueError, KeyError):
            raise SettingError(
                f"{PREFIX}MQTT_URL must be mqtt://HOST:PORT or mqtts://HOST:PORT, with "
                "USER:PASSWORD@ before HOST if the broker asks for them; escape special "
                "characters with %, as in any URL"
            ) from None

    def interface(self, group: str, operations: Iterable[str], policy: str) -> dict[str, Any]:
        """Return how others reach a service over it, as the ServiceRegistry has it.

        Args:
            group: the service.
            operations: the names of its operations.
            policy: what the registry calls the authentication policy.
        """
        return {
            "templateName": "generic_mqtts" if self.tls else "generic_mqtt",
            "protocol": "ssl" if self.tls else "tcp",
            "policy": policy,
            "properties": {
                "accessAddresses": [self.host],
                "accessPort": self.port,
                "baseTopic": base_topic(group),
                "operations": list(operations),
            },
        }

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"mqtt{'s' if self.tls else ''}://{host}:{self.port}"


def _parts(url: str) -> tuple[str, int, bool, str | None, str | None]:
    parts = urlsplit(url)
    host = parts.hostname or ""
    host.encode("idna")
    usual = PORTS[parts.scheme]
    port = usual if parts.port is None else parts.port
    user, password = (
        it if it is None else unquote(it, errors="strict")
        for it in (parts.username, parts.password)
    )
    extra = parts.path.strip("/") or parts.query or parts.fragment
    if not host or not port or user == "" or extra or not url.isprintable() or " " in url:
        raise ValueError
    return host, port, parts.scheme == "mqtts", user, password
