"""Who is asking: one small class for each authentication policy (contract, "Who is asking").

A policy is made from the settings and has one method, `identify`. A new one needs its class and
its line in `POLICIES`.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from flask import Request

from orchmgmt.errors import Unidentified
from orchmgmt.settings import Settings
from orchmgmt.values import strip

OPERATOR = "Sysop"

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
        """


class Declared:
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
            raise Unidentified("Invalid authorization header")
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
        raise Unidentified("Invalid authorization header")
    return match[1], match[2]


POLICIES: dict[str, Callable[[Settings], AuthenticationPolicy]] = {"declared": Declared}


def authentication_policy(settings: Settings) -> AuthenticationPolicy:
    """Return the policy that the settings choose."""
    return POLICIES[settings.authentication_policy](settings)
