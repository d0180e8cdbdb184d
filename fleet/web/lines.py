"""POST /v1/lines: a batch of signed lines.

Rules:
- The body is at most MAX_BATCH_LINES lines of 16 KiB. It needs no login: each line proves its sender.
- The answer comes after the commit. It says for each log what is stored, so that the device drops that and sends what
  is missing. Refused lines are listed with their reason, and the others are stored.
- A store that cannot be written is 503 with Retry-After: the device keeps its lines and comes again.
- A body has BODY_S to come whole, else 408. All bodies together take at most MAX_BODIES_BYTES, else 503.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from bundle.errors import AirweightsError, TooLarge
from fleet.database import Database
from fleet.errors import BodyTooSlow, CollectorBusy
from fleet.ingest import BatchResult, ingest
from fleet.line import MAX_BATCH_LINES, MAX_LINE_BYTES
from fleet.rate_limit import TokenBuckets
from fleet.web.state import ServerState

MAX_BODY_BYTES: Final = MAX_BATCH_LINES * (MAX_LINE_BYTES + 1)
MAX_BODIES_BYTES: Final = 32 * MAX_BODY_BYTES  # 250 MiB; a usual batch has a few hundred KiB
BODY_S: Final = 60.0
RETRY_AFTER_S: Final = 60


async def receive_lines(request: Request) -> Response:
    """Judge and store the lines of a request, and answer what is stored."""
    state: ServerState = request.app.state.server
    try:
        async with _read_body(request, state) as body:
            lines = _split(body)
            sender = request.client.host if request.client else ""
            async with state.writing:
                result = await run_in_threadpool(_ingest, state.database, state.buckets, sender, lines)
    except TooLarge as error:
        return JSONResponse(error.as_dict(), status_code=413)
    except BodyTooSlow as error:
        return JSONResponse(error.as_dict(), status_code=408, headers={"Connection": "close"})
    except AirweightsError as error:
        return JSONResponse(error.as_dict(), status_code=503, headers={"Retry-After": str(RETRY_AFTER_S)})
    state.count(result.new, result.known, len(result.refused))
    return JSONResponse(result.as_json())


def _ingest(database: Database, buckets: TokenBuckets, sender: str, lines: list[bytes]) -> BatchResult:
    return ingest(database, lines, is_allowed=lambda device_id: buckets.take(sender, device_id))


@asynccontextmanager
async def _read_body(request: Request, state: ServerState) -> AsyncIterator[bytes]:
    """Yield the body of a request, which counts in the memory of all bodies until the block ends."""
    body = bytearray()
    try:
        try:
            async with asyncio.timeout(BODY_S):
                async for chunk in request.stream():
                    body += chunk
                    state.bodies_bytes += len(chunk)
                    if len(body) > MAX_BODY_BYTES:
                        raise TooLarge(f"body is longer than {MAX_BODY_BYTES} bytes")
                    if state.bodies_bytes > MAX_BODIES_BYTES:
                        raise CollectorBusy(f"bodies of {state.bodies_bytes} bytes are received, come again later")
        except TimeoutError as error:
            raise BodyTooSlow(f"{len(body)} bytes of the body came in {BODY_S:g} s") from error
        yield bytes(body)
    finally:
        state.bodies_bytes -= len(body)


def _split(body: bytes) -> list[bytes]:
    """Return the lines of a body, counted before they are split: millions of empty ones take much memory."""
    count = max(body.count(b"\n"), body.count(b"\r"))  # at least so many lines
    lines = body.splitlines() if count <= MAX_BATCH_LINES else []
    if max(count, len(lines)) > MAX_BATCH_LINES:
        raise TooLarge(f"batch of {max(count, len(lines))} lines, at most {MAX_BATCH_LINES} are allowed")
    return lines
