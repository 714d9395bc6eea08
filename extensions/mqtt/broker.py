"""Where the broker is."""

from typing import NamedTuple, Self
from urllib.parse import unquote, urlsplit

from orchmgmt.settings import PREFIX, SettingError, Settings

PORTS = {"mqtt": 1883, "mqtts": 8883}


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
            parts = urlsplit(settings.mqtt_url)
            host, port = parts.hostname or "", parts.port
            host.encode("idna")
            port = PORTS[parts.scheme] if port is None else port
            user, password = (
                it if it is None else unquote(it, errors="strict")
                for it in (parts.username, parts.password)
            )
            right = (
                host
                and port
                and parts.path in ("", "/")
                and not (parts.query or parts.fragment)
                and user != ""
                and settings.mqtt_url.isprintable()
                and " " not in settings.mqtt_url
            )
        except (ValueError, KeyError):
            right = False
        if not right:
            raise SettingError(
                f"{PREFIX}MQTT_URL must be mqtt://HOST:PORT or mqtts://HOST:PORT, with "
                "USER:PASSWORD@ before HOST if the broker asks for them; escape special "
                "characters with %, as in any URL"
            )
        return cls(host, port, parts.scheme == "mqtts", user, password)

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"mqtt{'s' if self.tls else ''}://{host}:{self.port}"
