"""A certificate authority of the test's own."""

import ipaddress
import ssl
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import quote

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

CLOUD = "testcloud.company"
DOMAIN = f"{CLOUD}.arrowhead.eu"
NOW = datetime.now(UTC).replace(microsecond=0)
DAY = timedelta(days=1)


def subject(*names: str, qualifiers: tuple[str, ...] = ()) -> x509.Name:
    """A subject with these common names and DN qualifiers."""
    return x509.Name(
        [x509.NameAttribute(NameOID.COMMON_NAME, name) for name in names]
        + [x509.NameAttribute(NameOID.DN_QUALIFIER, it) for it in qualifiers]
    )


@dataclass
class Issued:
    """A certificate and its key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @property
    def pem(self) -> str:
        return self.certificate.public_bytes(Encoding.PEM).decode()

    @property
    def der(self) -> bytes:
        return self.certificate.public_bytes(Encoding.DER)

    @property
    def escaped(self) -> str:
        """As nginx hands it on."""
        return quote(self.pem, safe="")

    def save(self, path: Path) -> str:
        """Write certificate and key into one file."""
        key = self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        path.write_text(self.pem + key.decode())
        return str(path)


@dataclass
class Authority:
    """Issues certificates, and revokes them."""

    folder: Path
    name: str = "authority"

    def __post_init__(self) -> None:
        self.own = self.issue(subject(self.name), authority=True)
        self.ca_file = str(self.folder / f"{self.name}.pem")
        Path(self.ca_file).write_text(self.own.pem)

    def issue(
        self,
        name: x509.Name,
        *,
        starts: datetime = NOW - DAY,
        ends: datetime = NOW + DAY,
        authority: bool = False,
        host: str | None = None,
        self_signed: bool | None = None,
        server: bool = False,
    ) -> Issued:
        key = ec.generate_private_key(ec.SECP256R1())
        self_signed = authority if self_signed is None else self_signed
        builder = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name if self_signed else self.own.certificate.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(starts)
            .not_valid_after(ends)
            .add_extension(x509.BasicConstraints(authority, None), critical=True)
        )
        if authority:
            usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
            builder = builder.add_extension(usage, critical=True)
        if server:
            purpose = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])
            builder = builder.add_extension(purpose, critical=False)
        if host:
            address = x509.IPAddress(ipaddress.ip_address(host))
            builder = builder.add_extension(x509.SubjectAlternativeName([address]), critical=False)
        if not authority:
            public = key.public_key() if self_signed else self.own.key.public_key()
            builder = builder.add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(public), critical=False
            )
        builder = builder.add_extension(
            x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False
        )
        signer = key if self_signed else self.own.key
        return Issued(builder.sign(signer, hashes.SHA256()), key)

    def system(self, name: str = "alice") -> Issued:
        return self.issue(subject(f"{name}.{DOMAIN}", qualifiers=("sy",)))

    def operator(self, name: str = "carol") -> Issued:
        return self.issue(subject(f"{name}.{DOMAIN}", qualifiers=("op",)))

    def revocations(self, *certificates: Issued, ends: datetime = NOW + DAY) -> str:
        """Write a revocation list and return its path."""
        builder = x509.CertificateRevocationListBuilder(
            issuer_name=self.own.certificate.subject, last_update=NOW - 2 * DAY, next_update=ends
        )
        for issued in certificates:
            builder = builder.add_revoked_certificate(
                x509.RevokedCertificateBuilder()
                .serial_number(issued.certificate.serial_number)
                .revocation_date(NOW - DAY)
                .build()
            )
        path = self.folder / f"{self.name}-crl.pem"
        signed = builder.sign(self.own.key, hashes.SHA256())
        path.write_bytes(signed.public_bytes(Encoding.PEM))
        return str(path)

    def server_file(self) -> str:
        """Certificate and key of a server on this machine."""
        issued = self.issue(subject("127.0.0.1"), host="127.0.0.1")
        return issued.save(self.folder / f"{self.name}-server.pem")

    def server_context(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.server_file())
        return context
