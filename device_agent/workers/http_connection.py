"""The connections of the HTTP client: urllib3's, opened by our own rules.

Rules:
1. An opener connects (device_agent.workers.connection_opener); the watchdog gets each socket before it is waited for.
2. What fails afterwards is ProxyFailed or TlsFailed. A URL in a message has no user name and no query.
3. The target of a request is sent as it is: urllib3 would encode it anew, and the signature of a presigned URL may
   cover its bytes.
4. A final response comes after at most MAX_INTERIM_RESPONSES interim ones, also to CONNECT.
"""

import http.client
import io
import socket
import ssl
from collections.abc import Mapping
from functools import partial
from typing import Any, Final

from urllib3 import HTTPConnectionPool, HTTPSConnectionPool, PoolManager, ProxyManager
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import HTTPError
from urllib3.util import parse_url

from bundle.errors import AirweightsError
from bundle.version import VERSION
from device_agent.errors import ProxyAuthRequired, ProxyFailed, TlsFailed
from device_agent.policy.proxy_choice import Proxy
from device_agent.workers.connection_opener import Opener, ascii_host, proxy_url
from device_agent.workers.http_heads import CountedReader

MAX_INTERIM_RESPONSES: Final = 8  # an honest server sends one or two
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


class ConnectRefused(http.client.HTTPException):
    """A proxy refuses CONNECT.

    Args:
        status: the status code of its response.
    """

    def __init__(self, status: int) -> None:
        super().__init__(f"HTTP {status}")
        self.status = status


class _ConnectResponse(Response):
    """A response to CONNECT: any status of 2xx opens the tunnel (RFC 9110)."""

    def _read_status(self) -> tuple[str, int, str]:
        version, status, reason = super()._read_status()
        if not 200 <= status < 300:
            raise ConnectRefused(status)
        return version, http.client.OK, reason


class PlainConnection(HTTPConnection):
    """A connection of urllib3 that an opener opens.

    Args:
        arguments: those of the base class.
        opener: opens the socket.
        options: those of the base class.
    """

    response_class = Response

    def __init__(self, *arguments: Any, opener: Opener, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._opener = opener

    def _new_conn(self) -> socket.socket:
        # the host with the dot that may end it: the resolver needs it
        host, port = self._dns_host.strip("[]"), self.port or self.default_port
        return self._opener.open(host, port) if self.proxy is None else self._opener.open_to_proxy(host, port)

    def request(self, method: str, url: str, *arguments: Any, **options: Any) -> None:  # noqa: ARG002  # urllib3's interface
        """Send the opener's request, also over a socket that is open already.

        Args:
            method: method of the request.
            url: the target as urllib3 encodes it; not used.
            arguments: those of the base class.
            options: those of the base class.
        """
        if self.sock is not None:
            self._opener.watchdog.use(self.sock)
        super().request(method, self._opener.request_target, *arguments, **options)


class TlsConnection(PlainConnection, HTTPSConnection):
    """A connection with TLS, through a tunnel if there is a proxy."""

    def connect(self) -> None:
        """Connect, and negotiate TLS.

        Raises:
            ConnectionFailed, ProxyFailed, ProxyAuthRequired, RedirectRefused: before TLS.
            TlsFailed: no TLS connection with a trusted certificate.
        """
        try:
            super().connect()
        except (OSError, ValueError, HTTPError) as error:
            raise tls_failed(below_urllib3(error), self._opener.shown) from error

    def open_tunnel(self) -> socket.socket:
        """Connect to the proxy, and return the socket of the tunnel, without TLS.

        Raises:
            ProxyFailed, ProxyAuthRequired: the proxy cannot be reached, or refuses.
        """
        self.sock = self._new_conn()
        self._tunnel()
        return self.sock

    def set_tunnel(
        self, host: str, port: int | None = None, headers: Mapping[str, str] | None = None, scheme: str = "http"
    ) -> None:
        """Set the server that the proxy connects to; CONNECT has it as `Host`, also before Python 3.12.

        Args:
            host: name or address of the server.
            port: its port.
            headers: header fields for the proxy.
            scheme: scheme of the proxy.
        """
        super().set_tunnel(host, port, {"Host": f"{host}:{port}", **(headers or {})}, scheme)

    def _tunnel(self) -> None:
        shown, url = self._opener.shown, proxy_url(self.host, self.port or self.default_port)
        self.response_class = _ConnectResponse
        try:
            super()._tunnel()
        except ConnectRefused as error:
            # some proxies answer 401 to a wrong password
            if error.status in (http.client.UNAUTHORIZED, http.client.PROXY_AUTHENTICATION_REQUIRED):
                has_credentials = "Proxy-Authorization" in self._tunnel_headers  # type: ignore[attr-defined]
                raise proxy_auth_required(url, has_credentials, shown, error.status) from error
            raise ProxyFailed(
                f"{shown}: the proxy {url} refuses the connection: HTTP {error.status}",
                hint="ask for access to this host and port, or list the host in `repository.no_proxy`",
            ) from error
        except (OSError, http.client.HTTPException) as error:
            raise ProxyFailed(f"{shown}: the proxy {url} does not answer CONNECT: {describe_error(error)}") from error
        finally:
            self.response_class = Response


def open_tunnel(opener: Opener, proxy: Proxy, authorization: str, host: str, port: int) -> socket.socket:
    """Connect to a server that does not speak HTTP, through a proxy by CONNECT.

    Args:
        opener: opens the connection; prepared.
        proxy: the proxy.
        authorization: value of `Proxy-Authorization`, or "".
        host: name or address of the server.
        port: its port.

    Raises:
        ProxyFailed, ProxyAuthRequired: the proxy cannot be reached, or refuses.
    """
    connection = TlsConnection(ascii_host(proxy.host), proxy.port, opener=opener, proxy=parse_url(proxy.url))
    headers = {"User-Agent": USER_AGENT} | ({"Proxy-Authorization": authorization} if authorization else {})
    connection.set_tunnel(f"[{host}]" if ":" in host else host, port, headers)
    return connection.open_tunnel()


class _PlainPool(HTTPConnectionPool):
    ConnectionCls = PlainConnection


class _TlsPool(HTTPSConnectionPool):
    ConnectionCls = TlsConnection


def create_manager(
    opener: Opener, context: ssl.SSLContext, proxy: str | None, proxy_headers: Mapping[str, str]
) -> PoolManager:
    """Create a manager of connection pools.

    Args:
        opener: opens the connections.
        context: the TLS context for https.
        proxy: URL of the proxy, or None.
        proxy_headers: header fields for the proxy.
    """
    if proxy is None:
        manager = PoolManager(ssl_context=context)
    else:
        manager = ProxyManager(proxy, proxy_headers=proxy_headers, ssl_context=context)
    # pools that pass the opener to their connections; a partial is as good as the class
    pools: dict[str, Any] = {"http": partial(_PlainPool, opener=opener), "https": partial(_TlsPool, opener=opener)}
    manager.pool_classes_by_scheme = pools
    return manager


def proxy_auth_required(
    proxy: str, has_credentials: bool, shown: str, status: int = http.client.PROXY_AUTHENTICATION_REQUIRED
) -> ProxyAuthRequired:
    """Return the error of a 407, or of a 401 to CONNECT.

    Args:
        proxy: URL of the proxy.
        has_credentials: whether the request had any.
        shown: the URL for messages.
        status: the status code.
    """
    problem = "does not accept the configured user name and password" if has_credentials else "wants a user name"
    return ProxyAuthRequired(
        f"{shown}: the proxy {proxy} {problem}: HTTP {int(status)}",
        hint="put USER:PASSWORD into a file of mode 0600 and name it as `repository.proxy_auth_file`",
    )


def below_urllib3(error: Exception) -> Exception:
    """Return the error that an error of urllib3 stands for."""
    while isinstance(error, HTTPError):
        below = error.__cause__ or error.__context__
        if not isinstance(below, Exception):
            break
        error = below
    return error


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
