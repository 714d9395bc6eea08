"""Every setting of the service: its name, default, type, limits and help, in one table.

The table is the class `Settings`. The command line's options, the table of docs/settings.md and the
check at the start all come from it.
"""

import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import Field, dataclass, field, fields
from functools import partial
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from orchmgmt.values import Naming, meant, strip

PREFIX = "ORCHMGMT_"

#: The name by which clouds know their operator.
OPERATOR_NAME = "Sysop"

#: Stands for every origin.
ANY_ORIGIN = "*"

#: An origin as browsers send it, except for upper case.
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://([\w.-]+|\[[0-9a-f:.]+\])(:[0-9]{1,5})?", re.I).fullmatch
_USUAL_PORTS = re.compile(r"http://.*:80|https://.*:443", re.I).fullmatch


class SettingError(ValueError):
    """A setting that cannot be used. The message names the setting and says what it must be."""


def read_file(path: Path | str, shown: str) -> str:
    """Return the text of a file that a setting or an option names.

    Args:
        path: the file.
        shown: what the message calls it.

    Raises:
        SettingError: it cannot be read.
    """
    try:
        return Path(path).read_text("utf-8")
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8"
        raise SettingError(f"{shown} cannot be read: {reason}") from None


@dataclass(frozen=True)
class Part:
    """A class that a setting chooses. It is imported, and needs its packages, only if chosen.

    Attributes:
        where: the class, as `module:Class`.
        extra: the extra that installs the packages that it needs, if it needs any.
        asks: whether it asks other systems while a request waits.
    """

    where: str
    extra: str = ""
    asks: bool = False

    def load(self, chosen: str) -> Any:
        """Return the class.

        Args:
            chosen: what chooses the class, for the message.

        Raises:
            SettingError: a package that it needs is missing.
        """
        try:
            return resolve_name(f"orchmgmt.{self.where}")
        except ImportError as error:
            raise SettingError(
                f"{chosen} needs {error.name or error}: pip install 'orchmgmt[{self.extra}]'"
            ) from error

    def is_installed(self) -> bool:
        """Return whether the packages that it needs are installed."""
        try:
            self.load("it")
        except SettingError:
            return False
        return True


#: How many requests may wait at once for the systems that a policy asks.
ASKING_AT_ONCE = 32

#: A new policy needs a class and a line here.
AUTHENTICATION_POLICIES = {
    "declared": Part("policies.declared:Declared"),
    "outsourced": Part("policies.outsourced:Outsourced", asks=True),
    "certificate": Part("policies.certificate:Certificate", extra="certificate"),
}
MANAGEMENT_POLICIES = {
    "sysop-only": Part("policies.sysop_only:SysopOnly"),
    "whitelist": Part("policies.whitelist:Whitelist"),
    "authorization": Part("policies.authorization:Authorization", asks=True),
}

#: What settings switch on, by the setting. A new extension needs a class and a line here.
EXTENSIONS = {
    "recorder": Part("extensions.recorder:Recorder"),
    "ui": Part("extensions.ui:Page"),
    "metrics": Part("extensions.metrics:Metrics", extra="metrics"),
    "openapi": Part("extensions.openapi:Document", extra="openapi"),
    "cors_origins": Part("extensions.cors:OtherOrigins", extra="cors"),
    "mqtt_url": Part("extensions.mqtt.bridge:Mqtt", extra="mqtt"),
    "service_registry_url": Part("extensions.registration:Registration"),
}

_BOOLEANS = {
    **dict.fromkeys(("true", "yes", "on", "1"), True),
    **dict.fromkeys(("false", "no", "off", "0"), False),
}
_DECIMAL = re.compile(r"-?[0-9]{1,18}(\.[0-9]{1,18})?").fullmatch


def _setting(
    default: Any,
    help: str,
    *,
    choices: Iterable[str] = (),
    within: tuple[float, float] | None = None,
    secret: bool = False,
) -> Any:
    row = {"help": help, "choices": tuple(choices), "within": within}
    return field(default=default, repr=not secret, metadata=row)


@dataclass(frozen=True)
class Settings:
    """The settings of the service. The variable of each is `ORCHMGMT_` and its name in capitals."""

    database_url: str = _setting(
        "sqlite:///orchmgmt.db",
        "The database: sqlite:///FILE (relative), sqlite:////FILE (absolute), "
        "sqlite:///:memory: or postgresql://USER:PASSWORD@HOST:PORT/NAME; "
        "escape special characters with %, as in any URL",
    )
    database_timeout_seconds: float = _setting(
        5.0, "How long a request waits for a busy database, in seconds", within=(0.0, 3600.0)
    )
    database_connections: int = _setting(
        20, "Maximum number of connections to PostgreSQL for each process", within=(1, 1000)
    )
    host: str = _setting("127.0.0.1", "Address to listen on; :: means all IPv6 and IPv4 addresses")
    port: int = _setting(8441, "TCP port to listen on; 0 picks a free port", within=(0, 65535))
    unix_socket: str = _setting("", "Unix socket to listen on, instead of an address and a port")
    threads: int = _setting(
        0,
        "Threads that answer requests, in addition to those that wait for other programs; 0 means "
        "4 if the service uses PostgreSQL or a policy asks other systems, otherwise 1",
        within=(0, 256),
    )
    authentication_policy: str = _setting(
        "declared", "How requesters prove who they are", choices=AUTHENTICATION_POLICIES
    )
    management_policy: str = _setting(
        "sysop-only",
        "Who may manage locks and history: only operators, or also the systems in the whitelist, "
        "or also those that ConsumerAuthorization allows",
        choices=MANAGEMENT_POLICIES,
    )
    management_whitelist: tuple[str, ...] = _setting(
        (),
        "System names, separated by commas, that `whitelist` and `authorization` allow",
    )
    system_name: str = _setting(
        "OrchestrationManagement",
        "The name of this system when it calls other systems; under `certificate` the name in its "
        "certificate",
    )
    system_password: str = _setting(
        "",
        "The password with which this system logs in; do not give it as an option, which other "
        "users of the machine can see",
        secret=True,
    )
    system_password_file: str = _setting("", "File with the password, instead")
    identity_url: str = _setting(
        "", "URL of the identity service, such as https://HOST:8444/authentication/identity"
    )
    authorization_url: str = _setting(
        "",
        "URL of ConsumerAuthorization, such as "
        "https://HOST:8445/consumerauthorization/authorization; it must have the same "
        "authentication policy",
    )
    service_registry_url: str = _setting(
        "",
        "URL of the ServiceRegistry where `serve` registers this system, such as "
        "https://HOST:8443/serviceregistry; if empty, it does not register",
    )
    service_addresses: tuple[str, ...] = _setting(
        (),
        "Addresses, separated by commas, at which other systems reach this one; HOST by default",
    )
    service_port: int = _setting(
        0, "Port at those addresses; 0 means the port listened on", within=(0, 65535)
    )
    service_tls: bool = _setting(
        False, "Whether a proxy at those addresses uses TLS; always true under `certificate`"
    )
    service_metadata: tuple[str, ...] = _setting(
        (),
        "Metadata of the registered services, key=value separated by commas; true and false "
        "become JSON booleans, everything else is text",
    )
    mqtt_url: str = _setting(
        "",
        "URL of the MQTT broker over which `serve` and `orchmgmt mqtt` answer requests too: "
        "mqtt://USER:PASSWORD@HOST:1883, or mqtts://HOST:8883 with TLS; if empty, there is no MQTT",
    )
    mqtt_ca_file: str = _setting(
        "",
        "PEM file of the CAs trusted for the broker, by default those of CA_FILE; under "
        "`certificate`, requesters' certificates are verified with it, and with revocation lists "
        "in it",
    )
    ca_file: str = _setting(
        "", "PEM file of the CAs trusted for other systems; by default those of the machine"
    )
    certificate_file: str = _setting(
        "", "PEM file of this system's own certificate, for calls to other systems"
    )
    key_file: str = _setting("", "PEM file of the certificate's key, if it is a separate file")
    identity_cache_seconds: float = _setting(
        10.0, "How long a verified token is cached, in seconds; 0 means never", within=(0.0, 3600.0)
    )
    connect_timeout_seconds: float = _setting(
        2.0, "How long connecting to another system may take, in seconds", within=(0.05, 300.0)
    )
    read_timeout_seconds: float = _setting(
        5.0, "How long another system's answer may take, in seconds", within=(0.05, 300.0)
    )
    cloud: str = _setting("", "<cloud>.<organisation> that a client certificate must have")
    client_certificate_header: str = _setting(
        "X-Client-Certificate", "Header in which a trusted proxy passes on the client certificate"
    )
    trusted_proxies: tuple[str, ...] = _setting(
        ("127.0.0.0/8", "::1"),
        "Addresses and networks, separated by commas, of the proxies whose headers are trusted",
    )
    normalization_mode: str = _setting(
        "extended",
        "How names are normalised: `extended` brings them to their convention, `simple` only "
        "strips white space",
        choices=("extended", "simple"),
    )
    max_page_size: int = _setting(
        1000, "Largest page that a query returns, in entries", within=(1, 1_000_000)
    )
    max_body_bytes: int = _setting(
        4 * 1024 * 1024, "Largest request body, in bytes", within=(1, 2**31)
    )
    omit_empty: bool = _setting(
        False, "Leave keys without a value out of answers, instead of an empty string"
    )
    unknown_keys: str = _setting(
        "ignore",
        "What to do with keys of a payload, or of remove's query string, that the contract does "
        "not name: ignore them, or refuse the request with 400",
        choices=("ignore", "refuse"),
    )
    recorder: bool = _setting(
        False, "Switch on the operations with which orchestrators store jobs and reservations"
    )
    history_max_age_days: float = _setting(
        15.0, "Age at which the cleaner deletes a finished job, in days", within=(0.0, 1e6)
    )
    cleaner_interval_seconds: float = _setting(
        30.0, "Pause between two rounds of the cleaner, in seconds", within=(0.05, 86400.0)
    )
    log_level: str = _setting(
        "INFO",
        "The lowest level that is logged, to standard error",
        choices=("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"),
    )
    log_format: str = _setting(
        "text",
        "Format of the log: text for people, or one JSON object on each line",
        choices=("text", "json"),
    )
    metrics: bool = _setting(
        False, "Serve metrics for Prometheus at /metrics, which needs no identity"
    )
    ui: bool = _setting(False, "Serve the page for people at /ui/, with a redirect from /")
    openapi: bool = _setting(
        False,
        "Serve the OpenAPI 3.1 document at /openapi.json, and a page for people at /docs; neither "
        "needs an identity",
    )

    cors_origins: tuple[str, ...] = _setting(
        (),
        "Origins, separated by commas, whose pages may call the service from a browser, such as "
        "https://tools.example:8080; * allows any origin",
    )

    def __post_init__(self) -> None:
        if self.host.startswith("[") and self.host.endswith("]"):  # as in a URL
            object.__setattr__(self, "host", self.host[1:-1])
        names = {
            "MANAGEMENT_WHITELIST": self.management_whitelist,
            "SYSTEM_NAME": (self.system_name,),
        }
        for setting, texts in names.items():
            try:
                for text in texts:
                    self.naming.system_name(strip(text))
            except ValueError as error:
                raise SettingError(f"{PREFIX}{setting}: {error}") from None
        for origin in self.cors_origins:
            if origin != ANY_ORIGIN and (not _ORIGIN(origin) or _USUAL_PORTS(origin)):
                raise SettingError(
                    f"{PREFIX}CORS_ORIGINS: {origin!r} is not an origin: give the scheme, the host "
                    "and the port (unless it is the default), as in https://tools.example:8080"
                )
        if self.own_name == OPERATOR_NAME:
            raise SettingError(
                f"{PREFIX}SYSTEM_NAME: {OPERATOR_NAME} is the operator, and this system must not "
                "have its rights: choose another name"
            )

    @property
    def naming(self) -> Naming:
        """How names are normalised under these settings."""
        return Naming(extended=self.normalization_mode == "extended")

    @property
    def own_name(self) -> str:
        """The SystemName of this system. Under `certificate` it is in the certificate instead."""
        return self.naming.system_name(strip(self.system_name))

    @property
    def usual_threads(self) -> int:
        """How many threads answer requests while no request waits for another system."""
        waits = (
            AUTHENTICATION_POLICIES[self.authentication_policy].asks
            or MANAGEMENT_POLICIES[self.management_policy].asks
            or self.database_url.startswith("postgresql:")
        )
        return self.threads or (4 if waits else 1)

    def needed(self, name: str, policy: str) -> str:
        """Return the text of a setting that a policy requires.

        Args:
            name: the setting, such as `identity_url`.
            policy: the policy that needs it.

        Raises:
            SettingError: the setting has no value.
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
                type, or to its text in the environment. `None` changes nothing.
            environ: the environment with the variables `ORCHMGMT_*`; `os.environ` by default. For
                a blank variable the default stays.

        Raises:
            SettingError: a value is wrong, or a name is not a setting. (A misspelt policy would let
                everybody in.)
        """
        known = {setting.name: setting for setting in fields(cls)}
        environ = os.environ if environ is None else environ
        demand_known(environ)
        given = {name: environ[name] for name in VARIABLES if strip(environ.get(name, ""))}
        values: dict[str, Any] = {}
        for layer in (given, *layers):
            for key, value in layer.items():
                name = key.removeprefix(PREFIX).lower()
                if name not in known:
                    raise SettingError(f"{key} is not a setting{meant(name, known)}")
                if value is not None:
                    values[name] = _parse(known[name], value)
        return cls(**values)


#: Variables of the commands that ask a running service: where it is, and who asks.
OF_A_CLIENT = {
    "url": "ORCHMGMT_URL",
    "token_file": "ORCHMGMT_TOKEN_FILE",
    "certificate": "ORCHMGMT_CLIENT_CERTIFICATE_FILE",
    "key": "ORCHMGMT_CLIENT_KEY_FILE",
}

#: Variables that `orchmgmt lock hold` sets for the command that it runs.
OF_A_HOLD = {"ids": "ORCHMGMT_LOCK_IDS", "fence": "ORCHMGMT_LOCK_FENCE"}

#: The environment's names of all settings.
VARIABLES = [PREFIX + setting.name.upper() for setting in fields(Settings)]


def demand_known(environ: Iterable[str]) -> None:
    """Raise SettingError if a variable `ORCHMGMT_*` is misspelt, and so would have no effect."""
    for name in sorted(name for name in environ if name.startswith(PREFIX)):
        known = [*VARIABLES, *OF_A_CLIENT.values()]
        if name not in known and name not in OF_A_HOLD.values():
            raise SettingError(f"{name} is not a setting{meant(name.upper(), known)}")


def switched_on(settings: Settings) -> list[Any]:
    """Return the classes of the extensions that the settings switch on.

    Raises:
        SettingError: a package that one of them needs is missing.
    """
    chosen = [name for name in EXTENSIONS if getattr(settings, name)]
    return [EXTENSIONS[name].load(PREFIX + name.upper()) for name in chosen]


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
            " or ".join(setting.metadata["choices"]) or _TYPES[type(setting.default)][1],
            setting.metadata["help"],
        )
        for setting in fields(Settings)
    ]


def write(value: object) -> str:
    """Return a setting's value as the text of its environment variable."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return ",".join(value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def _parse(setting: Field[Any], value: object) -> Any:
    if value == setting.default == "":
        return ""
    convert, wanted = _TYPES[type(setting.default)]
    choices, within = setting.metadata["choices"], setting.metadata["within"]
    if choices:
        wanted = "one of " + ", ".join(choices)
    elif within:
        wanted += f" from {write(within[0])} to {write(within[1])}"
    try:
        result = convert(value)
        if choices:
            return {word.lower(): word for word in choices}[result.lower()]
        if within and not within[0] <= result <= within[1]:
            raise ValueError
        return result
    except (ValueError, TypeError, KeyError, OverflowError):
        but = f", not {value!r}" if setting.repr else ""
        raise SettingError(f"{PREFIX}{setting.name.upper()} must be {wanted}{but}") from None


def _text(value: object) -> str:
    if not isinstance(value, str) or not strip(value):
        raise ValueError
    return strip(value)


def _boolean(value: object) -> bool:
    return value if isinstance(value, bool) else _BOOLEANS[_text(value).lower()]


def _number(kind: type[float], value: object) -> float:
    right = _DECIMAL(strip(value)) if isinstance(value, str) else isinstance(value, (int, kind))
    if not right or isinstance(value, bool):
        raise ValueError
    return kind(value)  # type: ignore[arg-type]


def _list(value: object) -> tuple[str, ...]:
    parts = value.split(",") if isinstance(value, str) else value
    if not isinstance(parts, Iterable):
        raise ValueError
    return tuple(_text(part) for part in parts if part != "")


#: For each type of a default: how a value is read, and what it must be.
_TYPES: dict[type, tuple[Callable[[object], Any], str]] = {
    str: (_text, "text"),
    bool: (_boolean, "true or false"),
    int: (partial(_number, int), "a whole number"),
    float: (partial(_number, float), "a number"),
    tuple: (_list, "a list separated by commas"),
}
