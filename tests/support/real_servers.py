"""nginx before a published repository (TLS, client certificates, Basic, Bearer), and the proxies tinyproxy and squid.

Below the URL of nginx, `open/` needs nothing, `basic/`, `bearer/`, `mtls/` need credentials, `guarded/` needs a
client certificate, Bearer and a header field, `portal/` answers each request with a web page, `identity/` and
`aws-chunked/` name a coding over plain bytes, `update/` offers a newer release, also with a coding, and `other/` is
another repository.
"""

import base64
import contextlib
import json
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.support.certificates import Certificates, create_certificates
from tests.support.free_ports import free_ports
from tests.support.load_clients import wait_until
from tests.support.publisher import DeviceUnderTest

LOGIN = "ann:s3cret"
TOKEN = "t0ken-of-this-device"
PROXY_ONLY_HOST = "models.corp.example"  # squid resolves it, and this machine does not
HEADER = ("X-Key", "k3y-of-the-header")
PROXY_LOGIN = "pat:pr0xy-passw0rd"
PROGRAMS = ("nginx", "tinyproxy", "squid")

NGINX = """
user root; daemon off; worker_processes 1; pid {folder}/nginx.pid; error_log {folder}/error.log;
events {{ worker_connections 64; }}
http {{
  access_log off; client_body_temp_path {folder}/t; proxy_temp_path {folder}/t; fastcgi_temp_path {folder}/t;
  uwsgi_temp_path {folder}/t; scgi_temp_path {folder}/t; server_tokens off;
  server {{
    listen 127.0.0.1:{plain}; listen 127.0.0.1:{port} ssl;
    ssl_certificate {tls.server}; ssl_certificate_key {tls.server_key};
    ssl_client_certificate {tls.ca}; ssl_verify_client optional;
    location /open/ {{ alias {site}/; }}
    location /basic/ {{ if ($http_authorization != "Basic {basic}") {{ return 401; }} alias {site}/; }}
    location /bearer/ {{ if ($http_authorization != "Bearer {token}") {{ return 401; }} alias {site}/; }}
    location /mtls/ {{ if ($ssl_client_verify != SUCCESS) {{ return 403; }} alias {site}/; }}
    location /guarded/ {{
      if ($ssl_client_verify != SUCCESS) {{ return 403; }}
      if ($http_authorization != "Bearer {token}") {{ return 401; }}
      if ($http_x_key != "{key}") {{ return 402; }}
      alias {site}/;
    }}
    location /update/ {{ add_header Content-Encoding aws-chunked always; alias {update}/; }}
    location /identity/ {{ add_header Content-Encoding identity always; alias {site}/; }}
    location /aws-chunked/ {{ add_header Content-Encoding aws-chunked always; alias {site}/; }}
    location /other/ {{ alias {other}/; }}
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
BasicAuth {user} {password}
"""
SQUID = """
http_port 127.0.0.1:{port}
pid_filename {folder}/squid.pid
cache_log {folder}/squid.log
access_log none
coredump_dir {folder}
hosts_file {folder}/hosts
shutdown_lifetime 0 seconds
cache deny all
acl web port {nginx} {plain}
acl tunnels port {nginx}
http_access deny !web
http_access deny CONNECT !tunnels
http_access allow all
"""


@dataclass(frozen=True)
class RealServers:
    """Servers that run.

    Attributes:
        folder: their files; `basic` has the login, `token` the token, `headers` a header field, and `proxy-login` the
            login of tinyproxy.
        url: URL of nginx with TLS.
        plain_url: URL of nginx without TLS.
        proxies: name → URL.
        tls: certificates.
    """

    folder: Path
    url: str
    plain_url: str
    proxies: dict[str, str]
    tls: Certificates


def write_repository_table(device: DeviceUnderTest, url: str, lines: Mapping[str, object]) -> None:
    """Write the device's configuration file with another URL and a table `[repository]`.

    Args:
        device: the device.
        url: URL of the repository.
        lines: key → string, path or boolean.
    """
    device.write_config()
    text = device.config_path.read_text().replace(f'"{device.config.repository_url}"', f'"{url}"')
    shown = {key: json.dumps(value if isinstance(value, bool) else str(value)) for key, value in lines.items()}
    table = "".join(f"{key} = {value}\n" for key, value in shown.items())
    device.config_path.write_text(f"{text}\n[repository]\n{table}")


def missing_programs() -> list[str]:
    """Return the programs that are not installed."""
    return [name for name in PROGRAMS if shutil.which(name) is None]


def is_listening(port: int) -> bool:
    """Return whether a server listens on a port of loopback."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@contextlib.contextmanager
def start_real_servers(folder: Path, site: Path, update: Path, other: Path) -> Iterator[RealServers]:
    """Start nginx and the proxies that are installed; the caller checks that nginx is.

    Args:
        folder: an existing folder for their files.
        site: published folder of the repository.
        update: the same, with a newer release in the channel.
        other: published folder of another repository.
    """
    temporary = Path(tempfile.gettempdir()).resolve()
    for above in (folder, *folder.parents):
        if temporary in above.resolve().parents:
            above.chmod(0o755)  # squid reads as another user; pytest's folders are its own user's
    tls = create_certificates(folder / "tls")
    for name, line in (
        ("basic", LOGIN),
        ("token", TOKEN),
        ("proxy-login", PROXY_LOGIN),
        ("headers", ": ".join(HEADER)),
    ):
        (folder / name).write_text(f"{line}\n")
    port, plain, tiny, squid = free_ports(4)
    values = {"folder": folder, "nginx": port, "plain": plain, "token": TOKEN, "tls": tls, "site": site, "other": other}
    values |= {"update": update, "key": HEADER[1]}
    basic = base64.b64encode(LOGIN.encode()).decode()
    user, _, password = PROXY_LOGIN.partition(":")
    configs = {
        "nginx": NGINX.format(port=port, basic=basic, **values),
        "tinyproxy": TINYPROXY.format(port=tiny, user=user, password=password, **values),
        "squid": SQUID.format(port=squid, **values),
    }
    (folder / "hosts").write_text(f"127.0.0.1 {PROXY_ONLY_HOST}\n")
    for name, text in configs.items():
        (folder / f"{name}.conf").write_text(text)
    words = {
        "nginx": ["nginx", "-c", f"{folder}/nginx.conf"],
        "tinyproxy": ["tinyproxy", "-d", "-c", f"{folder}/tinyproxy.conf"],
        "squid": ["squid", "-N", "-n", f"s{squid}", "-f", f"{folder}/squid.conf"],
    }
    ports = {"nginx": port, "tinyproxy": tiny, "squid": squid}
    started = [name for name in words if name not in missing_programs()]
    if "squid" in started and os.geteuid() == 0:
        (folder / "squid.pid").touch()
        shutil.chown(folder / "squid.pid", "proxy")
    with contextlib.ExitStack() as stack:
        for name in started:
            stack.enter_context(_running(words[name]))
        wait_until(lambda: all(is_listening(ports[name]) for name in started), 60)
        proxies = {name: f"http://127.0.0.1:{ports[name]}" for name in started if name != "nginx"}
        yield RealServers(folder, f"https://127.0.0.1:{port}", f"http://127.0.0.1:{plain}", proxies, tls)


@contextlib.contextmanager
def _running(words: list[str]) -> Iterator[None]:
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.terminate()
        process.wait(60)
