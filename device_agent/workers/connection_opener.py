"""Opening connections: resolve a name, check each of its addresses, connect.

Rules:
1. Names are resolved in a thread. At most MAX_ADDRESSES are tried, and each is checked before it is connected to.
2. The steps raise the error class that names them: ConnectionFailed, ProxyFailed.
3. The watchdog gets each socket before anything is waited for (device_agent.workers.transfer_watchdog).
"""

# the codecs of international names; the first such name would load them when the jail has closed the files
import encodings.idna
import encodings.punycode  # noqa: F401
import socket
import threading
from collections.abc import Callable
from typing import Final

from bundle.errors import DownloadFailed
from device_agent.errors import ConnectionFailed, ProxyFailed
from device_agent.policy.proxy_choice import Proxy
from device_agent.workers.transfer_watchdog import TransferWatchdog

CONNECT_TIMEOUT_S: Final = 15.0
RESOLVE_TIMEOUT_S: Final = 30.0
MAX_ADDRESSES: Final = 8

CheckAddress = Callable[[str], None]


class Opener:
    """Opens the connections of a client, whose requests are sent one after the other.

    Args:
        watchdog: watches every wait.
        timeout_s: timeout of each read.

    Attributes:
        watchdog: watches every wait.
        timeout_s: timeout of each read.
        shown: the URL of the request for messages.
        request_target: path and query, or the whole URL for a proxy.
        peer: address that was connected to since `prepare`, or "" if no connection was opened.
    """

    def __init__(self, watchdog: TransferWatchdog, timeout_s: float) -> None:
        self.watchdog, self.timeout_s = watchdog, timeout_s
        self.shown = self.request_target = self.peer = ""
        self._check_address: CheckAddress = _allow_address

    def prepare(self, shown: str, request_target: str, check_address: CheckAddress) -> None:
        """Set the next request, and what it may open.

        Args:
            shown: its URL for messages.
            request_target: path and query, or the whole URL for a proxy.
            check_address: raises RedirectRefused if an address must not be connected to; not called for a proxy.
        """
        self.shown, self.request_target, self.peer, self._check_address = shown, request_target, "", check_address

    def open(self, host: str, port: int) -> socket.socket:
        """Connect to a server.

        Args:
            host: its name in ASCII, or its address.
            port: its port.

        Raises:
            ConnectionFailed: the name does not resolve, or no address accepts a connection.
            RedirectRefused: the address must not be connected to.
            ServerTooSlow: the watchdog cut the connection.
        """
        return self._connect(host, port, self._check_address)

    def open_to_proxy(self, host: str, port: int) -> socket.socket:
        """Connect to a proxy.

        Args:
            host: its name in ASCII, or its address.
            port: its port.

        Raises:
            ProxyFailed: it cannot be reached.
            ServerTooSlow: the watchdog cut the connection.
        """
        try:
            return self._connect(host, port, _allow_address)
        except ConnectionFailed as error:
            reason = error.message.removeprefix(f"{self.shown}: ")
            raise ProxyFailed(
                f"{self.shown}: the proxy {proxy_url(host, port)} cannot be reached: {reason}",
                hint="check `repository.proxy`, or the variables http_proxy and https_proxy",
            ) from error

    def _connect(self, host: str, port: int, check_address: CheckAddress) -> socket.socket:
        problem = ""
        for family, kind, protocol, _, address in _resolve(host, port, self.shown):
            self.watchdog.check(self.shown)
            check_address(str(address[0]))
            sock = socket.socket(family, kind, protocol)
            try:
                sock.settimeout(CONNECT_TIMEOUT_S)
                self.watchdog.use(sock)
                sock.connect(address)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                sock.settimeout(self.timeout_s)
            except TimeoutError:
                problem = problem or f"no connection to {address[0]} port {port} in {CONNECT_TIMEOUT_S:g} s"
            except OSError as error:
                problem = problem or f"no connection to {address[0]} port {port}: {error.strerror or error}"
            except BaseException:
                sock.close()
                raise
            else:
                self.peer = str(address[0])
                return sock
            sock.close()
        raise ConnectionFailed(f"{self.shown}: {problem}")


def _allow_address(_address: str) -> None:
    """Allow every address: a proxy is configured, not named by a server."""


def proxy_url(host: str, port: int) -> str:
    """Return the URL of a proxy, for messages.

    Args:
        host: its name or address.
        port: its port.
    """
    host = host.strip("[]")
    return Proxy(host, port).url


def ascii_host(host: str) -> str:
    """Return a host name in ASCII: international labels are encoded (RFC 3490).

    Raises:
        DownloadFailed: it is not a valid name.
    """
    if host.isascii():
        return host
    try:
        return host.encode("idna").decode("ascii")
    except UnicodeError as error:
        raise DownloadFailed(f"{host!r} is not a valid host name") from error


_Addresses = list[tuple[socket.AddressFamily, socket.SocketKind, int, str, tuple[str, int] | tuple[str, int, int, int]]]


def _resolve(host: str, port: int, shown: str) -> _Addresses:
    """Return the addresses of a host. The resolver runs in a thread: nothing can interrupt it."""
    found: list[_Addresses | OSError] = []

    def look_up() -> None:
        try:
            found.append(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[:MAX_ADDRESSES])  # type: ignore[arg-type]
        except OSError as error:
            found.append(error)
        except UnicodeError:
            found.append(OSError(f"not a valid host name: {host!r:.100}"))

    thread = threading.Thread(target=look_up, name="resolver", daemon=True)
    thread.start()
    thread.join(RESOLVE_TIMEOUT_S)
    if not found:
        raise ConnectionFailed(f"{shown}: the name {host!r} was not resolved in {RESOLVE_TIMEOUT_S:g} s")
    if isinstance(found[0], OSError):
        raise ConnectionFailed(
            f"{shown}: cannot resolve {host!r}: {found[0].strerror or found[0]}",
            hint="check the name and the device's DNS; if only a proxy knows the name, set `repository.proxy`",
        ) from found[0]
    return found[0]
