"""A device updates from nginx (TLS, mTLS, Basic, Bearer), directly and through tinyproxy, with a company's own CA."""

import base64
import shutil
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest

from device_agent.config.repository import RepositorySettings
from tests.support.certificates import Certificates, create_certificates
from tests.support.load_clients import wait_until
from tests.support.publisher import DeviceUnderTest, Publisher

NGINX = """
daemon off; worker_processes 1; pid {folder}/nginx.pid; error_log {folder}/error.log;
events {{ worker_connections 64; }}
http {{
  access_log off; client_body_temp_path {folder}/t; proxy_temp_path {folder}/t; fastcgi_temp_path {folder}/t;
  uwsgi_temp_path {folder}/t; scgi_temp_path {folder}/t;
  server {{
    listen 127.0.0.1:{port} ssl; ssl_certificate {tls.server}; ssl_certificate_key {tls.server_key};
    ssl_client_certificate {tls.ca}; ssl_verify_client optional;
    location /open/ {{ alias {site}/; }}
    location /basic/ {{ if ($http_authorization != "Basic {basic}") {{ return 401; }} alias {site}/; }}
    location /bearer/ {{ if ($http_authorization != "Bearer t0ken") {{ return 401; }} alias {site}/; }}
    location /mtls/ {{ if ($ssl_client_verify != SUCCESS) {{ return 403; }} alias {site}/; }}
    location /portal/ {{ default_type text/html; return 200 "<html>Log in</html>"; }}
  }}
}}
"""
TINYPROXY = """
Port {port}
Listen 127.0.0.1
Timeout 60
MaxClients 16
ConnectPort {nginx}
"""


@dataclass(frozen=True)
class Servers:
    url: str
    proxy: str
    tls: Certificates
    publisher: Publisher


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def _accepts(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture(scope="module")
def servers(first_publisher: Publisher, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    for name in ("nginx", "tinyproxy"):
        if shutil.which(name) is None:
            pytest.skip(f"{name} is not installed")
    folder = tmp_path_factory.mktemp("servers")
    for above in (folder, *folder.parents[:2]):
        above.chmod(0o755)  # nginx reads as another user
    publisher, tls = first_publisher.copy(folder / "site"), create_certificates(folder / "tls")
    (folder / "basic").write_text("ann:s3cret\n")
    (folder / "token").write_text("t0ken\n")
    nginx, proxy = _free_port(), _free_port()
    basic = base64.b64encode(b"ann:s3cret").decode()
    text = NGINX.format(folder=folder, port=nginx, tls=tls, site=publisher.published, basic=basic)
    (folder / "nginx.conf").write_text("user root;" + text)
    (folder / "proxy.conf").write_text(TINYPROXY.format(port=proxy, nginx=nginx))
    started = [
        subprocess.Popen(["nginx", "-c", folder / "nginx.conf"], stderr=subprocess.DEVNULL),
        subprocess.Popen(["tinyproxy", "-d", "-c", folder / "proxy.conf"], stdout=subprocess.DEVNULL),
    ]
    try:
        wait_until(lambda: _accepts(nginx) and _accepts(proxy), 30)
        yield Servers(f"https://127.0.0.1:{nginx}", f"http://127.0.0.1:{proxy}", tls, publisher)
    finally:
        for process in started:
            process.terminate()
            process.wait(30)


@pytest.mark.parametrize("is_proxied", [False, True])
@pytest.mark.parametrize(
    ("place", "has_credentials", "reason"),
    [
        ("open", True, ""),
        ("basic", True, ""),
        ("bearer", True, ""),
        ("mtls", True, ""),
        ("basic", False, "repository-auth-required"),
        ("bearer", False, "repository-auth-required"),
        ("mtls", False, "not-found"),  # HTTP 403: object stores send it for a file that is missing
        ("portal", True, "repository-not-reached"),
    ],
)
def test_a_device_updates_from_a_real_server_or_names_what_is_wrong(
    place: str, has_credentials: bool, reason: str, is_proxied: bool, servers: Servers, installed: DeviceUnderTest
) -> None:
    settings = RepositorySettings(
        ca_file=servers.tls.ca, system_ca=False, proxy=servers.proxy if is_proxied else "none", no_proxy=()
    )
    folder = servers.tls.ca.parents[1]
    if has_credentials and place == "basic":
        settings = replace(settings, basic_auth_file=folder / "basic")
    if has_credentials and place == "bearer":
        settings = replace(settings, token_file=folder / "token")
    if has_credentials and place == "mtls":
        settings = replace(settings, client_cert=servers.tls.client, client_key=servers.tls.client_key)
    result = installed.update(repository_url=f"{servers.url}/{place}", repository=settings)
    found = (result.outcome.value, result.reason)
    assert found == (("unavailable", reason) if reason else ("nothing-new", "")), result.detail


def test_a_server_of_an_unknown_authority_is_named(servers: Servers, installed: DeviceUnderTest) -> None:
    result = installed.update(repository_url=f"{servers.url}/open", repository=RepositorySettings(proxy="none"))
    assert (result.outcome.value, result.reason) == ("unavailable", "tls-failed")
