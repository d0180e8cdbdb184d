"""A small Vault server on loopback with the signing part of the transit API, real HTTP and real Ed25519 keys."""

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

TOKEN = "hvs.a-token-that-is-a-secret"  # test value


@dataclass
class Vault:
    """State of the server.

    Attributes:
        url: address of the server.
        keys: keys by name and version.
        is_sealed: whether all requests fail with 503.
        signed: name and version of the key of each signature, in order.
    """

    url: str = ""
    keys: dict[str, dict[int, Ed25519PrivateKey]] = field(default_factory=dict)
    is_sealed: bool = False
    signed: list[tuple[str, int]] = field(default_factory=list)

    def rotate(self, name: str) -> None:
        """Create a key, or a new version of it."""
        versions = self.keys.setdefault(name, {})
        versions[max(versions, default=0) + 1] = Ed25519PrivateKey.generate()


@contextmanager
def run_vault() -> Iterator[Vault]:
    """Run the server until the block ends."""
    state = Vault()

    class Transit(BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            """Do not log."""

        def do_GET(self) -> None:
            kind, name = self.path.removeprefix("/v1/transit/").split("/")
            versions = state.keys.get(name, {})
            if self._is_refused() or kind != "keys" or not versions:
                return self._respond(
                    503 if state.is_sealed else 404, {"errors": ["Vault is sealed"][: state.is_sealed]}
                )
            rows = {
                str(number): {"public_key": base64.b64encode(key.public_key().public_bytes_raw()).decode()}
                for number, key in versions.items()
            }
            return self._respond(200, {"data": {"type": "ed25519", "keys": rows}})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            name = self.path.removeprefix("/v1/transit/sign/")
            if self._is_refused() or name not in state.keys:
                return self._respond(
                    503 if state.is_sealed else 404, {"errors": ["Vault is sealed"][: state.is_sealed]}
                )
            number = int(body["key_version"])
            made = state.keys[name][number].sign(base64.b64decode(body["input"]))
            state.signed.append((name, number))
            return self._respond(200, {"data": {"signature": f"vault:v{number}:{base64.b64encode(made).decode()}"}})

        do_PUT = do_POST

        def _is_refused(self) -> bool:
            return state.is_sealed or self.headers.get("X-Vault-Token") != TOKEN

        def _respond(self, status: int, value: object) -> None:
            if status == 404 and self.headers.get("X-Vault-Token") != TOKEN:
                status, value = 403, {"errors": ["permission denied"]}
            data = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Transit)
    state.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
