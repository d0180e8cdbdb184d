"""What a server answers that is not a registry, or a damaged one, is one error that names it."""

import contextlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from packager.stores import errors
from packager.stores.registry_client import AUTH_VARIABLE, RegistryClient


@pytest.fixture(autouse=True)
def _without_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(AUTH_VARIABLE, raising=False)
    monkeypatch.setenv("DOCKER_CONFIG", "/nonexistent")


@pytest.mark.parametrize("text", ["<html>", "[]", "7", "[" * 200_000, '{"tags": 7}'], ids=lambda text: text[:12])
def test_answers_that_are_not_those_of_a_registry_are_named(text: str) -> None:
    with serve_text(text) as host:
        client = RegistryClient(f"oci+http://{host}/name")
        with pytest.raises(errors.StoreRejected, match="the list of tags"):
            client.list_tags()


@pytest.mark.parametrize("token", ["", "nonsense", "[]", '{"token": 7}', '{"token": "a\\nb"}', "{}"])
def test_an_answer_without_a_token_is_named(token: str) -> None:
    with serve_text(token, asks_for_token=True) as host, pytest.raises(errors.StoreRejected, match="without a token"):
        RegistryClient(f"oci+http://{host}/name").list_tags()


@contextlib.contextmanager
def serve_text(text: str, *, asks_for_token: bool = False) -> Iterator[str]:
    """Answer every request with a text; or every one but that for a token with 401."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            is_refused = asks_for_token and not self.path.startswith("/token")
            self.send_response(401 if is_refused else 200)
            if is_refused:
                self.send_header("WWW-Authenticate", f'Bearer realm="http://{self.headers["Host"]}/token"')
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
