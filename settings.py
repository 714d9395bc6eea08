"""Every setting of the service: its name, default, type, limits and help, in one table.

The table is the class `Settings`. The command line's options, the README's table and the check at
start are all made from it.
"""

import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import Field, dataclass, field, fields
from typing import Any, get_type_hints

from orchmgmt.values import Naming, strip

PREFIX = "ORCHMGMT_"


@dataclass(frozen=True)
class Policy:
    """Where a policy's class is, as `module:Class`, and whether it asks other systems.

    The class is imported only when it is chosen: nobody needs the packages of the others.
    """

    where: str
    asks: bool = False


#: How many requests may wait at once for the systems that a policy asks.
ASKING_AT_ONCE = 32

#: A new policy needs its class and its line here.
AUTHENTICATION_POLICIES = {
    "declared": Policy("orchmgmt.policies.declared:Declared"),
    "outsourced": Policy("orchmgmt.policies.outsourced:Outsourced", asks=True),
    "certificate": Policy("orchmgmt.policies.certificate:Certificate"),
}
MANAGEMENT_POLICIES = {
    "sysop-only": Policy("orchmgmt.policies.sysop_only:SysopOnly"),
    "whitelist": Policy("orchmgmt.policies.whitelist:Whitelist"),
    "authorization": Policy("orchmgmt.policies.authorization:Authorization", asks=True),
}

_TRUE = {"true", "yes", "on", "1"}
_FALSE = {"false", "no", "off", "0"}


class SettingError(ValueError):
    """A setting that cannot be used; its text names the setting and says what it must be."""


def _setting(
    default: Any,
    help: str,
    *,
    choices: Iterable[str] = (),
    minimum: float | None = None,
    maximum: float | None = None,
    secret: bool = False,
) -> Any:
    limits = {"help": help, "choices": tuple(choices), "minimum": minimum, "maximum": maximum}
    return field(default=default, repr=not secret, metadata=limits)


@dataclass(frozen=True)
class Settings:
    """What the service can be told. `ORCHMGMT_<NAME>` is the name in capitals."""

    database_url: str = _setting(
        "sqlite:///orchmgmt.db",
        "Where locks and jobs are kept: sqlite:///FILE (relative), sqlite:////FILE (absolute), "
        "sqlite:///:memory: or postgresql://USER:PASSWORD@HOST:PORT/NAME; "
        "% escapes a character as in any URL",
    )
    database_timeout_seconds: float = _setting(
        5.0, "How long a request waits for a busy database", minimum=0.0, maximum=3600.0
    )
    database_connections: int = _setting(
        20, "Connections to PostgreSQL that a process has at most", minimum=1, maximum=1000
    )
    host: str = _setting("127.0.0.1", "Address to listen on")
    port: int = _setting(
        8441, "TCP port to listen on; 0 picks a free one", minimum=0, maximum=65535
    )
    unix_socket: str = _setting("", "Unix socket to listen on instead of an address and a port")
    threads: int = _setting(
        0,
        "Threads that answer requests, beside those that wait for other programs; 0 is 1 with "
        "SQLite, or 4 where PostgreSQL or other systems must be waited for",
        minimum=0,
        maximum=256,
    )
    authentication_policy: str = _setting(
        "declared", "How requesters prove who they are", choices=AUTHENTICATION_POLICIES
    )
    management_policy: str = _setting(
        "sysop-only",
        "Who may manage locks and history: operators, or also the whitelist, or also those that "
        "ConsumerAuthorization allows",
        choices=MANAGEMENT_POLICIES,
    )
    management_whitelist: tuple[str, ...] = _setting(
        (),
        "System names, separated by commas, that `whitelist` and `authorization` let in",
    )
    system_name: str = _setting(
        "OrchestrationManagement", "The name of this system, for the systems that it asks"
    )
    system_password: str = _setting(
        "",
        "What this system logs in with; other users of the machine can see a command's options",
        secret=True,
    )
    system_password_file: str = _setting("", "File with that password, instead")
    identity_url: str = _setting(
        "", "The identity service, such as https://HOST:8444/authentication/identity"
    )
    authorization_url: str = _setting(
        "",
        "ConsumerAuthorization, such as https://HOST:8445/consumerauthorization/authorization; it "
        "must have the same authentication policy",
    )
    ca_file: str = _setting(
        "", "PEM file of who may certify those two; the machine's own by default"
    )
    certificate_file: str = _setting("", "PEM file of this system's own certificate, for those two")
    key_file: str = _setting("", "PEM file of its key, if that is another file")
    identity_cache_seconds: float = _setting(
        10.0, "How long a verified token is remembered; 0 never", minimum=0.0, maximum=3600.0
    )
    connect_timeout_seconds: float = _setting(
        2.0, "How long a connection to those two may take", minimum=0.05, maximum=300.0
    )
    read_timeout_seconds: float = _setting(
        5.0, "How long their answer may take", minimum=0.05, maximum=300.0
    )
    cloud: str = _setting("", "<cloud>.<organisation> that a client certificate must name")
    client_certificate_header: str = _setting(
        "X-Client-Certificate", "Header in which a trusted proxy hands on the client certificate"
    )
    trusted_proxies: tuple[str, ...] = _setting(
        ("127.0.0.0/8", "::1"),
        "Addresses and networks, separated by commas, of proxies whose headers are believed",
    )
    normalization_mode: str = _setting(
        "extended",
        "`extended` brings names to their convention, `simple` only strips white space",
        choices=("extended", "simple"),
    )
    max_page_size: int = _setting(
        1000, "Largest page that a query returns, in entries", minimum=1, maximum=1_000_000
    )
    max_body_bytes: int = _setting(
        4 * 1024 * 1024, "Largest request body, in bytes", minimum=1, maximum=2**31
    )
    omit_empty: bool = _setting(
        False, "Leave keys without a value out of entries instead of giving an empty string"
    )
    history_max_age_days: float = _setting(
        15.0, "Age at which the cleaner deletes a finished job, in days", minimum=0.0, maximum=1e6
    )
    cleaner_interval_seconds: float = _setting(
        30.0, "Pause between two rounds of the cleaner, in seconds", minimum=0.05, maximum=86400.0
    )
    log_level: str = _setting(
        "INFO",
        "What is logged to standard error",
        choices=("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"),
    )
    log_format: str = _setting(
        "text",
        "Lines of the log: for people, or a JSON object each",
        choices=("text", "json"),
    )
    metrics: bool = _setting(
        False, "Tell Prometheus at /metrics, which asks for no identity, how the service is doing"
    )

    def __post_init__(self) -> None:
        for setting, names in (
            ("MANAGEMENT_WHITELIST", self.management_whitelist),
            ("SYSTEM_NAME", (self.system_name,)),
        ):
            for name in names:
                try:
                    self.naming.system_name(strip(name))
                except ValueError as error:
                    raise SettingError(f"{PREFIX}{setting}: {error}") from None

    @property
    def naming(self) -> Naming:
        """How names are normalised under these settings."""
        return Naming(extended=self.normalization_mode == "extended")

    @property
    def usual_threads(self) -> int:
        """How many threads answer requests while none of them waits long."""
        waits = (
            AUTHENTICATION_POLICIES[self.authentication_policy].asks
            or MANAGEMENT_POLICIES[self.management_policy].asks
            or self.database_url.startswith("postgresql:")
        )
        return self.threads or (4 if waits else 1)

    def needed(self, name: str, policy: str) -> str:
        """Return the text of a setting that a policy cannot do without.

        Args:
            name: the setting, such as `identity_url`.
            policy: the policy that needs it.

        Raises:
            SettingError: it is not set.
        """
        value: str = getattr(self, name)
        if not value:
            raise SettingError(f"the policy `{policy}` needs {PREFIX}{name.upper()}")
        return value

    @classmethod
    def read(
        cls,
        *layers: Mapping[str, object],
        environ: Mapping[str, str] | None = None,
    ) -> "Settings":
        """Return the settings of the environment, overridden by each of `layers` in turn.

        Args:
            layers: mappings from a name (`PORT` or `ORCHMGMT_PORT`) to a value of the setting's
                type, or to the text that the environment would hold. `None` leaves it as it is.
            environ: where `ORCHMGMT_*` are read, if not blank; `os.environ` by default.

        Raises:
            SettingError: a value is wrong, or a name in `layers` is no setting.
        """
        known = {setting.name: setting for setting in fields(cls)}
        values: dict[str, Any] = {}
        environ = os.environ if environ is None else environ
        for name, setting in known.items():
            text = environ.get(PREFIX + name.upper(), "")
            if strip(text):
                values[name] = _parse(setting, text)
        for layer in layers:
            for key, value in layer.items():
                name = key.removeprefix(PREFIX).lower()
                if name not in known:
                    raise SettingError(f"{key} is not a setting")
                if value is not None:
                    values[name] = _parse(known[name], value)
        return cls(**values)


def unknown_names(environ: Iterable[str]) -> list[str]:
    """Return the `ORCHMGMT_*` names in `environ` that are no settings: probably misspelt."""
    known = {PREFIX + setting.name.upper() for setting in fields(Settings)}
    return sorted(name for name in environ if name.startswith(PREFIX) and name not in known)


@dataclass(frozen=True)
class Described:
    """One row of the settings table, as a reader sees it."""

    name: str
    default: str
    type: str
    help: str


def describe() -> list[Described]:
    """Return the whole table, in its order."""
    return [
        Described(
            PREFIX + setting.name.upper(),
            write(setting.default),
            " or ".join(setting.metadata["choices"]) or _TYPES[_type(setting)][1],
            setting.metadata["help"],
        )
        for setting in fields(Settings)
    ]


def write(value: object) -> str:
    """Return a setting's value as its environment variable would hold it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return ",".join(value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def _type(setting: Field[Any]) -> Any:
    return get_type_hints(Settings)[setting.name]


def _parse(setting: Field[Any], value: object) -> Any:
    convert, type_name = _TYPES[_type(setting)]
    if value == setting.default == "":
        return ""
    limits = setting.metadata
    try:
        result = convert(value)
        if limits["choices"]:
            result = {word.lower(): word for word in limits["choices"]}[result.lower()]
        if limits["minimum"] is not None and not limits["minimum"] <= result <= limits["maximum"]:
            raise ValueError
    except (ValueError, TypeError, KeyError):
        wanted = type_name
        if limits["choices"]:
            wanted = "one of " + ", ".join(limits["choices"])
        elif limits["minimum"] is not None:
            wanted += f" from {write(limits['minimum'])} to {write(limits['maximum'])}"
        name = PREFIX + setting.name.upper()
        but = f", not {value!r}" if setting.repr else ""
        raise SettingError(f"{name} must be {wanted}{but}") from None
    return result


def _text(value: object) -> str:
    if not isinstance(value, str) or not strip(value):
        raise ValueError
    return strip(value)


def _boolean(value: object) -> bool:
    if isinstance(value, bool):
        return value
    word = _text(value).lower()
    if word not in _TRUE | _FALSE:
        raise ValueError
    return word in _TRUE


def _whole(value: object) -> int:
    if isinstance(value, str) and re.fullmatch("-?[0-9]{1,18}", strip(value)):
        return int(value)
    if type(value) is not int:
        raise ValueError
    return value


def _number(value: object) -> float:
    if isinstance(value, str) and re.fullmatch(r"-?[0-9]{1,18}(\.[0-9]{1,18})?", strip(value)):
        return float(value)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError
    return float(value)


def _list(value: object) -> tuple[str, ...]:
    parts = value.split(",") if isinstance(value, str) else value
    if not isinstance(parts, Iterable):
        raise ValueError
    return tuple(_text(part) for part in parts if part != "")


_TYPES: dict[Any, tuple[Callable[[object], Any], str]] = {
    str: (_text, "text"),
    bool: (_boolean, "true or false"),
    int: (_whole, "a whole number"),
    float: (_number, "a number"),
    tuple[str, ...]: (_list, "a list separated by commas"),
}
