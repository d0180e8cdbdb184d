"""Leases, switches and the queue of a family, by examples and against a model."""

from collections.abc import Callable

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from device_agent.front.front_generation import (
    LARGE_BODY_BYTES,
    MAX_LARGE_REQUESTS,
    CounterWindow,
    FrontGeneration,
    FrontModel,
)
from device_agent.front.generations import FamilyQueue
from device_agent.front.requests import Request, RequestFailed
from device_agent.runtime.wire import MAX_IN_FLIGHT_REQUESTS, NO_JSON, Response
from tests.support.queue_doubles import Process, RecordedResponse


class QueueHarness:
    """A family queue with processes, and a clock that the test sets."""

    def __init__(self, max_waiting: int = 4) -> None:
        self.now = 100.0
        self.queue = FamilyQueue("toy", max_waiting=max_waiting, wait_s=10.0, clock=lambda: self.now)
        self.processes: dict[int, Process] = {}
        self.drained: list[int] = []

    def publish(self, number: int) -> Process:
        generation = self.queue.generations.get(number) or FrontGeneration(
            number, f"1.{number}", (FrontModel("", {}),), CounterWindow(self.now)
        )
        if generation.sender is None:
            generation.sender = self.processes[number] = Process()
        self.queue.publish(generation)
        return self.processes[number]

    def request(self, version: str | None = None, *, body: bytes = b"", peer: int = 0) -> Request:
        request = Request(0, NO_JSON, body, RecordedResponse(), self.now, version, peer)
        self.queue.submit(request)
        return request

    def respond(self, number: int, status: int = 200, *, has_nan: bool = False) -> None:
        request = self.processes[number].inbox.pop(0)
        response = Response(status, NO_JSON, str(number).encode(), has_nan, busy_us=100)
        self.queue.handle_response(self.queue.generations[number], request.number, response)

    def kill(self, number: int) -> None:
        self.processes[number].inbox.clear()
        self.queue.handle_lost_process(self.queue.generations[number])

    def retire(self, number: int) -> None:
        self.queue.retire(number, lambda: self.drained.append(number))


def result_of(request: Request) -> Response | RequestFailed | None:
    assert isinstance(request.response, RecordedResponse)
    return request.response.result


def generation_of(request: Request) -> int:
    found = result_of(request)
    assert isinstance(found, Response)
    return int(found.body)


def status_of(request: Request) -> int:
    found = result_of(request)
    assert isinstance(found, RequestFailed)
    return found.status


def test_a_request_keeps_its_generation_through_a_switch() -> None:
    bench = QueueHarness()
    bench.publish(1)
    before = bench.request()
    bench.publish(2)
    after = bench.request()
    bench.respond(2)
    bench.respond(1)
    assert (generation_of(before), generation_of(after)) == (1, 2)


def test_no_more_than_a_few_requests_are_with_a_process_and_the_rest_goes_to_its_successor() -> None:
    bench = QueueHarness()
    first = bench.publish(1)
    requests = [bench.request() for _ in range(MAX_IN_FLIGHT_REQUESTS + 2)]
    assert len(first.inbox) == MAX_IN_FLIGHT_REQUESTS
    second = bench.publish(2)
    assert second.inbox == requests[MAX_IN_FLIGHT_REQUESTS:]


def test_a_request_beyond_the_queue_is_refused_at_once() -> None:
    bench = QueueHarness(max_waiting=1)
    bench.publish(1)
    for _ in range(MAX_IN_FLIGHT_REQUESTS + 1):
        bench.request()
    with pytest.raises(RequestFailed, match="1 requests are waiting already") as caught:
        bench.request()
    assert caught.value.status == 503
    assert bench.queue.rejected_requests == 1


def test_large_requests_leave_leases_to_small_ones() -> None:
    bench = QueueHarness()
    process = bench.publish(1)
    body = bytes(LARGE_BODY_BYTES + 1)
    large = [bench.request(body=body) for _ in range(MAX_LARGE_REQUESTS + 2)]
    small = bench.request()
    assert process.inbox == [*large[:MAX_LARGE_REQUESTS], small]
    bench.respond(1)
    assert process.inbox == [*large[1:MAX_LARGE_REQUESTS], small, large[MAX_LARGE_REQUESTS]]


def test_a_response_does_not_look_at_all_waiting_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = QueueHarness(max_waiting=1000)
    bench.publish(1)
    for _ in range(1000):
        bench.request()
    takes, looks = FrontGeneration.takes, 0

    def count(generation: FrontGeneration, request: Request) -> bool:
        nonlocal looks
        looks += 1
        return takes(generation, request)

    monkeypatch.setattr(FrontGeneration, "takes", count)
    bench.respond(1)
    assert looks == 1


def test_users_take_turns_and_the_one_with_most_waiting_requests_makes_room() -> None:
    bench = QueueHarness(max_waiting=4)
    process = bench.publish(1)
    many = [bench.request(peer=1) for _ in range(MAX_IN_FLIGHT_REQUESTS + 4)]
    one = bench.request(peer=2)
    assert status_of(many[-1]) == 503
    for _ in range(2):
        bench.respond(1)
    assert one in process.inbox


def test_a_request_with_a_dying_process_is_sent_once_more_and_first() -> None:
    bench = QueueHarness()
    bench.publish(1)
    requests = [bench.request() for _ in range(MAX_IN_FLIGHT_REQUESTS + 1)]
    bench.kill(1)
    assert not bench.queue.is_ready
    assert bench.publish(1).inbox == requests[:MAX_IN_FLIGHT_REQUESTS]
    for _ in requests:
        bench.respond(1)
    assert [generation_of(request) for request in requests] == [1] * len(requests)
    window = bench.queue.generations[1].window
    assert (window.requests, window.crashes, window.errors) == (len(requests), 1, 0)


def test_a_request_that_kills_two_processes_fails() -> None:
    bench = QueueHarness()
    bench.publish(1)
    poison = bench.request()
    bench.kill(1)
    bench.publish(1)
    bench.kill(1)
    assert status_of(poison) == 500
    assert bench.queue.generations[1].window.errors == 1


def test_a_request_waits_for_a_process_but_not_for_ever() -> None:
    bench = QueueHarness()
    bench.publish(1)
    bench.kill(1)
    request = bench.request()
    bench.now += 9
    bench.queue.fail_expired(60)
    assert result_of(request) is None
    bench.now += 2
    bench.queue.fail_expired(60)
    assert status_of(request) == 503
    assert bench.queue.is_idle


def test_before_the_first_model_nobody_waits() -> None:
    with pytest.raises(RequestFailed, match="'toy' is not installed yet") as caught:
        QueueHarness().request()
    assert caught.value.status == 503


def test_a_model_that_does_not_answer_is_an_error_and_its_late_answer_is_dropped() -> None:
    bench = QueueHarness()
    bench.publish(1)
    request = bench.request()
    bench.now += 61
    bench.queue.fail_expired(60)
    assert status_of(request) == 504
    bench.respond(1)
    window = bench.queue.generations[1].window
    assert (window.requests, window.errors) == (1, 1)


def test_a_front_that_ends_gives_up_only_what_nobody_can_answer() -> None:
    bench = QueueHarness()
    bench.publish(1)
    bench.kill(1)
    stranded = bench.request()
    bench.queue.fail_waiting()
    assert status_of(stranded) == 503
    bench.publish(1)
    requests = [bench.request() for _ in range(MAX_IN_FLIGHT_REQUESTS + 1)]
    bench.queue.fail_waiting()
    for _ in requests:
        bench.respond(1)
    assert [generation_of(request) for request in requests] == [1] * len(requests)


def test_a_retired_generation_drains_and_takes_nothing_new() -> None:
    bench = QueueHarness()
    old = bench.publish(1)
    request = bench.request()
    bench.publish(2)
    bench.retire(1)
    assert bench.drained == []
    bench.respond(1)
    assert generation_of(request) == 1
    assert bench.drained == [1]
    assert old.closed
    bench.retire(7)
    assert bench.drained == [1, 7]


def test_a_version_can_be_named_while_it_is_loaded() -> None:
    bench = QueueHarness()
    bench.publish(1)
    bench.publish(2)
    old = bench.request("1.1")
    bench.respond(1)
    assert generation_of(old) == 1
    pinned = [bench.request("1.1") for _ in range(MAX_IN_FLIGHT_REQUESTS + 1)]
    bench.retire(1)
    assert status_of(pinned[-1]) == 404
    with pytest.raises(RequestFailed, match=r"no loaded version '1\.1'"):
        bench.request("1.1")


def test_health_counts_what_the_model_did_since_it_became_current() -> None:
    bench = QueueHarness()
    bench.publish(1)
    for status, has_nan in ((200, False), (200, True), (400, False), (500, False)):
        bench.request()
        bench.respond(1, status, has_nan=has_nan)
    window = bench.queue.generations[1].window
    assert (window.requests, window.nan_responses, window.client_errors, window.errors) == (4, 1, 1, 1)
    assert window.busy_us.count == 2
    bench.publish(2)
    bench.publish(1)
    assert bench.queue.generations[1].window.requests == 0


class Requests(RuleBasedStateMachine):
    """Sequences of requests, responses, swaps, rollbacks, crashes and retirements.

    Each request gets one response, from a generation that was current at some time since it arrived. None is lost.
    """

    def __init__(self) -> None:
        super().__init__()
        self.bench = QueueHarness(max_waiting=6)
        self.open: list[tuple[Request, set[int]]] = []
        self.number = 0
        self._publish(lambda: 1)

    def _publish(self, choose: Callable[[], int]) -> None:
        number = choose()
        self.number = max(self.number, number)
        self.bench.publish(number)
        for _, allowed in self.open:
            allowed.add(number)

    @rule()
    def request(self) -> None:
        current = self.bench.queue.current
        if len(self.bench.queue.waiting_requests) >= 6:  # requests of a crashed process can exceed the limit
            with pytest.raises(RequestFailed, match="are waiting already"):
                self.bench.request()
            return
        self.open.append((self.bench.request(), set() if current is None else {current.number}))

    @rule()
    def swap(self) -> None:
        self._publish(lambda: self.number + 1)

    @rule(data=st.data())
    def back_or_restart(self, data: st.DataObject) -> None:
        known = sorted(self.bench.queue.generations) or [self.number + 1]
        self._publish(lambda: data.draw(st.sampled_from(known)))

    @rule(data=st.data())
    def respond(self, data: st.DataObject) -> None:
        busy = [number for number, process in self.bench.processes.items() if process.inbox and not process.closed]
        if busy:
            self.bench.respond(data.draw(st.sampled_from(sorted(busy))))

    @precondition(lambda self: self.bench.queue.generations)
    @rule(data=st.data())
    def kill(self, data: st.DataObject) -> None:
        generations = self.bench.queue.generations
        alive = sorted(number for number, g in generations.items() if g.sender is not None)
        if alive:
            self.bench.kill(data.draw(st.sampled_from(alive)))

    @precondition(lambda self: self.bench.queue.generations)
    @rule(data=st.data())
    def retire(self, data: st.DataObject) -> None:
        self.bench.retire(data.draw(st.sampled_from(sorted(self.bench.queue.generations))))

    @invariant()
    def answers_are_of_an_allowed_generation(self) -> None:
        still_open = []
        for request, allowed in self.open:
            found = result_of(request)
            if found is None:
                still_open.append((request, allowed))
            elif isinstance(found, Response):
                assert int(found.body) in allowed
            else:
                assert found.status == 500
                assert request.attempts == 2
        self.open = still_open

    @invariant()
    def every_open_request_is_somewhere_once(self) -> None:
        queue = self.bench.queue
        places = [*queue.waiting_requests, *(r for g in queue.generations.values() for r in g.leases.values())]
        assert sorted(map(id, places)) == sorted(id(request) for request, _ in self.open)

    def teardown(self) -> None:
        self._publish(lambda: self.number + 1)
        while any(process.inbox for process in self.bench.processes.values() if not process.closed):
            for number, process in self.bench.processes.items():
                if process.inbox and not process.closed:
                    self.bench.respond(number)
        assert all(result_of(request) is not None for request, _ in self.open)


Requests.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestRequests = Requests.TestCase
