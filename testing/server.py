"""The HTTP server of a service under test: it can go down, and leaves nothing behind."""

import logging
import os
import socket
import ssl
import struct
import threading
from contextlib import suppress
from importlib.metadata import PackageNotFoundError
from typing import TYPE_CHECKING, Any

from werkzeug.serving import ThreadedWSGIServer, WSGIRequestHandler

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication, WSGIEnvironment

from orchmgmt.testing.identity import in_header

log = logging.getLogger("orchmgmt.testing")

#: The pause between two looks whether the server must stop, in seconds.
TICK = 0.01

#: The value of SO_LINGER by which a connection ends with a reset.
AT_ONCE = struct.pack("ii", 1, 0)


def end_by_reset(connection: socket.socket) -> None:
    """Let a connection end with a TCP reset, when it ends."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, AT_ONCE)


class Server:
    """Serves an application on one port; werkzeug's server, a thread for each connection.

    Args:
        app: the application.
        host: the address to listen on.
        port: the port, or 0 for a free one.
        context: what it speaks TLS with; by default it does not.
        certificate_header: the header in which the application gets the client's certificate, as
            from a proxy. What a client itself sends in it is dropped.

    Attributes:
        url: where it listens when it is up.
        failures: exceptions such as that of `pytest.fail()` that ended a request without an
            answer. They would get lost in the threads.

    Raises:
        OSError: the address cannot be listened on.
    """

    def __init__(
        self,
        app: "WSGIApplication",
        host: str,
        port: int,
        context: ssl.SSLContext | None = None,
        certificate_header: str = "",
    ) -> None:
        self._app = app
        self._context = context
        self._certificate_header = certificate_header
        self._host = host
        self._serving: tuple[_Werkzeug, threading.Thread] | None = None
        self._turn = threading.Lock()
        self._process = os.getpid()
        self.failures: list[BaseException] = []
        self._reserve(port)
        scheme = "https" if context else "http"
        self.url = f"{scheme}://{f'[{host}]' if ':' in host else host}:{self._port}"
        self.up()

    def up(self) -> None:
        """Accept connections, if the server does not yet."""
        if self._serving:  # outside the lock: `down` waits for threads that may call this
            return
        with self._turn:
            if self._serving:
                return
            self._socket.listen(128)
            werkzeug = _Werkzeug(
                self._host, self._port, self._app, _Handler, fd=self._socket.fileno()
            )
            werkzeug.failures = self.failures
            werkzeug.ssl_context = self._context
            werkzeug.certificate_header = self._certificate_header
            self._socket.close()  # werkzeug has its own of the same
            thread = threading.Thread(
                target=werkzeug.serve_forever, args=[TICK], name="orchmgmt.testing", daemon=True
            )
            thread.start()
            self._serving = werkzeug, thread

    def down(self) -> None:
        """Drop all connections and refuse new ones, but keep the port from others."""
        with self._turn:
            if self._serving:
                self._end(*self._serving)
                self._reserve(self._port)

    @property
    def elsewhere(self) -> bool:
        """Whether another process serves, of which this one is a fork."""
        return os.getpid() != self._process

    def stop(self) -> None:
        """Drop all connections and give up the port. A fork gives up only its own copies."""
        if self.elsewhere:
            self._socket.close()
            if self._serving:
                self._serving[0].let_go()
            return
        with self._turn:
            if self._serving:
                self._end(*self._serving)
            self._socket.close()

    def _end(self, werkzeug: "_Werkzeug", thread: threading.Thread) -> None:
        werkzeug.shutdown()
        thread.join()
        werkzeug.drop_all()
        self._serving = None

    def _reserve(self, port: int) -> None:
        """Bind the port. Connections are refused until `up`."""
        family = socket.AF_INET6 if ":" in self._host else socket.AF_INET
        self._socket = socket.socket(family)
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._socket.bind((self._host, port))
        except OSError:
            self._socket.close()
            raise
        self._port = self._socket.getsockname()[1]


class _Handler(WSGIRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = "orchmgmt.testing"
    server: "_Werkzeug"

    def make_environ(self) -> "WSGIEnvironment":
        environ = super().make_environ()
        if self.server.certificate_header:
            header = f"HTTP_{self.server.certificate_header.upper().replace('-', '_')}"
            environ.pop(header, None)
            certificate = self.connection.getpeercert(binary_form=True)
            if certificate:
                environ[header] = in_header(certificate)
        return environ

    def connection_dropped(self, *_: Any) -> None:
        self.close_connection = True  # else it would wait for the next request

    def log(self, type: str, message: str, *args: Any) -> None:
        log.debug(message, *args)  # werkzeug would add a handler to its logger


class _Werkzeug(ThreadedWSGIServer):
    """Keeps a list of its connections, which werkzeug does not.

    werkzeug's own TLS shakes hands before it accepts the next connection: one client that says
    nothing would block all others. Here each thread does so for its own connection.
    """

    failures: list[BaseException]
    certificate_header: str

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._open: dict[threading.Thread, socket.socket] = {}
        # In a test's imaginary file system no package is installed. Its version is the last thing
        # that werkzeug asks for, and only for the name that the handler has itself.
        with suppress(PackageNotFoundError):
            super().__init__(*args, **kwargs)

    def process_request(self, request: Any, client_address: Any) -> None:
        thread = threading.Thread(
            target=self.process_request_thread, args=(request, client_address), daemon=True
        )
        self._open[thread] = request
        thread.start()

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        thread = threading.current_thread()
        try:
            if self.ssl_context:
                request = self._open[thread] = self.ssl_context.wrap_socket(
                    request, server_side=True, do_handshake_on_connect=False
                )
                try:
                    request.do_handshake()
                except OSError as error:
                    log.debug("the TLS handshake failed: %s", error)
                    _leave(request)
                    return
            super().process_request_thread(request, client_address)
        finally:
            del self._open[thread]

    def finish_request(self, request: Any, client_address: Any) -> None:
        try:
            super().finish_request(request, client_address)
        except Exception:  # it has been answered, with a 500
            raise
        except BaseException as failure:  # noted before the client sees the connection end
            self.failures.append(failure)

    def shutdown_request(self, request: Any) -> None:
        if request.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, len(AT_ONCE)) == AT_ONCE:
            self.close_request(request)  # a shutdown would say farewell before the reset
        else:
            super().shutdown_request(request)

    def let_go(self) -> None:
        self.server_close()
        for connection in self._open.values():
            connection.close()

    def drop_all(self) -> None:
        for thread, connection in list(self._open.items()):
            with suppress(OSError):  # it has ended already
                # Not the method of an SSLSocket, which would let its thread go on in plain text.
                socket.socket.shutdown(connection, socket.SHUT_RDWR)
            thread.join()


def _leave(connection: socket.socket) -> None:
    """End a connection when its client has read why, for unread data would make it a reset."""
    with suppress(OSError), connection:
        socket.socket.shutdown(connection, socket.SHUT_WR)
        while socket.socket.recv(connection, 4096):
            pass
