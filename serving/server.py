"""The HTTP server: waitress, and how it ends."""

import logging
import os
import resource
import signal
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

from orchmgmt.errors import BodyTooLarge
from orchmgmt.serving.connections import Connection
from orchmgmt.serving.sockets import BACKLOG, listen, listen_unix, remove_unused
from orchmgmt.serving.threads import EXTRA_THREADS, ThreadCount
from orchmgmt.settings import Settings

log = logging.getLogger("orchmgmt")

#: How long a stopping server waits for requests to arrive and to be answered, in seconds. Then it
#: closes their connections; waitress waits five seconds more for its threads.
DRAIN_TIMEOUT = 30

#: Connections at once, if the process may open so many files; further clients wait their turn.
CONNECTIONS = 10_000

#: Files kept free of connections: some for the process, and for each thread those of a connection
#: to a database (SQLite's has two) and of one to a system that a policy asks.
RESERVED_FILES = 40
FILES_OF_A_THREAD = 3

#: Answers up to this size are sent as one piece. waitress alone sends the head first, and answers a
#: fifth fewer queries by id. It has deprecated the argument and has no other for this.
SEND_BYTES = 16 * 1024 * 1024

#: Unread answers of this size keep a thread waiting for the client: never, what is unread lies on
#: disk. With waitress's 16 MiB, five clients that read nothing kept four threads for good.
HIGH_WATERMARK = sys.maxsize

#: How often the server checks its threads, and whether it is to stop, in seconds.
CHECK_INTERVAL = 0.05

#: What asks the process to stop.
SIGNALS = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}


def hold_signals() -> None:
    """Let `SIGNALS` only ask `Server.run` to stop, now and until the process ends.

    waitress ends with an exception from a signal handler, whenever the signal arrives. Held signals
    stay pending: a signal that arrives while the process starts takes effect once it serves, and
    another one while it stops changes nothing. SIGUSR1 and SIGUSR2, with which other programs
    reopen their logs, do nothing. Call this before there are threads, which inherit it.
    """
    held = set(SIGNALS)
    if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:  # nohup: it outlives its terminal
        held.remove(signal.SIGHUP)
    signal.pthread_sigmask(signal.SIG_BLOCK, held)
    for number in (signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)


class Server:
    """Listens as soon as it is made, and serves an application until it is told to stop.

    Args:
        settings: where to listen, and with how many threads.

    Attributes:
        url: where it listens.
        reachable: whether other machines can reach it.

    Raises:
        CannotListen: the address is taken, or is not one of this machine's.
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
        self._drains_until: float | None = None
        # waitress warns of every request that waits for a thread, which is normal.
        logging.getLogger("waitress.queue").setLevel(logging.ERROR)

    def run(self, app: Flask) -> None:
        """Serve an application until `stop`, then answer what has been received, and return."""
        self._threads = ThreadCount(self._settings.usual_threads)
        self._waitress = self._create_waitress(self._threads.timed(app))
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
            self._waitress.task_dispatcher.shutdown()
            for listener in self._listeners:
                listener.close()

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *error: object) -> None:
        """Stop listening, in case it has never run."""
        for it in self._sockets:
            it.close()
        if self._path:
            remove_unused(self._path)

    def stop(self) -> None:
        """Make `run` return soon. May be called again, and from any thread."""
        self._stopping = True

    def _create_waitress(self, app: Any) -> Any:
        threads = self._settings.usual_threads
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of send_bytes
            return create_server(
                app,
                map=self._map,
                sockets=self._sockets,
                threads=threads,
                max_request_body_size=BodyTooLarge.smallest(self._settings.max_body_bytes),
                connection_limit=_connection_limit(threads + EXTRA_THREADS),
                backlog=BACKLOG,
                send_bytes=SEND_BYTES,
                outbuf_high_watermark=HIGH_WATERMARK,
                asyncore_use_poll=True,  # `select` takes no more than 1,024 files
                clear_untrusted_proxy_headers=False,  # the policies know which proxies to trust
                ident="orchmgmt",
            )

    def _keep(self) -> None:
        """Adapt the threads, and drain the server when it stops: waitress has no hook for it."""
        while not self._ended.wait(CHECK_INTERVAL):
            self._threads.adapt(self._waitress.task_dispatcher.set_thread_count)
            if self._stopping or SIGNALS & signal.sigpending():
                self._listeners[0].trigger.pull_trigger(self._drain)  # waitress's loop calls it

    def _drain(self) -> None:
        """Take a step towards the end; called at each check until waitress's loop ends.

        waitress's own shutdown drops everything that is not answered: requests in the kernel's
        queue, bodies that are still arriving, requests that wait for a thread, and unsent parts of
        answers.
        """
        if self._drains_until is None:
            self._drains_until = time.monotonic() + DRAIN_TIMEOUT
            self._stop_listening()
        connections = [it for it in self._map.values() if isinstance(it, Connection)]
        late = time.monotonic() > self._drains_until
        for it in connections:
            if late:
                it.handle_close()
            else:
                it.finish()
        if late and connections:
            log.warning("some requests were not done after %d s: they are dropped", DRAIN_TIMEOUT)
        if late or not connections:
            self._map.clear()  # ends the loop

    def _stop_listening(self) -> None:
        for listener in self._listeners:
            for _ in range(BACKLOG):  # connections that the kernel holds
                if listener.readable():
                    listener.handle_accept()
            listener.accepting = False
            listener.socket.close()
        if self._path:
            remove_unused(self._path)


def _connection_limit(threads: int) -> int:
    """Return how many connections there may be, so that some files stay free for other things.

    waitress alone takes 100 connections. If it has fewer files than it may take connections, its
    loop spins, and it logs hundreds of errors a second. Most systems let a process open 1,024 files
    unless it asks for more, so it asks.

    Args:
        threads: the largest number of threads.
    """
    reserved = RESERVED_FILES + threads * FILES_OF_A_THREAD
    files, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    files = max(files, min(CONNECTIONS + reserved, most))
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, most))
    return max(1, min(CONNECTIONS, files - min(reserved, files // 2)))
