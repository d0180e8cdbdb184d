"""Leases, the switch and the queue: which generation handles a request. No I/O here.

Theory of operation. A family has a set of generations, of which at most one is current. A generation g has a sender
(none while its process is down), leases L(g): the requests that its process has, by number, and pinned requests: those
that wait for its version. The family has a queue of requests that wait for whatever generation is current. A request
is in exactly one of these places until it has a response or an error:

    submit    to the current generation, or to the one whose version the request names:
                  |L(g)| < MAX_IN_FLIGHT_REQUESTS and nothing waits   dispatch: number it, add it to L(g), send it
                  otherwise                                           wait; 503 if max_waiting requests wait already
    publish   current = g: one assignment. Leases of other generations stay; waiting requests go to g
    response  remove the request from L(g), complete it, dispatch the next one
    crash     each request in L(g) returns to the front of the queue; 500 if it was dispatched MAX_ATTEMPTS times
    retire    g gets no new requests; when L(g) is empty, g is deleted and the caller's callback runs ("drained")

So a switch never loses or repeats a request, a request waits for a model only while there is none, and a generation is
never unloaded with a request in it.

Rules:
1. A request is dispatched to exactly one generation: the current one of its family at that moment, or the one whose
   version it names. It has a lease on it until the response.
2. At most MAX_IN_FLIGHT_REQUESTS are with a process, and at most MAX_LARGE_REQUESTS large ones. The others wait here,
   so that a crash does not affect them and they can go to a successor. Peers take turns
   (device_agent.front.fair_queue). The number of waiting requests is limited; beyond it, a request is rejected at once
   (503), or the newest one of a peer that has more of them.
3. A request whose process crashed is sent once more, before all others. If that process crashes too, the request fails
   (500). While no process is alive, requests wait at most `wait_s` (then 503).
4. A retired generation takes no new requests. It is drained when its last lease ends.
5. Counters describe the model's health: client mistakes (4xx) are not errors, and responses with NaN are not failures;
   each has a counter of its own. A window starts when its generation becomes the current one.
6. While a generation is observed (in probation), the requests that its process had when it ended are sent again to the
   same generation only, and each alone: one of them may end the process that a rollback needs, and the others must not
   suffer from it. If the generation is retired, they fail (500), except those that are known to be safe (`may_move`).
"""

import time
from collections.abc import Callable
from typing import Final

from device_agent.front.fair_queue import FairQueue
from device_agent.front.front_generation import UNLIMITED_BYTES, CounterWindow, FrontGeneration
from device_agent.front.requests import Request, RequestFailed, ResponseObserver, TrafficMirror
from device_agent.runtime.wire import Response

MAX_ATTEMPTS: Final = 2
RETRY_AFTER_S: Final = 1
MAX_PAST_VERSIONS: Final = 8  # in the metrics, which must not grow with every update


class FamilyQueue:
    """One family: its generations, the current one, and the waiting requests. Used by one thread.

    Args:
        family: its name.
        max_waiting: number of requests that may wait (rule 2).
        wait_s: seconds that a request may wait (rule 3).
        clock: returns monotonic seconds.
        first_number: number before the first request's; random, because an earlier front may have left requests with a
            process.
        is_awaited: an earlier front served a generation that will be published here, so requests wait for it.
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
        self.waiting_requests: FairQueue[Request] = FairQueue()
        self.rejected_requests = 0
        self.switches = 0
        self.shadow: TrafficMirror | None = None
        self.observer: ResponseObserver | None = None
        self.past_windows: dict[str, CounterWindow] = {}  # counters of unloaded generations, by version
        self._max_waiting = max_waiting
        self._wait_s = wait_s
        self._clock = clock
        self._next_number = first_number
        self._is_awaited = is_awaited

    @property
    def is_ready(self) -> bool:
        """True if a generation is current and its process is alive."""
        return self.current is not None and self.current.sender is not None

    @property
    def is_idle(self) -> bool:
        """True if no request is open."""
        return not self.waiting_requests and not any(
            g.leases or g.pinned_requests or g.suspect_requests for g in self.generations.values()
        )

    def lifetimes(self) -> dict[str, CounterWindow]:
        """Return the counters by version, of loaded and of unloaded generations; they never decrease.

        Unloaded versions are limited to the last MAX_PAST_VERSIONS.
        """
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
            RequestFailed: 404 if the named version is not loaded; 503 if too many requests wait, or nothing was ever
                published.
        """
        generation = self.current if request.version is None else self.generation_of_version(request.version)
        if request.version is not None and generation is None:
            raise RequestFailed(404, f"model {request.model!r} has no loaded version {request.version!r}")
        if generation is not None and generation.find_model(request.model) is None:
            raise RequestFailed(404, _unknown_model(request.model, generation))
        if generation is None and not self.switches and not self._is_awaited:
            # nothing was ever published, so no swap or restart is in progress that the request could wait for
            self.rejected_requests += 1
            raise RequestFailed(503, f"model {self.family!r} is not installed yet")
        queue = self.waiting_requests if generation is None or request.version is None else generation.pinned_requests
        is_next = generation is not None and generation.takes(request) and not any(map(generation.takes, queue))
        if generation is not None and is_next:
            self._dispatch(generation, request)
            return
        if len(queue) >= self._max_waiting:
            self.rejected_requests += 1
            waiting = f"model {self.family!r}: {len(queue)} requests are waiting already"
            displaced = queue.pop_newest_of_largest(request.peer)
            if displaced is None:
                raise RequestFailed(503, waiting)
            displaced.fail(503, waiting)
        queue.append(request)

    def max_body_bytes(self, model: str, version: str | None) -> int:
        """Return the largest body of a request.

        Args:
            model: name of the model at the endpoint.
            version: version of the release; None for the current generation.
        """
        generation = self.current if version is None else self.generation_of_version(version)
        number = None if generation is None else generation.find_model(model)
        return UNLIMITED_BYTES if generation is None or number is None else generation.models[number].max_body_bytes

    def model_names(self) -> tuple[str, ...]:
        """Return the names of its models at the endpoint; that of the family while none is loaded."""
        loaded = [generation for generation in self.generations.values() if not generation.is_retired]
        names = dict.fromkeys(model.name for generation in loaded for model in generation.models)
        return tuple(names) or (self.family,)

    def has_model(self, model: str) -> bool:
        """Return whether a request can name a model of this family, whose models may be unknown yet."""
        loaded = [generation for generation in self.generations.values() if not generation.is_retired]
        return not loaded or any(generation.find_model(model) is not None for generation in loaded)

    def generation_of_version(self, version: str) -> FrontGeneration | None:
        """Return the generation that serves a version; the current one if several do."""
        if self.current is not None and self.current.version == version:
            return self.current
        found = [g for g in self.generations.values() if g.version == version and not g.is_retired]
        return found[-1] if found else None

    def publish(self, generation: FrontGeneration) -> None:
        """Switch: dispatch requests to `generation` from now on."""
        self.generations[generation.number] = generation
        if self.current is not generation:
            generation.past_window.merge(generation.window)
            generation.window = CounterWindow(self._clock())
            self.switches += 1
            generation.is_retired = False
            self.current = generation
        self.dispatch_waiting()

    def retire(self, number: int, on_drained: Callable[[], None]) -> None:
        """Stop dispatching to a generation (rule 4).

        Args:
            number: number of the generation; an unknown one counts as drained.
            on_drained: called when its last lease has ended; at once if there is none.
        """
        generation = self.generations.get(number)
        if generation is None:
            on_drained()
            return
        if self.current is generation:
            self.current = None
        generation.is_retired = True
        generation.on_drained.append(on_drained)
        self._delete_if_drained(generation)
        self.dispatch_waiting()

    def expect_stop(self, number: int) -> None:
        """Expect the end of a generation's process, unless it has ended already: the supervisor stops it.

        Args:
            number: number of the generation.
        """
        generation = self.generations.get(number)
        if generation is not None and generation.sender is not None:
            generation.is_stop_expected = True

    def handle_response(self, generation: FrontGeneration, number: int, response: Response) -> None:
        """Complete the request that a response is for, and dispatch waiting ones.

        Args:
            generation: the generation that sent it.
            number: number of the request; ignored if unknown, because an earlier front may have sent it.
            response: response of the model process.
        """
        request = generation.leases.pop(number, None)
        if request is not None:
            if not request.is_expired:
                generation.window.record_response(response, round((self._clock() - request.arrived_s) * 1e6))
            request.set_response(response)
            if self.observer is not None and self.observer.generation == generation.number:
                self.observer.record_response(request, response)
            if self.shadow is not None and generation is self.current:
                self.shadow.mirror(request, response)
        self.dispatch_waiting()
        self._delete_if_drained(generation)

    def handle_lost_process(self, generation: FrontGeneration) -> None:
        """Return a crashed process's requests to the queue, or fail them (rules 3 and 6)."""
        generation.sender = None
        leases = list(generation.leases.values())
        generation.leases.clear()
        observer = None if self.observer is None or self.observer.generation != generation.number else self.observer
        is_expected, generation.is_stop_expected = generation.is_stop_expected, False
        if is_expected:
            for request in leases:
                request.attempts -= 1
            if observer is not None:
                observer.record_stop()
        else:
            generation.window.crashes += 1
            if observer is not None:
                self._record_loss(observer, generation, leases)
                leases = []
        for request in reversed(leases):
            if request.attempts >= MAX_ATTEMPTS:
                generation.window.requests += 1
                generation.window.errors += 1
                request.fail(500, "the model process crashed on this request twice")
            elif request.is_suspect:
                generation.suspect_requests.appendleft(request)
            else:
                (self.waiting_requests if request.version is None else generation.pinned_requests).appendleft(request)
        self.dispatch_waiting()
        self._delete_if_drained(generation)

    def _record_loss(self, observer: ResponseObserver, generation: FrontGeneration, leases: list[Request]) -> None:
        """Fail the requests of an observed process, or let them wait for the next one (rule 6)."""
        hung = observer.record_loss(leases)
        for request in leases:
            if request.response.done():
                continue  # its client is gone, or it has expired
            is_hanging = hung and request is leases[0]
            if not is_hanging and request.attempts < MAX_ATTEMPTS:
                request.is_suspect = True
                generation.suspect_requests.append(request)
                continue
            generation.window.requests += 1
            generation.window.errors += 1
            if is_hanging:
                request.fail(504, f"model {self.family!r} did not respond, its process was ended")
            else:
                request.fail(500, "the model process crashed on this request twice")

    def dispatch_waiting(self) -> None:
        """Dispatch waiting requests to generations that have room."""
        current = self.current
        # without room, no waiting request is looked at: there may be a thousand
        while current is not None and current.has_room and (request := self.waiting_requests.popleft(current.takes)):
            self._dispatch(current, request)
        for generation in self.generations.values():
            while generation.has_room and (request := generation.pinned_requests.popleft(generation.takes)):
                self._dispatch(generation, request)
            if generation.has_room and not generation.leases and (suspect := generation.suspect_requests.popleft()):
                self._dispatch(generation, suspect)

    def fail_expired(self, response_deadline_s: float) -> None:
        """Fail requests that waited too long for a process (503) or for their response (504)."""
        now = self._clock()
        for queue in self._queues():
            queue.remove_all(lambda request: request.response.done())
            for request in queue.remove_all(lambda request: now - request.arrived_s > self._wait_s):
                self.rejected_requests += 1
                request.fail(503, f"model {self.family!r} had no capacity within {self._wait_s:g} s")
        for generation in self.generations.values():
            for request in generation.leases.values():
                if now - request.dispatched_s > response_deadline_s and not request.response.done():
                    generation.window.requests += 1
                    generation.window.errors += 1
                    request.is_expired = True
                    request.fail(504, f"model {self.family!r} did not respond within {response_deadline_s:g} s")

    def _queues(self) -> tuple[FairQueue[Request], ...]:
        generations = self.generations.values()
        return (
            self.waiting_requests,
            *(g.pinned_requests for g in generations),
            *(g.suspect_requests for g in generations),
        )

    def fail_waiting(self) -> None:
        """Fail the requests that wait for a process that is not alive, because the front ends."""
        for queue in (
            self.waiting_requests,
            *(g.pinned_requests for g in self.generations.values() if g.sender is None),
            *(g.suspect_requests for g in self.generations.values() if g.sender is None),
        ):
            if not self.is_ready or queue is not self.waiting_requests:
                for request in queue.remove_all(lambda _: True):
                    request.fail(503, "the endpoint is stopping")

    def _dispatch(self, generation: FrontGeneration, request: Request) -> None:
        assert generation.sender is not None
        number = generation.find_model(request.model)
        if number is None:  # it waited while the release was replaced by one with other models
            request.fail(404, _unknown_model(request.model, generation))
            return
        request.model_number = number
        self._next_number += 1
        request.attempts += 1
        request.dispatched_s = self._clock()
        request.number = self._next_number
        generation.leases[request.number] = request
        generation.sender.send(request)

    def _fail_unloaded(self, generation: FrontGeneration, request: Request) -> None:
        request.fail(404, f"model {self.family!r}: version {generation.version!r} was unloaded")

    def _delete_if_drained(self, generation: FrontGeneration) -> None:
        if not generation.is_retired:
            return
        for request in generation.pinned_requests.remove_all(lambda _: True):
            self._fail_unloaded(generation, request)
        for request in generation.suspect_requests.remove_all(lambda _: True):
            if request.version is not None:
                self._fail_unloaded(generation, request)
            elif request.may_move:
                request.is_suspect = False
                self.waiting_requests.append(request)
            else:
                request.fail(500, "the model process crashed on this request")
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


def _unknown_model(name: str, generation: FrontGeneration) -> str:
    names = ", ".join(model.name for model in generation.models)
    return f"version {generation.version!r} has no model {name[:160]!r}, expected one of: {names}"
