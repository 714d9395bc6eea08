"""Who may manage: one small class for each management policy (contract, "Who is asking")."""

from collections.abc import Callable
from typing import Protocol

from orchmgmt.identity import Requester
from orchmgmt.settings import Settings
from orchmgmt.values import strip


class ManagementPolicy(Protocol):
    """A rule for who may manage locks and history."""

    def admits(self, requester: Requester) -> bool:
        """Return whether `requester` may manage."""


class SysopOnly:
    """`sysop-only`: operators."""

    def __init__(self, settings: Settings) -> None:
        pass

    def admits(self, requester: Requester) -> bool:
        """Return whether the requester is an operator."""
        return requester.operator


class Whitelist:
    """`whitelist`: operators, and the systems that the settings list."""

    def __init__(self, settings: Settings) -> None:
        naming = settings.naming
        self._names = {naming.system_name(strip(it)) for it in settings.management_whitelist}

    def admits(self, requester: Requester) -> bool:
        """Return whether the requester is an operator or on the list."""
        return requester.operator or requester.name in self._names


POLICIES: dict[str, Callable[[Settings], ManagementPolicy]] = {
    "sysop-only": SysopOnly,
    "whitelist": Whitelist,
}


def management_policy(settings: Settings) -> ManagementPolicy:
    """Return the policy that the settings choose."""
    return POLICIES[settings.management_policy](settings)
