"""The authentication policy `outsourced`: the cloud's identity service verifies tokens."""

import hashlib
import logging
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Mapping
from datetime import datetime
from http import HTTPStatus
from typing import Any, ClassVar

from orchmgmt.errors import Unavailable, Unidentified
from orchmgmt.policies import (
    INVALID_HEADER,
    AuthenticationPolicy,
    Evidence,
    OwnIdentity,
    Requester,
    bearer,
)
from orchmgmt.policies.cloud import OtherSystem, own_side
from orchmgmt.settings import PREFIX, SettingError, Settings, read_file
from orchmgmt.values import second, strip

log = logging.getLogger("orchmgmt")

REMEMBERED_AT_MOST = 10_000

#: This system logs in again after this part of a login's life.
LOGIN_AGES = 0.8

#: How many seconds a login is used if it has already ended by this machine's clock. In that case
#: the clocks disagree, and only a refusal shows when it really ends.
ENDED_ALREADY = 60.0

CLOCKS = (
    "a login at the identity service has ended before it began: set the clock of one of the two; "
    "until then requesters are refused"
)

#: Only characters that a path holds unescaped, so that no token can lead to another path.
_TOKEN = re.compile(r"(?!\.+\Z)[A-Za-z0-9._~-]{1,1000}").fullmatch


class Outsourced(AuthenticationPolicy):
    """`outsourced`: the requester shows a token, which the identity service verifies.

    Args:
        settings: say where the service is, how this system logs in, and how long an answer is
            remembered.

    Raises:
        SettingError: one of these settings is missing or wrong.
    """

    scheme: ClassVar[Mapping[str, Any]] = {
        "type": "http",
        "scheme": "bearer",
        "bearerFormat": "IDENTITY-TOKEN//<token>",
        "description": "`Authorization: Bearer IDENTITY-TOKEN//<token>`, "
        "with a token of the cloud's identity service.",
    }

    def __init__(self, settings: Settings) -> None:
        self._naming = settings.naming
        self._own = own_side(settings)
        self._identity = identity_service(settings)
        self._remembered = _Remembered(settings.identity_cache_seconds)

    @classmethod
    def own_identity(cls, settings: Settings) -> "OwnLogin":
        """Return this system's login at the identity service.

        Raises:
            SettingError: the URL of the service or the password is missing or wrong.
        """
        return OwnLogin(settings.own_name, settings)

    def identify(self, evidence: Evidence) -> Requester:
        """Return the system whose token `Authorization: Bearer IDENTITY-TOKEN//<token>` shows.

        Raises:
            Unidentified: the header is missing or malformed, or the token is not valid.
            Unavailable: the identity service does not answer as the contract says.
        """
        kind, value = bearer(evidence)
        token = strip(value)
        if kind != "IDENTITY-TOKEN" or not _TOKEN(token):
            raise Unidentified(INVALID_HEADER)
        # Kept as a hash: neither the memory nor the time of a comparison reveals a token.
        key = hashlib.sha256(token.encode()).digest()
        requester = self._remembered.get(key)
        if requester is None:
            asked = time.monotonic()
            requester, lifetime = self._verify(token)
            self._remembered.put(key, requester, asked, lifetime)
        return requester

    def _verify(self, token: str) -> tuple[Requester, float]:
        """Return the system that a token identifies, and for how many seconds (0 if unknown)."""
        answer = self._own.ask(self._identity, "GET", f"verify/{token}")
        if not isinstance(answer, dict) or not isinstance(answer.get("verified"), bool):
            raise self._identity.unavailable("it does not say whether a token is valid")
        if not answer["verified"]:
            raise Unidentified(INVALID_HEADER)
        name, operator = answer.get("systemName"), answer.get("sysop")
        if not isinstance(name, str) or not isinstance(operator, bool):
            raise self._identity.unavailable("it does not say whose a token is")
        try:
            end = answer.get("expirationTime")
            lifetime = None if end is None else _seconds_until(end)
            requester = Requester(self._naming.system_name(strip(name)), operator)
        except ValueError:
            raise self._identity.unavailable("a name or a time is malformed") from None
        # The identity service accepts a token that has ended until it cleans up.
        if lifetime is not None and lifetime <= 0:
            raise Unidentified(INVALID_HEADER)
        return requester, lifetime or 0.0


class _Remembered:
    """Verified identities, for a short time; the least recently used are forgotten first."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._entries: OrderedDict[bytes, tuple[Requester, float]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: bytes) -> Requester | None:
        with self._lock:
            requester, end = self._entries.get(key, (None, 0.0))
            if requester is None or time.monotonic() >= end:
                return None
            self._entries.move_to_end(key)
            return requester

    def put(self, key: bytes, requester: Requester, since: float, lifetime: float) -> None:
        seconds = min(self._seconds, lifetime)
        if seconds > 0:
            with self._lock:
                self._entries[key] = requester, since + seconds
                self._entries.move_to_end(key)
                if len(self._entries) > REMEMBERED_AT_MOST:
                    self._entries.popitem(last=False)


class OwnLogin(OwnIdentity):
    """This system's login at the identity service, renewed before it ends.

    Args:
        name: the SystemName that logs in.
        settings: say where the identity service is, and the password.

    Attributes:
        ended_already: whether the last login had ended when it began, by this machine's clock.

    Raises:
        SettingError: one of these settings is missing or wrong.
    """

    def __init__(self, name: str, settings: Settings) -> None:
        super().__init__(name)
        self._identity = identity_service(settings)
        self._password = _password(settings)
        self._lock = threading.Lock()
        self._renewal = 0.0
        self._failure = ""
        self._failed = 0.0
        self.ended_already = False

    def authorization(self, refused: str | None = None) -> str:
        """Return the header `Authorization` of this login. Log in first if necessary.

        Raises:
            Unavailable: the identity service does not accept the login.
        """
        came = time.monotonic()
        # One thread logs in, and the others share the result: a login may end the previous one.
        with self._lock:
            if self._failed > came:
                raise Unavailable(self._failure)
            known = self._authorization
            if known is None or known == refused or time.monotonic() >= self._renewal:
                try:
                    known = self._authorization = self._log_in()
                except Unavailable as failure:
                    self._failure, self._failed = str(failure), time.monotonic()
                    raise
            return known

    def secrets(self, authorization: str | None) -> tuple[str, ...]:
        """Return the password and the token."""
        return self._password, (authorization or "").rpartition("//")[2]

    def _log_in(self) -> str:
        credentials = {"systemName": self.name, "credentials": {"password": self._password}}
        began = time.monotonic()
        status, body = self._identity.exchange("POST", "login", credentials, None)
        if status == HTTPStatus.UNAUTHORIZED:
            raise self._identity.unavailable("it refuses this system's name or password")
        if status != HTTPStatus.OK:
            raise self._identity.unavailable(f"status {status} to the login")
        answer = self._identity.read(body)
        try:
            token, left = answer["token"], _seconds_until(answer["expirationTime"])
            if not isinstance(token, str) or not token.isascii() or not token.isprintable():
                raise ValueError
        except (TypeError, KeyError, ValueError):
            raise self._identity.unavailable("its answer to the login is malformed") from None
        if left <= 0 and not self.ended_already:
            log.warning("by this machine's clock %s", CLOCKS)
        self.ended_already = left <= 0
        self._renewal = began + LOGIN_AGES * (ENDED_ALREADY if self.ended_already else left)
        return f"Bearer IDENTITY-TOKEN//{token}"


def identity_service(settings: Settings) -> OtherSystem:
    """Return the identity service.

    Raises:
        SettingError: its URL is missing or wrong.
    """
    return OtherSystem.configured("identity service", settings, "identity_url", "outsourced")


def _seconds_until(moment: object) -> float:
    """Return how many seconds from now a DateTime of the contract is; below 0 if it has passed.

    Raises:
        ValueError: the value is not a DateTime.
    """
    if not isinstance(moment, str):
        raise ValueError
    end = datetime.fromisoformat(second(moment).replace("Z", "+00:00"))
    return end.timestamp() - time.time()


def _password(settings: Settings) -> str:
    if not settings.system_password_file:
        return settings.needed("system_password", "outsourced")
    name = f"{PREFIX}SYSTEM_PASSWORD_FILE"
    if settings.system_password:
        raise SettingError(f"{name} and {PREFIX}SYSTEM_PASSWORD exclude each other")
    password = read_file(settings.system_password_file, name).rstrip("\r\n")
    if not password:
        raise SettingError(f"{name} names an empty file")
    return password
