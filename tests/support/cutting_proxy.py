"""An HTTP proxy in front of one server that cuts chosen requests: before they arrive, or their answers."""

import contextlib
import http.client
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

NEVER = 1 << 30
HOP_FIELDS = ("connection", "transfer-encoding", "keep-alive")


@dataclass(slots=True)
class CuttingProxy:
    """The proxy; a test sets which requests are cut, and reads which ones came.

    Attributes:
        url: its URL; paths are those of the server.
        first_cut: number of the first request that is cut; the first request has the number 1.
        last_cut: number of the last request that is cut.
        is_answer_lost: the cut request still reaches the server.
        dropped_fields: lower-case names of header fields that are not passed on.
        body_bytes: the connection is cut after this many bytes of each body; None for whole bodies.
        requests: method and path of each request.
        statuses: the status of each answer that was passed on.
        fields: lower-case names of the header fields of each request.
    """

    url: str
    first_cut: int = NEVER
    last_cut: int = NEVER
    is_answer_lost: bool = False
    dropped_fields: frozenset[str] = frozenset()
    body_bytes: int | None = None
    requests: list[str] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)
    fields: list[set[str]] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def cut(self, first: int, last: int = NEVER, *, is_answer_lost: bool = False) -> None:
        """Cut the requests from `first` to `last`, and forget those that came."""
        self.first_cut, self.last_cut, self.is_answer_lost = first, last, is_answer_lost
        self.requests.clear()
        self.statuses.clear()

    def pass_all(self) -> None:
        """Cut nothing, and forget the requests that came."""
        self.cut(NEVER)

    def count(self, request: str) -> bool:
        """Count a request; return whether it is cut."""
        with self._lock:
            self.requests.append(request)
            return self.first_cut <= len(self.requests) <= self.last_cut


@contextlib.contextmanager
def start_cutting_proxy(upstream: str) -> Iterator[CuttingProxy]:
    """Start a proxy in front of the server at the URL `upstream`."""
    host = urlsplit(upstream).netloc

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:
            """Print nothing."""

        def handle_one_request(self) -> None:
            """Serve one request of any method."""
            try:
                self.raw_requestline = self.rfile.readline(65537)
                if not self.raw_requestline or not self.parse_request():
                    self.close_connection = True
                    return
                self._serve()
            except OSError:
                self.close_connection = True

        def _serve(self) -> None:
            body = self._read_body()
            proxy.fields.append({name.lower() for name in self.headers})
            is_cut = proxy.count(f"{self.command} {self.path}")
            if is_cut and not proxy.is_answer_lost:
                self.close_connection = True
                return
            dropped = (*HOP_FIELDS, *proxy.dropped_fields)
            server = http.client.HTTPConnection(host, timeout=60)
            try:
                server.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
                for name, value in self.headers.items():
                    if name.lower() not in dropped and name.lower() != "content-length":
                        server.putheader(name, value)
                if body or self.command in ("PUT", "POST", "PATCH"):
                    server.putheader("Content-Length", str(len(body)))
                server.endheaders(body or None)
                answer = server.getresponse()
                data = answer.read()
            finally:
                server.close()
            if is_cut:
                self.close_connection = True
                return
            proxy.statuses.append(answer.status)
            head = f"HTTP/1.1 {answer.status} {answer.reason}\r\n"
            for name, value in answer.getheaders():
                if name.lower() not in HOP_FIELDS and not (name.lower() == "content-length" and answer.status != 204):
                    head += f"{name}: {value}\r\n"
            length = answer.getheader("Content-Length") if self.command == "HEAD" else str(len(data))
            if answer.status not in (204, 304) and length is not None:
                head += f"Content-Length: {length}\r\n"
            self.wfile.write(f"{head}\r\n".encode("latin-1") + data[: proxy.body_bytes])
            if proxy.body_bytes is not None and len(data) > proxy.body_bytes:
                self.close_connection = True

        def _read_body(self) -> bytes:
            if self.headers.get("Expect", "").lower() == "100-continue":
                self.wfile.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            if "chunked" not in self.headers.get("Transfer-Encoding", ""):
                return self.rfile.read(int(self.headers.get("Content-Length", "0")))
            body = b""
            while size := int(self.rfile.readline().split(b";")[0], 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return body

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        proxy = CuttingProxy(f"http://127.0.0.1:{server.server_address[1]}")
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield proxy
        finally:
            server.shutdown()
            thread.join()
