"""The static web server of the demo, and attacks by an attacker who controls it.

Rules:
- The server serves files only; devices trust signatures, not the server.
- An attack replaces the response for one path, or the whole folder. It needs no key.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


class HttpSite:
    """A plain HTTP server on a free loopback port.

    Args:
        folder: folder to serve.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.replaced_files: dict[str, bytes] = {}
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, self))
        self._thread = threading.Thread(target=self._server.serve_forever, name="site", daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        """The URL of the server, without a trailing slash."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def stop(self) -> None:
        """Close the port and stop the thread."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @contextmanager
    def replace_file(self, path: str, data: bytes) -> Iterator[None]:
        """Serve other contents for one path.

        Args:
            path: relative path without a leading slash.
            data: contents to serve.
        """
        self.replaced_files[path] = data
        try:
            yield
        finally:
            del self.replaced_files[path]

    @contextmanager
    def serve_folder(self, folder: Path) -> Iterator[None]:
        """Serve another folder instead, inside the context."""
        before, self.folder = self.folder, folder
        try:
            yield
        finally:
            self.folder = before


class _Handler(SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    # the signature of the standard library's class
    def __init__(self, site: HttpSite, *args: Any, **kwargs: Any) -> None:
        self._site = site
        super().__init__(*args, directory=str(site.folder), **kwargs)

    def do_GET(self) -> None:
        self.directory = str(self._site.folder)
        data = self._site.replaced_files.get(self.path.lstrip("/"))
        if data is None:
            super().do_GET()
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing, since the demo prints its own progress."""
