"""Client certificates of systems, as a cloud's authority issues them."""

from dataclasses import dataclass
from datetime import UTC, datetime

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ec import (
    SECP256R1,
    EllipticCurvePrivateKey,
    generate_private_key,
)
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

#: The profiles of systems and of operators (contract, "Who is asking").
SYSTEM, OPERATOR = "sy", "op"

#: A test may move the clock as far as it likes: a certificate is valid then, too.
BEGIN = datetime(1970, 1, 2, tzinfo=UTC)
END = datetime(9999, 12, 31, tzinfo=UTC)
LONG_AGO = datetime(1970, 1, 3, tzinfo=UTC)


@dataclass(frozen=True)
class Issuer:
    """Who signs certificates.

    Attributes:
        certificate: its own certificate.
        key: the key of that.
    """

    certificate: x509.Certificate
    key: EllipticCurvePrivateKey


@dataclass(frozen=True)
class Issued:
    """A certificate and its key."""

    certificate: x509.Certificate
    key: EllipticCurvePrivateKey

    @property
    def der(self) -> bytes:
        """The certificate in DER."""
        return self.certificate.public_bytes(Encoding.DER)

    @property
    def pem(self) -> bytes:
        """The certificate in PEM."""
        return self.certificate.public_bytes(Encoding.PEM)

    @property
    def key_pem(self) -> bytes:
        """The key in PEM, without a password."""
        return self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def issue(
    name: str,
    operator: bool,
    cloud: str,
    *,
    profile: str | None = None,
    expired: bool = False,
    issuer: Issuer | None = None,
) -> Issued:
    """Return a new client certificate.

    Args:
        name: the SystemName.
        operator: whether it is an operator's.
        cloud: `<cloud>.<organisation>`.
        profile: the DN qualifier; by default the one of a system or of an operator.
        expired: whether it is valid no longer.
        issuer: who signs it; by default it is self-signed.
    """
    key = generate_private_key(SECP256R1())
    qualifier = profile or (OPERATOR if operator else SYSTEM)
    subject = x509.Name(
        [
            x509.NameAttribute(NameOID.COMMON_NAME, f"{name}.{cloud}.arrowhead.eu"),
            x509.NameAttribute(NameOID.DN_QUALIFIER, qualifier),
        ]
    )
    signing = issuer.key if issuer else key
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.certificate.subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(BEGIN)
        .not_valid_after(LONG_AGO if expired else END)
    )
    for extension, critical in (
        (x509.BasicConstraints(ca=False, path_length=None), True),
        (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), False),
        (x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False),
        (x509.AuthorityKeyIdentifier.from_issuer_public_key(signing.public_key()), False),
    ):
        builder = builder.add_extension(extension, critical)
    return Issued(builder.sign(signing, hashes.SHA256()), key)
