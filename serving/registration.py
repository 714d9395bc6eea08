"""Registration with the cloud's ServiceRegistry. Only imported where `SERVICE_REGISTRY_URL` is set.

Contract, "Registration with the cloud's ServiceRegistry". Every round begins with a look, and does
only what is missing: a registration replaces what is there, and whoever looks it up at that moment
does not find it. So a process remembers next to nothing of what it has done.
"""

import ipaddress
import logging
import socket
import threading
import time
from collections.abc import Iterable, Mapping
from http import HTTPStatus
from typing import Any
from urllib.parse import quote

from flask import Flask

from orchmgmt.entries import ROOT
from orchmgmt.errors import Unavailable
from orchmgmt.settings import PREFIX, SettingError, Settings
from orchmgmt.values import strip

try:
    from orchmgmt.policies.cloud import OtherSystem, own_side
except ImportError as error:
    raise SettingError(
        f"{PREFIX}SERVICE_REGISTRY_URL needs {error.name}: pip install 'orchmgmt[registration]'"
    ) from error

log = logging.getLogger("orchmgmt")

VERSION = "1.0.0"

#: The pause before the next look, in seconds.
INTERVAL = 30.0

#: The first pause after a failure, in seconds; each further one is twice as long.
AGAIN = 1.0

#: How soon a service may be registered again that has not been seen since, or that another process
#: registers otherwise, in seconds.
UNSEEN = 600.0

#: How long the services' revocation may take at the end, in seconds.
PATIENCE = 2.0

#: How long a connection to an address of a service may take, in seconds.
PROBE = 0.5

#: What a proxy answers when no process is left behind it.
NOBODY = (HTTPStatus.BAD_GATEWAY, HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.GATEWAY_TIMEOUT)

#: Where a system registers.
SYSTEM = "system-discovery/register"


class _Asked(OtherSystem):
    """One that is asked again and again: its failures are told when they change, not each time."""

    def __init__(self, name: str, url: str) -> None:
        self.name = name
        self.url = url

    def unavailable(self, reason: object) -> Unavailable:
        return Unavailable(f"the {self.name} does not answer as it should: {reason}")


class CannotTell(Exception):
    """Whether somebody answers at an address cannot be found out; its text says why."""


class Registry:
    """The ServiceRegistry, as this system sees it.

    Args:
        settings: they say where it is, and where other systems reach this one.

    Attributes:
        name: the SystemName by which it knows this system.
        addresses: where other systems reach this one.
        port: the port there; 0 until it is known.

    Raises:
        SettingError: a setting is missing or wrong.
    """

    def __init__(self, settings: Settings) -> None:
        url = OtherSystem("ServiceRegistry", settings, "service_registry_url", "").url
        self._registry = _Asked("ServiceRegistry", url)
        self._certificate = settings.authentication_policy == "certificate"
        self._tls = settings.service_tls or self._certificate
        self.addresses = _addresses(settings)
        self.port = settings.service_port
        self._metadata = _metadata(settings)
        _check(settings, self._tls)
        self._own = own_side(settings)
        self.name = self._own.name

    def ask(self, method: str, path: str, payload: object, *expected: int) -> tuple[int, Any]:
        """Return the status and the JSON of its answer, or the reason of its refusal.

        Raises:
            Unavailable: it does not answer, or not with one of the statuses that are expected.
        """
        status, answer = self._own.send(self._registry, method, path, payload)
        if status not in expected:
            raise self.refusal(status, path, answer)
        return status, answer

    def refusal(self, status: int, path: str, reason: object) -> Unavailable:
        """Return what to raise for an answer that is of no use."""
        what = "/".join(path.split("/")[:2])  # what follows is what somebody sent
        why = f": {reason}" if isinstance(reason, str) and reason else ""
        return self._registry.unavailable(f"status {status} to {what}{why}")

    def look(self, what: str, query: Mapping[str, object]) -> list[dict[str, Any]]:
        """Return what it knows of systems or services (`what`)."""
        _, answer = self.ask("POST", f"{what}-discovery/lookup", query, 200)
        entries = answer.get("entries") if isinstance(answer, dict) else None
        if not isinstance(entries, list) or not all(isinstance(it, dict) for it in entries):
            raise self._registry.unavailable(f"it does not say which {what}s it knows")
        return entries

    def known(self) -> set[str] | None:
        """Return the addresses that it has for this system; `None` if it does not know it."""
        for it in self.look("system", {"systemNames": [self.name]}):
            if it.get("name", self.name) == self.name:
                return self.addresses_of(it)
        return None

    def is_at(self, known: set[str]) -> bool:
        """Return whether a system with these addresses is where others reach this one.

        An operator may have added one, or taken all away in favour of a device's.
        """
        return not known or same(self.addresses) <= known

    def strangers(self, services: Iterable[str]) -> list[str]:
        """Return what it shows of this system's services beside these: the name is another's."""
        ours = [[it] for it in services]
        return sorted(it for it in self.services() if it.split("|")[1:2] not in ours)

    def addresses_of(self, system: Any) -> set[str]:
        """Return the addresses in what it says of a system, each in one form."""
        try:
            return same(it["address"] for it in system["addresses"])
        except (TypeError, KeyError, AttributeError):
            raise self._registry.unavailable("it does not say which addresses it knows") from None

    def refused(self) -> str:
        """Return why it would not take our addresses; empty if it does not say.

        A look for systems with such addresses checks them, and changes nothing.
        """
        for address in self.addresses:
            try:
                kind = f"IPV{ipaddress.ip_address(address).version}"
            except ValueError:
                kind = "HOSTNAME"
            query = {"systemNames": [self.name], "addresses": [address], "addressType": kind}
            status, answer = self.ask("POST", "system-discovery/lookup", query, 200, 400)
            if status == 400:
                return answer or f"status 400 for {address}"
        return ""

    def services(self) -> dict[str, dict[str, Any]]:
        """Return what it shows of this system's services, by instance id."""
        found = self.look("service", {"providerNames": [self.name]})
        return {str(it.get("instanceId")): it for it in found}

    def instance(self, service: str) -> str:
        """Return the id that it gives a service of this system."""
        return f"{self.name}|{service}|{VERSION}"

    def demand_known(self, service: str, answer: Any) -> None:
        """Raise `Unavailable` if it has registered a service under another id."""
        if not isinstance(answer, dict) or answer.get("instanceId") != self.instance(service):
            raise self._registry.unavailable("it does not say as what it knows a service")

    def interface(self, base: str, operations: object) -> dict[str, Any]:
        """Return how others reach a service."""
        return {
            "templateName": "generic_https" if self._tls else "generic_http",
            "protocol": self._scheme,
            "policy": "CERT_AUTH" if self._certificate else "NONE",
            "properties": {
                "accessAddresses": list(self.addresses),
                "accessPort": self.port,
                "basePath": base,
                "operations": operations,
            },
        }

    def leads_here(self, service: Mapping[str, Any]) -> bool:
        """Return whether what it knows of a service leads to our addresses and port."""
        try:
            (theirs,) = service["interfaces"]
            there = theirs["properties"]
            return (
                same(there["accessAddresses"]) == same(self.addresses)
                and there["accessPort"] == self.port
                and theirs["protocol"] == self._scheme
            )
        except (TypeError, KeyError, ValueError, AttributeError):
            return False

    def payload(self, service: str, interface: object) -> dict[str, Any]:
        """Return what registers a service."""
        return {
            "serviceDefinitionName": service,
            "version": VERSION,
            "metadata": self._metadata,
            "interfaces": [interface],
        }

    def answers(self, address: str) -> bool:
        """Return whether somebody serves at one of our addresses, at our port.

        Raises:
            CannotTell: neither an answer comes, nor is the connection refused.
        """
        try:
            socket.create_connection((address, self.port), PROBE).close()
        except ConnectionRefusedError:
            return False
        except OSError as error:
            raise CannotTell(error.strerror or str(error)) from None
        itself = _Asked("service itself", self.url(address))
        try:
            status, _ = self._own.send(itself, "HEAD", f"{ROOT}/monitor/echo".lstrip("/"))
        except Unavailable as error:
            raise CannotTell(str(error)) from None
        return status not in NOBODY

    @property
    def _scheme(self) -> str:
        return "https" if self._tls else "http"

    def url(self, address: str) -> str:
        """Return the URL of an address, at our port."""
        host = f"[{address}]" if ":" in address else address
        return f"{self._scheme}://{host}:{self.port}"

    def urls(self) -> str:
        """Return where others reach this system, in words."""
        return ", ".join(self.url(it) for it in self.addresses)


class Registration:
    """Keeps this system and its services registered, in the background, until it is stopped.

    Args:
        app: the application, whose operations are registered.
        services: the service definition of each blueprint whose operations are one.
        settings: they say where the registry is, and where other systems reach this one.
        interval: the pause between two rounds, in seconds.
        again: the pause after a first failure, in seconds.

    Attributes:
        attempts: how many rounds there have been.
        failures: how many of them failed.
        registered: whether the last one found, or left, everything as it should be.

    Raises:
        SettingError: a setting is missing or wrong.
    """

    def __init__(
        self,
        app: Flask,
        services: Mapping[str, str],
        settings: Settings,
        interval: float = INTERVAL,
        again: float = AGAIN,
    ) -> None:
        self._registry = Registry(settings)
        self._operations = {name: _operations(app, it) for it, name in services.items()}
        self._interval = interval
        self._again = self._pause = again
        self._revoked = False  # whether this process has taken the system away, once in its life
        self._sent: dict[str, float] = {}  # when it registered what it has not seen there since
        self._replaced: dict[str, float] = {}  # when it replaced what another had registered
        self._there = False  # whether anything of this system may be there
        self._trouble: str | None = None
        self.attempts = self.failures = 0
        self.registered = False
        self._deadline = 0.0
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="registration", daemon=True)

    def start(self, port: int | None) -> None:
        """Start the thread.

        Args:
            port: where this process listens, which is registered unless `SERVICE_PORT` is set.
        """
        self._registry.port = self._registry.port or port or 0
        self._thread.start()

    def stop(self) -> None:
        """Revoke the services, once no process listens here any more, in two seconds or not."""
        self._deadline = time.monotonic() + PATIENCE
        self._stopped.set()
        self._thread.join(PATIENCE)
        if self._thread.is_alive():
            log.warning("the ServiceRegistry is too slow: this system's services may stay there")

    def _run(self) -> None:
        pause = 0.0
        while not self._stopped.wait(pause):
            pause = self._round()
        if self._there:
            self._leave()

    def _round(self) -> float:
        """Look, mend what is missing, and return for how long to wait."""
        self.attempts += 1
        before = self.registered
        try:
            forgotten = self._mend()
        except Unavailable as error:
            self.failures += 1
            self.registered = False
            trouble = str(error)
            if trouble != self._trouble:
                log.warning("not registered: %s; it is tried again and again", trouble)
            self._trouble = trouble
            pause, self._pause = self._pause, min(2 * self._pause, self._interval)
            return pause
        except Exception:
            self.failures += 1
            self.registered = False
            log.exception("the registration failed; it is tried again")
            return self._interval
        self.registered, self._trouble, self._pause = True, None, self._again
        if not before:
            name, urls = self._registry.name, self._registry.urls()
            log.info("registered as %s, to be reached at %s", name, urls)
        elif forgotten:
            log.warning("the ServiceRegistry had forgotten this system: it is registered anew")
        return self._interval

    def _mend(self) -> bool:
        """Register what is missing; return whether the system itself was."""
        known = self._registry.known()
        if known is None:
            self._register_system(200, 201)
            self._sent.clear()  # its services went with it
        elif not self._registry.is_at(known):
            self._replace_system(known)
        there = self._registry.services()
        others = [name for name in self._operations if not self._mend_service(name, there)]
        if others:
            raise Unavailable(
                f"the ServiceRegistry has {' and '.join(others)} of {self._registry.name} as "
                "another process registers it: give both the same SERVICE_ settings, or names of "
                "their own"
            )
        return known is None

    def _register_system(self, *expected: int) -> tuple[int, Any]:
        payload = {
            "version": VERSION,
            "addresses": list(self._registry.addresses),
            "metadata": {},
        }
        return self._registry.ask("POST", SYSTEM, payload, *expected)

    def _replace_system(self, known: set[str]) -> None:
        """Take the system away that is there with other addresses, and register it with ours.

        That takes away its services too. So it is done only once: two that disagree shall not go on
        doing it. And it is not done for addresses that the registry does not take: it looks at
        these before it says that the system is there already.
        """
        name, theirs = self._registry.name, ", ".join(sorted(known))
        if self._revoked:
            raise Unavailable(
                f"the ServiceRegistry has {name} at {theirs}, and not at "
                f"{', '.join(self._registry.addresses)}: give all processes of this name the same "
                f"{PREFIX}SERVICE_ADDRESSES"
            )
        strangers = self._registry.strangers(self._operations)
        if strangers:
            raise Unavailable(
                f"the ServiceRegistry has another system {name}, at {theirs} with "
                f"{', '.join(strangers)}: choose another {PREFIX}SYSTEM_NAME"
            )
        status, answer = self._register_system(200, 201, 400)
        if status == 400 and "already exists" not in answer:
            raise self._registry.refusal(status, SYSTEM, answer)
        if status == 400 or self._registry.addresses_of(answer) == known:
            log.warning("the ServiceRegistry had %s at %s: that is replaced", name, theirs)
            self._revoked = True
            self._registry.ask("DELETE", "system-discovery/revoke", None, 200, 204)
            self._sent.clear()
            self._register_system(200, 201)

    def _mend_service(self, name: str, there: Mapping[str, Mapping[str, Any]]) -> bool:
        """Register a service unless it is there; return whether it is, as far as can be seen."""
        payload = self._registry.payload(name, self._registry.interface(*self._operations[name]))
        found = there.get(self._registry.instance(name))
        if found is not None and _is(found, payload):
            self._sent.pop(name, None)
            self._there = True
            return True
        # The registry may not show it, or another process may register it otherwise: each time it
        # is replaced it is away for a moment.
        now = time.monotonic()
        last = self._sent if found is None else self._replaced
        if now < last.get(name, -UNSEEN) + UNSEEN:
            return found is None
        if found is not None:
            self._replaced[name] = now
        _, answer = self._registry.ask("POST", "service-discovery/register", payload, 201)
        self._sent[name] = now
        self._there = True
        self._registry.demand_known(name, answer)
        return True

    def _leave(self) -> None:
        """Revoke the services, unless others serve them."""
        registry = self._registry
        try:
            for address in registry.addresses:
                try:
                    if registry.answers(address):
                        log.info(
                            "the services stay registered: another process may serve them at %s",
                            registry.url(address),
                        )
                        return
                except CannotTell as reason:
                    log.warning(
                        "the services stay registered: whether another process serves them at %s "
                        "could not be told (%s)",
                        registry.url(address),
                        reason,
                    )
                    return
            there = registry.services()
            for name, operations in self._operations.items():
                found = there.get(registry.instance(name))
                ours = registry.payload(name, registry.interface(*operations))
                if name not in self._sent if found is None else not _is(found, ours):
                    continue  # it is gone, or another process's
                if time.monotonic() > self._deadline:
                    return
                path = f"service-discovery/revoke/{quote(registry.instance(name), safe='')}"
                registry.ask("DELETE", path, None, 200, 204)
        except Unavailable as error:
            log.warning("the services stay registered: %s", error)
        else:
            log.info("the services are no longer registered")


def same(addresses: Iterable[str]) -> set[str]:
    """Return addresses in one form: the registry writes IPv6 out in full."""
    return {_one_form(it) for it in addresses}


def _one_form(address: object) -> str:
    if not isinstance(address, str):  # a number would be an address too
        raise TypeError
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return address.lower()
    return str(getattr(found, "ipv4_mapped", None) or found)


def _is(found: Mapping[str, Any], payload: Mapping[str, Any]) -> bool:
    """Whether what the registry knows of a service is what would be registered."""
    try:
        (theirs,) = found["interfaces"]
        (ours,) = payload["interfaces"]
        return (
            found["version"] == payload["version"]
            and (found["metadata"] or {}) == payload["metadata"]
            and _part(theirs, ours) == _part(ours, ours)
        )
    except (TypeError, KeyError, ValueError, AttributeError):
        return False


def _part(interface: Mapping[str, Any], ours: Mapping[str, Any]) -> dict[str, Any]:
    """What is compared of an interface: all that ours has."""
    properties = {key: interface["properties"][key] for key in ours["properties"]}
    properties["accessAddresses"] = same(properties["accessAddresses"])
    return {**{key: interface[key] for key in ours}, "properties": properties}


def _operations(app: Flask, blueprint: str) -> tuple[str, dict[str, dict[str, str]]]:
    """The base path of a blueprint, and the method and path of each operation below it."""
    base = ""
    found: dict[str, dict[str, str]] = {}
    for rule in app.url_map.iter_rules():
        name, _, operation = rule.endpoint.partition(".")
        if name == blueprint:
            before, _, path = rule.rule.partition(f"/{blueprint}/")
            base = f"{before}/{blueprint}"
            (method,) = (rule.methods or set()) - {"HEAD", "OPTIONS"}
            # As the Java implementation has it: remove with its parameter, all others without.
            path = "remove/{owner}" if operation == "remove" else path.partition("/")[0]
            found[operation] = {"method": method, "path": f"/{path}"}
    return base, found


def _check(settings: Settings, tls: bool) -> None:
    """Refuse what would register an address at which nobody answers."""
    if settings.unix_socket and not settings.service_port:
        raise SettingError(f"{PREFIX}SERVICE_PORT must say at which port a proxy listens")
    if tls and not settings.service_port:
        raise SettingError(
            f"{PREFIX}SERVICE_PORT must say at which port a proxy speaks TLS: this process does not"
        )
    if settings.authentication_policy == "certificate" and not settings.certificate_file:
        raise SettingError(
            f"{PREFIX}SERVICE_REGISTRY_URL needs {PREFIX}CERTIFICATE_FILE under the policy "
            "`certificate`"
        )


def _addresses(settings: Settings) -> tuple[str, ...]:
    if settings.service_addresses:
        return settings.service_addresses
    try:
        wildcard = ipaddress.ip_address(settings.host).is_unspecified
    except ValueError:  # a name
        wildcard = False
    if wildcard or settings.unix_socket:
        where = "a Unix socket" if settings.unix_socket else settings.host
        raise SettingError(
            f"{PREFIX}SERVICE_ADDRESSES must say at which addresses other systems reach this one: "
            f"{where} is none"
        )
    return (settings.host,)


def _metadata(settings: Settings) -> dict[str, object]:
    found: dict[str, object] = {}
    for part in settings.service_metadata:
        key, equals, value = (strip(it) for it in part.partition("="))
        if not key or not equals:
            raise SettingError(f"{PREFIX}SERVICE_METADATA must be key=value,..., not {part!r}")
        found[key] = {"true": True, "false": False}.get(value, value)
    return found
