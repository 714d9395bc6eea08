"""The management policy `sysop-only`: operators may manage."""

from orchmgmt.policies import ManagementPolicy, Operation, Requester
from orchmgmt.settings import Settings


class SysopOnly(ManagementPolicy):
    """`sysop-only`: operators."""

    def __init__(self, settings: Settings) -> None:
        pass

    def admits(self, requester: Requester, operation: Operation) -> bool:
        """Return whether the requester is an operator."""
        return requester.operator
