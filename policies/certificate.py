"""The authentication policy `certificate`: who a client certificate names, as a proxy verified it.

The proxy ends mutual TLS, verifies the certificate against the cloud's authority and passes it on
in a header.
"""

import re
from base64 import b64decode
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import unquote

from cryptography import x509
from cryptography.x509.oid import NameOID, ObjectIdentifier

from orchmgmt.errors import Forbidden, Unidentified
from orchmgmt.policies import AuthenticationPolicy, Evidence, OwnIdentity, Requester
from orchmgmt.policies.proxies import TrustedProxies
from orchmgmt.settings import OPERATOR_NAME, PREFIX, SettingError, Settings
from orchmgmt.values import strip

NO_CERTIFICATE = "No client certificate has been provided"

SYSTEM, OPERATOR = "sy", "op"

#: What a common name ends with.
DOMAIN = ["arrowhead", "eu"]

_HEADER_NAME = re.compile("[A-Za-z0-9-]+").fullmatch
_CLOUD = re.compile(r"[^.\s]+\.[^.\s]+").fullmatch
# Neither form has a comma: servers join a header that was sent twice with one.
_RFC_9440 = re.compile(":([A-Za-z0-9+/]+=*):").fullmatch
_ESCAPED = re.compile("[A-Za-z0-9%+/=._~-]+").fullmatch
_PEM = re.compile(
    "-----BEGIN CERTIFICATE-----\n([A-Za-z0-9+/=\n]+)-----END CERTIFICATE-----\n?"
).fullmatch


class Certificate(AuthenticationPolicy):
    """`certificate`: the client certificate of the connection that the reverse proxy ends.

    Args:
        settings: the trusted proxies, their header, and the cloud.

    Raises:
        SettingError: one of these settings is missing or wrong.
    """

    scheme: ClassVar[Mapping[str, Any]] = {
        "type": "mutualTLS",
        "description": "A client certificate of the local cloud, of a system or an operator.",
    }
    refusal = NO_CERTIFICATE
    reads_certificate = True

    def __init__(self, settings: Settings) -> None:
        self._naming = settings.naming
        self._proxies = TrustedProxies(settings)
        self._header = settings.client_certificate_header
        cloud = settings.needed("cloud", "certificate")
        if not _CLOUD(cloud):
            raise SettingError(f"{PREFIX}CLOUD must be <cloud>.<organisation>, not {cloud!r}")
        self._cloud = self._as_names(cloud.split("."))
        if not _HEADER_NAME(self._header):
            raise SettingError(
                f"{PREFIX}CLIENT_CERTIFICATE_HEADER must be a header's name in letters, digits "
                f"and -, not {self._header!r}"
            )

    @classmethod
    def own_identity(cls, settings: Settings) -> OwnIdentity:
        """Return the identity in this system's own certificate, which needs no header.

        Raises:
            SettingError: the certificate is missing, or does not name a system of the cloud.
        """
        settings.needed("certificate_file", settings.management_policy)
        return OwnIdentity(_own_name(settings))

    def identify(self, evidence: Evidence) -> Requester:
        """Return the system or operator that the client certificate names.

        Raises:
            Unidentified: the certificate is missing or not valid now, or its sender is not trusted.
            Forbidden: the certificate belongs to no system or operator of this cloud.
        """
        value = evidence.headers.get(self._header)
        if value is not None and not self._proxies.sent(evidence):
            raise Unidentified("A client certificate is only taken from a trusted proxy")
        if not value:
            raise Unidentified(NO_CERTIFICATE)
        try:
            certificate = x509.load_der_x509_certificate(_der(value))
            now = datetime.now(UTC)
            valid = certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc
            names = _texts(certificate, NameOID.COMMON_NAME)
            profiles = _texts(certificate, NameOID.DN_QUALIFIER)
        except (ValueError, x509.InvalidVersion):
            raise Unidentified("Invalid client certificate") from None
        if not valid:
            raise Unidentified("The client certificate has expired or is not valid yet")
        if profiles not in ([SYSTEM], [OPERATOR]):
            raise Forbidden("The client certificate is neither a system's nor an operator's")
        return Requester(self.name(names), operator=profiles == [OPERATOR])

    def _as_names(self, labels: list[str]) -> list[str]:
        """Return a cloud and its organisation in the form to compare: as SystemNames, if valid."""
        names = []
        for label in labels:
            try:
                names.append(self._naming.system_name(strip(label)))
            except ValueError:
                names.append(label)
        return names

    def name(self, names: list[str]) -> str:
        """Return the SystemName in a common name, `<system>.<cloud>.<organisation>.arrowhead.eu`.

        Raises:
            Forbidden: the common name does not name a system of this cloud.
        """
        system, *cloud = "".join(names).split(".")
        if len(names) != 1 or cloud[2:] != DOMAIN or self._as_names(cloud[:2]) != self._cloud:
            raise Forbidden("The client certificate is not of this cloud")
        try:
            return self._naming.system_name(strip(system))
        except ValueError:
            raise Forbidden("The client certificate does not name a system") from None


def _own_name(settings: Settings) -> str:
    """Return the SystemName in this system's own certificate, by which other systems know it."""
    file = f"{PREFIX}CERTIFICATE_FILE"
    try:
        certificate = x509.load_pem_x509_certificate(Path(settings.certificate_file).read_bytes())
        names = _texts(certificate, NameOID.COMMON_NAME)
    except OSError as error:
        raise SettingError(f"{file} cannot be used: {error.strerror}") from None
    except (ValueError, x509.InvalidVersion):
        raise SettingError(f"{file} holds no certificate that can be read") from None
    try:
        name = Certificate(settings).name(names)
    except Forbidden:
        raise SettingError(
            f"{file} must name a system of the cloud, as "
            f"CN=<system>.{settings.cloud}.arrowhead.eu does"
        ) from None
    if settings.own_name not in (name, Settings.system_name):
        raise SettingError(
            f"{PREFIX}SYSTEM_NAME is {settings.own_name}, and {file} names {name}: the cloud knows "
            f"this system by its certificate"
        )
    if name == OPERATOR_NAME:
        raise SettingError(f"{file} names {name}, which is the operator: it needs one of its own")
    return name


def _der(value: str) -> bytes:
    """Return the certificate in a header, in the form of RFC 9440 or as nginx's escaped PEM."""
    match = _RFC_9440(value) or (_ESCAPED(value) and _PEM(unquote(value).replace("\r\n", "\n")))
    if not match:
        raise ValueError
    return b64decode(match[1].replace("\n", ""), validate=True)


def _texts(certificate: x509.Certificate, kind: ObjectIdentifier) -> list[str]:
    return [str(it.value) for it in certificate.subject.get_attributes_for_oid(kind)]
