"""Which proxies are trusted, and so who is at the other end of a request."""

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

from orchmgmt.policies import Evidence
from orchmgmt.settings import PREFIX, SettingError, Settings

#: The address that servers report for a peer at a Unix socket, which has none: waitress reports a
#: name, gunicorn and Granian report nothing. Every other peer has an address.
UNIX_SOCKET = ("localhost", "")

#: Stands for the address if no proxy sent the request, because this process has verified it itself.
#: No peer has such an address.
VERIFIED_HERE = "MQTT"


class TrustedProxies:
    """The proxies of the setting `TRUSTED_PROXIES`, and whoever may open the Unix socket.

    Raises:
        SettingError: the setting holds something that is neither an address nor a network.
    """

    def __init__(self, settings: Settings) -> None:
        try:
            self._networks = [_network(it) for it in settings.trusted_proxies]
        except ValueError as error:
            raise SettingError(f"{PREFIX}TRUSTED_PROXIES: {error}") from None

    def sent(self, evidence: Evidence) -> bool:
        """Return whether a request comes directly from one of these proxies."""
        peer = evidence.remote_addr
        if peer in (*UNIX_SOCKET, VERIFIED_HERE):
            return True
        try:
            address = address_of(peer or "unknown")
        except ValueError:
            return False
        return any(address in network for network in self._networks)

    def client(self, evidence: Evidence) -> str:
        """Return the address of the client, which a trusted proxy forwards."""
        peer = evidence.remote_addr or ""
        # A proxy appends to what its client sent: only the last address comes from the proxy.
        last = (evidence.headers.get("X-Forwarded-For") or "").rpartition(",")[2]
        for text in (last, peer) if self.sent(evidence) else (peer,):
            try:
                return str(address_of(text))
            except ValueError:
                pass
        return "localhost" if peer in UNIX_SOCKET else peer or "unknown"


def address_of(text: str) -> IPv4Address | IPv6Address:
    """Return the address in a text of a server or proxy: maybe in brackets, with a port or a zone.

    An IPv4 address at an IPv6 socket (`::ffff:127.0.0.1`) is returned as an IPv4 address.

    Raises:
        ValueError: the text has no address.
    """
    text = text.strip()
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    address = ip_address(text.partition("%")[0])
    if isinstance(address, IPv6Address) and address.ipv4_mapped:
        return address.ipv4_mapped
    return address


def _network(text: str) -> IPv4Network | IPv6Network:
    network = ip_network(text)
    if isinstance(network, IPv6Network) and network.network_address.ipv4_mapped:
        return ip_network((network.network_address.ipv4_mapped, network.prefixlen - 96))
    return network
