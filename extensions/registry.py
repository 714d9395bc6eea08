"""The cloud's ServiceRegistry, as this system sees it. It is imported only when it is asked.

Contract, "Registration with the cloud's ServiceRegistry".
"""

import ipaddress
import socket
from collections.abc import Iterable, Mapping, Sequence
from http import HTTPStatus
from typing import Any

from orchmgmt.entries import MANAGEMENT, ROOT
from orchmgmt.errors import Unavailable
from orchmgmt.extensions.mqtt.broker import Broker
from orchmgmt.operations import Operation
from orchmgmt.policies import authentication_policy
from orchmgmt.policies.cloud import REASON_LENGTH, OtherSystem, own_side, printable
from orchmgmt.settings import PREFIX, SettingError, Settings
from orchmgmt.values import strip

VERSION = "1.0.0"

#: How long a connection to an address of a service may take, in seconds.
PROBE = 0.5

#: What a proxy answers when no process is left behind it.
NOBODY = (HTTPStatus.BAD_GATEWAY, HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.GATEWAY_TIMEOUT)


class _Asked(OtherSystem):
    """A system that is asked repeatedly: its failures are logged only when they change."""

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
        self._settings = settings
        self._registry = _Asked.configured("ServiceRegistry", settings, "service_registry_url", "")
        self._certificate = authentication_policy(settings).reads_certificate
        self._tls = settings.service_tls or self._certificate
        self.addresses = _addresses(settings)
        self.port = settings.service_port
        self._metadata = _metadata(settings)
        self._broker = Broker.of(settings) if settings.mqtt_url else None
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
        """Return whether these addresses include those at which others reach this system.

        An operator may have added one, or removed all of them and named a device instead.
        """
        return not known or same(self.addresses) <= known

    def strangers(self, services: Iterable[str]) -> list[str]:
        """Return the ids of other services of this system: another system has the same name."""
        ours = [[it] for it in services]
        return sorted(it for it in self.services() if it.split("|")[1:2] not in ours)

    def words(self, found: Iterable[str]) -> str:
        """Return texts that it has sent, as a line of a log may show them."""
        return printable(", ".join(sorted(found)))[:REASON_LENGTH]

    def addresses_of(self, system: Any) -> set[str]:
        """Return the addresses in what it says of a system, each in one form."""
        try:
            return same(it["address"] for it in system["addresses"])
        except (TypeError, KeyError, AttributeError):
            raise self._registry.unavailable("it does not say which addresses it knows") from None

    def refused(self) -> str:
        """Return why it would refuse our addresses; empty if it would take them.

        To find out, look for systems with these addresses: the registry checks them, and changes
        nothing.
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
        """Return this system's services as the registry shows them, by instance id."""
        found = self.look("service", {"providerNames": [self.name]})
        return {str(it.get("instanceId")): it for it in found}

    def instance(self, service: str) -> str:
        """Return the id that the registry gives a service of this system."""
        return f"{self.name}|{service}|{VERSION}"

    def demand_known(self, service: str, answer: Any) -> None:
        """Raise `Unavailable` if it has registered a service under another id."""
        if not isinstance(answer, dict) or answer.get("instanceId") != self.instance(service):
            raise self._registry.unavailable("its answer to a registration names another service")

    def interfaces(self, group: str, operations: Iterable[Operation]) -> list[dict[str, Any]]:
        """Return how others reach a service, with these operations: over HTTP, and over MQTT."""
        policy = "CERT_AUTH" if self._certificate else "NONE"
        paths = {it.scope: {"method": it.method, "path": _path(it)} for it in operations}
        http = {
            "templateName": "generic_https" if self._tls else "generic_http",
            "protocol": self._scheme,
            "policy": policy,
            "properties": {
                "accessAddresses": list(self.addresses),
                "accessPort": self.port,
                "basePath": f"{MANAGEMENT}/{group}",
                "operations": paths,
            },
        }
        if not self._broker:
            return [http]
        return [http, self._broker.interface(group, paths, policy)]

    def leads_here(self, service: Mapping[str, Any]) -> bool:
        """Return whether a service, as the registry has it, leads to our addresses and port."""
        try:
            (theirs,) = (it for it in service["interfaces"] if it["protocol"] == self._scheme)
            there = theirs["properties"]
            return (
                same(there["accessAddresses"]) == same(self.addresses)
                and there["accessPort"] == self.port
            )
        except (TypeError, KeyError, ValueError, AttributeError):
            return False

    def payload(self, service: str, interfaces: Sequence[object]) -> dict[str, Any]:
        """Return what registers a service."""
        return {
            "serviceDefinitionName": service,
            "version": VERSION,
            "metadata": self._metadata,
            "interfaces": interfaces,
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
        itself = _Asked("service itself", self.url(address), self._settings)
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


def is_as(found: Mapping[str, Any], payload: Mapping[str, Any]) -> bool:
    """Return whether the registry has a service exactly as it would be registered."""
    try:
        theirs = sorted(found["interfaces"], key=_template)
        ours = sorted(payload["interfaces"], key=_template)
        return (
            found["version"] == payload["version"]
            and (found["metadata"] or {}) == payload["metadata"]
            and all(_part(it, our) == _part(our, our) for it, our in zip(theirs, ours, strict=True))
        )
    except (TypeError, KeyError, ValueError, AttributeError):
        return False


def _template(interface: Mapping[str, Any]) -> str:
    return str(interface["templateName"])


def _path(operation: Operation) -> str:
    """The path as the Java implementation registers it: that of remove has its parameter."""
    return "/remove/{owner}" if operation.scope == "remove" else f"/{operation.scope}"


def _part(interface: Mapping[str, Any], ours: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parts of an interface to compare: those that ours has."""
    properties = {key: interface["properties"][key] for key in ours["properties"]}
    properties["accessAddresses"] = same(properties["accessAddresses"])
    return {**{key: interface[key] for key in ours}, "properties": properties}


def _check(settings: Settings, tls: bool) -> None:
    """Refuse settings with which an address would be registered at which nobody answers."""
    if settings.unix_socket and not settings.service_port:
        raise SettingError(f"{PREFIX}SERVICE_PORT must say at which port a proxy listens")
    if tls and not settings.service_port:
        raise SettingError(
            f"{PREFIX}SERVICE_PORT must say at which port a proxy speaks TLS: this process does not"
        )
    if authentication_policy(settings).reads_certificate and not settings.certificate_file:
        raise SettingError(
            f"{PREFIX}SERVICE_REGISTRY_URL needs {PREFIX}CERTIFICATE_FILE under the policy "
            f"`{settings.authentication_policy}`"
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
