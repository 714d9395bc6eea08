"""The authentication policy `outsourced`: the cloud's identity service says who a token is."""

import hashlib
import re
import threading
import time
from collections import OrderedDict

from orchmgmt.errors import Unidentified
from orchmgmt.policies import INVALID_HEADER, AuthenticationPolicy, Evidence, Requester, bearer
from orchmgmt.policies.cloud import OtherSystem, own_side, seconds_until
from orchmgmt.settings import Settings
from orchmgmt.values import strip

REMEMBERED_AT_MOST = 10_000

#: Characters that stand for themselves in a path: no token can ask for another one.
_TOKEN = re.compile(r"(?!\.+\Z)[A-Za-z0-9._~-]{1,1000}").fullmatch


class Outsourced(AuthenticationPolicy):
    """`outsourced`: the requester shows a token, which the identity service verifies.

    Args:
        settings: they say where the service is, how this system logs in and how long an answer is
            remembered.

    Raises:
        SettingError: one of these settings is missing or wrong.
    """

    def __init__(self, settings: Settings) -> None:
        self._naming = settings.naming
        self._own = own_side(settings)
        self._identity = OtherSystem("identity service", settings, "identity_url", "outsourced")
        self._remembered = _Remembered(settings.identity_cache_seconds)

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
        # Kept as a hash: neither the memory nor the time of a comparison tells a token.
        key = hashlib.sha256(token.encode()).digest()
        requester = self._remembered.get(key)
        if requester is None:
            asked = time.monotonic()
            requester, lifetime = self._verify(token)
            self._remembered.put(key, requester, asked, lifetime)
        return requester

    def _verify(self, token: str) -> tuple[Requester, float]:
        """The system that a token stands for, and for how many seconds it does (0: unknown)."""
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
            lifetime = None if end is None else seconds_until(end)
            requester = Requester(self._naming.system_name(strip(name)), operator)
        except ValueError:
            raise self._identity.unavailable("a name or a time is malformed") from None
        # The identity service goes on verifying a token that has ended until it cleans up.
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
