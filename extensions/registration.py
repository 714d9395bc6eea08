"""Registration with the cloud's ServiceRegistry.

Contract, "Registration with the cloud's ServiceRegistry". Each round first looks up what the
registry has, and registers only what is missing: a registration replaces the earlier one, and for a
moment nobody finds the service. So a process need not remember what it has registered.
"""

import logging
import threading
import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, urlsplit

from orchmgmt.app import Service
from orchmgmt.errors import Unavailable
from orchmgmt.extensions import Extension
from orchmgmt.extensions.registry import VERSION, CannotTell, Registry, is_as
from orchmgmt.operations import SERVICES
from orchmgmt.settings import PREFIX
from orchmgmt.store import Figure

log = logging.getLogger("orchmgmt")

#: The pause between two rounds, in seconds.
INTERVAL = 30.0

#: The first pause after a failure, in seconds; each further one is twice as long.
AGAIN = 1.0

#: The pause before a service is registered again, in seconds, if the registry does not show it or
#: another process has registered it differently.
UNSEEN = 600.0

#: How long revoking the services may take at the end, in seconds.
PATIENCE = 2.0

#: Where a system registers.
SYSTEM = "system-discovery/register"


class Registration(Extension):
    """Keeps this system and its services registered, in the background, until it is stopped.

    A read-only server registers nothing.

    Args:
        service: its operations are registered. Its settings say where the registry is, and where
            other systems reach this one.
        interval: the pause between two rounds, in seconds.
        again: the pause after a first failure, in seconds.

    Attributes:
        attempts: how many rounds there have been.
        failures: how many of them failed.
        registered: whether everything was registered at the end of the last round.

    Raises:
        SettingError: a setting is missing or wrong.
    """

    def __init__(self, service: Service, interval: float = INTERVAL, again: float = AGAIN) -> None:
        settings = service.store.settings
        self._registry = Registry(settings)
        self._operations = {
            name: (group, [it for it in service.operations if it.group == group])
            for group, name in SERVICES.items()
        }
        self._interval = interval
        self._again = self._pause = again
        # Whether this process has revoked the system: it does so once at most.
        self._revoked = False
        # When it registered the services that the registry has not shown since.
        self._sent: dict[str, float] = {}
        # When it replaced another process's registration of a service.
        self._replaced: dict[str, float] = {}
        self._there = False  # whether the registry may have a service of this system
        self._trouble: str | None = None
        self.attempts = self.failures = 0
        self.registered = False
        self._deadline = 0.0
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="registration", daemon=True)
        service.store.figures += [
            Figure(
                "registered",
                "Whether the last look at the ServiceRegistry found or left all as it should be",
                lambda: self.registered,
                counts=False,
            ),
            Figure(
                "registration_attempts",
                "Looks at the ServiceRegistry, with those that failed",
                lambda: self.attempts,
            ),
            Figure(
                "registration_failures",
                "Looks at the ServiceRegistry that failed, or that were refused",
                lambda: self.failures,
            ),
        ]

    def start(self, url: str) -> None:
        """Start the thread. The port of `url` is registered unless `SERVICE_PORT` is set."""
        self._registry.port = self._registry.port or urlsplit(url).port or 0
        self._thread.start()

    def stop(self) -> None:
        """Revoke the services, once no process listens here. Give up after two seconds."""
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
        """Register what is missing, and return the pause until the next round, in seconds."""
        self.attempts += 1
        before = self.registered
        try:
            forgotten = self._mend()
        except Unavailable as error:
            self.failures += 1
            self.registered = False
            trouble = str(error)
            if trouble != self._trouble:
                log.warning("not registered: %s; retrying", trouble)
            self._trouble = trouble
            pause, self._pause = self._pause, min(2 * self._pause, self._interval)
            return pause
        except Exception:
            self.failures += 1
            self.registered = False
            log.exception("the registration failed; retrying")
            return self._interval
        self.registered, self._trouble, self._pause = True, None, self._again
        if not before:
            name, urls = self._registry.name, self._registry.urls()
            log.info("registered as %s, to be reached at %s", name, urls)
        elif forgotten:
            log.warning("the ServiceRegistry had forgotten this system: it is registered anew")
        return self._interval

    def _mend(self) -> bool:
        """Register what is missing. Return whether the system itself was missing."""
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
        """Revoke the system that has other addresses there, and register it with ours.

        This revokes its services too. A process does it only once, so that two processes that
        disagree do not go on doing it. It is not done for addresses that the registry refuses: the
        registry checks them before it says that the system exists.
        """
        name, theirs = self._registry.name, self._registry.words(known)
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
                f"{self._registry.words(strangers)}: choose another {PREFIX}SYSTEM_NAME"
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
        """Register a service if it is missing. Return whether it is there, as far as is known."""
        payload = self._registry.payload(name, self._registry.interfaces(*self._operations[name]))
        found = there.get(self._registry.instance(name))
        if found is not None and is_as(found, payload):
            self._sent.pop(name, None)
            self._there = True
            return True
        # The registry may hide it, or another process may register it differently. Each time it is
        # replaced, nobody finds it for a moment.
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
        """Revoke the services, unless another process serves them."""
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
                ours = registry.payload(name, registry.interfaces(*operations))
                if name not in self._sent if found is None else not is_as(found, ours):
                    continue  # it is gone, or another process's
                if time.monotonic() > self._deadline:
                    return
                path = f"service-discovery/revoke/{quote(registry.instance(name), safe='')}"
                registry.ask("DELETE", path, None, 200, 204)
        except Unavailable as error:
            log.warning("the services stay registered: %s", error)
        else:
            log.info("the services are no longer registered")
