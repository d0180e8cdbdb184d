"""An HTTP proxy on loopback that opens tunnels (CONNECT), or responds as a test wants."""

import contextlib
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

OPEN_TUNNEL = b"HTTP/1.1 200 Connection established\r\nVia: test\r\n\r\n"


@dataclass
class ConnectProxy:
    """A proxy that leads every tunnel to one server.

    Attributes:
        port: port of the server, or None to close after the response.
        response: what it responds to CONNECT.
        url: its address.
        heads: the heads of the received requests.
    """

    port: int | None
    response: bytes = OPEN_TUNNEL
    url: str = ""
    heads: list[str] = field(default_factory=list)

    def serve(self, client: socket.socket) -> None:
        """Serve one connection."""
        with client, contextlib.suppress(OSError):
            head = b""
            while not head.endswith(b"\r\n\r\n"):
                head += client.recv(1) or b"\r\n\r\n"
            self.heads.append(head.decode())
            client.sendall(self.response)
            if self.port is None:
                return
            with socket.create_connection(("127.0.0.1", self.port)) as server:
                forward = threading.Thread(target=_copy, args=(client, server), daemon=True)
                forward.start()
                _copy(server, client)
                forward.join()


def _copy(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 16):
            sink.sendall(data)
    for end in (source, sink):
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def start_connect_proxy(port: int | None, response: bytes = OPEN_TUNNEL) -> Iterator[ConnectProxy]:
    """Start a proxy whose tunnels lead to a port of this machine."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        proxy = ConnectProxy(port, response, f"http://127.0.0.1:{listener.getsockname()[1]}")

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    client, _ = listener.accept()
                    threading.Thread(target=proxy.serve, args=(client,), daemon=True).start()

        thread = threading.Thread(target=accept)
        thread.start()
        try:
            yield proxy
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()
