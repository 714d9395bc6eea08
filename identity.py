"""Who is asking: one small class for each authentication policy (contract, "Who is asking").

A policy is made from the settings and has one method, `identify`. The settings list them all.
"""

import re
from dataclasses import dataclass
from pkgutil import resolve_name
from typing import Any, Protocol

from flask import Request

from orchmgmt.errors import Unidentified
from orchmgmt.settings import AUTHENTICATION_POLICIES, Policy, SettingError, Settings
from orchmgmt.values import strip

OPERATOR = "Sysop"
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


class AuthenticationPolicy(Protocol):
    """A way of finding out who sent a request."""

    def identify(self, request: Request) -> Requester:
        """Return who sent `request`.

        Raises:
            Unidentified: it does not say, or not in the way of this policy.
            Forbidden: it says so, and is none that this policy lets in.
            Unavailable: another system has to be asked, and does not answer.
        """


class Declared(AuthenticationPolicy):
    """`declared`: the requester says its name, and nothing is verified."""

    def __init__(self, settings: Settings) -> None:
        self._naming = settings.naming

    def identify(self, request: Request) -> Requester:
        """Return the system that `Authorization: Bearer SYSTEM//<name>` names.

        Raises:
            Unidentified: the header is missing or malformed.
        """
        kind, value = bearer(request)
        try:
            name = self._naming.system_name(strip(value))
        except ValueError:
            kind = ""
        if kind != "SYSTEM":
            raise Unidentified(INVALID_HEADER)
        return Requester(name, operator=name == OPERATOR)


def bearer(request: Request) -> tuple[str, str]:
    """Return the two parts of `Authorization: Bearer <kind>//<value>`.

    Raises:
        Unidentified: the header is missing or malformed.
    """
    header = request.headers.get("Authorization", "")
    if not strip(header):
        raise Unidentified("No authorization header has been provided")
    match = _BEARER(header)
    if not match:
        raise Unidentified(INVALID_HEADER)
    return match[1], match[2]


def authentication_policy(settings: Settings) -> AuthenticationPolicy:
    """Return the policy that the settings choose.

    Raises:
        SettingError: it needs a setting or a package that is missing.
    """
    policy: AuthenticationPolicy = chosen(
        AUTHENTICATION_POLICIES, settings.authentication_policy, settings
    )
    return policy


def chosen(policies: dict[str, Policy], name: str, settings: Settings) -> Any:
    """Return one of `policies`, made from the settings.

    Raises:
        SettingError: it needs a setting or a package that is missing.
    """
    try:
        policy = resolve_name(policies[name].where)
    except ModuleNotFoundError as error:
        raise SettingError(
            f"the policy `{name}` needs {error.name}: pip install 'orchmgmt[{name}]'"
        ) from None
    return policy(settings)
