"""The management policy `whitelist`: operators may manage, and systems that the settings list."""

from orchmgmt.policies import ManagementPolicy, Operation, Requester
from orchmgmt.settings import Settings
from orchmgmt.values import strip


class Whitelist(ManagementPolicy):
    """`whitelist`: operators, and the systems that the settings list."""

    def __init__(self, settings: Settings) -> None:
        naming = settings.naming
        self._names = {naming.system_name(strip(it)) for it in settings.management_whitelist}

    def admits(self, requester: Requester, operation: Operation) -> bool:
        """Return whether the requester is an operator or on the list."""
        return requester.operator or requester.name in self._names
