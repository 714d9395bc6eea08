"""The HTTP server: waitress, with our answers to what never reaches the application."""

import contextlib
import errno
import ipaddress
import logging
import os
import resource
import signal
import socket
import stat
import sys
import threading
import time
from collections.abc import Callable
from http import HTTPStatus
from types import FrameType
from typing import Any
from urllib.parse import quote

from flask import Flask
from waitress import wasyncore
from waitress.channel import HTTPChannel
from waitress.parser import HTTPRequestParser, ParsingError
from waitress.server import BaseWSGIServer, create_server
from waitress.task import ErrorTask

from orchmgmt.errors import body_too_large, error_body, origin_of
from orchmgmt.loop import Loop, Sockets
from orchmgmt.settings import Settings
from orchmgmt.workers import Workers

log = logging.getLogger("orchmgmt")

#: How long a stopping server waits for requests that are still being sent, in seconds.
PATIENCE = 30

#: How much longer it waits when all its threads wait for other programs, in seconds.
GRACE = 5

#: Connections at once, if the process may open so many files; beyond it clients wait their turn.
CONNECTIONS = 10_000
RESERVED_FILES = 40

#: A client that does not read what it asked for is given up after this time, in seconds; one that
#: asks for nothing, or does not end what it asks, after the longer one.
STALLED = 60
IDLE = 120

NEVER = 10**9  # seconds

#: Connections that the kernel completes before the server has taken them.
BACKLOG = 1024

#: Answers up to this size are sent once they are whole. In pieces, as they come, they cost half of
#: the throughput.
SEND_BYTES = 16 * 1024 * 1024

#: An answer never waits for its client to read: the connection's next request does.
HIGH_WATERMARK = sys.maxsize


class CannotListen(Exception):
    """The address cannot be listened on; the text is one line that says why."""


class _Parser(HTTPRequestParser):  # type: ignore[misc]
    """Refuses what waitress stumbles over, such as a Content-Length of 5,000 digits."""

    first_line = b""

    def received(self, data: bytes) -> int:
        consumed: int = super().received(data)
        if self.error is not None:
            self.expect_continue = False  # whoever asks whether to send the body gets the refusal
        return consumed

    def parse_header(self, header_plus: bytes) -> None:
        try:
            super().parse_header(header_plus)
        except ValueError as error:
            raise ParsingError("The request cannot be read") from error

    def origin(self) -> str:
        """Return the method and path that were sent, of which a refused request has no more."""
        line = self.first_line
        if self.error.code == HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE:
            line = self.header_plus.lstrip().partition(b"\r\n")[0]  # waitress makes another up
        method, _, rest = line.decode("latin-1").partition(" ")
        return origin_of(method, rest.partition(" ")[0])


class _ErrorResponseTask(ErrorTask):  # type: ignore[misc]
    """Answers what waitress itself refuses with an ErrorResponse."""

    def execute(self) -> None:
        error = self.request.error
        message = f"{error.reason}: {error.body}"
        if error.code == 413:
            message = body_too_large(self.channel.adj.max_request_body_size - 1)
        body = error_body(error.code, message, self.request.origin())
        self.status = f"{error.code} {error.reason}"
        self.response_headers.append(("Content-Type", "application/json"))
        self.set_close_on_finish()
        self.content_length = len(body)
        self.channel.refused = True
        self.write(b"" if self.request.first_line.startswith(b"HEAD ") else body)


class _Channel(HTTPChannel):  # type: ignore[misc]
    """A connection, and what it must not do to others.

    Unread input would reset it, and the client might never see why it is refused: a refused request
    is read to its end before the connection is closed. And a client that sends requests without
    reading the answers must not hold a thread: the next one waits until the last answer has gone.
    """

    error_task_class = _ErrorResponseTask
    parser_class = _Parser
    refused = False
    _lingering = False
    _parked = False
    _last_activity = 0.0

    @property
    def last_activity(self) -> float:
        """When something last happened, by a clock that nobody sets."""
        return self._last_activity

    @last_activity.setter
    def last_activity(self, _: float) -> None:
        self._last_activity = time.monotonic()  # waitress gives the time of day

    def readable(self) -> bool:
        return self._lingering or super().readable()

    def handle_read(self) -> None:
        if self._lingering:
            self.recv(self.adj.recv_bytes)  # closes the connection at its end
        else:
            super().handle_read()

    def writable(self) -> bool:
        if self.requests and not self._parked and self.total_outbufs_len < self.adj.send_bytes:
            # Nothing is sent before the answer is whole: a socket that could be written to would
            # keep the loop spinning until then.
            return self.will_close or self.close_when_flushed
        return self._parked or super().writable()

    def service(self) -> None:
        """Answer the next request, unless the answer to the one before is still here."""
        if self.total_outbufs_len:
            self._parked = True
        else:
            super().service()
        if self.connected:
            self._map.stir(self._fileno)
            self.server.wake()
            if self.server.task_dispatcher.leads() and self.writable():
                self.handle_write()  # there is no need to wait for the socket

    def _flush_some(self, do_close: bool = True) -> bool:
        """Send what there is; by one thread at a time, and only the one that leads may close."""
        with self.outbuf_lock:
            flushed: bool = super()._flush_some(do_close and self.server.task_dispatcher.leads())
            return flushed

    def handle_write(self) -> None:
        if not self._parked:
            super().handle_write()
            return
        self._flush_exception(self._flush_some_if_lockable)
        if self.will_close:
            self.handle_close()
        elif not self.total_outbufs_len:
            self._parked = False
            self.server.add_task(self)

    def handle_close(self) -> None:
        if self.refused and self.connected and not self._lingering:
            try:
                self.socket.shutdown(socket.SHUT_WR)
            except OSError:
                pass  # the client has gone
            else:
                self._lingering = True
                self.will_close = False
                return
        super().handle_close()

    def give_up_if_stalled(self) -> None:
        """Close the connection if it is its client's turn, and has been for too long."""
        unread = self._lingering or self._parked
        idle = time.monotonic() - self.last_activity
        if idle > (STALLED if unread else IDLE) and (unread or not self.requests):
            self.handle_close()


class Server:
    """Serves an application until it is told to stop.

    Args:
        app: the application.
        settings: where to listen, and with how many threads.

    Attributes:
        url: where it listens.

    Raises:
        CannotListen: the address is taken, or is none of this machine's.
    """

    def __init__(self, app: Flask, settings: Settings) -> None:
        self._socket_file: tuple[str, int] | None = None
        if settings.unix_socket:
            path = os.path.abspath(settings.unix_socket)
            sockets = [_listen_unix(path)]
            self._socket_file = path, os.stat(path).st_ino
            self.url = f"http+unix://{quote(path, safe='')}"
        else:
            sockets = _listen(settings.host, settings.port)
            host = f"[{settings.host}]" if ":" in settings.host else settings.host
            self.url = f"http://{host}:{sockets[0].getsockname()[1]}"
        self._map = Sockets()
        self._loop = Loop(self._map)
        waitress = create_server(
            app,
            map=self._map,
            sockets=sockets,
            _dispatcher=Workers(settings.threads + settings.asking_threads),
            max_request_body_size=settings.max_body_bytes + 1,  # waitress refuses its limit itself
            connection_limit=_connection_limit(),
            backlog=BACKLOG,
            cleanup_interval=NEVER,  # `run` gives up who stalls
            clear_untrusted_proxy_headers=False,  # orchmgmt.proxies knows whom to believe
            ident="orchmgmt",
        )
        self._workers: Workers = waitress.task_dispatcher
        self._listeners = [it for it in self._map.values() if isinstance(it, BaseWSGIServer)]
        for listener in self._listeners:
            listener.channel_class = _Channel
            listener.adj.send_bytes = SEND_BYTES  # as an argument it is deprecated
            listener.adj.outbuf_high_watermark = HIGH_WATERMARK
            listener.pull_trigger = _do_nothing  # a channel wakes the loop when it is ready
            listener.wake = self._wake
        self._trigger = self._listeners[0].trigger
        self._deadline: float | None = None  # set when the server is told to stop
        self._closed = False
        self._closing = threading.RLock()  # a signal may come while it is held
        # One warning for every request that waits for a thread says nothing that matters.
        logging.getLogger("waitress.queue").setLevel(logging.ERROR)

    def run(self) -> None:
        """Serve until `stop`, then answer what has been received, and return."""
        self._workers.run(self._turn, self._overdue)
        with self._closing:
            self._closed = True
        wasyncore.close_all(self._map)
        self._loop.close()

    def stop(self) -> None:
        """Make `run` return soon. May be called again, from a signal handler or any thread."""
        if self._deadline is None:
            self._deadline = time.monotonic() + PATIENCE
        with self._closing:
            if not self._closed:
                self._wake()

    def _wake(self) -> None:
        """Have the sockets looked at, unless this thread is the one that is about to do so."""
        if not self._workers.leads():
            self._trigger.pull_trigger()

    def _turn(self) -> bool:
        """Look after the sockets once, and return whether to go on."""
        patience = 1.0
        if self._deadline is not None:
            if self._listeners:
                self._close_the_door()
            if not self._drain(self._deadline):
                return False
            patience = 0.1
        if self._loop.turn(0 if self._workers.behind else patience):
            for channel in self._channels():
                channel.give_up_if_stalled()
        return True

    def _overdue(self) -> bool:
        """Return whether to stop without those who look after the sockets: they all wait."""
        return self._deadline is not None and time.monotonic() > self._deadline + GRACE

    def _channels(self) -> list[_Channel]:
        return [it for it in self._map.values() if isinstance(it, _Channel)]

    def _close_the_door(self) -> None:
        """Take no more connections than those that are here."""
        for _ in range(BACKLOG):  # accept those that the kernel has completed
            self._loop.turn(0)
        self._remove_socket_file()
        while self._listeners:
            wasyncore.dispatcher.close(self._listeners.pop())

    def _drain(self, deadline: float) -> bool:
        """Close the idle connections, and return whether to wait for others."""
        busy = False
        for channel in self._channels():
            if channel.requests or channel.request is not None or channel.total_outbufs_len:
                busy = True
            else:
                channel.handle_close()
        if busy and time.monotonic() >= deadline:
            log.warning(
                "some requests were still being sent after %d s: they are dropped", PATIENCE
            )
            return False
        return busy

    def _remove_socket_file(self) -> None:
        """Remove the Unix socket, unless somebody has put another into its place."""
        if self._socket_file:
            path, inode = self._socket_file
            with contextlib.suppress(FileNotFoundError):
                if os.stat(path).st_ino == inode:
                    os.unlink(path)


class Signals:
    """While this context lasts, SIGTERM and SIGINT only ask the process to stop.

    Once it stops, a further signal does not cut it short in its last moments.
    """

    def __init__(self) -> None:
        self._stop: Callable[[], None] | None = None
        self._came = False

    def call(self, stop: Callable[[], None]) -> None:
        """Call `stop` at each signal, and now if there has been one."""
        self._stop = stop
        if self._came:
            stop()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._came = True
        if self._stop is not None:
            self._stop()

    def __enter__(self) -> "Signals":
        self._before = {
            number: signal.signal(number, self._handle)
            for number in (signal.SIGTERM, signal.SIGINT)
        }
        return self

    def __exit__(self, *_: object) -> None:
        for number, before in self._before.items():
            signal.signal(number, signal.SIG_IGN if self._came else before)


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach `host`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _do_nothing() -> None:
    """Do nothing."""


def _connection_limit() -> int:
    """Return how many connections there may be: some files must stay for the database.

    Most systems let a process open 1,024 files unless it asks for more.
    """
    files, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = CONNECTIONS + RESERVED_FILES
    if files != resource.RLIM_INFINITY and files < wanted:
        files = wanted if most == resource.RLIM_INFINITY else min(wanted, most)
        resource.setrlimit(resource.RLIMIT_NOFILE, (files, most))
    return max(1, min(CONNECTIONS, files - RESERVED_FILES))


def _listen(host: str, port: int) -> list[socket.socket]:
    """Bind a socket to each address of `host` that this machine has, all on one port."""
    sockets: list[socket.socket] = []
    failure: Exception = OSError("the name has no address")
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, kind, protocol, _, address in found:
            if sockets:
                port = sockets[0].getsockname()[1]
            try:
                sockets.append(_bind(family, kind, protocol, (address[0], port, *address[2:])))
            except OSError as error:
                failure = error
                # localhost may stand for an IPv6 address that the machine does not have.
                if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                    raise
        if not sockets:
            raise failure
    except (OSError, UnicodeError) as error:  # the latter of a name that no DNS can hold
        for listener in sockets:
            listener.close()
        reason = getattr(error, "strerror", None) or str(error)
        raise CannotListen(f"cannot listen on {host}, port {port}: {reason}") from None
    return sockets


def _listen_unix(path: str) -> socket.socket:
    """Bind a Unix socket, in the place of one that a server left behind when it was killed."""
    listener = socket.socket(socket.AF_UNIX)
    try:
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.connect(path)
            except (FileNotFoundError, ConnectionRefusedError):
                pass  # nobody listens
            else:
                raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
        if os.path.exists(path):
            if not stat.S_ISSOCK(os.stat(path).st_mode):
                raise OSError(errno.EEXIST, "it is there and no socket")
            os.unlink(path)
        # Whoever may open it is believed as a proxy: the owner, and the group that the proxy is in.
        before = os.umask(0o117)
        try:
            listener.bind(path)
        finally:
            os.umask(before)
        listener.listen(BACKLOG)
    except (OSError, ValueError) as error:  # the latter of a path with a NUL
        listener.close()
        reason = getattr(error, "strerror", None) or str(error)
        raise CannotListen(f"cannot listen on {path}: {reason}") from None
    return listener


def _bind(family: int, kind: int, protocol: int, address: tuple[Any, ...]) -> socket.socket:
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind(address)
        listener.listen(BACKLOG)  # not until now is a taken port found out
    except OSError:
        listener.close()
        raise
    return listener
