"""The headers by which the service under test knows an operator."""

from base64 import b64encode
from datetime import UTC, datetime

from orchmgmt.settings import OPERATOR_NAME, SettingError, Settings


def operator_headers(settings: Settings) -> dict[str, str]:
    """Return the headers by which the service knows an operator.

    Raises:
        SettingError: under this policy another system decides who is an operator.
    """
    if settings.authentication_policy == "declared":
        return {"Authorization": f"Bearer SYSTEM//{OPERATOR_NAME}"}
    if settings.authentication_policy == "certificate":
        return {settings.client_certificate_header: _certificate(settings.cloud)}
    raise SettingError(
        f"The harness has no operator's headers under the policy "
        f"`{settings.authentication_policy}`: send what the policy asks for"
    )


def _certificate(cloud: str) -> str:
    """Return a certificate as a trusted proxy passes it on (RFC 9440)."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
    from cryptography.hazmat.primitives.serialization import Encoding
    from cryptography.x509.oid import NameOID

    key = generate_private_key(SECP256R1())
    subject = x509.Name(
        [
            x509.NameAttribute(NameOID.COMMON_NAME, f"{OPERATOR_NAME}.{cloud}.arrowhead.eu"),
            x509.NameAttribute(NameOID.DN_QUALIFIER, "op"),
        ]
    )
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(datetime(1970, 1, 2, tzinfo=UTC))
        .not_valid_after(datetime(9999, 12, 31, tzinfo=UTC))
        .sign(key, hashes.SHA256())
    )
    return f":{b64encode(certificate.public_bytes(Encoding.DER)).decode()}:"
