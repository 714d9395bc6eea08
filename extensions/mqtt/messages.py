"""What a request over MQTT looks like, and its answer (contract, "MQTT")."""

import json
import logging
import threading
from base64 import b64encode
from collections.abc import Iterable, Mapping
from math import isfinite
from time import perf_counter
from typing import Any, NamedTuple, TypeGuard

from orchmgmt.app import Service
from orchmgmt.errors import (
    BodyTooLarge,
    InvalidParameter,
    ServiceError,
    Unidentified,
    error_body,
    fault_of,
)
from orchmgmt.extensions.mqtt.broker import base_topic
from orchmgmt.interfaces import perform, written
from orchmgmt.operations import Operation
from orchmgmt.policies import Evidence, authentication_policy
from orchmgmt.policies.proxies import VERIFIED_HERE
from orchmgmt.schemas import parse_json
from orchmgmt.settings import Part, Settings
from orchmgmt.values import meant

log = logging.getLogger("orchmgmt")

NO_IDENTITY = "No authentication info has been provided"
INVALID_IDENTITY = "Invalid authentication info"

TOO_LARGE = "The answer is larger than the {} bytes that the broker takes: ask for smaller pages"

#: The keys of a request.
KEYS = (
    "traceId",
    "authentication",
    "responseTopic",
    "qosRequirement",
    "params",
    "payload",
    "idempotencyKey",
)

QOS = {"0": 0, "1": 1, "2": 2}

#: Longer or deeper topics are not answered to: brokers close the connection that publishes to such.
LONGEST_TOPIC = 1024  # bytes
DEEPEST_TOPIC = 64  # levels

VERIFIER = Part("extensions.mqtt.certificates:Verifier", extra="certificate")


class Answer(NamedTuple):
    """What is to be published.

    Attributes:
        topic: where.
        qos: with which quality of service, 0 to 2.
        payload: the message.
    """

    topic: str
    qos: int
    payload: bytes


class _Unanswerable(Exception):
    """A message that nobody can be answered to; its text says why."""


class Messages:
    """Does what messages ask for. Any thread may call every method.

    Args:
        service: its operations are offered.

    Attributes:
        ignored: how many messages had no answer.

    Raises:
        SettingError: a setting is missing or wrong.
    """

    def __init__(self, service: Service) -> None:
        self._service = service
        self._settings = settings = service.store.settings
        self._verifier = verifier(settings)
        self._lock = threading.Lock()
        self.ignored = 0

    @property
    def operations(self) -> dict[str, Operation]:
        """The operations by their topics."""
        return {f"{base_topic(it.group)}{it.scope}": it for it in self._service.operations}

    def ignore(self, topic: str, reason: str) -> None:
        """Count a message that has no answer."""
        with self._lock:
            self.ignored += 1
        log.debug("MQTT: a message at %s is ignored: %s", topic, reason)

    def answer(
        self, operation: Operation, topic: str, message: bytes, largest: int
    ) -> Answer | None:
        """Do what a message asks for, and return what to answer; `None` if there is no answer.

        Args:
            operation: what the topic asks for.
            topic: where the message came.
            message: the message.
            largest: how many bytes the broker takes.
        """
        began = perf_counter()
        try:
            request, where, qos = _envelope(message)
        except _Unanswerable as reason:
            self.ignore(topic, str(reason))
            return None
        status, about, payload = self._perform(operation, topic, request, len(message))
        whole = _whole(status, about, payload)
        if len(whole) > largest:
            status = int(BodyTooLarge.status)
            whole = _whole(status, about, [error_body(status, TOO_LARGE.format(largest), topic)])
        for watch in self._service.watchers:
            watch(operation.name, status, perf_counter() - began)
        return Answer(where, qos, whole)

    def _perform(
        self, operation: Operation, topic: str, request: dict[str, Any], size: int
    ) -> tuple[int, dict[str, str], list[bytes]]:
        """Return the status of the answer, what else it says of the request, and its payload."""
        about: dict[str, str] = {}
        trace_id = request.get("traceId")
        has_trace_id = _is_text(trace_id)
        if has_trace_id:
            about["traceId"] = str(trace_id)

        def identified(name: str) -> None:
            about["receiver"] = name

        def read() -> tuple[Any, str | None]:
            if size > self._settings.max_body_bytes:
                raise BodyTooLarge(BodyTooLarge.smallest(self._settings.max_body_bytes))
            if self._settings.unknown_keys == "refuse":
                _demand_known(request)
            if trace_id is not None and not has_trace_id:
                raise InvalidParameter("traceId must be a string")
            return _read(operation, request)

        try:
            evidence = self._evidence(request.get("authentication"))
            result = perform(operation, self._service.gate, evidence, identified, read)
            return operation.status, about, written(operation, result) or [b'""']
        except Exception as error:
            if not isinstance(error, ServiceError):
                log.exception("%r failed", topic)
            status, message = fault_of(error)
            if isinstance(error, Unidentified):
                shown = request.get("authentication") not in (None, "")
                message = INVALID_IDENTITY if shown else NO_IDENTITY
            return int(status), about, [error_body(status, message, topic)]

    def _evidence(self, authentication: Any) -> Evidence:
        if self._verifier:
            header = self._settings.client_certificate_header
            shown = _Certificate(header, self._verifier, authentication)
            return Evidence(shown, VERIFIED_HERE)
        if authentication in (None, ""):
            return Evidence({}, VERIFIED_HERE)
        text = authentication if isinstance(authentication, str) else ""
        return Evidence({"Authorization": f"Bearer {text}"}, VERIFIED_HERE)


def verifier(settings: Settings) -> Any:
    """Return what verifies the certificates that messages show; `None` if the policy reads none.

    Raises:
        SettingError: a setting is missing or wrong.
    """
    if not authentication_policy(settings).reads_certificate:
        return None
    policy = settings.authentication_policy
    path = settings.needed("mqtt_ca_file", policy)
    return VERIFIER.load(f"the policy `{policy}` over MQTT")(path)


class _Certificate:
    """The header in which a proxy would pass on the certificate that a message shows."""

    def __init__(self, header: str, verifier: Any, authentication: Any) -> None:
        self._header = header
        self._verifier = verifier
        self._authentication = authentication

    def get(self, name: str) -> str | None:
        """Return it, once the certificate is verified.

        Raises:
            Unidentified: the certificate is not valid here.
        """
        if name != self._header or self._authentication in (None, ""):
            return None
        return f":{b64encode(self._verifier.verify(self._authentication)).decode()}:"


def _envelope(message: bytes) -> tuple[dict[str, Any], str, int]:
    """Return a request, and where and with which quality of service it is to be answered."""
    try:
        request = parse_json(message)
    except InvalidParameter as error:
        raise _Unanswerable(error) from None
    if not isinstance(request, dict):
        raise _Unanswerable("it is no JSON object")
    topic, qos = request.get("responseTopic"), _qos(request.get("qosRequirement"))
    if not _is_topic(topic):
        raise _Unanswerable("its responseTopic is missing, or is none to which an answer can go")
    if qos is None:
        raise _Unanswerable("its qosRequirement is not 0, 1 or 2")
    return request, topic, qos


def _whole(status: int, about: Mapping[str, str], payload: list[bytes]) -> bytes:
    head = json.dumps({"status": status, **about}, separators=(",", ":"))
    return b"".join([head[:-1].encode(), b',"payload":', *payload, b"}"])


def _read(operation: Operation, request: Mapping[str, Any]) -> tuple[Any, str | None]:
    """Return the payload of a request, and its idempotency key."""
    payload, key = request.get("payload"), request.get("idempotencyKey")
    if operation.from_params:
        params = request.get("params")
        if not isinstance(params, dict | None):
            raise InvalidParameter("params must be a JSON object")
        payload = operation.from_params(params or {}, payload)
    if not isinstance(key, str | None):
        raise InvalidParameter("idempotencyKey must be a string")
    return payload, key


def _demand_known(keys: Iterable[str]) -> None:
    for key in keys:
        if key not in KEYS:
            raise InvalidParameter(f"Unknown key: {key}{meant(key, KEYS)}")


def _is_text(value: Any) -> bool:
    """Return whether a value is a string, or a number that can be written as one."""
    if isinstance(value, float):
        return isfinite(value)
    return isinstance(value, (str, int)) and not isinstance(value, bool)


def _qos(value: Any) -> int | None:
    if value is None:
        return 0
    return QOS.get(str(value)) if isinstance(value, (str, int)) else None


def _is_topic(topic: Any) -> TypeGuard[str]:
    """Return whether an answer can be published there.

    A broker closes the connection over which somebody publishes to a malformed topic, so whatever
    may be one counts as such. Topics that begin with $ are the broker's own.
    """
    return (
        isinstance(topic, str)
        and topic.isprintable()
        and not topic.startswith("$")
        and not {"+", "#"} & set(topic)
        and 0 < len(topic.encode()) <= LONGEST_TOPIC
        and topic.count("/") < DEEPEST_TOPIC
    )
