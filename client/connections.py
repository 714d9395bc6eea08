"""Connections over HTTP, TLS and Unix sockets, which the client and the policies share."""

import http.client
import selectors
import socket
import ssl
import time
import weakref
from contextlib import suppress
from email.message import Message
from math import inf
from typing import NamedTuple
from urllib.parse import SplitResult, unquote, urlsplit

from orchmgmt.client.failures import Unanswered

#: How many bytes of an answer are read at once.
BLOCK_BYTES = 64 * 1024


class Answer(NamedTuple):
    """An answer as it came.

    Attributes:
        status: the HTTP status.
        reason: the words behind it, which may be empty.
        headers: the headers.
        body: the whole body.
    """

    status: int
    reason: str
    headers: Message
    body: bytes


class Connections:
    """Connections to servers, kept open and used again. Any thread may call any method.

    Each request is sent once: nothing is repeated, and no redirection is followed.

    Args:
        connect_timeout: how many seconds a connection and its TLS handshake may take.
        read_timeout: how many seconds the other side may be silent.
        context: what `https://` needs; see `tls_context`.
        answer_timeout: how many seconds a request may take until its answer is complete.
        answer_bytes: how large the body of an answer may be.
    """

    def __init__(
        self,
        connect_timeout: float,
        read_timeout: float,
        context: ssl.SSLContext | None = None,
        *,
        answer_timeout: float = inf,
        answer_bytes: float = inf,
    ) -> None:
        self._connect_timeout = connect_timeout
        self._read_timeout = read_timeout
        self._context = context
        self._answer_timeout = answer_timeout
        self._answer_bytes = answer_bytes
        self._idle: dict[str, list[http.client.HTTPConnection]] = {}
        self._closed = False
        weakref.finalize(self, _close, self._idle)  # for those who do not close them

    def ask(
        self, method: str, base: str, path: str, headers: dict[str, str], body: str | None = None
    ) -> Answer:
        """Send a request, and return the answer whatever its status.

        Args:
            method: the HTTP method.
            base: the URL of the server, as `split_url` accepts it; a path in it comes first.
            path: the rest of the path, escaped.
            headers: the headers.
            body: what is sent, in ASCII.

        Raises:
            Unanswered: there is no connection, or the answer is late, too large or not HTTP.
            ValueError: a header is malformed, or these connections were closed.
        """
        deadline = time.monotonic() + self._answer_timeout
        connection = self._connection(base)
        keep = False
        try:
            connection.request(method, urlsplit(base).path + path, body, headers)
            with connection.getresponse() as response:
                content = self._read(base, response, deadline)
            keep = not (response.will_close or self._closed)
        except (OSError, http.client.HTTPException) as error:
            raise Unanswered(base, _reason(error)) from error
        finally:
            if keep:
                self._idle[base].append(connection)
            else:
                connection.close()
        return Answer(response.status, response.reason, response.headers, content)

    def close(self) -> None:
        """Close the connections. Nothing can be asked afterwards."""
        self._closed = True
        _close(self._idle)

    def _read(self, base: str, response: http.client.HTTPResponse, deadline: float) -> bytes:
        """Return the body of an answer; `read1` returns what has come, so that limits hold."""
        body = bytearray()
        while block := response.read1(BLOCK_BYTES):
            body += block
            if len(body) > self._answer_bytes:
                raise Unanswered(base, "its answer is too large")
            if time.monotonic() > deadline:
                raise Unanswered(base, "its answer comes too slowly")
        if response.length:
            raise Unanswered(base, "its answer is incomplete")
        return bytes(body)

    def _connection(self, base: str) -> http.client.HTTPConnection:
        """Return a connection that nobody else uses."""
        if self._closed:
            raise ValueError("the client is closed")
        idle = self._idle.setdefault(base, [])
        with suppress(IndexError):  # another thread may take the last one
            while True:
                connection = idle.pop()
                if not _was_closed(connection):
                    return connection
                connection.close()
        connection = _new_connection(base, self._connect_timeout, self._context)
        try:
            connection.connect()
        except (OSError, UnicodeError) as error:  # UnicodeError: the name of the host
            connection.close()
            raise Unanswered(base, _reason(error), sent=False) from error
        connection.sock.settimeout(self._read_timeout)
        return connection


class _UnixConnection(http.client.HTTPConnection):
    """A connection to a Unix socket.

    Args:
        path: where it is.
        timeout: as for other connections, in seconds.
    """

    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        """Connect to it."""
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class UnusableFile(ValueError):
    """A file of certificates that cannot be used.

    Attributes:
        argument: `ca` or `certificate`.
        reason: what is wrong with it.
    """

    def __init__(self, argument: str, message: str, reason: str) -> None:
        super().__init__(f"{message}: {reason}")
        self.argument = argument
        self.reason = reason


def tls_context(
    ca: str | None, certificate: str | None = None, key: str | None = None, alpn: str = "http/1.1"
) -> ssl.SSLContext:
    """Return what verifies the other side of a TLS connection, and proves who this side is.

    Args:
        ca: the PEM file of the trusted CAs; by default those of this machine.
        certificate: the PEM file of this side's certificate, if it shows one.
        key: the PEM file of its key, if that is another file.
        alpn: the protocol that is to be spoken, as TLS names it (RFC 7301).

    Raises:
        UnusableFile: one of the files cannot be read, or holds something else.
    """
    try:
        context = ssl.create_default_context(cafile=ca)
    except OSError as error:
        message = f"{ca} is not a PEM file of certificates"
        raise UnusableFile("ca", message, _reason(error)) from error
    context.set_alpn_protocols([alpn])
    if certificate is not None:
        try:
            # The password is for a key that has one: otherwise OpenSSL asks at the terminal.
            context.load_cert_chain(certificate, key, password="")
        except OSError as error:
            names = f"{certificate} and {key} do" if key else f"{certificate} does"
            message = f"{names} not hold a certificate and its key"
            raise UnusableFile("certificate", message, _reason(error)) from error
    return context


def split_url(url: str) -> SplitResult:
    """Return the parts of a URL that `Connections` can ask.

    Raises:
        ValueError: it cannot.
    """
    parts = urlsplit(url)
    if parts.query or parts.fragment or parts.username is not None:
        raise ValueError("the URL must have no user, query or fragment")
    right = parts.scheme in ("http", "https", "http+unix") and parts.hostname and parts.port != 0
    if not right:
        raise ValueError(f"{url} must be http://HOST:PORT, https:// or http+unix://%2FPATH")
    if not url.isascii() or not url.isprintable() or " " in url:
        raise ValueError(f"{url!r} must have its special characters escaped")
    return parts


def _new_connection(
    base: str, timeout: float, context: ssl.SSLContext | None
) -> http.client.HTTPConnection:
    parts = urlsplit(base)
    host = parts.hostname or ""
    if parts.scheme == "http+unix":
        return _UnixConnection(unquote(parts.netloc), timeout)
    if parts.scheme == "https":
        port = parts.port or http.client.HTTPS_PORT
        return http.client.HTTPSConnection(host, port, timeout=timeout, context=context)
    return http.client.HTTPConnection(host, parts.port or http.client.HTTP_PORT, timeout=timeout)


def _close(connections: dict[str, list[http.client.HTTPConnection]]) -> None:
    for idle in list(connections.values()):
        while idle:
            idle.pop().close()


def _was_closed(connection: http.client.HTTPConnection) -> bool:
    """Whether the other side has closed an idle connection; a request on it would be lost."""
    with selectors.DefaultSelector() as selector:
        selector.register(connection.sock, selectors.EVENT_READ)
        return bool(selector.select(0))


def _reason(error: Exception) -> str:
    """What went wrong, without anything that the other side sent: it may have sent a token back."""
    said = str(error) if isinstance(error, OSError) else ""
    return getattr(error, "strerror", None) or said or type(error).__name__
