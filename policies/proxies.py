"""Which proxies are believed, and so who is at the other end of a request."""

import ipaddress

from flask import Request

from orchmgmt.settings import PREFIX, SettingError, Settings

#: What servers give as the address of a peer at a Unix socket, which has none: waitress a name, and
#: gunicorn and Granian nothing. Every other peer has an address.
UNIX_SOCKET = ("localhost", "")


class TrustedProxies:
    """The proxies of the setting `TRUSTED_PROXIES`, and whoever may open the Unix socket.

    Raises:
        SettingError: the setting holds something else than addresses and networks.
    """

    def __init__(self, settings: Settings) -> None:
        try:
            self._networks = [ipaddress.ip_network(it) for it in settings.trusted_proxies]
        except ValueError as error:
            raise SettingError(f"{PREFIX}TRUSTED_PROXIES: {error}") from None

    def sent(self, request: Request) -> bool:
        """Return whether a request comes straight from one of these proxies."""
        peer = request.remote_addr
        if peer in UNIX_SOCKET:
            return True
        try:
            address = ipaddress.ip_address(peer or "unknown")
        except ValueError:
            return False
        return any(address in network for network in self._networks)

    def client(self, request: Request) -> str:
        """Return the address of the client, which a trusted proxy hands on."""
        if self.sent(request):
            # A proxy appends to what its own client sent: only the last address is its word.
            last = request.headers.get("X-Forwarded-For", "").rpartition(",")[2].strip()
            try:
                return str(ipaddress.ip_address(last))
            except ValueError:
                pass
        peer = request.remote_addr
        return "localhost" if peer in UNIX_SOCKET else peer or "unknown"
