"""Who is asking, and who may (contract, "Who is asking"): a file for each policy.

An authentication policy finds out who sent a request; a management policy decides whether that
system may manage. Each is a class that is made from the settings, and `settings.py` lists them all.
The gate calls both. This module has what they share. `cloud.py` asks the cloud's other systems, and
`proxies.py` says which proxies are trusted. Nothing here knows locks, jobs, their database or the
server.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Protocol

from orchmgmt.errors import Unidentified
from orchmgmt.settings import AUTHENTICATION_POLICIES, MANAGEMENT_POLICIES, SettingError, Settings
from orchmgmt.values import strip

INVALID_HEADER = "Invalid authorization header"

_BEARER = re.compile("Bearer ([^/]*)//(.*)", re.DOTALL).fullmatch


@dataclass(frozen=True)
class Requester:
    """A system that has said who it is.

    Attributes:
        name: its SystemName.
        operator: whether it is an operator of the cloud, who may do everything.
    """

    name: str
    operator: bool


class Headers(Protocol):
    """Headers by their names in any letter case."""

    def get(self, name: str, /) -> str | None:
        """Return a header, or `None` if it was not sent."""


class Evidence(NamedTuple):
    """What shows who sent a request.

    Attributes:
        headers: the headers of the request.
        remote_addr: the address that it comes from, if it has one.
    """

    headers: Headers
    remote_addr: str | None


class OwnIdentity:
    """Who this system is to the other systems of its cloud, and how it proves that.

    Args:
        name: its SystemName.
        authorization: the header `Authorization` that proves the name, if a header does.

    Attributes:
        name: its SystemName.
    """

    def __init__(self, name: str, authorization: str | None = None) -> None:
        self.name = name
        self._authorization = authorization

    def authorization(self, refused: str | None = None) -> str | None:
        """Return the header `Authorization` of a request, or `None` if it needs none.

        Args:
            refused: the header that was refused before this call, if one was.

        Raises:
            Unavailable: another system must be asked, and does not answer.
        """
        return self._authorization

    def secrets(self, authorization: str | None) -> tuple[str, ...]:
        """Return the texts that must not appear in a log.

        Args:
            authorization: the header that was sent.
        """
        return ()


class AuthenticationPolicy(Protocol):
    """A way to find out who sent a request.

    Attributes:
        scheme: how OpenAPI describes the proof that a request must bring.
        refusal: the message for a request that brings something else.
        verifies: whether it prevents a system from claiming to be another one.
        reads_certificate: whether a client certificate identifies a system.
    """

    scheme: ClassVar[Mapping[str, Any]] = {"type": "http", "scheme": "bearer"}
    refusal: ClassVar[str] = INVALID_HEADER
    verifies: ClassVar[bool] = True
    reads_certificate: ClassVar[bool] = False

    def identify(self, evidence: Evidence) -> Requester:
        """Return who sent a request.

        Raises:
            Unidentified: the request does not say who sent it, or not as this policy requires.
            Forbidden: it says so, but this policy does not let that system in.
            Unavailable: another system must be asked, and does not answer.
        """

    @classmethod
    def own_identity(cls, settings: Settings) -> OwnIdentity:
        """Return who this system is to the other systems of its cloud, which have the same policy.

        Only the policy `authorization` and the registration, which ask other systems, need it.

        Raises:
            SettingError: the proof is missing or wrong.
        """
        raise SettingError(
            f"the policy `{settings.authentication_policy}` does not say how this system proves "
            "to other systems who it is"
        )


class Operation(Protocol):
    """What a requester wants to do."""

    @property
    def service(self) -> str:
        """The service definition, such as `serviceOrchestrationLockManagement`."""

    @property
    def scope(self) -> str:
        """Which of its operations, such as `create`."""

    @property
    def name(self) -> str:
        """What the log calls it."""

    @property
    def changes(self) -> bool:
        """Whether it may change locks or jobs."""


class ManagementPolicy(Protocol):
    """A rule for who may manage locks and history."""

    def admits(self, requester: Requester, operation: Operation) -> bool:
        """Return whether `requester` may do `operation`.

        Raises:
            Unavailable: another system must be asked, and does not answer.
        """


def authentication_policy(settings: Settings) -> type[AuthenticationPolicy]:
    """Return the class of the policy that the settings choose.

    Raises:
        SettingError: a package that it needs is missing.
    """
    name = settings.authentication_policy
    policy: type[AuthenticationPolicy] = AUTHENTICATION_POLICIES[name].load(f"the policy `{name}`")
    return policy


def management_policy(settings: Settings) -> Callable[[Settings], ManagementPolicy]:
    """Return the class of the management policy that the settings choose.

    Raises:
        SettingError: a package that it needs is missing.
    """
    name = settings.management_policy
    policy: Callable[[Settings], ManagementPolicy]
    policy = MANAGEMENT_POLICIES[name].load(f"the policy `{name}`")
    return policy


def bearer(evidence: Evidence) -> tuple[str, str]:
    """Return the two parts of `Authorization: Bearer <kind>//<value>`.

    Raises:
        Unidentified: the header is missing or malformed, such as with white space round the value.
    """
    header = evidence.headers.get("Authorization") or ""
    if not strip(header):
        raise Unidentified("No authorization header has been provided")
    match = _BEARER(header)
    if not match or match[2] != strip(match[2]):
        raise Unidentified(INVALID_HEADER)
    return match[1], match[2]
