"""A small OCI registry in memory, with rules that real ones have: ranges, deletion, garbage, media types."""

import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

ROUTE = re.compile(r"/v2/(?P<name>.+?)/(?P<kind>manifests|blobs/uploads|blobs|tags)/(?P<rest>.*)")


@dataclass(slots=True)
class SmallRegistry:
    """The registry; a test changes its rules.

    Attributes:
        host: `127.0.0.1:PORT`.
        has_ranges: blobs are served in parts if a client asks.
        can_delete: manifests can be deleted.
        refused_types: media types that a manifest must not have.
        manifest_type: `Content-Type` of the manifests that it serves; None for the stored one.
        cut_bytes: a blob's connection is cut after this many bytes, once for each blob; None for never.
        blobs: digest → content.
        manifests: digest → content.
        tags: tag → digest of its manifest.
        requests: method and path of each request.
    """

    host: str
    has_ranges: bool = True
    can_delete: bool = True
    refused_types: frozenset[str] = frozenset()
    manifest_type: str | None = None
    cut_bytes: int | None = None
    blobs: dict[str, bytes] = field(default_factory=dict)
    manifests: dict[str, bytes] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    cut: set[str] = field(default_factory=set)

    def collect(self) -> None:
        """Delete manifests without a tag, and blobs that no manifest names."""
        self.manifests = {digest: data for digest, data in self.manifests.items() if digest in self.tags.values()}
        named = {digest for data in self.manifests.values() for digest in named_blobs(json.loads(data))}
        self.blobs = {digest: data for digest, data in self.blobs.items() if digest in named}


def named_blobs(manifest: dict) -> set[str]:  # type: ignore[type-arg]
    """Return the digests that a manifest names."""
    return {manifest["config"]["digest"], *(layer["digest"] for layer in manifest["layers"])}


@contextlib.contextmanager
def start_small_registry() -> Iterator[SmallRegistry]:
    """Start a registry on loopback."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_any(self) -> None:
            registry.requests.append(f"{self.command} {self.path}")
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            found = ROUTE.fullmatch(urlsplit(self.path).path)
            assert found is not None
            getattr(self, f"on_{found['kind'].replace('/', '_')}")(found["rest"], body)

        do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = handle_any

        def answer(self, status: int, data: bytes = b"", fields: dict[str, str] | None = None) -> None:
            self.send_response(status)
            for name, value in {"Content-Length": str(len(data)), **(fields or {})}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        def refuse(self, status: int, code: str) -> None:
            self.answer(status, json.dumps({"errors": [{"code": code, "message": code.lower()}]}).encode())

        def on_tags(self, _: str, __: bytes) -> None:
            self.answer(200, json.dumps({"name": "x", "tags": sorted(registry.tags)}).encode())

        def on_blobs_uploads(self, _: str, body: bytes) -> None:
            if self.command == "POST":
                self.answer(202, fields={"Location": f"{urlsplit(self.path).path}1"})
                return
            (digest,) = parse_qs(urlsplit(self.path).query)["digest"]
            assert digest == f"sha256:{hashlib.sha256(body).hexdigest()}"
            registry.blobs[digest] = body
            self.answer(201)

        def on_blobs(self, digest: str, _: bytes) -> None:
            data = registry.blobs.get(digest)
            if data is None:
                self.refuse(404, "BLOB_UNKNOWN")
                return
            found = re.fullmatch(r"bytes=([0-9]+)-", self.headers.get("Range", ""))
            status, fields, part = 200, {}, data
            if found and registry.has_ranges:
                start = int(found[1])
                status, part = 206, data[start:]
                fields = {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"}
            size = registry.cut_bytes
            if self.command == "GET" and size is not None and len(part) > size and digest not in registry.cut:
                registry.cut.add(digest)
                self.send_response(status)
                self.send_header("Content-Length", str(len(part)))
                self.end_headers()
                self.wfile.write(part[:size])
                self.close_connection = True
                return
            self.answer(status, part, fields)

        def on_manifests(self, reference: str, body: bytes) -> None:
            if self.command == "PUT":
                self.put_manifest(reference, body)
                return
            digest = registry.tags.get(reference, reference)
            data = registry.manifests.get(digest)
            if self.command == "DELETE" and not registry.can_delete:
                self.refuse(405, "UNSUPPORTED")
            elif data is None:
                self.refuse(404, "MANIFEST_UNKNOWN")
            elif self.command == "DELETE":
                del registry.manifests[digest]
                registry.tags = {tag: one for tag, one in registry.tags.items() if one != digest}
                self.answer(202)
            else:
                self.answer(200, data, {"Content-Type": registry.manifest_type or json.loads(data)["mediaType"]})

        def put_manifest(self, tag: str, body: bytes) -> None:
            manifest = json.loads(body)
            types = {manifest["mediaType"], manifest.get("artifactType"), manifest["config"]["mediaType"]}
            if (types | {layer["mediaType"] for layer in manifest["layers"]}) & registry.refused_types:
                self.refuse(400, "MANIFEST_INVALID")
            elif named_blobs(manifest) - set(registry.blobs):
                self.refuse(400, "MANIFEST_BLOB_UNKNOWN")
            else:
                digest = f"sha256:{hashlib.sha256(body).hexdigest()}"
                registry.manifests[digest] = body
                registry.tags[tag] = digest
                self.answer(201)

        def log_message(self, format: str, *args: object) -> None:
            """Print nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        http.daemon_threads = True
        registry = SmallRegistry(f"127.0.0.1:{http.server_address[1]}")
        threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        try:
            yield registry
        finally:
            http.shutdown()
