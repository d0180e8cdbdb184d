"""The HTTP client of the fetcher: GET with redirects, POST, credentials and proxies, over urllib3.

Rules:
1. Credentials are sent to the configured origins only; each hop of a redirect is judged by its own origin.
2. Redirects follow device_agent.policy.redirect_rules.
3. One idle connection is kept for each server. If it turns out to be closed, the request is sent again over a new one.
   urllib3 itself neither repeats requests, nor follows redirects, nor decodes a body.
4. A URL in a message has no user name and no query: presigned URLs are credentials. urllib3 would log such URLs.
5. 401 is RepositoryAuthRequired and 407 ProxyAuthRequired. 403 is AccessDenied, a kind of NotFound: object stores
   send it for missing files, and others if a client certificate is missing.
"""

import http.client
import logging
import os
import re
import ssl
from dataclasses import dataclass, replace
from typing import Final
from urllib.parse import quote, urlsplit

from urllib3 import PoolManager
from urllib3.exceptions import HTTPError

from bundle.errors import AccessDenied, DownloadFailed, NotFound, UnexpectedNotModified
from device_agent.config.repository import origin_of, redact_url
from device_agent.errors import RedirectRefused, RepositoryAuthRequired, ServerTooSlow
from device_agent.policy.proxy_choice import choose_proxy
from device_agent.policy.redirect_rules import (
    MAX_REDIRECTS,
    check_redirect_address,
    kind_of_address,
    redirect_target,
)
from device_agent.workers.connection_opener import Opener, ascii_host
from device_agent.workers.http_connection import (
    USER_AGENT,
    TooManyInterimResponses,
    below_urllib3,
    create_manager,
    describe_error,
    proxy_auth_required,
    tls_failed,
)
from device_agent.workers.http_heads import is_conditional
from device_agent.workers.http_response import HttpResponse
from device_agent.workers.repository_credentials import RepositoryCredentials, basic_authorization
from device_agent.workers.transfer_watchdog import TransferWatchdog

logging.getLogger("urllib3").setLevel(logging.CRITICAL)

REDIRECT_STATUSES: Final = (301, 302, 303, 307, 308)
RANGE_NOT_SATISFIABLE: Final = 416
NO_CODINGS: Final = ("", "identity", "none", "aws-chunked")  # stores play back what the upload said over plain bytes
CERTIFICATE_PAGE_BYTES: Final = 1024  # how nginx says that a client certificate is missing: a page with status 400


@dataclass(frozen=True, slots=True)
class ClientSettings:
    """The settings that requests are sent with.

    Attributes:
        credentials: header fields and TLS contexts.
        proxy: `repository.proxy`, or "".
        no_proxy: `repository.no_proxy`, or None.
        allow_redirects_to: `repository.allow_redirects_to`.
        first_byte_s: seconds until the first byte of the body.
        stall_window_s: length of the window of the rate, in seconds.
        min_rate_bytes_s: minimum rate of a document.
        token_realm: `repository.token_realm`, or "".
    """

    credentials: RepositoryCredentials
    proxy: str = ""
    no_proxy: tuple[str, ...] | None = None
    allow_redirects_to: tuple[str, ...] = ()
    first_byte_s: float = 60.0
    stall_window_s: float = 30.0
    min_rate_bytes_s: int = 34
    token_realm: str = ""


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
        return self.url_host if self.port == (443 if self.scheme == "https" else 80) else f"{self.url_host}:{self.port}"

    @property
    def url_host(self) -> str:
        """The host as URLs have it: an IPv6 address in brackets."""
        return f"[{self.host}]" if ":" in self.host else self.host


_Key = tuple[str, bool, str]  # proxy, has credentials, host of the repository


class HttpClient:
    """Sends requests, one after the other.

    Args:
        settings: how requests are sent.

    Attributes:
        settings: how requests are sent.
        watchdog: watches the transfer; the caller starts it (`TransferWatchdog.watch`).
        authorizations: origin → value of Authorization in place of the configured one, "" for none: registries and
            their token realms (device_agent.workers.registry_login).
        challenge: WWW-Authenticate of the last 401.
    """

    def __init__(self, settings: ClientSettings) -> None:
        self.settings = settings
        self.watchdog = TransferWatchdog(settings.first_byte_s, settings.stall_window_s)
        self._opener = Opener(self.watchdog, settings.first_byte_s + settings.stall_window_s)
        self._managers: dict[_Key, PoolManager] = {}
        self.authorizations: dict[str, str] = {}
        self.challenge = ""
        self._kinds: dict[str, set[str]] = {}  # kinds of the repository's addresses, by host

    def close(self) -> None:
        """Close all idle connections, and end the watchdog's thread."""
        self.watchdog.close()
        while self._managers:
            pools = self._managers.popitem()[1].pools
            for key in pools.keys():  # noqa: SIM118  # urllib3's container cannot be iterated
                pools[key].close()
            pools.clear()

    def open(self, url: str, headers: dict[str, str], source: str = "") -> HttpResponse:
        """Send a GET request, follow its redirects, and return the response (200, 206, 304 or 416).

        Args:
            url: URL of the repository.
            headers: header fields of the request.
            source: URL that led to this one, if a server named it; then it is reached as the target of a redirect.

        Raises:
            NotFound: 404 or 410, or 403 (AccessDenied).
            RepositoryAuthRequired: 401, or the server wants a client certificate.
            ProxyFailed: the proxy cannot be reached, or refuses the request.
            TlsFailed: no TLS connection with a trusted certificate.
            RedirectRefused: a redirect is malformed, leads where it may not, or there are too many.
            ServerTooSlow: the watchdog cut the connection.
            DownloadFailed: any other failure; a note has the value of Retry-After.
        """
        source = source or url
        for _ in range(MAX_REDIRECTS + 1):
            response = self._send(source, url, headers)
            if response.status not in REDIRECT_STATUSES:
                return self._check(response, url, headers)
            location = response.header("Location")
            response.close()
            url = redirect_target(url, location, response.url)
        raise RedirectRefused(f"{redact_url(source)}: redirected more than {MAX_REDIRECTS} times")

    def post(self, url: str, headers: dict[str, str], body: bytes) -> HttpResponse:
        """Send a POST request, and return the response (200); redirects are not followed.

        Args:
            url: URL of the server.
            headers: header fields of the request.
            body: the body.

        Raises:
            RedirectRefused: the server redirects.
            NotFound, RepositoryAuthRequired, ProxyFailed, TlsFailed, ServerTooSlow, DownloadFailed: as `open`.
        """
        response = self._send(url, url, headers, body)
        if response.status in REDIRECT_STATUSES:
            response.close()
            raise RedirectRefused(f"{response.url}: a POST request is not redirected: HTTP {response.status}")
        return self._check(response, url, headers)

    def _send(self, source: str, url: str, headers: dict[str, str], body: bytes | None = None) -> HttpResponse:
        credentials, shown = self.settings.credentials, redact_url(url)
        target, path = _split(url, shown)
        source_host = ascii_host(urlsplit(source).hostname or "").lower()
        proxy = choose_proxy(
            target.scheme,
            target.host,
            target.port,
            configured=self.settings.proxy,
            no_proxy=self.settings.no_proxy,
            environment=os.environ,
        )
        is_private = origin_of(url) in credentials.credential_origins
        fields = {"Host": target.authority, "User-Agent": USER_AGENT, "Accept-Encoding": "identity", **headers}
        origin = origin_of(url)
        if is_private:
            is_replaced = origin in self.authorizations
            fields.update(row for row in credentials.headers if not (is_replaced and row[0].lower() == "authorization"))
        if self.authorizations.get(origin):
            fields["Authorization"] = self.authorizations[origin]
        proxy_headers: dict[str, str] = {}
        if proxy is not None:
            proxy_headers["User-Agent"] = USER_AGENT
            authorization = credentials.proxy_authorization or (
                basic_authorization(proxy.credentials) if proxy.credentials else ""
            )
            if authorization:
                proxy_headers["Proxy-Authorization"] = authorization

        def check_address(address: str) -> None:
            if target.host.lower() != source_host:
                kinds, allowed = self._kinds.get(source_host, set()), self.settings.allow_redirects_to
                check_redirect_address(target.host, target.port, address, kinds, allowed, shown)

        proxy_url = None
        if proxy is not None:
            check_address(target.host)
            proxy_url = replace(proxy, host=ascii_host(proxy.host)).url
        key = (proxy_url or "", is_private, source_host)
        if key not in self._managers:
            context = credentials.private_context if is_private else credentials.public_context
            self._managers[key] = create_manager(self._opener, context, proxy_url, proxy_headers)
        is_forwarded = proxy is not None and target.scheme == "http"
        request_target = f"http://{target.authority}{path}" if is_forwarded else path
        self._opener.prepare(shown, request_target, check_address)
        response = self._request(
            self._managers[key], target, fields, f" (through the proxy {proxy_url})" if is_forwarded else "", body
        )
        if target.host.lower() == source_host and self._opener.peer:
            address = target.host if proxy_url else self._opener.peer
            self._kinds.setdefault(source_host, set()).add(kind_of_address(address))
        if proxy_url and response.status == http.client.PROXY_AUTHENTICATION_REQUIRED:
            response.close()
            raise proxy_auth_required(proxy_url, "Proxy-Authorization" in proxy_headers, shown)
        return response

    def _request(
        self, manager: PoolManager, target: Target, fields: dict[str, str], through: str, body: bytes | None
    ) -> HttpResponse:
        shown, response = self._opener.shown, None
        for may_repeat in (True, False):
            try:
                with self.watchdog.waiting(shown):
                    pool = manager.connection_from_host(target.url_host, target.port, target.scheme)
                    response = pool.urlopen(
                        "GET" if body is None else "POST",
                        self._opener.request_target,
                        body=body,
                        headers=fields,
                        retries=False,
                        redirect=False,
                        assert_same_host=False,  # a proxy gets the URLs of all hosts
                        timeout=self._opener.timeout_s,
                        preload_content=False,
                        decode_content=False,
                        enforce_content_length=False,  # the fetcher knows how many bytes are signed
                    )
                break
            except ServerTooSlow:
                if response is not None:
                    response.close()
                raise
            except (OSError, ValueError, http.client.HTTPException, HTTPError) as error:
                below = below_urllib3(error)
                if may_repeat and not self._opener.peer and not isinstance(below, TimeoutError):
                    continue  # the server closed an idle connection
                raise self._request_error(below, shown, through) from error
        assert response is not None
        return HttpResponse(shown, response, self.watchdog)

    def _request_error(self, error: Exception, shown: str, through: str) -> Exception:
        if isinstance(error, ssl.SSLError):
            return tls_failed(error, shown)  # with TLS 1.3, a client certificate is judged after the handshake
        if isinstance(error, TooManyInterimResponses):
            return ServerTooSlow(f"{shown}: no response: {error}")
        return DownloadFailed(f"{shown}: no response: {describe_error(error)}{through}")

    def _check(self, response: HttpResponse, url: str, headers: dict[str, str]) -> HttpResponse:
        status, shown = response.status, response.url
        if status == http.client.NOT_MODIFIED:
            if is_conditional(headers):
                return response
            response.close()
            raise UnexpectedNotModified(f"{shown}: HTTP 304, but the request had no condition")
        codings = response.response.headers.get("Content-Encoding", "").split(",")
        is_plain = all(coding.strip().lower() in NO_CODINGS for coding in codings)
        if status in (200, 206, RANGE_NOT_SATISFIABLE) and is_plain:
            return response
        page = b""
        if status == http.client.BAD_REQUEST and url.startswith("https:"):
            page = next(response.chunks(CERTIFICATE_PAGE_BYTES), b"")
        retry_after = response.header("Retry-After")
        self.challenge = response.header("WWW-Authenticate") if status == http.client.UNAUTHORIZED else ""
        response.close()
        if status == http.client.FORBIDDEN:
            raise self._access_denied(url, shown)
        if status in (404, 410):
            raise NotFound(f"{shown}: HTTP {status}")
        if status == http.client.UNAUTHORIZED:
            raise self._auth_required(url, shown)
        if b"SSL certificate" in page:
            problem = "does not accept the client certificate" if b"error" in page else "wants a client certificate"
            raise RepositoryAuthRequired(
                f"{shown}: the server {problem}: HTTP {status}",
                hint="set `repository.client_cert` and `repository.client_key`",
            )
        if not is_plain:
            raise DownloadFailed(f"{shown}: sent with a content coding that was not requested")
        error = DownloadFailed(f"{shown}: HTTP {status}")
        error.add_note(retry_after if retry_after.isdecimal() and len(retry_after) < 6 else "")
        raise error

    def _access_denied(self, url: str, shown: str) -> AccessDenied:
        credentials = self.settings.credentials
        is_private = origin_of(url) in credentials.credential_origins
        hint = "check what the server may read, and the credentials in `[repository]`"
        if url.startswith("https:") and not (is_private and credentials.has_client_certificate):
            hint = (
                "set `repository.client_cert` and `repository.client_key` if the server wants a client certificate;"
                " otherwise check what it may read, and the credentials in `[repository]`"
            )
        return AccessDenied(f"{shown}: the server refuses access: HTTP 403", hint=hint)

    def _auth_required(self, url: str, shown: str) -> RepositoryAuthRequired:
        credentials = self.settings.credentials
        has_any = any(name.lower() == "authorization" for name, _ in credentials.headers)
        if has_any and origin_of(url) in credentials.credential_origins:
            return RepositoryAuthRequired(
                f"{shown}: the server does not accept the configured credentials: HTTP 401",
                hint="check the file that `repository.token_file` or `repository.basic_auth_file` names",
            )
        hint = "set `repository.token_file` or `repository.basic_auth_file`"
        if has_any:
            hint = "credentials are sent to the origin of `repository_url` only: see `repository.send_credentials_to`"
        return RepositoryAuthRequired(f"{shown}: the server wants credentials: HTTP 401", hint=hint)


def _split(url: str, shown: str) -> tuple[Target, str]:
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError as error:
        raise DownloadFailed(f"{shown}: not a URL") from error
    target = Target(parts.scheme, ascii_host(host), port or (443 if parts.scheme == "https" else 80))
    path = quote(parts.path or "/", safe="%/:=&?~#+!$,;'@()*[]")
    query = quote(parts.query, safe="%/:=&?~+!$,;'@()*[]")
    if re.search(r"[\x00-\x20\x7f]", f"{target.host}{path}{query}"):
        raise DownloadFailed(f"{shown}: not a URL")
    return target, f"{path}?{query}" if query else path
