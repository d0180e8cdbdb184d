"""POST /v1/lines: a batch of signed lines.

Rules:
- The body is at most MAX_BATCH_LINES lines of 16 KiB. It needs no login: each line proves its sender.
- The answer comes after the commit. It says for each log what is stored, so that the device drops that and sends what
  is missing. Refused lines are listed with their reason, and the others are stored.
- A store that cannot be written is 503 with Retry-After: the device keeps its lines and comes again.
"""

from typing import Final

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from bundle.errors import AirweightsError, TooLarge
from fleet.database import Database
from fleet.ingest import BatchResult, ingest
from fleet.line import MAX_BATCH_LINES, MAX_LINE_BYTES
from fleet.rate_limit import TokenBuckets
from fleet.web.state import ServerState

MAX_BODY_BYTES: Final = MAX_BATCH_LINES * (MAX_LINE_BYTES + 1)
RETRY_AFTER_S: Final = 60


async def receive_lines(request: Request) -> Response:
    """Judge and store the lines of a request, and answer what is stored."""
    state: ServerState = request.app.state.server
    try:
        lines = (await _read_body(request)).splitlines()
        if len(lines) > MAX_BATCH_LINES:
            raise TooLarge(f"batch of {len(lines)} lines, at most {MAX_BATCH_LINES} are allowed")
        sender = request.client.host if request.client else ""
        async with state.writing:
            result = await run_in_threadpool(_ingest, state.database, state.buckets, sender, lines)
    except TooLarge as error:
        return JSONResponse(error.as_dict(), status_code=413)
    except AirweightsError as error:
        return JSONResponse(error.as_dict(), status_code=503, headers={"Retry-After": str(RETRY_AFTER_S)})
    state.count(result.new, result.known, len(result.refused))
    return JSONResponse(result.as_json())


def _ingest(database: Database, buckets: TokenBuckets, sender: str, lines: list[bytes]) -> BatchResult:
    return ingest(database, lines, is_allowed=lambda device_id: buckets.take(sender, device_id))


async def _read_body(request: Request) -> bytes:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY_BYTES:
            raise TooLarge(f"body is longer than {MAX_BODY_BYTES} bytes")
    return bytes(body)
