"""How this system asks the other systems of its cloud.

Contract, "Who is asking". An answer that the contract does not describe raises `Unavailable`, and
the log has the reason. Neither of them ever holds a token or a password.
"""

import json
import logging
import re
import threading
from collections.abc import Iterable
from functools import lru_cache
from http import HTTPStatus
from typing import Any, Self
from urllib.parse import quote, quote_plus

from orchmgmt.client.connections import Connections, UnusableFile, split_url, tls_context
from orchmgmt.client.failures import Unanswered
from orchmgmt.errors import Unavailable
from orchmgmt.policies import OwnIdentity, authentication_policy
from orchmgmt.settings import ASKING_AT_ONCE, PREFIX, SettingError, Settings
from orchmgmt.values import strip

log = logging.getLogger("orchmgmt")

ANSWER_BYTES = 64 * 1024

#: How many characters of another system's reason are logged.
REASON_LENGTH = 200

#: What may prove an identity: the Java implementation's tokens, and the text after a scheme.
_PROOF = re.compile(
    r"\b[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\b"
    r"|(?<=IDENTITY-TOKEN//)\S+|(?<=AUTHENTICATOR-KEY//)\S+",
    re.IGNORECASE,
)


class OtherSystem:
    """A system of the cloud that this one asks.

    Args:
        name: what messages call it.
        url: its base URL.
        settings: have the certificates and the timeouts.

    Raises:
        SettingError: a file of certificates cannot be used.
    """

    def __init__(self, name: str, url: str, settings: Settings) -> None:
        self.name = name
        self._url = url
        self._connections = _connections(settings)

    @classmethod
    def configured(cls, name: str, settings: Settings, setting: str, policy: str) -> Self:
        """Return the system whose base URL is a setting.

        Args:
            name: what messages call it.
            settings: have the URL, the certificates and the timeouts.
            setting: the setting with the URL.
            policy: the policy that needs it.

        Raises:
            SettingError: the setting is missing or not a URL, or a file cannot be used.
        """
        url = settings.needed(setting, policy).rstrip("/")
        try:
            right = split_url(url).scheme in ("http", "https")
        except ValueError:
            right = False
        if not right:  # the message does not show the URL: somebody may have put a password into it
            raise SettingError(
                f"{PREFIX}{setting.upper()} must be http:// or https://, a host and a path"
            )
        return cls(name, url, settings)

    def unavailable(self, reason: object) -> Unavailable:
        """Log why this system's answer cannot be used, and return what to raise."""
        log.warning("the %s does not answer as it should: %s", self.name, reason)
        return Unavailable(f"The {self.name} does not answer; try again later")

    def exchange(
        self, method: str, path: str, payload: object, authorization: str | None
    ) -> tuple[int, bytes]:
        """Send one request, and return the status and the body of its answer.

        Args:
            method: the HTTP method.
            path: the path below the base URL, escaped.
            payload: what is sent as JSON; `None` sends no body.
            authorization: the header `Authorization`, if any.

        Raises:
            Unavailable: no answer arrives in time, or it is too large.
        """
        headers = {"Accept": "application/json"}
        if authorization:
            headers["Authorization"] = authorization
        body = None
        if payload is not None:
            headers["Content-Type"] = "application/json"
            body = json.dumps(payload)
        try:
            answer = self._connections.ask(method, self._url, f"/{path}", headers, body)
        except Unanswered as failure:
            raise self.unavailable(failure.reason) from None
        return answer.status, answer.body

    def read(self, body: bytes) -> Any:
        """Return the JSON of a body, `None` if it is empty.

        Raises:
            Unavailable: it is not JSON.
        """
        try:
            return json.loads(body) if body else None
        except (ValueError, RecursionError):
            raise self.unavailable("its answer is not JSON") from None


class OwnSide:
    """This system as the other systems see it: it asks them under its own identity.

    Args:
        identity: who this system is, and how it proves that.
    """

    def __init__(self, identity: OwnIdentity) -> None:
        self.identity = identity
        self._places = threading.BoundedSemaphore(ASKING_AT_ONCE)

    @property
    def name(self) -> str:
        """This system's SystemName."""
        return self.identity.name

    def ask(self, system: OtherSystem, method: str, path: str, payload: object = None) -> Any:
        """Return another system's answer to this one, as JSON.

        Args:
            system: the system that is asked.
            method: the HTTP method.
            path: the path below its base URL, escaped.
            payload: what is sent as JSON; `None` sends no body.

        Raises:
            Unavailable: the system does not answer with 200 and JSON in time, or too many requests
                are already waiting for an answer.
        """
        status, answer = self.send(system, method, path, payload)
        if status != HTTPStatus.OK:
            raise system.unavailable(f"status {status}")
        return answer

    def send(
        self, system: OtherSystem, method: str, path: str, payload: object = None
    ) -> tuple[int, Any]:
        """Like `ask`, but return any status, and the JSON of a 200 or 201.

        For 400 and above, return the reason instead: one line without any proof of identity, empty
        if the answer gives none.

        Raises:
            Unavailable: no answer arrives in time, or too many requests are already waiting.
        """
        # A slow system must leave threads for the requests that do not need it.
        if not self._places.acquire(blocking=False):
            raise system.unavailable("too many requests wait for it already")
        try:
            own = self.identity.authorization()
            status, body = system.exchange(method, path, payload, own)
            if status == HTTPStatus.UNAUTHORIZED:
                refused, own = own, self.identity.authorization(refused=own)
                if own != refused:
                    status, body = system.exchange(method, path, payload, own)
        finally:
            self._places.release()
        if status >= HTTPStatus.BAD_REQUEST:
            return status, _reason_of(body, self.identity.secrets(own))
        return status, system.read(body) if status in (HTTPStatus.OK, HTTPStatus.CREATED) else None


def printable(text: str) -> str:
    """Return a text without control characters, which a terminal or a log would obey."""
    return "".join(it for it in text if it.isprintable())


@lru_cache(maxsize=16)
def own_side(settings: Settings) -> OwnSide:
    """Return the one `OwnSide` of these settings.

    There is only one, because each login may end the previous one.

    Raises:
        SettingError: the proof of this system's identity is missing or wrong.
    """
    return OwnSide(authentication_policy(settings).own_identity(settings))


@lru_cache(maxsize=16)
def _connections(settings: Settings) -> Connections:
    """Return the connections to all other systems."""
    try:
        context = tls_context(
            settings.ca_file or None, settings.certificate_file or None, settings.key_file or None
        )
    except UnusableFile as error:
        setting = f"{PREFIX}{error.argument.upper()}_FILE"
        raise SettingError(f"{setting} cannot be used: {error.reason}") from None
    connect, read = settings.connect_timeout_seconds, settings.read_timeout_seconds
    return Connections(
        connect, read, context, answer_timeout=connect + read, answer_bytes=ANSWER_BYTES
    )


def _reason_of(body: bytes, secrets: Iterable[str]) -> str:
    """Return the `errorMessage` of an answer, without secrets."""
    try:
        answer = json.loads(body)
    except (ValueError, RecursionError):
        return ""
    message = answer.get("errorMessage") if isinstance(answer, dict) else None
    if not isinstance(message, str):
        return ""
    reason = printable(message)
    for secret in secrets:
        for text in {secret, quote(secret, safe=""), quote_plus(secret)} - {""}:
            reason = re.sub(re.escape(text), "***", reason, flags=re.IGNORECASE)
    return strip(_PROOF.sub("***", reason)[:REASON_LENGTH])
