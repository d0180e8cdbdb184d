"""The network row: inject each fault into each request of an update; the update must still complete.

The agent runs in this process, over HTTP on loopback, with short timeouts: a stalled response would otherwise take half
a minute.
"""

import contextlib
import gzip
import shutil
import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Final
from unittest import mock

from bundle.errors import Unavailable
from device_agent.config.config import load_config
from device_agent.config.repository import RepositorySettings
from device_agent.workers import blob_transfer, fetcher
from tests.support import faulty_http_server
from tests.support.faulty_http_server import Exchange, Fault, serve_folder
from torture.case import NEW, OLD, Site, spread
from torture.fault_classes import Row
from torture.in_process import InProcessAgent, copy_device

SHORT_TIMEOUTS: Final = (
    (fetcher, "DOCUMENT_DEADLINE_S", 0.6),
    (blob_transfer, "MAX_BACKOFF_S", 0.02),
    (blob_transfer, "MAX_RETRY_AFTER_S", 0.05),
)
STALL_S: Final = 0.3
UPDATES: Final = 4  # a single fault may end one attempt, or two if it cuts a poll off
PIECE_BYTES: Final = 64 * 1024


def network_row(site: Site, limit: int | None) -> Row:
    """Inject every fault into every request."""
    row = Row("a fault on the wire at each request of an update")
    published = Path(load_config(site.device / "config.toml").repository_url.removeprefix("file://"))
    with short_timeouts(), serve_folder(published) as place:
        place.faults = []
        _served, ended = _updates(site, place.url)
        assert ended == NEW, ended
        requests = len(place.requests)
        for name, number in spread([(name, n) for name in FAULTS for n in range(requests)], limit):
            place.faults = [_at(number, FAULTS[name])]
            row.points += 1
            served, ended = _updates(site, place.url)
            if not served <= {OLD, NEW} or ended != NEW:
                row.bad.append(f"{name} at request {number}: served {served}, ends with {ended}")
    return row


@contextmanager
def short_timeouts() -> Iterator[None]:
    """Give the fetcher in this process short timeouts."""
    with contextlib.ExitStack() as stack:
        for module, name, value in SHORT_TIMEOUTS:
            stack.enter_context(mock.patch.object(module, name, value))
        yield


def _updates(site: Site, url: str) -> tuple[set[str | None], str | None]:
    """Update a copy; return every version that served, and the last one."""
    shutil.rmtree(site.scratch / "case", ignore_errors=True)
    hasty = RepositorySettings(first_byte_s=STALL_S, stall_window_s=STALL_S)
    agent = InProcessAgent(copy_device(site.device, site.scratch / "case", url), repository=hasty)
    served: set[str | None] = {agent.start()}
    try:
        for _ in range(UPDATES):
            try:
                ended = agent.update().outcome.value
            except Unavailable as error:
                ended = error.reason
            served.add(agent.serving_version())
            if ended in ("updated", "nothing-new"):
                break
        return served, agent.serving_version()
    finally:
        agent.close()


def _at(number: int, fault: Fault) -> Fault:
    left = [number]

    def once(exchange: Exchange) -> bool:
        left[0] -= 1
        return left[0] == -1 and fault(exchange)

    return once


def _reset(exchange: Exchange) -> bool:
    """Reset the connection after half of the body."""
    body = exchange.data[exchange.start :]
    exchange.head(200, {"Content-Length": str(len(body))})
    exchange.write(body[: len(body) // 2])
    connection = exchange.handler.connection
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.shutdown(socket.SHUT_RD)
    exchange.cut()
    return True


def _stalled(exchange: Exchange, *, after: int) -> bool:
    """Stop sending after some bytes of the body."""
    body = exchange.data[exchange.start :]
    exchange.head(200, {"Content-Length": str(len(body))})
    exchange.write(body[: min(after, len(body) - 1)])
    time.sleep(STALL_S * 2)
    exchange.cut()
    return True


def _of_length(exchange: Exchange, *, more: int) -> bool:
    """Send a Content-Length that is not the body's."""
    exchange.head(200, {"Content-Length": str(max(0, len(exchange.data) + more))})
    with contextlib.suppress(ConnectionError):
        exchange.write(exchange.data)
    exchange.cut()
    return True


def _without_length(exchange: Exchange) -> bool:
    exchange.head(200, {"Connection": "close"})
    exchange.write(exchange.data)
    exchange.cut()
    return True


def _bomb(exchange: Exchange) -> bool:
    """Send 16 MiB of zeros as 16 kB, in a content coding that was not requested."""
    data = gzip.compress(bytes(16 << 20))
    exchange.head(200, {"Content-Length": str(len(data)), "Content-Encoding": "gzip"})
    with contextlib.suppress(ConnectionError):
        exchange.write(data)
    return True


def _range(exchange: Exchange, *, text: str) -> bool:
    """Send 206 with a wrong Content-Range."""
    exchange.head(206, {"Content-Length": str(len(exchange.data)), "Content-Range": text})
    exchange.write(exchange.data)
    return True


def _changing(exchange: Exchange) -> bool:
    """Cut after half of a body that differs from the next one, with another ETag."""
    body = bytes(byte ^ 0xFF for byte in exchange.data)
    exchange.head(200, {"Content-Length": str(len(body)), "ETag": '"another"'})
    exchange.write(body[: len(body) // 2])
    exchange.cut()
    return True


def _poisoned(exchange: Exchange) -> bool:
    data = bytearray(exchange.data)
    for offset in range(len(data) // 2, len(data), PIECE_BYTES):
        data[offset] ^= 1
    exchange.data = bytes(data)
    return False


def _nothing(exchange: Exchange) -> bool:
    """Close the connection without a response."""
    exchange.cut()
    return True


def _redirect(target: str) -> Fault:
    return faulty_http_server.respond_with_status(302, {"Location": target})


def _redirect_to_itself(exchange: Exchange) -> bool:
    return _redirect(f"/{exchange.path}")(exchange)


FAULTS: Final[dict[str, Callable[[Exchange], bool]]] = {
    "reset": _reset,
    "stall at once": partial(_stalled, after=0),
    "stall in the body": partial(_stalled, after=100),
    "1 byte now and then": faulty_http_server.trickle(0.05),
    "cut off": faulty_http_server.cut_after(50),
    "length too large": partial(_of_length, more=1000),
    "length too small": partial(_of_length, more=-10),
    "no length": _without_length,
    "endless": faulty_http_server.send_endless_body,
    "gzip bomb": _bomb,
    "redirect in a circle": _redirect_to_itself,
    "redirect to a file": _redirect("file:///etc/passwd"),
    "redirect to nowhere": _redirect("http://127.0.0.1:1/"),
    "206 unasked": partial(_range, text="bytes 0-9/10"),
    "a range of another file": partial(_range, text="bytes 5-9/1000000000"),
    "a range that is none": partial(_range, text="bytes */*"),
    "a file that changes": _changing,
    "poisoned": _poisoned,
    "nothing": _nothing,
    **{
        f"HTTP {code}": faulty_http_server.respond_with_status(code)
        for code in (204, 400, 403, 404, 410, 416, 429, 500, 502, 503)
    },
    "HTTP 503, later": faulty_http_server.respond_with_status(503, {"Retry-After": "3600"}),
    "HTTP 503, no number": faulty_http_server.respond_with_status(503, {"Retry-After": "soon"}),
}
