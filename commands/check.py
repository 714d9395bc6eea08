"""`orchmgmt check`: checks that a server has everything it needs, and changes nothing."""

import logging
import os
import ssl
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from orchmgmt.cli import AS_IT_IS, OF_EVERYTHING, printable, takes_settings
from orchmgmt.commands.asking import say
from orchmgmt.databases import Busy
from orchmgmt.databases.files import in_the_way
from orchmgmt.databases.schema import SCHEMA_VERSION
from orchmgmt.databases.sqlite import MEMORY, sqlite_path
from orchmgmt.errors import Unavailable
from orchmgmt.models import BusyDatabase, MissingDatabase, UnusableDatabase
from orchmgmt.operations import SERVICES
from orchmgmt.policies import authentication_policy
from orchmgmt.policies.gate import Gate
from orchmgmt.settings import ANY_ORIGIN, EXTENSIONS, PREFIX, SettingError, Settings, switched_on
from orchmgmt.store import Store

if TYPE_CHECKING:
    from orchmgmt.policies.cloud import OtherSystem

log = logging.getLogger("orchmgmt")

#: The systems that make up a cloud (5.2), by their names.
CORE_SYSTEMS = {
    "Authentication",
    "Blacklist",
    "ConsumerAuthorization",
    "DeviceQoSEvaluator",
    "DynamicServiceOrchestration",
    "FlexibleServiceOrchestration",
    "ServiceRegistry",
    "SimpleStoreServiceOrchestration",
    "TranslationManager",
}

#: Blocks of a PEM file that have an expiry date.
CERTIFICATE = "-----BEGIN CERTIFICATE-----"
REVOCATIONS = "-----BEGIN X509 CRL-----"


class Wrong(Exception):
    """Something is wrong. The text says what, and what to do."""


class Doubtful(Exception):
    """A server runs, but perhaps not as intended."""


@click.command()
@click.argument("files", metavar="[PEM]...", nargs=-1, type=click.Path(path_type=Path))
@click.option(
    "--days",
    default=14.0,
    show_default=True,
    type=click.FloatRange(0, 3650),
    help="For how many days certificates and revocation lists must still be valid.",
)
@click.option(
    "--thorough", is_flag=True, help="Compare the database's indexes with its tables too (SQLite)."
)
@takes_settings(*OF_EVERYTHING)
@click.pass_context
def check(
    context: click.Context,
    /,
    files: tuple[Path, ...],
    days: float,
    thorough: bool,
    **options: Any,
) -> None:
    """Check that a server has everything it needs. This changes nothing.

    You can name PEM files to check too, such as the proxy's certificates and revocation list. Each
    line begins with `ok`, with `warn` if something is perhaps not intended, or with `wrong` and
    says what to do. If a line is `wrong`, the exit code is 1.
    """
    wrong = False
    with _Reasons() as reasons:
        for what, look in looks(options, files, timedelta(days=days), thorough):
            reasons.clear()
            try:
                result = f"ok     {what}: {look()}"
            except (Doubtful, Busy, BusyDatabase) as doubt:
                result = f"warn   {what}: {doubt}"
            except (Wrong, SettingError, UnusableDatabase, Unavailable) as error:
                # The log says more than an answer to a client is allowed to.
                reason = reasons[-1] if isinstance(error, Unavailable) and reasons else error
                result = f"wrong  {what}: {reason}"
                wrong = True
            say(printable(result))
    context.exit(int(wrong))


class _Reasons(list[str]):
    """Collects what is logged meanwhile, instead of printing it."""

    def __enter__(self) -> "_Reasons":
        self._handler = logging.Handler()
        self._handler.emit = lambda record: self.append(record.getMessage())  # type: ignore[method-assign]
        log.addHandler(self._handler)
        log.propagate = False
        return self

    def __exit__(self, *error: object) -> None:
        log.removeHandler(self._handler)
        log.propagate = True


Look = tuple[str, Callable[[], str]]


def looks(
    options: dict[str, Any], files: tuple[Path, ...], last: timedelta, thorough: bool
) -> Iterator[Look]:
    """Return the checks: the name of each, and a function that returns in words that all is well.

    Args:
        options: settings by name; they override the environment.
        files: PEM files to check too.
        last: for how long certificates and lists must still be valid.
        thorough: whether to check all of the database.
    """
    found: list[Settings] = []

    def settings_are_right() -> str:
        found.append(Settings.read(options))
        switched_on(found[0])
        if found[0].own_name in CORE_SYSTEMS:
            raise Doubtful(
                f"{PREFIX}SYSTEM_NAME is {found[0].own_name}, the name of a core system of the "
                "cloud, which other systems look up: choose another name, unless this service "
                "takes its place"
            )
        verified = authentication_policy(found[0]).verifies
        if ANY_ORIGIN in found[0].cors_origins and not verified:
            raise Doubtful(
                f"{PREFIX}CORS_ORIGINS is * under the policy `{found[0].authentication_policy}`: "
                "any page that somebody opens in a browser that reaches this service can act as "
                "an operator. Name the origins"
            )
        return f"authentication policy {found[0].authentication_policy}, " + (
            f"management policy {found[0].management_policy}"
        )

    yield "settings", settings_are_right
    if not found:
        return
    (settings,) = found
    yield "policies", lambda: _policies(settings)
    yield "database", lambda: _database(settings, thorough)
    for name in ("ca_file", "mqtt_ca_file", "certificate_file"):
        if getattr(settings, name):
            path = Path(getattr(settings, name))
            yield PREFIX + name.upper(), lambda path=path: _lasts(path, last)  # type: ignore[misc]
    if settings.certificate_file:
        yield f"{PREFIX}KEY_FILE", lambda: _key(settings)
    for path in files:
        yield str(path), lambda path=path: _lasts(path, last)  # type: ignore[misc]
    if settings.authentication_policy == "outsourced" and settings.identity_url:
        yield "identity service", lambda: _identity(settings)
    if settings.management_policy == "authorization" and settings.authorization_url:
        yield "authorization system", lambda: _authorization(settings)
    if settings.service_registry_url:
        yield "ServiceRegistry", lambda: _registry(settings)
    if settings.mqtt_url:
        yield "MQTT broker", lambda: _broker(settings)


def _policies(settings: Settings) -> str:
    Gate(settings)
    return "they have what they need"


def _database(settings: Settings, thorough: bool) -> str:
    try:
        with Store(settings, permitted=AS_IT_IS) as store:
            found = store.database.inspect(thorough)
    except MissingDatabase:
        if not settings.database_url.startswith("sqlite:"):
            return "its tables will be created"
        path = sqlite_path(settings.database_url)
        if path == MEMORY:
            return "it is created in memory, for each process"
        path = os.path.realpath(path)
        if not os.path.isdir(os.path.dirname(path)):
            raise
        if obstacle := in_the_way(path):
            raise Wrong(f"it does not exist and cannot be created: {obstacle}") from None
        return f"{path} will be created"
    return f"schema version {SCHEMA_VERSION}" + (found and f"; {found}")


def _key(settings: Settings) -> str:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_cert_chain(
            settings.certificate_file, settings.key_file or None, password=""
        )
    except OSError as error:
        raise Wrong(f"it does not belong to the certificate: {error.strerror}") from None
    return "it belongs to the certificate"


def _lasts(path: Path, last: timedelta) -> str:
    """Say when the first part of a PEM file expires."""
    try:
        from cryptography import x509
    except ImportError:
        raise Wrong("it cannot be read: pip install 'orchmgmt[certificate]'") from None
    try:
        text = path.read_bytes()
        ends: list[datetime | None] = []
        if CERTIFICATE.encode() in text:
            ends += [it.not_valid_after_utc for it in x509.load_pem_x509_certificates(text)]
        if REVOCATIONS.encode() in text:
            ends += [x509.load_pem_x509_crl(text).next_update_utc]
    except OSError as error:
        raise Wrong(f"it cannot be read: {error.strerror}") from None
    except ValueError:
        raise Wrong("it is damaged: replace the file") from None
    known = [it for it in ends if it]
    if not known:
        raise Wrong("it has no certificate and no revocation list with an end: name another file")
    end = min(known)
    now = datetime.now(UTC)
    if end <= now:
        raise Wrong(f"it expired at {end:%Y-%m-%dT%H:%M:%SZ}: replace it")
    if end <= now + last:
        raise Wrong(f"it expires soon, at {end:%Y-%m-%dT%H:%M:%SZ}: replace it")
    return f"it is valid until {end:%Y-%m-%dT%H:%M:%SZ}"


def _ask(settings: Settings, system: "OtherSystem", *request: Any) -> Any:
    from orchmgmt.policies.cloud import own_side

    return own_side(settings).ask(system, *request)


def _identity(settings: Settings) -> str:
    from orchmgmt.policies.cloud import own_side
    from orchmgmt.policies.outsourced import CLOCKS, OwnLogin, identity_service

    system = identity_service(settings)
    answer = _ask(settings, system, "GET", f"verify/{uuid.uuid4()}")
    if not isinstance(answer, dict) or answer.get("verified") is not False:
        raise Wrong(f"{PREFIX}IDENTITY_URL leads to something else")
    login = own_side(settings).identity
    if isinstance(login, OwnLogin) and login.ended_already:
        raise Wrong(f"by this machine's clock {CLOCKS}")
    return f"{settings.system_name} can log in there"


def _authorization(settings: Settings) -> str:
    from orchmgmt.policies.authorization import authorization_system
    from orchmgmt.policies.cloud import own_side

    system = authorization_system(settings)
    name = own_side(settings).name
    question = {
        "provider": name,
        "consumer": name,
        "cloud": "LOCAL",
        "targetType": "SERVICE_DEF",
        "target": SERVICES["lock"],
        "scope": "query",
    }
    if not isinstance(_ask(settings, system, "POST", "verify", question), bool):
        raise Wrong(f"{PREFIX}AUTHORIZATION_URL leads to something else")
    return f"{name} may ask it"


def _registry(settings: Settings) -> str:
    from orchmgmt.extensions.registry import CannotTell, Registry

    registry = Registry(settings)
    registry.port = registry.port or settings.port
    refused = registry.refused()
    if refused:
        raise Wrong(f"it refuses {PREFIX}SERVICE_ADDRESSES: {refused}")
    known = registry.known()
    if known is None:
        return f"{registry.name} is not there: `serve` registers it, at {registry.urls()}"
    strangers = registry.strangers(SERVICES.values())
    if strangers:
        raise Wrong(
            f"it has another system {registry.name}, with {registry.words(strangers)}: choose "
            f"another {PREFIX}SYSTEM_NAME"
        )
    if not registry.is_at(known):
        raise Doubtful(
            f"{registry.name} is there at {registry.words(known)}: `serve` takes that away once "
            f"and registers {', '.join(registry.addresses)}. If another process runs there, give "
            f"both the same {PREFIX}SERVICE_ADDRESSES, or names of their own"
        )
    there = registry.services()
    found = {name: there.get(registry.instance(name)) for name in SERVICES.values()}
    others = [name for name, it in found.items() if it is not None and not registry.leads_here(it)]
    if others:
        raise Doubtful(
            f"{' and '.join(others)} of {registry.name} lead elsewhere: `serve` has them lead to "
            f"{registry.urls()}. If another process registers them, give both the same SERVICE_ "
            "settings, or names of their own"
        )
    seen = " and ".join(name for name, it in found.items() if it is not None) or "no service"
    for address in registry.addresses:
        try:
            answered = registry.answers(address)
        except CannotTell as reason:
            raise Doubtful(
                f"{registry.name} is there with {seen}; whether it answers at "
                f"{registry.url(address)} could not be determined ({reason})"
            ) from None
        if not answered:
            raise Doubtful(
                f"{registry.name} is there with {seen}, but nothing answers at "
                f"{registry.url(address)}"
            )
    return f"{registry.name} is there with {seen}, and answers at {registry.urls()}"


def _broker(settings: Settings) -> str:
    EXTENSIONS["mqtt_url"].load(f"{PREFIX}MQTT_URL")
    from orchmgmt.extensions.mqtt.connection import Connection, Lost
    from orchmgmt.extensions.mqtt.messages import verifier

    verifier(settings)
    connection = Connection(settings)
    try:
        shared = connection.look()
    except Lost as error:
        raise Wrong(f"{connection.broker} cannot be used: {error}") from None
    if not shared:
        raise Doubtful(
            f"{connection.broker} has no shared subscriptions: only one process may serve over it"
        )
    return f"{connection.broker} lets several processes share the work"
