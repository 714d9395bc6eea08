"""The other systems of the cloud: how this one asks them, and who it is to them.

Contract, "Who is asking". Whatever is not the answer that the contract describes is `Unavailable`,
and the log has the reason; neither ever holds a token or a password.
"""

import json
import logging
import re
import ssl
import threading
import time
from datetime import datetime
from functools import lru_cache
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus, urlsplit

import urllib3

from orchmgmt.errors import Unavailable
from orchmgmt.settings import ASKING_AT_ONCE, PREFIX, SettingError, Settings
from orchmgmt.values import second, strip

log = logging.getLogger("orchmgmt")

ANSWER_BYTES = 64 * 1024

#: The part of a login's life after which this system logs in again.
LOGIN_AGES = 0.8

#: How long a login is used that has ended already by this machine's clock, in seconds. The clocks
#: disagree then; a refusal tells when it really ends.
ENDED_ALREADY = 60.0

CLOCKS = (
    "a login at the identity service has ended before it began: set the clock of one of the two; "
    "until then requesters are refused"
)

#: How many characters of a refusal's reason are told.
REASON_LENGTH = 200

#: What may prove who somebody is: the tokens of the Java implementation, and what follows a scheme.
_PROOF = re.compile(
    r"\b[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\b"
    r"|(?<=IDENTITY-TOKEN//)\S+|(?<=AUTHENTICATOR-KEY//)\S+",
    re.IGNORECASE,
)


_silent = threading.local()


def _not_while_asking(record: logging.LogRecord) -> bool:
    """urllib3 logs the paths that it asks for, and a path holds a token."""
    return not getattr(_silent, "here", False)


for _name in [name for name in logging.root.manager.loggerDict if name.startswith("urllib3")]:
    logging.getLogger(_name).addFilter(_not_while_asking)


class OtherSystem:
    """A system of the cloud that this one asks.

    Args:
        name: what a message calls it.
        settings: they say where it is.
        url: the setting with its base URL.
        policy: the policy that needs it.

    Raises:
        SettingError: the setting is missing, or no URL.
    """

    def __init__(self, name: str, settings: Settings, url: str, policy: str) -> None:
        self.name = name
        self.url = settings.needed(url, policy).rstrip("/")
        try:
            parts = urlsplit(self.url)
            right = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        except ValueError:
            right = False
        # Its text is not shown: somebody may have put a password into it.
        if not right or "@" in parts.netloc or parts.query or parts.fragment:
            raise SettingError(
                f"{PREFIX}{url.upper()} must be http:// or https://, a host and a path"
            )

    def unavailable(self, reason: object) -> Unavailable:
        """Log why this system's answer is of no use, and return what to raise."""
        log.warning("the %s does not answer as it should: %s", self.name, reason)
        return Unavailable(f"The {self.name} does not answer; try again later")


class OwnSide:
    """This system as the others see it: its connections to them and its identity.

    Args:
        settings: certificates, timeouts, and who this system is.

    Attributes:
        name: this system's SystemName.
        login: its login at the identity service, if it has one.

    Raises:
        SettingError: what proves who this system is, is missing or wrong.
    """

    def __init__(self, settings: Settings) -> None:
        self.name = settings.own_name
        self._patience = settings.connect_timeout_seconds + settings.read_timeout_seconds
        self._pool = _pool(settings)
        self._places = threading.BoundedSemaphore(ASKING_AT_ONCE)
        self._authorization: str | None = None
        self.login: _Login | None = None
        if settings.authentication_policy == "outsourced":
            self.login = _Login(self, settings)
        elif settings.authentication_policy == "declared":
            self._authorization = f"Bearer SYSTEM//{self.name}"
        else:
            settings.needed("certificate_file", settings.management_policy)
            from orchmgmt.policies.certificate import own_name  # it needs an extra of its own

            self.name = own_name(settings)

    def ask(self, system: OtherSystem, method: str, path: str, payload: object = None) -> Any:
        """Return what another system answers to this one, as JSON.

        Args:
            system: who is asked.
            method: the HTTP method.
            path: where below its base URL, escaped.
            payload: what is sent, as JSON; `None` is no body.

        Raises:
            Unavailable: it does not answer with 200 and JSON in time, or too many wait already.
        """
        status, answer = self.send(system, method, path, payload)
        if status != HTTPStatus.OK:
            raise system.unavailable(f"status {status}")
        return answer

    def send(
        self, system: OtherSystem, method: str, path: str, payload: object = None
    ) -> tuple[int, Any]:
        """Like `ask`, but return any status, and the JSON of a 200 or 201.

        A refusal (400 and above) has its reason instead, in one line and without any proof of who
        somebody is; an empty text if it says none.

        Raises:
            Unavailable: no answer comes in time, or too many wait already.
        """
        # A slow system must leave threads to those who do not need it.
        if not self._places.acquire(blocking=False):
            raise system.unavailable("too many requests wait for it already")
        try:
            own = self.authorization()
            status, answer = self.exchange(system, method, path, payload, own)
            if status == HTTPStatus.UNAUTHORIZED and self.login:
                own = self.authorization(refused=own)
                status, answer = self.exchange(system, method, path, payload, own)
        finally:
            self._places.release()
        return status, answer

    def authorization(self, refused: str | None = None) -> str | None:
        """Return the `Authorization` that proves who this system is, if a header does.

        Args:
            refused: an earlier one that is no longer good.

        Raises:
            Unavailable: the identity service does not let this system log in.
        """
        return self.login.authorization(refused) if self.login else self._authorization

    def exchange(
        self, system: OtherSystem, method: str, path: str, payload: object, own: str | None
    ) -> tuple[int, Any]:
        """Send one request with the header `Authorization: <own>`.

        Returns:
            The status of the answer, and the JSON of a 200 or 201, `None` if it has no body; the
            reason of a refusal.

        Raises:
            Unavailable: the answer does not come in time, is too large or no JSON.
        """
        headers = {"Accept": "application/json"}
        if own:
            headers["Authorization"] = own
        deadline = time.monotonic() + self._patience
        _silent.here = True
        try:
            with self._pool.request(
                method,
                f"{system.url}/{path}",
                json=payload,
                headers=headers,
                retries=False,
                redirect=False,
                preload_content=False,
                decode_content=False,
            ) as response:
                body = b""
                while block := response.read1(ANSWER_BYTES):
                    body += block
                    if len(body) > ANSWER_BYTES:
                        raise system.unavailable("its answer is too large")
                    if time.monotonic() > deadline:
                        raise system.unavailable("its answer comes too slowly")
            if response.status >= HTTPStatus.BAD_REQUEST:
                return response.status, self._reason_of(body, own)
            done = response.status in (HTTPStatus.OK, HTTPStatus.CREATED)
            return response.status, json.loads(body) if done and body else None
        except (urllib3.exceptions.HTTPError, OSError, ValueError, RecursionError) as error:
            raise system.unavailable(_reason(error)) from None
        finally:
            _silent.here = False

    def _reason_of(self, body: bytes, own: str | None) -> str:
        """The `errorMessage` of an answer, as anybody may read it."""
        try:
            answer = json.loads(body)
        except (ValueError, RecursionError):
            return ""
        message = answer.get("errorMessage") if isinstance(answer, dict) else None
        if not isinstance(message, str):
            return ""
        reason = printable(message)
        # Under `declared` the own identity is a name, which is no secret.
        if self.login:
            for secret in (self.login.password, (own or "").rpartition("//")[2]):
                for text in {secret, quote(secret, safe=""), quote_plus(secret)} - {""}:
                    reason = re.sub(re.escape(text), "***", reason, flags=re.IGNORECASE)
        return strip(_PROOF.sub("***", reason)[:REASON_LENGTH])


class _Login:
    """This system's own login at the identity service, renewed before it ends."""

    def __init__(self, own: OwnSide, settings: Settings) -> None:
        self._own = own
        self._identity = OtherSystem("identity service", settings, "identity_url", "outsourced")
        self.password = _password(settings)
        self._lock = threading.Lock()
        self._authorization: str | None = None
        self._renewal = 0.0
        self._failure = ""
        self._failed = 0.0
        self.ended_already = False

    def authorization(self, refused: str | None = None) -> str:
        """Return this system's `Authorization`.

        Args:
            refused: an earlier one that is no longer good.

        Raises:
            Unavailable: the identity service does not let this system log in.
        """
        came = time.monotonic()
        # One thread logs in, and the others share what comes of it: a login may end the one before.
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

    def _log_in(self) -> str:
        credentials = {
            "systemName": self._own.name,
            "credentials": {"password": self.password},
        }
        began = time.monotonic()
        status, answer = self._own.exchange(self._identity, "POST", "login", credentials, None)
        if status == HTTPStatus.UNAUTHORIZED:
            raise self._identity.unavailable("it refuses this system's name or password")
        if status != HTTPStatus.OK:
            raise self._identity.unavailable(f"status {status} to the login")
        try:
            token, left = answer["token"], seconds_until(answer["expirationTime"])
            if not isinstance(token, str) or not token.isascii() or not token.isprintable():
                raise ValueError
        except (TypeError, KeyError, ValueError):
            raise self._identity.unavailable("its answer to the login is malformed") from None
        if left <= 0 and not self.ended_already:
            log.warning("by this machine's clock %s", CLOCKS)
        self.ended_already = left <= 0
        self._renewal = began + LOGIN_AGES * (ENDED_ALREADY if self.ended_already else left)
        return f"Bearer IDENTITY-TOKEN//{token}"


def printable(text: str) -> str:
    """Return what another system has sent without anything that a terminal or a log obeys."""
    return "".join(it for it in text if it.isprintable())


@lru_cache(maxsize=16)
def own_side(settings: Settings) -> OwnSide:
    """Return the one `OwnSide` of these settings.

    Two would log in twice, and a login may end the one before.
    """
    return OwnSide(settings)


def seconds_until(moment: object) -> float:
    """Return how many seconds a DateTime of the contract is ahead; less than 0 if it has passed.

    Raises:
        ValueError: it is none.
    """
    if not isinstance(moment, str):
        raise ValueError
    end = datetime.fromisoformat(second(moment).replace("Z", "+00:00"))
    return end.timestamp() - time.time()


def _pool(settings: Settings) -> urllib3.PoolManager:
    name = "CA_FILE"
    try:
        context = ssl.create_default_context(cafile=settings.ca_file or None)
        if settings.certificate_file:
            name = "CERTIFICATE_FILE"
            # The password is for a key that has one: nobody is there to type it.
            context.load_cert_chain(
                settings.certificate_file, settings.key_file or None, password=""
            )
    except OSError as error:
        raise SettingError(f"{PREFIX}{name} cannot be used: {error.strerror}") from None
    return urllib3.PoolManager(
        maxsize=ASKING_AT_ONCE,
        timeout=urllib3.Timeout(
            connect=settings.connect_timeout_seconds, read=settings.read_timeout_seconds
        ),
        ssl_context=context,
    )


def _password(settings: Settings) -> str:
    if not settings.system_password_file:
        return settings.needed("system_password", "outsourced")
    name = f"{PREFIX}SYSTEM_PASSWORD_FILE"
    if settings.system_password:
        raise SettingError(f"{name} and {PREFIX}SYSTEM_PASSWORD exclude each other")
    try:
        password = Path(settings.system_password_file).read_text("utf-8").rstrip("\r\n")
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8"
        raise SettingError(f"{name} cannot be read: {reason}") from None
    if not password:
        raise SettingError(f"{name} names an empty file")
    return password


def _reason(error: Exception) -> str:
    """What went wrong, without anything that the other side sent: it may have sent a token back."""
    cause = error.__cause__ or error.__context__
    detail = getattr(cause, "strerror", None)
    return f"{type(error).__name__} ({detail})" if detail else type(error).__name__
