"""TLS for a service under test: an authority made for this run, and what it signs."""

import atexit
import os
import shutil
import ssl
from functools import cache
from itertools import count
from pathlib import Path
from tempfile import mkdtemp
from typing import NamedTuple

import trustme
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from orchmgmt.testing.certificates import Issuer, issue

#: The names by which a service under test is called.
NAMES = ("localhost", "127.0.0.1", "::1")


class CertificateFiles(NamedTuple):
    """The files of a certificate, as `orchmgmt.client.Client` and others take them.

    Attributes:
        certificate: the PEM file of the certificate.
        key: the PEM file of its key.
    """

    certificate: str
    key: str


class Authority:
    """A certificate authority. Its files are in a folder that goes when the process ends.

    Attributes:
        ca_file: the PEM file of its own certificate.
    """

    def __init__(self) -> None:
        self._folder = Path(mkdtemp(prefix="orchmgmt-testing-"))
        atexit.register(_remove, self._folder, os.getpid())
        self._ca = trustme.CA()
        self._numbers = count(1)
        self.ca_file = str(self._folder / "ca.pem")
        self._ca.cert_pem.write_to_path(self.ca_file)

    def server_context(self, host: str, mutual: bool) -> ssl.SSLContext:
        """Return what a server needs.

        Args:
            host: the address that it listens on.
            mutual: whether it verifies a client's certificate. A client without one is let in, so
                that the service can answer it.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.set_alpn_protocols(["http/1.1"])
        self._ca.issue_cert(*dict.fromkeys((*NAMES, host))).configure_cert(context)
        if mutual:
            context.load_verify_locations(self.ca_file)
            context.verify_mode = ssl.CERT_OPTIONAL
        return context

    def client_context(self, files: CertificateFiles | None) -> ssl.SSLContext:
        """Return what a client needs, which shows a certificate if it has `files`."""
        context = ssl.create_default_context(cafile=self.ca_file)
        if files:
            context.load_cert_chain(*files)
        return context

    def certificate(
        self, name: str, operator: bool, cloud: str, profile: str | None, expired: bool
    ) -> CertificateFiles:
        """Return a client certificate, as `issue` makes it."""
        key = load_pem_private_key(self._ca.private_key_pem.bytes(), password=None)
        assert isinstance(key, EllipticCurvePrivateKey)
        issuer = Issuer(x509.load_pem_x509_certificate(self._ca.cert_pem.bytes()), key)
        issued = issue(name, operator, cloud, profile=profile, expired=expired, issuer=issuer)
        number = next(self._numbers)
        found = [self._folder / f"{number}-{it}.pem" for it in ("certificate", "key")]
        for path, content in zip(found, (issued.pem, issued.key_pem), strict=True):
            path.write_bytes(content)
        return CertificateFiles(*map(str, found))


@cache
def authority() -> Authority:
    """Return the authority of this run, which all services of the process have."""
    return Authority()


@cache
def foreign_authority() -> Authority:
    """Return another one, which no service trusts."""
    return Authority()


def _remove(folder: Path, process: int) -> None:
    if os.getpid() == process:  # and not in a fork
        shutil.rmtree(folder, ignore_errors=True)
