"""Leases, the switch and the queue: which generation answers a request. No sockets here; a `Sender` carries requests.

Rules:
1. A request is dispatched to exactly one generation, the current one of its family at that moment (or the one whose
   version it names), and holds a lease on it until the answer. `publish` is one assignment.
2. At most `wire.IN_FLIGHT` requests are with a process; the others wait here, so that they are not lost with it and
   can go to its successor. Waiting requests are bounded by number; beyond, a request is refused at once (503).
3. A request that was with a process when it died is sent once more, first in the queue; if that process dies too, the
   request fails (500). With no process alive, requests wait for one, at most `wait_s` (then 503).
4. A retired generation takes no new requests and is drained once its last lease is back.
5. Health counts what the model did: client mistakes (4xx) are not errors, NaN answers are not failures; each has its
   own counter. A window starts when its generation becomes the current one.
"""

import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from device_agent.runtime.latency import LatencyHistogram
from device_agent.runtime.wire import MAX_IN_FLIGHT_REQUESTS, Response

MAX_ATTEMPTS: Final = 2
RETRY_AFTER_S: Final = 1
MAX_PAST_VERSIONS: Final = 8  # in the metrics: a device that updates for years must not grow


class RequestFailed(Exception):
    """A request gets this answer instead of the model's; with `closes`, its connection ends too."""

    def __init__(self, status: int, message: str, *, closes_connection: bool = False) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.closes_connection = closes_connection


class Sender(Protocol):
    """Carries a request to a model process."""

    def send(self, request: "Request") -> None: ...

    def close(self) -> None: ...


class TrafficMirror(Protocol):
    """Hears live requests and their answers (device_agent.front.shadow)."""

    def mirror(self, request: "Request", response: Response) -> None: ...


class ResponseFuture(Protocol):
    """Where the answer goes; asyncio.Future is one."""

    def set_result(self, result: Response, /) -> None: ...

    def set_exception(self, exception: BaseException, /) -> None: ...

    def done(self) -> bool: ...


@dataclass(eq=False, slots=True)
class Request:
    """One request on its way.

    Attributes:
        flags, json_bytes: as in wire.Head.
        body: opaque.
        outcome: receives the answer or RequestFailed.
        arrived_s: monotonic clock.
        version: of the release that it asks for, or None.
        number: of the last dispatch.
        attempts: times that it was dispatched.
        dispatched_s: monotonic clock, of the last time.
        is_expired: it failed for taking too long and was counted.
    """

    flags: int
    json_bytes: int
    body: bytes | bytearray
    response: ResponseFuture
    arrived_s: float
    version: str | None = None
    number: int = 0
    attempts: int = 0
    dispatched_s: float = 0.0
    is_expired: bool = False

    def set_response(self, response: Response) -> None:
        """Nobody may wait any more: the client has gone, or was told that it takes too long."""
        if not self.response.done():
            self.response.set_result(response)

    def fail(self, status: int, message: str) -> None:
        """As `answer`."""
        if not self.response.done():
            self.response.set_exception(RequestFailed(status, message))


@dataclass(eq=False, slots=True)
class CounterWindow:
    """Counters of one generation since it became current (rule 5)."""

    since_s: float
    requests: int = 0
    client_errors: int = 0
    errors: int = 0
    nan_responses: int = 0
    crashes: int = 0
    busy_us: LatencyHistogram = field(default_factory=LatencyHistogram)
    total_us: LatencyHistogram = field(default_factory=LatencyHistogram)

    def record_response(self, response: Response, total_us: int) -> None:
        """One answer; `total_us` from the request's arrival."""
        self.requests += 1
        self.total_us.add(total_us)
        if response.status >= 500:
            self.errors += 1
        elif response.status >= 400:
            self.client_errors += 1
        else:
            self.nan_responses += response.has_nan
            self.busy_us.add(response.busy_us)

    def merge(self, other: "CounterWindow") -> None:
        """Count all of the other's too."""
        self.requests += other.requests
        self.client_errors += other.client_errors
        self.errors += other.errors
        self.nan_responses += other.nan_responses
        self.crashes += other.crashes
        self.busy_us.merge(other.busy_us)
        self.total_us.merge(other.total_us)


@dataclass(eq=False, slots=True)
class FrontGeneration:
    """One generation that the front knows.

    Attributes:
        number: the supervisor's.
        version: of the release.
        meta: what the metadata endpoint tells of it.
        process: the supervisor's name for the process behind it.
        sender: None while no process is alive.
        leases: requests with the process.
        pinned: requests that wait for this generation, by version.
        drained: called once, when it is retired and its last lease is back.
        past: counters from before the window.
    """

    number: int
    version: str
    metadata: Mapping[str, Any]
    window: CounterWindow
    process: str = ""
    sender: Sender | None = None
    leases: dict[int, Request] = field(default_factory=dict)
    pinned_requests: deque[Request] = field(default_factory=deque)
    on_drained: list[Callable[[], None]] = field(default_factory=list)
    is_retired: bool = False
    past_window: CounterWindow = field(default_factory=lambda: CounterWindow(0.0))

    @property
    def lifetime(self) -> CounterWindow:
        """Counters since it is here."""
        out = CounterWindow(0.0)
        out.merge(self.past_window)
        out.merge(self.window)
        return out

    @property
    def has_room(self) -> bool:
        """It can take a request now."""
        return self.sender is not None and len(self.leases) < MAX_IN_FLIGHT_REQUESTS


class FamilyQueue:
    """One family: its generations, the current one, and the requests that wait.

    Args:
        family: its name.
        max_waiting: requests (rule 2).
        wait_s: rule 3.
        clock: monotonic seconds.
        first_number: of the first request; another front may have left requests with a process.
        is_awaited: another front had a generation, which is about to be published here: requests wait for it.
    """

    def __init__(
        self,
        family: str,
        *,
        max_waiting: int,
        wait_s: float,
        clock: Callable[[], float] = time.monotonic,
        first_number: int = 0,
        is_awaited: bool = False,
    ) -> None:
        self.family = family
        self.current: FrontGeneration | None = None
        self.generations: dict[int, FrontGeneration] = {}
        self.waiting_requests: deque[Request] = deque()
        self.rejected_requests = 0
        self.switches = 0
        self.shadow: TrafficMirror | None = None
        self.past_windows: dict[str, CounterWindow] = {}  # by version: what generations counted that are gone
        self._max_waiting = max_waiting
        self._wait_s = wait_s
        self._clock = clock
        self._next_number = first_number
        self._is_awaited = is_awaited

    @property
    def is_ready(self) -> bool:
        """A generation is current and its process alive."""
        return self.current is not None and self.current.sender is not None

    @property
    def is_idle(self) -> bool:
        """No request is here."""
        return not self.waiting_requests and not any(g.leases or g.pinned_requests for g in self.generations.values())

    def lifetimes(self) -> dict[str, CounterWindow]:
        """Counters by version, of what is here and what was; they never fall. At most MAX_VERSIONS_KEPT of the past."""
        out: dict[str, CounterWindow] = {}
        for version, window in (
            *self.past_windows.items(),
            *((g.version, g.lifetime) for g in self.generations.values()),
        ):
            out.setdefault(version, CounterWindow(0.0)).merge(window)
        return out

    def _add_past_window(self, version: str, window: CounterWindow) -> None:
        self.past_windows.setdefault(version, CounterWindow(0.0)).merge(window)
        while len(self.past_windows) > MAX_PAST_VERSIONS:
            del self.past_windows[next(iter(self.past_windows))]

    def submit(self, request: Request) -> None:
        """Dispatch a request or let it wait (rules 1 and 2).

        Raises:
            RequestFailed: 404 for a version that is not loaded, 503 where too many wait or nothing was ever published.
        """
        generation = self.current if request.version is None else self.generation_of_version(request.version)
        if request.version is not None and generation is None:
            raise RequestFailed(404, f"model {self.family!r} has no loaded version {request.version!r}")
        if generation is None and not self.switches and not self._is_awaited:
            # nothing was ever published: there is no swap or restart in sight that a wait could bridge
            self.rejected_requests += 1
            raise RequestFailed(503, f"model {self.family!r} is not installed yet")
        queue = self.waiting_requests if generation is None or request.version is None else generation.pinned_requests
        if generation is not None and generation.has_room and not queue:
            self._dispatch(generation, request)
            return
        if len(queue) >= self._max_waiting:
            self.rejected_requests += 1
            raise RequestFailed(503, f"model {self.family!r}: {len(queue)} requests wait already")
        queue.append(request)

    def generation_of_version(self, version: str) -> FrontGeneration | None:
        """The generation that answers for a version; the current one if several have it."""
        if self.current is not None and self.current.version == version:
            return self.current
        found = [g for g in self.generations.values() if g.version == version and not g.is_retired]
        return found[-1] if found else None

    def publish(self, generation: FrontGeneration) -> None:
        """The switch: from here on requests go to `generation`."""
        self.generations[generation.number] = generation
        if self.current is not generation:
            generation.past_window.merge(generation.window)
            generation.window = CounterWindow(self._clock())
            self.switches += 1
            generation.is_retired = False
            self.current = generation
        self.dispatch_waiting()

    def retire(self, number: int, on_drained: Callable[[], None]) -> None:
        """Rule 4. `drained` is called at once where nothing is on lease. Unknown generations are drained already."""
        generation = self.generations.get(number)
        if generation is None:
            on_drained()
            return
        if self.current is generation:
            self.current = None
        generation.is_retired = True
        generation.on_drained.append(on_drained)
        self._delete_if_drained(generation)

    def handle_response(self, generation: FrontGeneration, number: int, response: Response) -> None:
        """An answer came; unknown numbers are of requests that a front before this one sent."""
        request = generation.leases.pop(number, None)
        if request is not None:
            if not request.is_expired:
                generation.window.record_response(response, round((self._clock() - request.arrived_s) * 1e6))
            request.set_response(response)
            if self.shadow is not None and generation is self.current:
                self.shadow.mirror(request, response)
        self.dispatch_waiting()
        self._delete_if_drained(generation)

    def handle_lost_process(self, generation: FrontGeneration) -> None:
        """The process of a generation is gone (rule 3)."""
        generation.sender = None
        generation.window.crashes += 1
        leases = list(generation.leases.values())
        generation.leases.clear()
        for request in reversed(leases):
            if request.attempts >= MAX_ATTEMPTS:
                generation.window.requests += 1
                generation.window.errors += 1
                request.fail(500, "the model process died on this request, and again when it was sent once more")
            else:
                (self.waiting_requests if request.version is None else generation.pinned_requests).appendleft(request)
        self.dispatch_waiting()
        self._delete_if_drained(generation)

    def dispatch_waiting(self) -> None:
        """Dispatch what can be dispatched."""
        current = self.current
        while self.waiting_requests and current is not None and current.has_room:
            self._dispatch(current, self.waiting_requests.popleft())
        for generation in self.generations.values():
            while generation.pinned_requests and generation.has_room:
                self._dispatch(generation, generation.pinned_requests.popleft())

    def fail_expired(self, response_deadline_s: float) -> None:
        """Fail what has waited too long: for a process (503), or for its answer (504)."""
        now = self._clock()
        for queue in (self.waiting_requests, *(g.pinned_requests for g in self.generations.values())):
            for _ in range(len(queue)):
                request = queue.popleft()
                if now - request.arrived_s > self._wait_s:
                    self.rejected_requests += 1
                    request.fail(503, f"model {self.family!r} had no capacity for {self._wait_s:g} s")
                elif not request.response.done():
                    queue.append(request)
        for generation in self.generations.values():
            for request in generation.leases.values():
                if now - request.dispatched_s > response_deadline_s and not request.response.done():
                    generation.window.requests += 1
                    generation.window.errors += 1
                    request.is_expired = True
                    request.fail(504, f"model {self.family!r} did not answer within {response_deadline_s:g} s")

    def fail_waiting(self) -> None:
        """The front ends: fail what waits for a process that is not there."""
        for queue in (
            self.waiting_requests,
            *(g.pinned_requests for g in self.generations.values() if g.sender is None),
        ):
            while queue and (not self.is_ready or queue is not self.waiting_requests):
                queue.popleft().fail(503, "the endpoint is being stopped")

    def _dispatch(self, generation: FrontGeneration, request: Request) -> None:
        assert generation.sender is not None
        self._next_number += 1
        request.attempts += 1
        request.dispatched_s = self._clock()
        request.number = self._next_number
        generation.leases[request.number] = request
        generation.sender.send(request)

    def _delete_if_drained(self, generation: FrontGeneration) -> None:
        if not generation.is_retired:
            return
        while generation.pinned_requests:
            generation.pinned_requests.popleft().fail(
                404, f"model {self.family!r}: version {generation.version!r} was unloaded"
            )
        if generation.leases:
            return
        if self.generations.get(generation.number) is generation:
            del self.generations[generation.number]
            self._add_past_window(generation.version, generation.lifetime)
        if generation.sender is not None:
            generation.sender.close()
            generation.sender = None
        for drained in generation.on_drained:
            drained()
        generation.on_drained.clear()
