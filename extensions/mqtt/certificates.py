"""Whether the certificate that a message shows is valid, as a proxy that ends TLS finds out.

OpenSSL verifies it, as it does for nginx. Only imported under a policy that reads certificates.
"""

import logging
import os
import re
from base64 import b64decode
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID
from OpenSSL.crypto import (
    X509,
    Error,
    X509Store,
    X509StoreContext,
    X509StoreContextError,
    X509StoreFlags,
)

from orchmgmt.errors import Unidentified
from orchmgmt.settings import PREFIX, SettingError

log = logging.getLogger("orchmgmt")

#: For the certificate itself and those between it and the authority.
LONGEST_CHAIN = 10

_REVOCATIONS = re.compile(b"-----BEGIN X509 CRL-----.*?-----END X509 CRL-----", re.DOTALL).findall

MALFORMED = (
    Error,
    x509.DuplicateExtension,
    x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
)

CLIENT = {ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE}


class Verifier:
    """Verifies certificates against the authorities of a file, and the revocation lists in it.

    The file is read again when it has changed, since revocation lists are replaced often. If it is
    damaged then, the last good one counts.

    Args:
        path: the PEM file.

    Raises:
        SettingError: it cannot be used.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        try:
            self._seen = _state(path)
            self._store = _read(path)
        except OSError as error:
            raise SettingError(f"{PREFIX}MQTT_CA_FILE cannot be used: {error.strerror}") from None
        except ValueError:
            raise SettingError(f"{PREFIX}MQTT_CA_FILE holds no certificate of a CA") from None

    def verify(self, authentication: object) -> bytes:
        """Return the certificate that a message shows, as DER.

        Args:
            authentication: the certificate as PEM, maybe with those that issued it behind it, in
                Base64.

        Raises:
            Unidentified: it is none, or is not valid.
        """
        try:
            if not isinstance(authentication, str):
                raise ValueError
            pem = b64decode(authentication, validate=True)
            shown, *others = x509.load_pem_x509_certificates(pem)
            if len(others) > LONGEST_CHAIN or not _is_for_clients(shown):
                raise ValueError
            chain = [X509.from_cryptography(it) for it in others]
            certificate = X509.from_cryptography(shown)
            X509StoreContext(self._current(), certificate, chain).verify_certificate()
        except X509StoreContextError as error:
            raise Unidentified(f"The client certificate is not valid: {error}") from None
        except (ValueError, *MALFORMED):
            raise Unidentified("Invalid client certificate") from None
        return shown.public_bytes(Encoding.DER)

    def _current(self) -> X509Store:
        state = _state(self._path)
        if state != self._seen:
            self._seen = state
            try:
                self._store = _read(self._path)
            except (OSError, ValueError):
                log.warning("%sMQTT_CA_FILE cannot be used any more: the last one counts", PREFIX)
        return self._store


def _state(path: str) -> tuple[int, ...]:
    """Return what changes when a file does; nothing if it is not there."""
    try:
        found = os.stat(path)
    except OSError:
        return ()
    return found.st_mtime_ns, found.st_size, found.st_ino


def _read(path: str) -> X509Store:
    pem = Path(path).read_bytes()
    store = X509Store()
    for certificate in x509.load_pem_x509_certificates(pem):
        store.add_cert(X509.from_cryptography(certificate))
    lists = [x509.load_pem_x509_crl(it) for it in _REVOCATIONS(pem)]
    for revoked in lists:
        store.add_crl(revoked)
    if lists:
        store.set_flags(X509StoreFlags.CRL_CHECK | X509StoreFlags.CRL_CHECK_ALL)
    return store


def _is_for_clients(certificate: x509.Certificate) -> bool:
    """Return whether a certificate may be shown by a client."""
    try:
        usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        return True
    return bool(CLIENT & set(usage))
