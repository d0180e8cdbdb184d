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
from device_agent.runtime.wire import IN_FLIGHT, Answer

MAX_ATTEMPTS: Final = 2
RETRY_AFTER_S: Final = 1
MAX_VERSIONS_KEPT: Final = 8  # in the metrics: a device that updates for years must not grow


class RequestFailed(Exception):
    """A request gets this answer instead of the model's; with `closes`, its connection ends too."""

    def __init__(self, status: int, message: str, *, closes: bool = False) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.closes = closes


class Sender(Protocol):
    """Carries a request to a model process."""

    def send(self, request: "Request") -> None: ...

    def close(self) -> None: ...


class Listener(Protocol):
    """Hears live requests and their answers (device_agent.front.shadow)."""

    def hear(self, request: "Request", answer: Answer) -> None: ...


class Outcome(Protocol):
    """Where the answer goes; asyncio.Future is one."""

    def set_result(self, result: Answer, /) -> None: ...

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
    outcome: Outcome
    arrived_s: float
    version: str | None = None
    number: int = 0
    attempts: int = 0
    dispatched_s: float = 0.0
    is_expired: bool = False

    def answer(self, answer: Answer) -> None:
        """Nobody may wait any more: the client has gone, or was told that it takes too long."""
        if not self.outcome.done():
            self.outcome.set_result(answer)

    def fail(self, status: int, message: str) -> None:
        """As `answer`."""
        if not self.outcome.done():
            self.outcome.set_exception(RequestFailed(status, message))


@dataclass(eq=False, slots=True)
class Window:
    """Counters of one generation since it became current (rule 5)."""

    since_s: float
    requests: int = 0
    client_errors: int = 0
    errors: int = 0
    nan: int = 0
    crashes: int = 0
    busy: LatencyHistogram = field(default_factory=LatencyHistogram)
    total: LatencyHistogram = field(default_factory=LatencyHistogram)

    def count(self, answer: Answer, total_us: int) -> None:
        """One answer; `total_us` from the request's arrival."""
        self.requests += 1
        self.total.add(total_us)
        if answer.status >= 500:
            self.errors += 1
        elif answer.status >= 400:
            self.client_errors += 1
        else:
            self.nan += answer.has_nan
            self.busy.add(answer.busy_us)

    def merge(self, other: "Window") -> None:
        """Count all of the other's too."""
        self.requests += other.requests
        self.client_errors += other.client_errors
        self.errors += other.errors
        self.nan += other.nan
        self.crashes += other.crashes
        self.busy.merge(other.busy)
        self.total.merge(other.total)


@dataclass(eq=False, slots=True)
class Generation:
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
    meta: Mapping[str, Any]
    window: Window
    process: str = ""
    sender: Sender | None = None
    leases: dict[int, Request] = field(default_factory=dict)
    pinned: deque[Request] = field(default_factory=deque)
    drained: list[Callable[[], None]] = field(default_factory=list)
    is_retired: bool = False
    past: Window = field(default_factory=lambda: Window(0.0))

    @property
    def lifetime(self) -> Window:
        """Counters since it is here."""
        out = Window(0.0)
        out.merge(self.past)
        out.merge(self.window)
        return out

    @property
    def has_room(self) -> bool:
        """It can take a request now."""
        return self.sender is not None and len(self.leases) < IN_FLIGHT


class Slot:
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
        self.current: Generation | None = None
        self.generations: dict[int, Generation] = {}
        self.waiting: deque[Request] = deque()
        self.refused = 0
        self.swaps = 0
        self.shadow: Listener | None = None
        self.past: dict[str, Window] = {}  # by version: what generations counted that are gone
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
        return not self.waiting and not any(g.leases or g.pinned for g in self.generations.values())

    def lifetimes(self) -> dict[str, Window]:
        """Counters by version, of what is here and what was; they never fall. At most MAX_VERSIONS_KEPT of the past."""
        out: dict[str, Window] = {}
        for version, window in (
            *self.past.items(),
            *((g.version, g.lifetime) for g in self.generations.values()),
        ):
            out.setdefault(version, Window(0.0)).merge(window)
        return out

    def _keep(self, version: str, window: Window) -> None:
        self.past.setdefault(version, Window(0.0)).merge(window)
        while len(self.past) > MAX_VERSIONS_KEPT:
            del self.past[next(iter(self.past))]

    def submit(self, request: Request) -> None:
        """Dispatch a request or let it wait (rules 1 and 2).

        Raises:
            RequestFailed: 404 for a version that is not loaded, 503 where too many wait or nothing was ever published.
        """
        generation = self.current if request.version is None else self.of_version(request.version)
        if request.version is not None and generation is None:
            raise RequestFailed(404, f"model {self.family!r} has no loaded version {request.version!r}")
        if generation is None and not self.swaps and not self._is_awaited:
            # nothing was ever published: there is no swap or restart in sight that a wait could bridge
            self.refused += 1
            raise RequestFailed(503, f"model {self.family!r} is not installed yet")
        queue = self.waiting if generation is None or request.version is None else generation.pinned
        if generation is not None and generation.has_room and not queue:
            self._dispatch(generation, request)
            return
        if len(queue) >= self._max_waiting:
            self.refused += 1
            raise RequestFailed(503, f"model {self.family!r}: {len(queue)} requests wait already")
        queue.append(request)

    def of_version(self, version: str) -> Generation | None:
        """The generation that answers for a version; the current one if several have it."""
        if self.current is not None and self.current.version == version:
            return self.current
        found = [g for g in self.generations.values() if g.version == version and not g.is_retired]
        return found[-1] if found else None

    def publish(self, generation: Generation) -> None:
        """The switch: from here on requests go to `generation`."""
        self.generations[generation.number] = generation
        if self.current is not generation:
            generation.past.merge(generation.window)
            generation.window = Window(self._clock())
            self.swaps += 1
            generation.is_retired = False
            self.current = generation
        self.pump()

    def retire(self, number: int, drained: Callable[[], None]) -> None:
        """Rule 4. `drained` is called at once where nothing is on lease. Unknown generations are drained already."""
        generation = self.generations.get(number)
        if generation is None:
            drained()
            return
        if self.current is generation:
            self.current = None
        generation.is_retired = True
        generation.drained.append(drained)
        self._forget_if_drained(generation)

    def answered(self, generation: Generation, number: int, answer: Answer) -> None:
        """An answer came; unknown numbers are of requests that a front before this one sent."""
        request = generation.leases.pop(number, None)
        if request is not None:
            if not request.is_expired:
                generation.window.count(answer, round((self._clock() - request.arrived_s) * 1e6))
            request.answer(answer)
            if self.shadow is not None and generation is self.current:
                self.shadow.hear(request, answer)
        self.pump()
        self._forget_if_drained(generation)

    def lost(self, generation: Generation) -> None:
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
                (self.waiting if request.version is None else generation.pinned).appendleft(request)
        self.pump()
        self._forget_if_drained(generation)

    def pump(self) -> None:
        """Dispatch what can be dispatched."""
        current = self.current
        while self.waiting and current is not None and current.has_room:
            self._dispatch(current, self.waiting.popleft())
        for generation in self.generations.values():
            while generation.pinned and generation.has_room:
                self._dispatch(generation, generation.pinned.popleft())

    def sweep(self, answer_deadline_s: float) -> None:
        """Fail what has waited too long: for a process (503), or for its answer (504)."""
        now = self._clock()
        for queue in (self.waiting, *(g.pinned for g in self.generations.values())):
            for _ in range(len(queue)):
                request = queue.popleft()
                if now - request.arrived_s > self._wait_s:
                    self.refused += 1
                    request.fail(503, f"model {self.family!r} had no capacity for {self._wait_s:g} s")
                elif not request.outcome.done():
                    queue.append(request)
        for generation in self.generations.values():
            for request in generation.leases.values():
                if now - request.dispatched_s > answer_deadline_s and not request.outcome.done():
                    generation.window.requests += 1
                    generation.window.errors += 1
                    request.is_expired = True
                    request.fail(504, f"model {self.family!r} did not answer within {answer_deadline_s:g} s")

    def give_up(self) -> None:
        """The front ends: fail what waits for a process that is not there."""
        for queue in (self.waiting, *(g.pinned for g in self.generations.values() if g.sender is None)):
            while queue and (not self.is_ready or queue is not self.waiting):
                queue.popleft().fail(503, "the endpoint is being stopped")

    def _dispatch(self, generation: Generation, request: Request) -> None:
        assert generation.sender is not None
        self._next_number += 1
        request.attempts += 1
        request.dispatched_s = self._clock()
        request.number = self._next_number
        generation.leases[request.number] = request
        generation.sender.send(request)

    def _forget_if_drained(self, generation: Generation) -> None:
        if not generation.is_retired:
            return
        while generation.pinned:
            generation.pinned.popleft().fail(404, f"model {self.family!r}: version {generation.version!r} was unloaded")
        if generation.leases:
            return
        if self.generations.get(generation.number) is generation:
            del self.generations[generation.number]
            self._keep(generation.version, generation.lifetime)
        if generation.sender is not None:
            generation.sender.close()
            generation.sender = None
        for drained in generation.drained:
            drained()
        generation.drained.clear()
