"""The management policy `authorization`: ConsumerAuthorization says who may manage."""

from orchmgmt.policies import Operation, Requester
from orchmgmt.policies.cloud import OtherSystem, own_side
from orchmgmt.policies.whitelist import Whitelist
from orchmgmt.settings import Settings


class Authorization(Whitelist):
    """`authorization`: those that `whitelist` lets in, and those that ConsumerAuthorization allows.

    Args:
        settings: where that system is, and who this system is to it.

    Raises:
        SettingError: one of these settings is missing or wrong.
    """

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self._own = own_side(settings)
        self._authorization = authorization_system(settings)

    def admits(self, requester: Requester, operation: Operation) -> bool:
        """Return whether the requester is an operator, on the list, or allowed.

        Raises:
            Unavailable: ConsumerAuthorization does not answer as the contract says.
        """
        if super().admits(requester, operation):
            return True
        question = {
            "provider": self._own.name,
            "consumer": requester.name,
            "cloud": "LOCAL",
            "targetType": "SERVICE_DEF",
            "target": operation.service,
            "scope": operation.scope,
        }
        answer = self._own.ask(self._authorization, "POST", "verify", question)
        if not isinstance(answer, bool):
            raise self._authorization.unavailable("its answer is neither true nor false")
        return answer


def authorization_system(settings: Settings) -> OtherSystem:
    """Return ConsumerAuthorization.

    Raises:
        SettingError: its URL is missing or wrong.
    """
    return OtherSystem.configured(
        "authorization system", settings, "authorization_url", "authorization"
    )
