"""A real OCI registry on loopback for tests: Debian's docker-registry, open, with passwords, or with tokens."""

import base64
import contextlib
import datetime
import json
import secrets
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding

from tests.support.free_ports import free_port
from tests.support.s3_server import wait_for_http

REGISTRY = shutil.which("docker-registry") or shutil.which("docker-registry", path="/usr/bin:/usr/sbin")
needs_registry = pytest.mark.skipif(REGISTRY is None, reason="the program docker-registry is not installed")

LOGIN = "publisher:publisher-secret"
HTPASSWD = "publisher:$2y$05$abcdefghijklmnopqrstuuxV6SMSFLf872BtDsqD1aJGHOSHlr.7S\n"  # bcrypt of LOGIN
ISSUER = "test-issuer"
SERVICE = "test-registry"


@dataclass(slots=True)
class TokenServer:
    """Gives tokens: to everybody for pulling if `is_open`, to LOGIN for everything.

    Attributes:
        url: where tokens are requested.
        is_open: pulling needs no credentials.
        logins: the value of `Authorization` of each request, or "".
        certificate: PEM file that the registry trusts.
    """

    url: str
    certificate: Path
    is_open: bool = True
    logins: list[str] = field(default_factory=list)


@contextlib.contextmanager
def start_registry(folder: Path, *, is_closed: bool = False, tokens: TokenServer | None = None) -> Iterator[str]:
    """Start a registry; yield `host:port`.

    Args:
        folder: where it keeps its data.
        is_closed: it wants the password of LOGIN for everything.
        tokens: it wants tokens of this server.
    """
    port = free_port()
    config = {
        "version": "0.1",
        "log": {"level": "warn"},
        "storage": {"filesystem": {"rootdirectory": str(folder / "data")}, "delete": {"enabled": True}},
        "http": {"addr": f"127.0.0.1:{port}"},
    }
    if is_closed:
        (folder / "htpasswd").write_text(HTPASSWD)
        config["auth"] = {"htpasswd": {"realm": "test", "path": str(folder / "htpasswd")}}
    if tokens is not None:
        bundle = str(tokens.certificate)
        values = {"realm": tokens.url, "service": SERVICE, "issuer": ISSUER, "rootcertbundle": bundle}
        config["auth"] = {"token": values}
    (folder / "config.json").write_text(json.dumps(config))  # JSON is YAML
    with (folder / "log").open("wb") as log:
        assert REGISTRY is not None
        process = subprocess.Popen([REGISTRY, "serve", str(folder / "config.json")], stdout=log, stderr=log)
        try:
            wait_for_http(f"http://127.0.0.1:{port}/v2/", process)
            yield f"127.0.0.1:{port}"
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()


@contextlib.contextmanager
def start_token_server(folder: Path) -> Iterator[TokenServer]:
    """Start a server that gives tokens of the registry's kind (JWT, ES256)."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, ISSUER)])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    (folder / "issuer.pem").write_bytes(certificate.public_bytes(Encoding.PEM))

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            login = self.headers.get("Authorization", "")
            server.logins.append(login)
            is_known = login == "Basic " + base64.b64encode(LOGIN.encode()).decode()
            if not is_known and (login or not server.is_open):
                self.send_response(401)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            access: list[dict[str, object]] = []
            for scope in parse_qs(urlsplit(self.path).query).get("scope", []):
                kind, repository, actions = scope.split(":")
                granted = [one for one in actions.split(",") if is_known or one == "pull"]
                access.append({"type": kind, "name": repository, "actions": granted})
            body = json.dumps({"token": _sign(access)}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Print nothing."""

    def _sign(access: list[dict[str, object]]) -> str:
        chain = base64.b64encode(certificate.public_bytes(Encoding.DER)).decode()
        now_s = int(time.time())
        claims = {"iss": ISSUER, "sub": "", "aud": SERVICE, "exp": now_s + 300, "nbf": now_s - 60, "iat": now_s}
        claims |= {"jti": secrets.token_hex(8), "access": access}
        head = {"typ": "JWT", "alg": "ES256", "x5c": [chain]}
        payload = ".".join(_encode(json.dumps(part).encode()) for part in (head, claims))
        r, s = decode_dss_signature(key.sign(payload.encode(), ec.ECDSA(hashes.SHA256())))
        return f"{payload}.{_encode(r.to_bytes(32, 'big') + s.to_bytes(32, 'big'))}"

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        http.daemon_threads = True
        server = TokenServer(f"http://127.0.0.1:{http.server_address[1]}/token", folder / "issuer.pem")
        threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        try:
            yield server
        finally:
            http.shutdown()


def _encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
