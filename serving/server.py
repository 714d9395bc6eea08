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
import warnings
from collections.abc import Callable, Iterable
from http import HTTPStatus
from types import FrameType
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from flask import Flask
from waitress import create_server
from waitress.channel import HTTPChannel
from waitress.parser import HTTPRequestParser, ParsingError
from waitress.server import BaseWSGIServer
from waitress.task import ErrorTask

from orchmgmt.errors import body_too_large, error_body, origin_of
from orchmgmt.settings import Settings

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

log = logging.getLogger("orchmgmt")

#: How long a stopping server waits for requests that are still being sent, in seconds.
PATIENCE = 30

#: How much longer it waits for those that wait for other programs, in seconds.
GRACE = 5

#: Connections at once, if the process may open so many files; beyond it clients wait their turn.
CONNECTIONS = 10_000
RESERVED_FILES = 40

#: Connections that the kernel completes before the server has taken them.
BACKLOG = 1024

#: Answers up to this size are sent once they are whole. In pieces, as they come, they cost up to a
#: third of the throughput. waitress has deprecated the argument and has no other for it.
SEND_BYTES = 16 * 1024 * 1024

#: An answer never keeps a thread waiting until its client reads: what is unread lies on disk.
HIGH_WATERMARK = sys.maxsize

#: How often the server looks how its threads fare, and whether it is to stop, in seconds.
TICK = 0.05

#: A request that takes longer, in seconds, may be waiting for another program.
LONG = 0.2

#: How many more threads than usual there may be while requests wait.
MORE = 64


class CannotListen(Exception):
    """The address cannot be listened on; the text is one line that says why."""


class _Request(HTTPRequestParser):  # type: ignore[misc]
    """A request as waitress reads it, and what waitress stumbles over."""

    first_line = b""

    def received(self, data: bytes) -> int:
        consumed: int = super().received(data)
        if self.error is None:
            return consumed
        self.expect_continue = False  # whoever asks whether to send the body gets the refusal
        return len(data)  # what follows is no request

    def parse_header(self, header_plus: bytes) -> None:
        try:
            super().parse_header(header_plus)
        except ValueError as error:  # a Content-Length of 5,000 digits
            raise ParsingError("The request cannot be read") from error

    def origin(self) -> str:
        """Return the method and path that were sent, of which a refused request has no more."""
        line = self.first_line
        if self.error.code == HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE:
            line = self.header_plus.lstrip().partition(b"\r\n")[0]  # waitress makes another up
        method, _, rest = line.decode("latin-1").partition(" ")
        return origin_of(method, rest.partition(" ")[0])


class _Rest(HTTPRequestParser):  # type: ignore[misc]
    """What still comes after a request that was refused: it is dropped.

    Unread it would reset the connection, and the client might never see why it is refused.
    """

    def received(self, data: bytes) -> int:
        return len(data)


class _Refusal(ErrorTask):  # type: ignore[misc]
    """Answers a request that waitress cannot read, or that is too large, with an ErrorResponse."""

    def execute(self) -> None:
        error = self.request.error
        message = f"{error.reason}: {error.body}"
        if error.code == HTTPStatus.REQUEST_ENTITY_TOO_LARGE:
            message = body_too_large(self.channel.adj.max_request_body_size - 1)
        body = error_body(error.code, message, self.request.origin())
        self.status = f"{error.code} {error.reason}"
        self.response_headers.append(("Content-Type", "application/json"))
        self.set_close_on_finish()  # tells the client to close the connection
        self.content_length = len(body)
        self.channel.parser_class = _Rest
        self.write(b"" if self.request.first_line.startswith(b"HEAD ") else body)
        self.close_on_finish = False


class _Channel(HTTPChannel):  # type: ignore[misc]
    """A connection."""

    parser_class = _Request
    error_task_class = _Refusal

    @property
    def last_activity(self) -> float:
        """The time of day when something last happened, reckoned by a clock that nobody sets."""
        return time.time() - (time.monotonic() - self._active)

    @last_activity.setter
    def last_activity(self, _: float) -> None:
        self._active = time.monotonic()

    def handle_write(self) -> None:
        # The thread that has answered a request may be asking for the body of the next one: both
        # would send what is there. And the client may just have been found gone.
        with self.outbuf_lock:
            if self.socket is not None:
                super().handle_write()


class Threads:
    """Sees to it that there are threads to answer with, whatever requests wait for.

    Threads that compute only take the interpreter from each other, so usually there are few. While
    all of them wait for other programs, such as a busy database, there are more.

    Args:
        app: the application, whose calls are watched.
        usual: how many threads there are to begin with.
    """

    def __init__(self, app: Flask, usual: int) -> None:
        self._app = app
        self._usual = self._count = usual
        self._begun: dict[int, float] = {}  # when, by the thread of each call
        self._looked = self._computed = 0.0

    def __call__(
        self, environ: "WSGIEnvironment", start_response: "StartResponse"
    ) -> Iterable[bytes]:
        """Answer a request."""
        thread = threading.get_ident()
        self._begun[thread] = time.monotonic()
        try:
            return self._app(environ, start_response)
        finally:
            del self._begun[thread]

    def adapt(self, set_count: Callable[[int], object]) -> None:
        """Set the number of threads, as it has gone since the last call.

        Args:
            set_count: sets it.
        """
        now, computed = time.monotonic(), time.process_time()
        idle = computed - self._computed < (now - self._looked) / 2
        self._looked, self._computed = now, computed
        waiting = sum(now - begun > LONG for begun in list(self._begun.values()))
        count = self._count
        if waiting >= count and idle:
            count = min(2 * count, self._usual + MORE)
        elif waiting < count / 2:
            count = max(count // 2, self._usual)
        if count != self._count:
            self._count = count
            set_count(count)


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
        self._threads = Threads(app, settings.usual_threads)
        self._map: dict[int, Any] = {}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of send_bytes
            self._waitress = create_server(
                self._threads,
                map=self._map,
                sockets=sockets,
                threads=settings.usual_threads,
                max_request_body_size=settings.max_body_bytes + 1,  # it refuses its limit itself
                connection_limit=_connection_limit(),
                backlog=BACKLOG,
                send_bytes=SEND_BYTES,
                outbuf_high_watermark=HIGH_WATERMARK,
                asyncore_use_poll=True,  # `select` takes no more than 1,024 files
                clear_untrusted_proxy_headers=False,  # the policies know whom to believe
                ident="orchmgmt",
            )
        self._listeners = [it for it in self._map.values() if isinstance(it, BaseWSGIServer)]
        for listener in self._listeners:
            listener.channel_class = _Channel
        self._stopping = False
        self._ended = threading.Event()
        self._deadline: float | None = None  # once it takes no more connections
        self._known: set[_Channel] = set()  # of the last look at them
        # One warning for every request that waits for a thread says nothing that matters.
        logging.getLogger("waitress.queue").setLevel(logging.ERROR)

    def run(self) -> None:
        """Serve until `stop`, then answer what has been received, and return."""
        keeper = threading.Thread(target=self._keep, name="keeper", daemon=True)
        keeper.start()
        try:
            self._waitress.run()
        finally:
            self._ended.set()
            keeper.join()
            self._waitress.task_dispatcher.shutdown(timeout=GRACE)
            for listener in self._listeners:
                listener.close()

    def stop(self) -> None:
        """Make `run` return soon. May be called again, from a signal handler or any thread."""
        self._stopping = True  # no lock, no pipe: a signal may have come in the midst of anything

    def _keep(self) -> None:
        while not self._ended.wait(TICK):
            self._threads.adapt(self._waitress.task_dispatcher.set_thread_count)
            if self._stopping:
                self._listeners[0].trigger.pull_trigger(self._drain)

    # waitress has no way to stop that answers what it has received: at SIGTERM it drops what it
    # has not begun with, and whoever is still sending. So at every tick its loop calls `_drain`,
    # which takes what the kernel has accepted and closes the door. From then on each connection may
    # end what it has under way, begins nothing more, and is closed; without any the loop ends. This
    # needs the names that waitress gives, but does not document, to its listeners (`trigger`,
    # `readable`, `handle_accept`, `accepting`), its connections (`requests`, `request`,
    # `total_outbufs_len`, `will_close`, `handle_close`) and the map of both.

    def _drain(self) -> None:
        channels = {it for it in self._map.values() if isinstance(it, _Channel)}
        if self._deadline is None:
            self._deadline = time.monotonic() + PATIENCE
            for listener in self._listeners:
                for _ in range(BACKLOG):
                    if listener.readable():
                        listener.handle_accept()
                listener.accepting = False
                listener.socket.close()
            self._remove_socket_file()
        elif not channels:
            self._map.clear()
        elif time.monotonic() > self._deadline:
            log.warning("some requests were not done after %d s: they are dropped", PATIENCE)
            for channel in channels:
                channel.handle_close()
            self._map.clear()
        for channel in channels & self._known:  # whose sockets have been read in between
            if channel.request is None:
                channel.parser_class = _Rest
            if _is_quiet(channel):
                channel.will_close = True
        self._known = channels

    def _remove_socket_file(self) -> None:
        """Remove the Unix socket, unless somebody has put another into its place."""
        if self._socket_file:
            path, inode = self._socket_file
            with contextlib.suppress(FileNotFoundError):
                if os.stat(path).st_ino == inode:
                    os.unlink(path)


def _is_quiet(channel: _Channel) -> bool:
    reading = channel.request is not None and not isinstance(channel.request, _Rest)
    return not (reading or channel.requests or channel.total_outbufs_len)


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
