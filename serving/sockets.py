"""The sockets that the server listens on."""

import errno
import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager

#: Connections that the kernel completes before the server has taken them.
BACKLOG = 1024


class CannotListen(Exception):
    """The address cannot be listened on; the text is one line that says why."""


def listen(host: str, port: int) -> list[socket.socket]:
    """Listen on each address of `host` that this machine has, all on one port.

    `::` is every address, also those of IPv4.

    Args:
        host: an address or a name.
        port: 0 picks a free one.

    Raises:
        CannotListen: the port is taken, or no address is this machine's.
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
    """Listen on a Unix socket, in the place of one that a server left behind when it was killed.

    Args:
        path: the file.

    Raises:
        CannotListen: somebody listens there, or it cannot be made there.
    """
    with _one_clear_line(path):
        remove_unused(path)
        if os.path.exists(path) and not stat.S_ISSOCK(os.stat(path).st_mode):
            raise FileExistsError(errno.EEXIST, "it is there and no socket")
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(path)
        # Whoever may open it is believed as a proxy: the owner, and the group that the proxy is in.
        os.chmod(path, 0o660)
        listener.listen(BACKLOG)  # not until now can anybody open it
    return listener


def remove_unused(path: str) -> None:
    """Remove a Unix socket, if there is one on which nobody listens."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)
        refused = probe.connect_ex(path) == errno.ECONNREFUSED
    if refused and stat.S_ISSOCK(os.stat(path).st_mode):
        os.unlink(path)


@contextmanager
def _one_clear_line(where: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:  # the latter of a name that no DNS or no disk can hold
        reason = str(getattr(error, "strerror", None) or error)
        reason = reason.partition(" (while")[0]  # create_server repeats the address
        raise CannotListen(f"cannot listen on {where}: {reason}") from None
