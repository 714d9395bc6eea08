"""The gate before the operations: identity, then permission, and the access log of both."""

import logging
from typing import Any

from orchmgmt.errors import Forbidden, ServiceError
from orchmgmt.policies import (
    AuthenticationPolicy,
    Evidence,
    ManagementPolicy,
    Operation,
    Requester,
    authentication_policy,
    management_policy,
)
from orchmgmt.policies.proxies import TrustedProxies
from orchmgmt.settings import PREFIX, Settings

#: A refused request is a line at INFO, an allowed one at DEBUG. Nothing in a line is as somebody
#: sent it: neither a token nor a control character gets in.
access = logging.getLogger("orchmgmt.access")

log = logging.getLogger("orchmgmt")

NO_PERMISSION = "Requester has no management permission"

READ_ONLY = "This server answers queries alone: it was started with --read-only"


class Gate:
    """Lets in the requests that the policies of the settings let in.

    Args:
        settings: which policies, and what they need to know.
        read_only: whether operations that write are refused.

    Raises:
        SettingError: a policy needs a setting or a package that is missing.
    """

    def __init__(self, settings: Settings, read_only: bool = False) -> None:
        policy: Any = authentication_policy(settings)
        self._identity: AuthenticationPolicy = policy(settings)
        self._permission: ManagementPolicy = management_policy(settings)(settings)
        self._read_only = read_only
        self._proxies = TrustedProxies(settings)
        # A certificate that nobody looks at: the setting may have been forgotten.
        self._unread = "" if policy.reads_certificate else settings.client_certificate_header

    def identify(self, evidence: Evidence, name: str) -> Requester:
        """Return who sent a request.

        Args:
            evidence: what tells that.
            name: what the log calls the operation.

        Raises:
            ServiceError: as `AuthenticationPolicy.identify`.
        """
        if self._unread and evidence.headers.get(self._unread) is not None:
            self._warn()
        try:
            return self._identity.identify(evidence)
        except ServiceError as refusal:
            self._log(evidence, "-", name, refusal)
            raise

    def permit(self, requester: Requester, operation: Operation, evidence: Evidence) -> None:
        """Return if a requester may perform an operation.

        Raises:
            Forbidden: it may not.
            ServiceError: as `ManagementPolicy.admits`.
        """
        try:
            if not self._permission.admits(requester, operation):
                raise Forbidden(NO_PERMISSION)
            if self._read_only and operation.changes:
                raise Forbidden(READ_ONLY)
        except ServiceError as refusal:
            self._log(evidence, requester.name, operation.name, refusal)
            raise
        self._log(evidence, requester.name, operation.name, operator=requester.operator)

    def admit(self, evidence: Evidence, name: str) -> Requester:
        """Return who sent a request for which an identity is enough.

        Raises:
            ServiceError: as `identify`.
        """
        requester = self.identify(evidence, name)
        self._log(evidence, requester.name, name, operator=requester.operator)
        return requester

    def _warn(self) -> None:
        log.warning(
            "a request came with a client certificate, in %s, and the authentication policy "
            "ignores it: is %sAUTHENTICATION_POLICY=certificate missing?",
            self._unread,
            PREFIX,
        )
        self._unread = ""  # once is enough

    def _log(
        self,
        evidence: Evidence,
        requester: str,
        name: str,
        refusal: ServiceError | None = None,
        operator: bool = False,
    ) -> None:
        level = logging.INFO if refusal else logging.DEBUG
        if access.isEnabledFor(level):
            reason = "operator" if operator else "system"
            if refusal:
                reason = f"{refusal.status.value} {refusal}"
            fields = {
                "outcome": "refused" if refusal else "allowed",
                "requester": requester,
                "operation": name,
                "client": self._proxies.client(evidence),
                "reason": reason,
            }
            line = "%(outcome)s %(requester)s %(operation)s from %(client)s: %(reason)s"
            access.log(level, line, fields, extra={"fields": fields})
