"""Who may manage: one small class for each management policy (contract, "Who is asking").

A policy is made from the settings and has one method, `admits`. The settings list them all.
"""

from dataclasses import dataclass
from typing import Protocol

from orchmgmt.identity import Requester, chosen
from orchmgmt.settings import MANAGEMENT_POLICIES, Settings
from orchmgmt.values import strip


@dataclass(frozen=True)
class Operation:
    """What a requester wants to do.

    Attributes:
        service: the service definition, such as `serviceOrchestrationLockManagement`.
        scope: which of its operations: `create`, `query` or `remove`.
    """

    service: str
    scope: str


class ManagementPolicy(Protocol):
    """A rule for who may manage locks and history."""

    def admits(self, requester: Requester, operation: Operation) -> bool:
        """Return whether `requester` may do `operation`.

        Raises:
            Unavailable: another system has to be asked, and does not answer.
        """


class SysopOnly(ManagementPolicy):
    """`sysop-only`: operators."""

    def __init__(self, settings: Settings) -> None:
        pass

    def admits(self, requester: Requester, operation: Operation) -> bool:
        """Return whether the requester is an operator."""
        return requester.operator


class Whitelist(ManagementPolicy):
    """`whitelist`: operators, and the systems that the settings list."""

    def __init__(self, settings: Settings) -> None:
        naming = settings.naming
        self._names = {naming.system_name(strip(it)) for it in settings.management_whitelist}

    def admits(self, requester: Requester, operation: Operation) -> bool:
        """Return whether the requester is an operator or on the list."""
        return requester.operator or requester.name in self._names


def management_policy(settings: Settings) -> ManagementPolicy:
    """Return the policy that the settings choose.

    Raises:
        SettingError: it needs a setting or a package that is missing.
    """
    policy: ManagementPolicy = chosen(MANAGEMENT_POLICIES, settings.management_policy, settings)
    return policy
