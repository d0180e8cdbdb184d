"""Tunnels through proxies, stalled TLS, connections used again, and targets sent byte for byte."""

import contextlib
import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bundle.errors import AirweightsError, DownloadFailed
from device_agent.errors import ProxyAuthRequired, ProxyFailed, ServerTooSlow, TlsFailed
from device_agent.workers.http_client import ClientSettings, HttpClient
from device_agent.workers.repository_credentials import SystemAuthorities, no_credentials
from tests.support.certificates import Certificates, create_certificates
from tests.support.connect_proxy import OPEN_TUNNEL, start_connect_proxy
from tests.support.faulty_http_server import Exchange, Site, respond_with_status, serve_folder
from tests.support.fetcher_process import get, start_fetcher

DOCUMENT = b'{"a": "document"}'
SECRET = "s3cret-v4lue"  # of the test
RESPONSE = b"HTTP/1.1 200 OK\r\nContent-Length: 17\r\n\r\n" + DOCUMENT


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return create_certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served")
    (folder / "a.json").write_bytes(DOCUMENT)
    return folder


@pytest.fixture
def tls_site(served: Path, certificates: Certificates) -> Iterator[Site]:
    with serve_folder(served, certificates.server_context()) as site:
        yield site


@contextlib.contextmanager
def _serve_connections(*responses: list[bytes]) -> Iterator[tuple[str, list[int]]]:
    """Serve connections, each with its list of responses; yield the URL, and the number of requests of each."""
    counts: list[int] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            for of_connection in responses:
                try:
                    client, _ = listener.accept()
                except OSError:
                    return
                counts.append(0)
                client.settimeout(60)
                with client, contextlib.suppress(OSError):
                    for response in [*of_connection, b""]:
                        head = b""
                        while not head.endswith(b"\r\n\r\n"):
                            if not (data := client.recv(1)):
                                raise OSError
                            head += data
                        counts[-1] += 1
                        client.sendall(response)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}", counts
        finally:
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def _port(url: str) -> int:
    return int(url.rpartition(":")[2])


def test_https_goes_through_one_tunnel_and_is_verified_inside(
    tls_site: Site, certificates: Certificates, tmp_path: Path
) -> None:
    login = tmp_path / "login"
    login.write_text("me:word")
    with (
        start_connect_proxy(_port(tls_site.url)) as proxy,
        start_fetcher(tls_site.url, proxy=proxy.url, proxy_auth_file=login, ca_file=certificates.ca) as child,
    ):
        for _ in range(3):
            assert get(child, f"{tls_site.url}/a.json") == DOCUMENT
        with pytest.raises(TlsFailed, match="not trusted"):
            get(child, "https://another.example/a.json")
    authority = tls_site.url.removeprefix("https://")
    assert len(proxy.heads) == 2
    head = proxy.heads[0].split("\r\n")
    assert head[0].startswith(f"CONNECT {authority} HTTP/1.")
    assert {f"Host: {authority}", "Proxy-Authorization: Basic bWU6d29yZA=="} <= set(head)
    assert proxy.heads[1].startswith("CONNECT another.example:443 ")
    assert all("proxy-authorization" not in seen.headers for seen in tls_site.requests)


@pytest.mark.parametrize(
    ("response", "error", "message"),
    [
        (b"HTTP/1.1 407 Who\r\nProxy-Authenticate: Basic\r\n\r\n", ProxyAuthRequired, "wants a user name: HTTP 407"),
        (b"HTTP/1.1 403 No\r\nContent-Length: 2\r\n\r\nno", ProxyFailed, "refuses the connection: HTTP 403"),
        (b"HTTP/1.1 302 Found\r\nLocation: http://login.example/\r\n\r\n", ProxyFailed, "HTTP 302"),
        (b"SSH-2.0-x\r\n", ProxyFailed, "does not answer CONNECT: the response is not HTTP"),
        (b"", ProxyFailed, "does not answer CONNECT"),
        (b"HTTP/1.1 100 Continue\r\n\r\n" * 20, ProxyFailed, "interim responses"),
    ],
)
def test_a_proxy_that_opens_no_tunnel_is_named(response: bytes, error: type[AirweightsError], message: str) -> None:
    with start_connect_proxy(None, response) as proxy, start_fetcher(proxy=proxy.url) as child:
        with pytest.raises(error, match=message) as failed:
            get(child, f"https://models.corp.example/a.json?X-Signature={SECRET}")
    assert proxy.url in str(failed.value)
    assert SECRET not in str(failed.value)


@pytest.mark.parametrize("response", [b"HTTP/1.1 100 Continue\r\n\r\n" + OPEN_TUNNEL, b"HTTP/1.0 204 Go on\r\n\r\n"])
def test_other_responses_open_a_tunnel(tls_site: Site, certificates: Certificates, response: bytes) -> None:
    with (
        start_connect_proxy(_port(tls_site.url), response) as proxy,
        start_fetcher(tls_site.url, proxy=proxy.url, ca_file=certificates.ca) as child,
    ):
        assert get(child, f"{tls_site.url}/a.json") == DOCUMENT


@pytest.mark.parametrize("is_tunnel", [False, True])
def test_a_stalled_handshake_is_cut(is_tunnel: bool) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        settings: dict[str, Any] = {"proxy": f"http://127.0.0.1:{port}" if is_tunnel else "none", "first_byte_s": 1}
        with start_fetcher(f"https://127.0.0.1:{port}", **settings) as child:
            before = time.monotonic()
            with pytest.raises(ServerTooSlow, match="no byte of the body in 1 s"):
                get(child, f"https://127.0.0.1:{port}/a.json")
            assert time.monotonic() - before < 30


def test_an_idle_connection_that_the_server_closes_is_opened_anew() -> None:
    with _serve_connections([RESPONSE, RESPONSE], [RESPONSE]) as (url, counts), start_fetcher(url) as child:
        for _ in range(3):
            assert get(child, f"{url}/a.json") == DOCUMENT
        assert counts == [3, 1]  # the third request of the first connection got no response


def test_a_request_over_a_new_connection_is_sent_once() -> None:
    with _serve_connections([], [RESPONSE]) as (url, counts), start_fetcher(url) as child:
        with pytest.raises(DownloadFailed, match="closed without a response"):
            get(child, f"{url}/a.json")
        assert counts == [1]


def test_redirects_and_chunks_leave_the_connection_open() -> None:
    redirect = b"HTTP/1.1 302 Found\r\nLocation: /b.json\r\nContent-Length: 0\r\n\r\n"
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n11\r\n" + DOCUMENT + b"\r\n0\r\n\r\n"
    with _serve_connections([redirect, chunked, RESPONSE]) as (url, counts), start_fetcher(url) as child:
        assert get(child, f"{url}/a.json") == get(child, f"{url}/c.json") == DOCUMENT
        assert counts == [3]


@pytest.mark.parametrize("through_proxy", [False, True])
def test_the_target_of_a_presigned_url_is_sent_byte_for_byte(served: Path, through_proxy: bool) -> None:
    query = "X-Signature=a%2fb%2B[1]~!*'()&X=%7e"
    targets: list[str] = []

    def record(exchange: Exchange) -> bool:
        targets.append(exchange.handler.path)
        return False

    with serve_folder(served) as site, serve_folder(served) as store:
        location = f"{store.url}/./a.json?{query}"
        site.faults = [respond_with_status(302, {"Location": location})]
        store.faults = [record]
        with start_fetcher(site.url, proxy=store.url if through_proxy else "none", no_proxy=(site.url[7:],)) as child:
            assert get(child, f"{site.url}/a.json") == DOCUMENT
    assert targets == [location if through_proxy else location.removeprefix(store.url)]


def test_a_closed_client_leaves_no_thread() -> None:
    client = HttpClient(ClientSettings(no_credentials(SystemAuthorities.read(os.environ)), proxy="none"))
    before = set(threading.enumerate())  # of other tests, too
    with client.watchdog.watch(1):
        (watchdog,) = set(threading.enumerate()) - before
    client.close()
    watchdog.join(60)
    assert not watchdog.is_alive()


def test_urls_are_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    response = b"HTTP/1.1 200 OK\r\nContent-Length: 17\r\nno colon\r\n\r\n" + DOCUMENT
    client = HttpClient(ClientSettings(no_credentials(SystemAuthorities.read(os.environ)), proxy="none"))
    with _serve_connections([response]) as (url, _), contextlib.closing(client), client.watchdog.watch(1):
        with contextlib.closing(client.open(f"{url}/a.json?X-Signature={SECRET}", {})) as opened:
            assert b"".join(opened.chunks(9)) == DOCUMENT
    assert SECRET not in caplog.text
