"""What shows the service under test who sends a request."""

from base64 import b64encode
from typing import TYPE_CHECKING

from orchmgmt.policies import authentication_policy
from orchmgmt.settings import OPERATOR_NAME, SettingError, Settings

if TYPE_CHECKING:
    from orchmgmt.testing.cloud import Identity


def headers_of(
    settings: Settings, name: str, operator: bool, identity: "Identity | None"
) -> dict[str, str]:
    """Return the headers by which the service knows a system, as a proxy hands them on.

    What they are depends on what the policy says of itself, so that a new one needs no line here.

    Args:
        settings: those of the service.
        name: the SystemName.
        operator: whether the system is an operator.
        identity: the stand-in of the Authentication system, if there is one.

    Raises:
        SettingError: another system decides who is who.
        ValueError: the policy knows no such operator.
    """
    policy = authentication_policy(settings)
    if policy.reads_certificate:
        from orchmgmt.testing.certificates import issue

        der = issue(name, operator, settings.cloud).der
        return {settings.client_certificate_header: in_header(der)}
    if identity:
        return {"Authorization": f"Bearer IDENTITY-TOKEN//{identity.token(name, operator)}"}
    if policy.verifies:
        whose = "operator's" if operator else "system's"
        raise SettingError(
            f"The harness has no {whose} headers under the policy "
            f"`{settings.authentication_policy}` when it does not know who decides who is who: "
            "send what the policy asks for"
        )
    if operator != (name == OPERATOR_NAME):
        raise ValueError(
            f"Under the policy `{settings.authentication_policy}`, {OPERATOR_NAME} is the operator "
            "and nobody else"
        )
    return {"Authorization": f"Bearer SYSTEM//{name}"}


def in_header(der: bytes) -> str:
    """Return a certificate as a header has it (RFC 9440)."""
    return f":{b64encode(der).decode()}:"
