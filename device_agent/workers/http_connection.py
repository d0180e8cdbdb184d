"""One connection to a web server: resolve, connect, tunnel through a proxy, TLS, requests.

Each step raises the error class that names it: ConnectionFailed, ProxyFailed, TlsFailed. Every wait
is watched (device_agent.workers.transfer_watchdog). A URL in a message has no user name and no query.
"""

# the codecs of international names; the first such name would load them when the jail has closed the files
import encodings.idna
import encodings.punycode  # noqa: F401
import http.client
import io
import socket
import ssl
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from bundle.errors import AirweightsError, DownloadFailed
from bundle.version import VERSION
from device_agent.errors import ConnectionFailed, ProxyAuthRequired, ProxyFailed, TlsFailed
from device_agent.policy.proxy_choice import Proxy
from device_agent.workers.http_heads import CountedReader
from device_agent.workers.transfer_watchdog import TransferWatchdog

CONNECT_TIMEOUT_S: Final = 15.0
RESOLVE_TIMEOUT_S: Final = 30.0
MAX_INTERIM_RESPONSES: Final = 8  # an honest server sends one or two
MAX_ADDRESSES: Final = 8
USER_AGENT: Final = f"airweights-device-agent/{VERSION}"
# numbers of X509_V_ERR (openssl/x509_vfy.h)
UNKNOWN_ISSUER_CODES: Final = (18, 19, 20, 21)
VALIDITY_CODES: Final = (9, 10)
HOST_NAME_CODES: Final = (62, 64)
CLIENT_CERTIFICATE_REASONS: Final = (
    *("CERTIFICATE_REQUIRED", "HANDSHAKE_FAILURE", "BAD_CERTIFICATE", "UNKNOWN_CA", "CERTIFICATE_UNKNOWN"),
    *("CERTIFICATE_EXPIRED", "ACCESS_DENIED"),
)
NO_TLS_REASONS: Final = ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "RECORD_LAYER_FAILURE", "PACKET_LENGTH_TOO_LONG")

CheckAddress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Target:
    """The server of a request.

    Attributes:
        scheme: "http" or "https".
        host: name in ASCII, or address.
        port: its port.
    """

    scheme: str
    host: str
    port: int

    @property
    def authority(self) -> str:
        """The value of `Host`."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.scheme == "https" else 80) else f"{host}:{self.port}"


class TooManyInterimResponses(http.client.HTTPException):
    """A server sends interim responses in place of a final one."""


class Response(http.client.HTTPResponse):
    """A response whose interim responses (1xx) are skipped, up to a limit, and whose bytes are counted."""

    def __init__(self, sock: socket.socket, method: str) -> None:
        super().__init__(sock, method=method)
        self.fp = io.BufferedReader(CountedReader(self.fp.detach()))

    def _read_status(self) -> tuple[str, int, str]:
        for _ in range(MAX_INTERIM_RESPONSES + 1):
            version, status, reason = super()._read_status()  # type: ignore[misc]  # http.client's own hook
            if not 100 <= status < 200 or status == http.client.SWITCHING_PROTOCOLS:
                return version, status, reason
            http.client.parse_headers(self.fp)
        raise TooManyInterimResponses(f"more than {MAX_INTERIM_RESPONSES} interim responses")


class Connection:
    """An open connection that can be used for one request after the other.

    Attributes:
        sock: the socket, with TLS if the scheme is https.
        peer: address of the server, or "" behind a proxy.
        uses: number of requests so far.
    """

    def __init__(self, sock: socket.socket, peer: str) -> None:
        self.sock, self.peer, self.uses = sock, peer, 0

    def request(self, path: str, headers: dict[str, str]) -> Response:
        """Send a GET request and return the head of its response.

        Args:
            path: path and query, or the whole URL for a proxy.
            headers: the header fields, `Host` included.

        Raises:
            HTTPException, OSError: the connection broke, or the response is not HTTP.
        """
        self.uses += 1
        lines = [f"GET {path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
        self.sock.sendall(("\r\n".join(lines) + "\r\n\r\n").encode("ascii"))
        response = Response(self.sock, method="GET")
        response.begin()
        return response

    def close(self) -> None:
        """Close the connection's socket."""
        with suppress(OSError):
            self.sock.close()


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


def open_connection(
    target: Target,
    proxy: Proxy | None,
    *,
    proxy_authorization: str,
    context: ssl.SSLContext,
    check_address: CheckAddress,
    watchdog: TransferWatchdog,
    timeout_s: float,
    shown: str,
) -> Connection:
    """Open a connection to a server, directly or through a proxy.

    Args:
        target: the server.
        proxy: the proxy, or None.
        proxy_authorization: value of `Proxy-Authorization` for CONNECT, or "".
        context: the TLS context for https.
        check_address: raises RedirectRefused if an address must not be connected to; not called for a proxy.
        watchdog: watches every wait.
        timeout_s: timeout of each read.
        shown: the URL for messages.

    Raises:
        ConnectionFailed: the name does not resolve, or no address accepts a connection.
        RedirectRefused: `check_address` raised it.
        ProxyFailed: the proxy cannot be reached, or refuses the connection.
        TlsFailed: no TLS connection with a trusted certificate.
        ServerTooSlow: the watchdog cut the connection.
    """
    if proxy is None:
        sock = _connect(target.host, target.port, check_address, watchdog, shown)
        peer = str(sock.getpeername()[0])
    else:
        sock, peer = _connect_to_proxy(proxy, watchdog, shown), ""
    try:
        sock.settimeout(timeout_s)
        if target.scheme == "https":
            if proxy is not None:
                _open_tunnel(sock, target, proxy, proxy_authorization, watchdog, shown)
            sock = _start_tls(sock, target, context, watchdog, shown)
    except BaseException:
        sock.close()
        raise
    return Connection(sock, peer)


def _connect_to_proxy(proxy: Proxy, watchdog: TransferWatchdog, shown: str) -> socket.socket:
    try:
        return _connect(ascii_host(proxy.host), proxy.port, lambda _address: None, watchdog, shown)
    except ConnectionFailed as error:
        raise ProxyFailed(
            f"{shown}: the proxy {proxy.url} cannot be reached: {error.message.removeprefix(f'{shown}: ')}",
            hint="check `repository.proxy`, or the variables http_proxy and https_proxy",
        ) from error


def _connect(
    host: str, port: int, check_address: CheckAddress, watchdog: TransferWatchdog, shown: str
) -> socket.socket:
    problem = ""
    for family, kind, protocol, _, address in _resolve(host, port, watchdog, shown):
        check_address(str(address[0]))
        sock = socket.socket(family, kind, protocol)
        try:
            sock.settimeout(CONNECT_TIMEOUT_S)
            with watchdog.waiting(shown, sock):
                sock.connect(address)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except TimeoutError:
            problem = problem or f"no connection to {address[0]} port {port} in {CONNECT_TIMEOUT_S:g} s"
        except OSError as error:
            problem = problem or f"no connection to {address[0]} port {port}: {error.strerror or error}"
        except BaseException:
            sock.close()
            raise
        else:
            return sock
        sock.close()
    raise ConnectionFailed(f"{shown}: {problem}")


_Addresses = list[tuple[socket.AddressFamily, socket.SocketKind, int, str, tuple[str, int] | tuple[str, int, int, int]]]


def _resolve(host: str, port: int, watchdog: TransferWatchdog, shown: str) -> _Addresses:
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
    with watchdog.waiting(shown):
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


def _open_tunnel(
    sock: socket.socket, target: Target, proxy: Proxy, authorization: str, watchdog: TransferWatchdog, shown: str
) -> None:
    host = f"[{target.host}]" if ":" in target.host else target.host
    lines = [f"CONNECT {host}:{target.port} HTTP/1.1", f"Host: {host}:{target.port}", f"User-Agent: {USER_AGENT}"]
    if authorization:
        lines.append(f"Proxy-Authorization: {authorization}")
    try:
        with watchdog.waiting(shown, sock):
            sock.sendall(("\r\n".join(lines) + "\r\n\r\n").encode("ascii"))
            response = Response(sock, method="CONNECT")
            response.begin()
    except (OSError, http.client.HTTPException) as error:
        watchdog.check(shown)
        raise ProxyFailed(f"{shown}: the proxy {proxy.url} does not answer CONNECT: {describe_error(error)}") from error
    status = response.status
    response.close()
    if status == http.client.PROXY_AUTHENTICATION_REQUIRED:
        raise proxy_auth_required(proxy, bool(authorization), shown)
    if not 200 <= status < 300:
        raise ProxyFailed(
            f"{shown}: the proxy {proxy.url} refuses the connection: HTTP {status}",
            hint="ask for access to this host and port, or list the host in `repository.no_proxy`",
        )


def proxy_auth_required(proxy: Proxy, has_credentials: bool, shown: str) -> ProxyAuthRequired:
    """Return the error of a 407.

    Args:
        proxy: the proxy.
        has_credentials: whether the request had any.
        shown: the URL for messages.
    """
    problem = "does not accept the configured user name and password" if has_credentials else "wants a user name"
    return ProxyAuthRequired(
        f"{shown}: the proxy {proxy.url} {problem}: HTTP 407",
        hint="put USER:PASSWORD into a file of mode 0600 and name it as `repository.proxy_auth_file`",
    )


def _start_tls(
    sock: socket.socket, target: Target, context: ssl.SSLContext, watchdog: TransferWatchdog, shown: str
) -> ssl.SSLSocket:
    try:
        secure = context.wrap_socket(sock, server_hostname=target.host, do_handshake_on_connect=False)
        try:
            with watchdog.waiting(shown, secure):
                secure.do_handshake()
        except BaseException:
            secure.close()
            raise
    except (OSError, ValueError) as error:
        watchdog.check(shown)
        raise tls_failed(error, shown) from error
    return secure


def tls_failed(error: Exception, shown: str) -> AirweightsError:
    """Return the error of a TLS connection, with a hint that fits its cause.

    Args:
        error: error of the ssl module or the socket.
        shown: the URL for messages.
    """
    reason = (getattr(error, "reason", None) or "").upper()
    if isinstance(error, ssl.SSLCertVerificationError):
        hint = "check the server's certificate"
        if error.verify_code in UNKNOWN_ISSUER_CODES:
            hint = (
                "if the certificate is from an authority of your own, name its PEM file as `repository.ca_file` "
                "(or in the variable SSL_CERT_FILE)"
            )
        elif error.verify_code in VALIDITY_CODES:
            hint = "check the device's clock, then the dates of the server's certificate"
        elif error.verify_code in HOST_NAME_CODES:
            hint = "use the name that the certificate is for in the URL"
        return TlsFailed(f"{shown}: the server's certificate is not trusted: {error.verify_message}", hint=hint)
    hint = "check that the server speaks TLS 1.2 or later at this port"
    if any(name in reason for name in NO_TLS_REASONS):
        hint = "the port does not speak TLS: check the port, or use http:"
    elif isinstance(error, ssl.SSLEOFError) or any(name in reason for name in CLIENT_CERTIFICATE_REASONS):
        hint = "the server may want another client certificate: check `repository.client_cert` and `client_key`"
    return TlsFailed(f"{shown}: no TLS connection: {describe_error(error)}", hint=hint)


def describe_error(error: Exception) -> str:
    """Return one line about an error of the network: never a URL, which could have a query."""
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, ssl.SSLEOFError):
        return "the connection was closed"
    if isinstance(error, ssl.SSLError):
        return (error.reason or type(error).__name__).replace("_", " ").lower()
    if isinstance(error, http.client.RemoteDisconnected):
        return "the connection was closed without a response"
    if isinstance(error, http.client.BadStatusLine):
        return "the response is not HTTP"
    if isinstance(error, OSError):
        return error.strerror or str(error)[:200] or type(error).__name__
    return " ".join(str(error).split())[:200] or type(error).__name__
