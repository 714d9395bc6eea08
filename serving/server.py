"""The HTTP server: waitress, and how it ends."""

import logging
import os
import resource
import signal
import socket
import sys
import threading
import time
import warnings
from ipaddress import ip_address
from typing import Any
from urllib.parse import quote

from flask import Flask
from waitress import create_server
from waitress.server import BaseWSGIServer

from orchmgmt.serving.connections import Connection
from orchmgmt.serving.sockets import BACKLOG, listen, listen_unix, remove_unused
from orchmgmt.serving.threads import MORE, Threads
from orchmgmt.settings import Settings

log = logging.getLogger("orchmgmt")

#: How long a stopping server waits for requests that are still being sent, in seconds.
PATIENCE = 30

#: How much longer it waits for those that wait for other programs, in seconds.
GRACE = 5

#: Connections at once, if the process may open so many files; beyond it clients wait their turn.
CONNECTIONS = 10_000

#: Files that stay for all else: some for the process, and for each thread those of a connection to
#: a database (SQLite's has two) and of one to a system that a policy asks.
RESERVED_FILES = 40
FILES_OF_A_THREAD = 3

#: Answers up to this size are sent once they are whole. In pieces, as they come, they cost up to a
#: third of the throughput. waitress has deprecated the argument and has no other for it.
SEND_BYTES = 16 * 1024 * 1024

#: An answer never keeps a thread waiting until its client reads: what is unread lies on disk.
HIGH_WATERMARK = sys.maxsize

#: How often the server looks how its threads fare, and whether it is to stop, in seconds.
TICK = 0.05


#: What asks the process to stop.
SIGNALS = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}


def hold_signals() -> None:
    """Let `SIGNALS` only ask `Server.run` to stop, now and until the process ends.

    They stay pending: one that comes while the process starts counts once it serves, and a further
    one cuts nothing short. Signals by which other programs open their logs anew do nothing. To be
    called before there are threads, which inherit it.
    """
    held = set(SIGNALS)
    if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:  # nohup: it outlives its terminal
        held.remove(signal.SIGHUP)
    signal.pthread_sigmask(signal.SIG_BLOCK, held)
    for number in (signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)


class Server:
    """Listens from now on, and serves an application until it is told to stop.

    Args:
        settings: where to listen, and with how many threads.

    Attributes:
        url: where it listens.
        reachable: whether other machines can reach it.

    Raises:
        CannotListen: the address is taken, or is none of this machine's.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._path = settings.unix_socket and os.path.abspath(settings.unix_socket)
        if self._path:
            self._sockets = [listen_unix(self._path)]
            self.url = f"http+unix://{quote(self._path, safe='')}"
            self.reachable = False
        else:
            self._sockets = listen(settings.host, settings.port)
            addresses = [it.getsockname() for it in self._sockets]
            host = f"[{settings.host}]" if ":" in settings.host else settings.host
            self.url = f"http://{host}:{addresses[0][1]}"
            self.reachable = not all(ip_address(it[0]).is_loopback for it in addresses)
        self._map: dict[int, Any] = {}
        self._stopping = False
        self._ended = threading.Event()
        self._deadline: float | None = None  # once it takes no more connections
        # One warning for every request that waits for a thread says nothing that matters.
        logging.getLogger("waitress.queue").setLevel(logging.ERROR)

    def run(self, app: Flask) -> None:
        """Serve an application until `stop`, then answer what has been received, and return."""
        settings = self._settings
        self._threads = Threads(app, settings.usual_threads)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of send_bytes
            self._waitress = create_server(
                self._threads,
                map=self._map,
                sockets=self._sockets,
                threads=settings.usual_threads,
                max_request_body_size=settings.max_body_bytes + 1,  # it refuses its limit itself
                connection_limit=_connection_limit(settings.usual_threads + MORE),
                backlog=BACKLOG,
                send_bytes=SEND_BYTES,
                outbuf_high_watermark=HIGH_WATERMARK,
                asyncore_use_poll=True,  # `select` takes no more than 1,024 files
                clear_untrusted_proxy_headers=False,  # the policies know whom to believe
                ident="orchmgmt",
            )
        self._listeners = [it for it in self._map.values() if isinstance(it, BaseWSGIServer)]
        for listener in self._listeners:
            listener.channel_class = Connection
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

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *error: object) -> None:
        """Listen no longer, if it has never run."""
        for it in self._sockets:
            it.close()
        if self._path:
            remove_unused(self._path)

    def stop(self) -> None:
        """Make `run` return soon. May be called again, and from any thread."""
        self._stopping = True

    def _keep(self) -> None:
        while not self._ended.wait(TICK):
            self._threads.adapt(self._waitress.task_dispatcher.set_thread_count)
            if self._stopping or SIGNALS & signal.sigpending():
                self._listeners[0].trigger.pull_trigger(self._drain)

    # waitress has no way to stop that answers what it has received. So its loop calls `_drain` at
    # every tick, which needs names that waitress gives but does not document: of its listeners
    # `trigger`, `readable`, `handle_accept`, `accepting`, `socket`; of its connections `requests`,
    # `request`, `total_outbufs_len`, `will_close`, `handle_close`, `socket`; and the map of both.
    def _drain(self) -> None:
        if self._deadline is None:
            self._deadline = time.monotonic() + PATIENCE
            for listener in self._listeners:
                for _ in range(BACKLOG):  # what the kernel has accepted
                    if listener.readable():
                        listener.handle_accept()
                listener.accepting = False
                listener.socket.close()
            if self._path:
                remove_unused(self._path)
        connections = [it for it in self._map.values() if isinstance(it, Connection)]
        late = time.monotonic() > self._deadline
        for it in connections:
            more = it.ahead or _has_unread(it.socket)
            for last in it.requests if not more else ():  # its answer says so, and closes
                last.headers["CONNECTION"] = "close"
            receiving = it.request is not None and it.request.error is None
            if late:
                it.handle_close()
            elif not (it.requests or receiving or it.total_outbufs_len or more):
                it.will_close = True
        if late and connections:
            log.warning("some requests were not done after %d s: they are dropped", PATIENCE)
        if late or not connections:
            self._map.clear()  # ends the loop


def _has_unread(connection: socket.socket) -> bool:
    try:
        return bool(connection.recv(1, socket.MSG_PEEK))
    except OSError:  # nothing has come, or the connection is broken
        return False


def _connection_limit(threads: int) -> int:
    """Return how many connections there may be: some files must stay for other things.

    Most systems let a process open 1,024 files unless it asks for more.

    Args:
        threads: how many there are at most.
    """
    reserved = RESERVED_FILES + threads * FILES_OF_A_THREAD
    files, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    files = max(files, min(CONNECTIONS + reserved, most))
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, most))
    return max(1, min(CONNECTIONS, files - min(reserved, files // 2)))
