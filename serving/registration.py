"""Registration with the cloud's ServiceRegistry. Only imported where `SERVICE_REGISTRY_URL` is set.

Contract, "Registration with the cloud's ServiceRegistry". There is one mechanism: what is to be
known there is sent again and again. The registry takes what it has already, so this also mends what
it has forgotten, which a lookup could not tell: it shows an ordinary system few services.
"""

import ipaddress
import logging
import socket
import threading
import time
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any
from urllib.parse import quote

from flask import Flask

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

#: The pause before it is all sent again, in seconds.
INTERVAL = 30.0

#: The first pause after a failure, in seconds; each further one is twice as long.
AGAIN = 1.0

#: How long the services' revocation may take at the end, in seconds.
PATIENCE = 2.0

#: How long a connection to our own address may take at the end, in seconds.
PROBE = 0.5

#: What a proxy answers when no process is left behind it.
NOBODY = (HTTPStatus.BAD_GATEWAY, HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.GATEWAY_TIMEOUT)


class _Asked(OtherSystem):
    """One that is asked again and again: its failures are told when they change, not each time."""

    def __init__(self, name: str, url: str) -> None:
        self.name = name
        self.url = url

    def unavailable(self, reason: object) -> Unavailable:
        return Unavailable(f"the {self.name} does not answer as it should: {reason}")


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
        registered: whether the last one succeeded.

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
        url = OtherSystem("ServiceRegistry", settings, "service_registry_url", "").url
        self._registry = _Asked("ServiceRegistry", url)
        self._port = settings.service_port
        self._certificate = settings.authentication_policy == "certificate"
        self._tls = settings.service_tls or self._certificate
        self._addresses = _addresses(settings)
        self._metadata = _metadata(settings)
        _check(settings, self._tls)
        self._own = own_side(settings)
        self._app = app
        self._services = services
        self._interval = interval
        self._again = self._pause = again
        self._instances: dict[str, str] = {}  # the id that the registry has given each service
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
        self._port = self._port or port or 0
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
        if self._instances:
            self._leave()

    def _round(self) -> float:
        """Register, and return for how long to wait."""
        self.attempts += 1
        before = self.registered
        try:
            new = self._register()
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
            log.info("registered as %s, to be reached at %s", self._own.name, self._urls())
        elif new:
            log.warning("the ServiceRegistry had forgotten this system: it is registered anew")
        return self._interval

    def _register(self) -> bool:
        """Register the system and its services; return whether the system was not there."""
        system = {"version": VERSION, "addresses": list(self._addresses), "metadata": {}}
        path = "system-discovery/register"
        status, known = self._ask("POST", path, system, 200, 201, 400)
        first = not self._instances
        # From an earlier start it may have other addresses. Revoking it takes its services away, so
        # it is done only then and only once: two that disagree shall not go on doing it.
        if first and status != 201 and not (status == 200 and self._knows(known)):
            self._ask("DELETE", "system-discovery/revoke", None, 200, 204)
            status, _ = self._ask("POST", path, system, 200, 201)
        elif status == 400:
            raise self._registry.unavailable(f"status 400 to {path}")
        for blueprint, name in self._services.items():
            self._instances[name] = self._register_service(blueprint, name)
        return status == 201

    def _register_service(self, blueprint: str, name: str) -> str:
        base, operations = _operations(self._app, blueprint)
        payload = {
            "serviceDefinitionName": name,
            "version": VERSION,
            "metadata": self._metadata,
            "interfaces": [
                {
                    "templateName": "generic_https" if self._tls else "generic_http",
                    "protocol": self._scheme,
                    "policy": "CERT_AUTH" if self._certificate else "NONE",
                    "properties": {
                        "accessAddresses": list(self._addresses),
                        "accessPort": self._port,
                        "basePath": base,
                        "operations": operations,
                    },
                }
            ],
        }
        _, answer = self._ask("POST", "service-discovery/register", payload, 201)
        if not isinstance(answer, dict) or not isinstance(answer.get("instanceId"), str):
            raise self._registry.unavailable("it does not say as what it knows a service")
        instance: str = answer["instanceId"]
        return instance

    def _knows(self, system: Any) -> bool:
        try:
            known = {str(it["address"]).lower() for it in system["addresses"]}
        except (TypeError, KeyError):
            raise self._registry.unavailable("it does not say what it knows") from None
        return known == {it.lower() for it in self._addresses}

    def _leave(self) -> None:
        """Revoke the services, unless others serve them."""
        serves = next((it for it in self._addresses if self._is_served(it)), None)
        if serves is not None:
            log.info("the services stay registered: another process may serve them at %s", serves)
            return
        try:
            for instance in self._instances.values():
                if time.monotonic() > self._deadline:
                    return
                path = f"service-discovery/revoke/{quote(instance, safe='')}"
                self._ask("DELETE", path, None, 200, 204)
        except Unavailable as error:
            log.warning("the services stay registered: %s", error)
        else:
            log.info("the services are no longer registered")

    def _is_served(self, address: str) -> bool:
        """Whether somebody serves at our address, or it cannot be told."""
        try:
            socket.create_connection((address, self._port), PROBE).close()
        except ConnectionRefusedError:
            return False
        except OSError:
            return True
        (echo,) = self._app.url_map.iter_rules("monitor.echo")
        itself = _Asked("service itself", self._url(address))
        try:
            status, _ = self._own.send(itself, "GET", echo.rule.lstrip("/"))
        except Unavailable:  # it does so also because of an answer that is no JSON
            return True
        return status not in NOBODY

    def _ask(self, method: str, path: str, payload: object, *expected: int) -> tuple[int, Any]:
        status, answer = self._own.send(self._registry, method, path, payload)
        if status not in expected:
            what = "/".join(path.split("/")[:2])  # what follows is what somebody sent
            raise self._registry.unavailable(f"status {status} to {what}")
        return status, answer

    @property
    def _scheme(self) -> str:
        return "https" if self._tls else "http"

    def _url(self, address: str) -> str:
        host = f"[{address}]" if ":" in address else address
        return f"{self._scheme}://{host}:{self._port}"

    def _urls(self) -> str:
        return ", ".join(self._url(it) for it in self._addresses)


def _operations(app: Flask, blueprint: str) -> tuple[str, dict[str, dict[str, str]]]:
    """The base path of a blueprint, and the method and path of each operation below it."""
    base = ""
    found = {}
    for rule in app.url_map.iter_rules():
        name, _, operation = rule.endpoint.partition(".")
        if name == blueprint:
            before, _, path = rule.rule.partition(f"/{blueprint}/")
            base = f"{before}/{blueprint}"
            (method,) = (rule.methods or set()) - {"HEAD"}
            found[operation] = {"method": method, "path": "/" + path.partition("/")[0]}
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
