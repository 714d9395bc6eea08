"""The authentication policy `declared`: the requester says its name, and nothing is verified."""

from collections.abc import Mapping
from typing import Any, ClassVar

from orchmgmt.errors import Unidentified
from orchmgmt.policies import (
    INVALID_HEADER,
    AuthenticationPolicy,
    Evidence,
    OwnIdentity,
    Requester,
    bearer,
)
from orchmgmt.settings import OPERATOR_NAME, Settings


class Declared(AuthenticationPolicy):
    """`declared`: the requester says its name, and nothing is verified."""

    scheme: ClassVar[Mapping[str, Any]] = {
        "type": "http",
        "scheme": "bearer",
        "bearerFormat": "SYSTEM//<name>",
        "description": "`Authorization: Bearer SYSTEM//<name>`; `SYSTEM//Sysop` is the operator.",
    }
    verifies = False

    def __init__(self, settings: Settings) -> None:
        self._naming = settings.naming

    @classmethod
    def own_identity(cls, settings: Settings) -> OwnIdentity:
        """Return an identity that this system declares as well."""
        return OwnIdentity(settings.own_name, f"Bearer SYSTEM//{settings.own_name}")

    def identify(self, evidence: Evidence) -> Requester:
        """Return the system that `Authorization: Bearer SYSTEM//<name>` names.

        Raises:
            Unidentified: the header is missing or malformed.
        """
        kind, value = bearer(evidence)
        try:
            name = self._naming.system_name(value)
        except ValueError:
            kind = ""
        if kind != "SYSTEM":
            raise Unidentified(INVALID_HEADER)
        return Requester(name, operator=name == OPERATOR_NAME)
