"""The HTTP routes of the Open Inference Protocol v2, as a bare ASGI app.

Sources: the protocol's REST definition (KServe, "Open Inference Protocol"), Triton's binary tensor data extension.
Rules:
1. Bodies of inference requests and responses are passed on unparsed. There is no web framework and no numpy, because
   the front's memory is in use even when the device is idle.
2. Every error is JSON `{"error": "..."}`. Status: 400 malformed request; 404 unknown path or model; 405 wrong method;
   408 slow or incomplete body; 413 too large; 415 unknown encoding; 500 and 504 failure of the model; 503 with
   `Retry-After` if a limit is reached.
3. Limits are checked as bytes arrive: the size of one body, of all bodies in memory, and the number of connections
   (device_agent.front.connections). `/v2/health` is answered beyond every limit.
4. No text from a model process or a client is copied into a response header.
5. Every request is checked first by device_agent.front.access, whatever its path.
"""

import asyncio
import json
import re
import time
import urllib.parse
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

from bundle.version import VERSION
from device_agent.front import metrics
from device_agent.front.access import PREFLIGHT_HEADERS, AccessRules
from device_agent.front.connections import ByteLedger, Connection, ConnectionTable, HeldBytes
from device_agent.front.front_generation import FrontGeneration
from device_agent.front.generations import RETRY_AFTER_S, FamilyQueue
from device_agent.front.model_info import model_statistics, repository_index
from device_agent.front.requests import Request, RequestFailed
from device_agent.runtime import wire
from device_agent.runtime.wire import NO_JSON

Scope = Mapping[str, Any]
Receive = Callable[[], Awaitable[Mapping[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]

EXTENSIONS: Final = ["binary_tensor_data", "statistics", "model_repository"]
DECIMAL_PATTERN: Final = re.compile(rb"[0-9]{1,15}")
JSON_CONTENT_TYPE: Final = (b"content-type", b"application/json")
BINARY_CONTENT_TYPE: Final = (b"content-type", b"application/octet-stream")
JSON_LENGTH_HEADER: Final = b"inference-header-content-length"
BODY_TIMEOUT_S: Final = 60  # links are local, and a body that arrives slowly occupies memory that other requests need


@dataclass(frozen=True, slots=True)
class RequestLimits:
    """Limits of the endpoint.

    Attributes:
        max_body_bytes: largest request body; a model's contract can allow less.
        max_kept_bytes: largest sum of all request bodies in memory.
        max_waiting: requests of a family that may wait for its model.
        max_connections: connections with a request.
        wait_s: seconds that a request may wait for a model process.
        response_deadline_s: seconds that a model may take for a request.
    """

    max_body_bytes: int
    max_kept_bytes: int
    max_waiting: int
    max_connections: int
    wait_s: float
    response_deadline_s: float


class ClientConnection(Connection, Protocol):
    """The connection of a request; "connection" in its scope. device_agent.front.protocol implements it."""

    @property
    def is_over_limit(self) -> bool:
        """True if too many connections have a request."""
        ...

    @property
    def must_give_way(self) -> bool:
        """True if the request has to fail, because others need its memory or its connection."""
        ...

    @property
    def is_cut_off(self) -> bool:
        """True if the client closed its sending side within the body."""
        ...


class EndpointApp:
    """The ASGI app of the endpoint.

    Args:
        limits: limits of rule 3.
        access: decides which requests are accepted (rule 5).
        table, ledger: the open connections, and the bytes of their requests and responses.
        on_work: called when a request waits or runs, so that deadlines are checked only then.

    Attributes:
        family_queues: the queue of each family, by name.
        access: decides which requests are accepted (rule 5).
        supervisor_metrics: the supervisor's part of `/metrics`.
        meters: processor time and memory of the processes.
    """

    def __init__(
        self,
        limits: RequestLimits,
        access: AccessRules,
        table: ConnectionTable,
        ledger: ByteLedger,
        on_work: Callable[[], None],
    ) -> None:
        self.family_queues: dict[str, FamilyQueue] = {}
        self.supervisor_metrics = b""
        self.meters = metrics.ProcessMeters()
        self._limits = limits
        self.access = access
        self._table, self._ledger = table, ledger
        self._on_work = on_work
        self._loop = asyncio.get_running_loop()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one HTTP request.

        Args:
            scope, receive, send: as ASGI defines them.
        """
        cors: Headers = []
        try:
            cors = self.access.check(scope["method"], scope["headers"], scope.get("authority"))
            if cors and scope["method"] == "OPTIONS":
                status, headers, body = 204, [*PREFLIGHT_HEADERS], b""
            else:
                status, headers, body = await self._route(scope, receive)
        except RequestFailed as error:
            status, headers, body = _json_response(error.status, {"error": error.message})
            if error.status == 503:
                headers.append((b"retry-after", b"%d" % RETRY_AFTER_S))
            if error.closes_connection:
                headers.append((b"connection", b"close"))
        if self._table.is_stopping and (b"connection", b"close") not in headers:
            headers.append((b"connection", b"close"))
        if status != 204:
            headers.append((b"content-length", b"%d" % len(body)))
        await send({"type": "http.response.start", "status": status, "headers": [*headers, *cors]})
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})

    async def _route(self, scope: Scope, receive: Receive) -> tuple[int, Headers, bytes]:
        # split before unquoting, because %2F in a name is not a separator
        parts = [urllib.parse.unquote(part) for part in bytes(scope["raw_path"]).decode("ascii").strip("/").split("/")]
        if scope["connection"].is_over_limit and parts[:2] != ["v2", "health"]:
            raise RequestFailed(
                503, f"more than {self._limits.max_connections} connections have a request", closes_connection=True
            )
        if parts[:2] == ["v2", "models"] and parts[-1] == "infer":
            _check_method(scope, "POST")
            match parts[2:-1]:
                case [model]:
                    return await self._handle_inference(scope, receive, model, None)
                case [model, "versions", version]:
                    return await self._handle_inference(scope, receive, model, version)
        if parts == ["v2", "repository", "index"]:
            _check_method(scope, "POST")
            return _json_response(200, repository_index(self.family_queues.values()))
        if parts[:2] == ["v2", "repository"]:
            raise RequestFailed(403, "models are loaded by updates only, not by requests")
        _check_method(scope, "GET", "HEAD")
        return self._handle_get(parts)

    def _handle_get(self, parts: list[str]) -> tuple[int, Headers, bytes]:
        match parts:
            case ["v2"]:
                return _json_response(200, {"name": "airweights", "version": VERSION, "extensions": EXTENSIONS})
            case ["v2", "health", "live"]:
                return _json_response(200, {"live": True})
            case ["v2", "health", "ready"]:
                ready = bool(self.family_queues) and all(queue.is_ready for queue in self.family_queues.values())
                return _json_response(200 if ready else 400, {"ready": ready})
            case ["metrics"]:
                return (
                    200,
                    [metrics.CONTENT_TYPE],
                    metrics.render_metrics(self.family_queues, self._table, self.meters, self.supervisor_metrics),
                )
            case ["v2", "models", "stats"]:
                return _json_response(200, model_statistics(self.family_queues.values(), None))
            case ["v2", "models", model, "stats"]:
                return _json_response(200, model_statistics([self._family_queue(model)], None))
            case ["v2", "models", model, "versions", version, "stats"]:
                return _json_response(200, model_statistics([self._family_queue(model)], version))
            case ["v2", "models", model]:
                return _json_response(200, self._metadata(model, None))
            case ["v2", "models", model, "versions", version]:
                return _json_response(200, self._metadata(model, version))
            case ["v2", "models", model, "ready"]:
                return _ready_response(model, self._family_queue(model).current)
            case ["v2", "models", model, "versions", version, "ready"]:
                return _ready_response(model, self._family_queue(model).generation_of_version(version))
        raise RequestFailed(404, "unknown path, expected /v2/... of the Open Inference Protocol")

    def _metadata(self, model: str, version: str | None) -> dict[str, Any]:
        queue = self._family_queue(model)
        generation = queue.current if version is None else queue.generation_of_version(version)
        number = None if generation is None else generation.find_model(model)
        if generation is None or number is None:
            raise RequestFailed(
                404, f"model {model[:160]!r} has no loaded version{'' if version is None else f' {version[:80]!r}'}"
            )
        versions = sorted(
            {g.version for g in queue.generations.values() if not g.is_retired and g.find_model(model) is not None}
        )
        return {"name": model, "versions": versions, **generation.models[number].metadata}

    def _family_queue(self, model: str) -> FamilyQueue:
        """Return the queue of the family that a model (FAMILY or FAMILY.MODEL) belongs to."""
        queue = self.family_queues.get(model)
        if queue is not None and queue.has_model(model):
            return queue
        for family in sorted(self.family_queues, key=len, reverse=True):
            if model.startswith(f"{family}.") and self.family_queues[family].has_model(model):
                return self.family_queues[family]
        known = [name for queue in self.family_queues.values() for name in queue.model_names()]
        raise RequestFailed(404, f"unknown model, expected one of: {', '.join(known) or 'none'}")

    async def _handle_inference(
        self, scope: Scope, receive: Receive, model: str, version: str | None
    ) -> tuple[int, Headers, bytes]:
        queue = self._family_queue(model)
        flags, json_bytes, length = _parse_framing(scope["headers"])
        limit = min(queue.max_body_bytes(model, version), self._limits.max_body_bytes)
        if length > limit:
            raise _too_large_error(limit)
        held = self._ledger.hold(scope["connection"])
        try:
            try:
                async with asyncio.timeout(BODY_TIMEOUT_S):
                    body = await self._read_body(scope["connection"], receive, held, limit)
            except TimeoutError as error:
                raise RequestFailed(
                    408, f"the body did not arrive within {BODY_TIMEOUT_S} s", closes_connection=True
                ) from error
            if 0 <= length != len(body):
                raise _cut_off_error()
            held.can_give_way = False
            future = self._loop.create_future()
            peer = scope["connection"].peer
            request = Request(flags, json_bytes, body, future, time.monotonic(), version, peer, model)
            queue.submit(request)
            self._on_work()
            response = await future
        finally:
            self._ledger.release(held)
        if response.json_bytes == NO_JSON:
            headers: Headers = [JSON_CONTENT_TYPE]
        else:
            headers = [BINARY_CONTENT_TYPE, (JSON_LENGTH_HEADER, b"%d" % response.json_bytes)]
        if response.encoding:
            headers.append((b"content-encoding", response.encoding.encode()))
        return response.status, headers, response.body

    async def _read_body(
        self, connection: ClientConnection, receive: Receive, held: HeldBytes, limit: int
    ) -> bytes | bytearray:
        body = bytearray()
        while True:
            message = await receive()
            if connection.must_give_way:
                raise RequestFailed(503, "others needed the memory of this incomplete body", closes_connection=True)
            if message["type"] != "http.request" or connection.is_cut_off:
                raise _cut_off_error()
            part: bytes = message["body"]
            if len(body) + len(part) > limit:
                raise _too_large_error(limit)
            if not self._ledger.grow(held, len(part)):
                raise RequestFailed(
                    503, f"{self._ledger.counted_bytes} bytes of requests are in memory already", closes_connection=True
                )
            is_last = not message.get("more_body", False)
            if is_last and not body:
                return part  # without a copy
            body += part
            if is_last:
                return body


def _too_large_error(limit: int) -> RequestFailed:
    # the connection is closed, because the rest of the body is not read
    return RequestFailed(413, f"the body is too large, at most {limit} bytes are allowed", closes_connection=True)


def _cut_off_error() -> RequestFailed:
    return RequestFailed(408, "the request ended before its body was complete", closes_connection=True)


def _parse_framing(headers: Iterable[tuple[bytes, bytes]]) -> tuple[int, int, int]:
    """Return the flags for the frame, the length of the JSON part, and Content-Length or -1."""
    flags, json_bytes, length = 0, NO_JSON, -1
    for name, value in headers:
        if name == b"content-length":
            length = _parse_decimal(name, value)
        elif name == JSON_LENGTH_HEADER:
            json_bytes = _parse_decimal(name, value)
            if json_bytes >= NO_JSON:
                raise RequestFailed(400, "Inference-Header-Content-Length is too large")
        elif name == b"content-encoding" and value.strip().lower() not in (b"identity", b""):
            coding = value.strip().lower()
            if coding not in _BODY_FLAGS:
                raise RequestFailed(415, "Content-Encoding: expected gzip, deflate or identity")
            flags |= _BODY_FLAGS[coding]
        elif name == b"accept-encoding":
            flags |= _response_flag(value)
    return flags, json_bytes, length


_BODY_FLAGS: Final = {b"gzip": wire.GZIP_BODY, b"deflate": wire.DEFLATE_BODY}


def _response_flag(value: bytes) -> int:
    """Return the encoding that Accept-Encoding allows: gzip if it is accepted, else deflate, else 0."""
    accepted = set()
    for item in value.lower().split(b","):
        coding, _, weight = item.partition(b";")
        if not re.fullmatch(rb"\s*q=0(\.0*)?\s*", weight):
            accepted.add(coding.strip())
    if b"gzip" in accepted:
        return wire.GZIP_RESPONSE
    return wire.DEFLATE_RESPONSE if b"deflate" in accepted else 0


def _parse_decimal(name: bytes, value: bytes) -> int:
    if not DECIMAL_PATTERN.fullmatch(value.strip()):
        raise RequestFailed(400, f"{name.decode()}: expected a decimal number")
    return int(value)


def _check_method(scope: Scope, *methods: str) -> None:
    if scope["method"] not in methods:
        raise RequestFailed(405, f"method {scope['method'][:20]!r}, expected {' or '.join(methods)}")


def _ready_response(model: str, generation: FrontGeneration | None) -> tuple[int, Headers, bytes]:
    ready = generation is not None and generation.sender is not None and generation.find_model(model) is not None
    return _json_response(200 if ready else 400, {"name": model, "ready": ready})


def _json_response(status: int, value: object) -> tuple[int, Headers, bytes]:
    return status, [JSON_CONTENT_TYPE], json.dumps(value).encode()
