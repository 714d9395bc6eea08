"""The sockets that the server listens on."""

import errno
import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager

#: How many new connections the kernel holds until the server accepts them.
BACKLOG = 1024


class CannotListen(Exception):
    """The server cannot listen on the address; the text is one line that says why."""


def listen(host: str, port: int) -> list[socket.socket]:
    """Listen on each address of `host` that this machine has, all on the same port.

    `::` stands for all addresses of the machine, those of IPv4 too.

    Args:
        host: an address or a name.
        port: 0 takes a free one.

    Raises:
        CannotListen: the port is taken, or the machine has none of the addresses.
    """
    sockets: list[socket.socket] = []
    with _one_clear_line(f"{host}, port {port}"):
        for family, _, _, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
            place = (address[0], port, *address[2:])
            both = address[0] == "::" and socket.has_dualstack_ipv6()
            try:
                listener = socket.create_server(
                    place, family=family, backlog=BACKLOG, dualstack_ipv6=both
                )
                sockets.append(listener)
            except OSError as error:
                # localhost may stand for an IPv6 address that the machine does not have.
                if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                    raise
                absent = error
            else:
                port = sockets[0].getsockname()[1]
        if not sockets:
            raise absent
    return sockets


def listen_unix(path: str) -> socket.socket:
    """Listen on a Unix socket. If a server that was killed has left one there, replace it.

    Args:
        path: the file.

    Raises:
        CannotListen: another program listens there, or the socket cannot be made there.
    """
    with _one_clear_line(path):
        remove_unused(path)
        if os.path.exists(path) and not stat.S_ISSOCK(os.stat(path).st_mode):
            raise FileExistsError(errno.EEXIST, "it is there and no socket")
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(path)
        # Whoever can open it is trusted as a proxy: its owner, and the group, which has the proxy.
        os.chmod(path, 0o660)
        listener.listen(BACKLOG)  # before this, nobody can open it
    return listener


def remove_unused(path: str) -> None:
    """Remove a Unix socket if no program listens on it."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)
        refused = probe.connect_ex(path) == errno.ECONNREFUSED
    if refused and stat.S_ISSOCK(os.stat(path).st_mode):
        os.unlink(path)


@contextmanager
def _one_clear_line(where: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:  # ValueError: no DNS or disk can hold the name
        reason = str(getattr(error, "strerror", None) or error)
        reason = reason.partition(" (while")[0]  # create_server repeats the address
        raise CannotListen(f"cannot listen on {where}: {reason}") from None
