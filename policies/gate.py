"""The gate before the operations: identity, then permission, and the access log of both."""

import logging
from pkgutil import resolve_name
from typing import Any

from flask import Blueprint, g, request

from orchmgmt.errors import Forbidden, ServiceError
from orchmgmt.policies import AuthenticationPolicy, ManagementPolicy, Operation
from orchmgmt.policies.proxies import TrustedProxies
from orchmgmt.settings import (
    AUTHENTICATION_POLICIES,
    MANAGEMENT_POLICIES,
    PREFIX,
    Policy,
    SettingError,
    Settings,
)

#: A refused request is a line at INFO, an allowed one at DEBUG. Nothing in a line is as somebody
#: sent it: neither a token nor a control character gets in.
access = logging.getLogger("orchmgmt.access")

log = logging.getLogger("orchmgmt")

#: The only scope that changes nothing.
QUERY = "query"

READ_ONLY = "This server answers queries alone: it was started with --read-only"


class Gate:
    """Lets in the requests that the policies of the settings let in.

        read_only: whether operations that write are refused.

    Raises:
        SettingError: a policy needs a setting or a package that is missing.
    """

    def __init__(self, settings: Settings, read_only: bool = False) -> None:
        self._identity: AuthenticationPolicy = _chosen(
            AUTHENTICATION_POLICIES, settings.authentication_policy, settings
        )
        self._permission: ManagementPolicy = _chosen(
            MANAGEMENT_POLICIES, settings.management_policy, settings
        )
        self._read_only = read_only
        self._proxies = TrustedProxies(settings)
        # A certificate that nobody looks at: the setting may have been forgotten.
        self._unread = ""
        if settings.authentication_policy != "certificate":
            self._unread = settings.client_certificate_header

    def guard(self, blueprint: Blueprint, service: str | None = None) -> Blueprint:
        """Return `blueprint`, for identified systems only.

        Args:
            blueprint: operations, each a function called by its scope.
            service: the service definition that they belong to, if they also need permission.
        """

        @blueprint.before_request
        def admit() -> None:
            if request.method == "OPTIONS":  # a browser's question before the request itself
                return
            if self._unread and self._unread in request.headers:
                self._warn()
            scope = str(request.endpoint).rpartition(".")[2]
            self._admit(Operation(service, scope) if service else None)

        return blueprint

    def _admit(self, operation: Operation | None) -> None:
        name = "-"
        try:
            requester = self._identity.identify(request)
            name = g.requester = requester.name
            g.operator = requester.operator
            if operation and not self._permission.admits(requester, operation):
                raise Forbidden("Requester has no management permission")
            if operation and self._read_only and operation.scope != QUERY:
                raise Forbidden(READ_ONLY)
        except ServiceError as refusal:
            self._log(logging.INFO, "refused", name, f"{refusal.status.value} {refusal}")
            raise
        self._log(logging.DEBUG, "allowed", name, "operator" if requester.operator else "system")

    def _warn(self) -> None:
        log.warning(
            "a request came with a client certificate, in %s, and the authentication policy "
            "ignores it: is %sAUTHENTICATION_POLICY=certificate missing?",
            self._unread,
            PREFIX,
        )
        self._unread = ""  # once is enough

    def _log(self, level: int, outcome: str, name: str, reason: str) -> None:
        if access.isEnabledFor(level):
            fields = {"outcome": outcome, "requester": name, "operation": request.endpoint}
            fields |= {"client": self._proxies.client(request), "reason": reason}
            line = "%(outcome)s %(requester)s %(operation)s from %(client)s: %(reason)s"
            access.log(level, line, fields, extra={"fields": fields})


def _chosen(policies: dict[str, Policy], name: str, settings: Settings) -> Any:
    """One of `policies`, made from the settings."""
    try:
        policy = resolve_name(policies[name].where)
    except ModuleNotFoundError as error:
        raise SettingError(
            f"the policy `{name}` needs {error.name}: pip install 'orchmgmt[{name}]'"
        ) from None
    return policy(settings)
