"""Bad responses are repeated on the previous release: which ones, how many at once, and what they prove."""

from collections.abc import Callable
from typing import Any

import pytest

from device_agent.front import repeats
from device_agent.front.front_generation import CounterWindow, FrontGeneration, FrontModel
from device_agent.front.generations import FamilyQueue
from device_agent.front.repeats import RequestRepeater
from device_agent.front.requests import Request, RequestFailed
from device_agent.runtime.wire import NO_JSON, Response
from tests.support.queue_doubles import Process, RecordedResponse

GOOD = Response(200, NO_JSON, b"", busy_us=1000)
NAN = Response(200, NO_JSON, b"", has_nan=True)
ERROR = Response(500, NO_JSON, b"")
REJECTED = Response(400, NO_JSON, b"", is_rejected=True)
MALFORMED = Response(400, NO_JSON, b"")


class PreviousProcess(Process):
    """A process of the previous release, which the test lets respond."""

    def __init__(self, on_response: Callable[[int, Response], None], on_lost: Callable[[], None]) -> None:
        super().__init__()
        self.on_response, self.on_lost = on_response, on_lost

    def respond(self, response: Response) -> None:
        self.on_response(self.inbox.pop(0).number, response)


class Lab:
    """A queue with a candidate in probation, and a clock that the test sets."""

    def __init__(self, slow_us: int | None = None, percent: int = 200) -> None:
        self.now = 1000.0
        self.repeater = RequestRepeater(2, slow_us, percent, 60.0, lambda: self.now)
        self.queue = FamilyQueue("toy", max_waiting=64, wait_s=10.0, clock=lambda: self.now)
        self.queue.observer = self.repeater
        self.candidate = FrontGeneration(2, "1.2", (FrontModel("", {}),), CounterWindow(self.now))
        self.restart()
        self.previous: list[PreviousProcess] = []

    def restart(self) -> None:
        self.process = Process()
        self.candidate.sender = self.process
        self.queue.publish(self.candidate)

    def crash(self) -> None:
        self.queue.handle_lost_process(self.candidate)

    def send(self, body: bytes) -> Request:
        request = Request(0, NO_JSON, body, RecordedResponse(), self.now)
        self.queue.submit(request)
        return request

    def respond(self, response: Response) -> None:
        request = self.process.inbox.pop(0)
        self.queue.handle_response(self.candidate, request.number, response)

    def ask(self, body: bytes, response: Response) -> None:
        self.send(body)
        self.respond(response)

    def poll(self) -> dict[str, Any]:
        return self.repeater.poll(list(self.candidate.leases.values()))

    def connect(self) -> PreviousProcess:
        def connect(*, on_response: Callable[[int, Response], None], on_lost: Callable[[], None]) -> PreviousProcess:
            self.previous.append(PreviousProcess(on_response, on_lost))
            return self.previous[-1]

        self.repeater.connect(connect)
        self.poll()
        return self.previous[-1]

    def kinds(self) -> dict[str, list[int]]:
        return {kind: counts for kind, counts in self.poll()["kinds"].items() if counts[0]}


@pytest.mark.parametrize(
    ("response", "kind"), [(NAN, "nan"), (ERROR, "error"), (REJECTED, "error"), (MALFORMED, None), (GOOD, None)]
)
@pytest.mark.parametrize(("previous", "is_confirmed"), [(GOOD, True), (NAN, False), (ERROR, False), (REJECTED, False)])
def test_a_bad_response_is_confirmed_if_the_previous_release_responds_well(
    response: Response, kind: str | None, previous: Response, is_confirmed: bool
) -> None:
    lab = Lab()
    lab.ask(b"body", response)
    assert lab.poll()["needs_process"] is (kind is not None)
    if kind is None:
        assert lab.kinds() == {}
        return
    process = lab.connect()
    assert [request.body for request in process.inbox] == [b"body"]
    process.respond(previous)
    assert lab.kinds() == {kind: [1, 1, int(is_confirmed), int(is_confirmed)]}


def test_an_input_is_repeated_once_and_counts_each_time() -> None:
    lab = Lab()
    for _ in range(4):
        lab.ask(b"same", NAN)
    process = lab.connect()
    process.respond(GOOD)
    lab.ask(b"same", NAN)
    assert lab.kinds() == {"nan": [5, 5, 5, 1]}
    assert lab.poll()["waiting"] == 0


def test_at_most_one_repeat_at_a_time_and_ten_a_minute() -> None:
    lab = Lab()
    for number in range(14):
        lab.ask(b"%d" % number, NAN)
    process, sent = lab.connect(), 0
    for _ in range(30):
        lab.poll()
        assert len(process.inbox) <= 1
        if process.inbox:
            process.respond(GOOD)
            sent += 1
    assert sent == repeats.MAX_REPEATS
    lab.now += repeats.PERIOD_S + 1
    lab.poll()
    assert len(process.inbox) == 1


def test_kept_requests_are_bounded_in_number_and_bytes_and_no_kind_hides_another() -> None:
    lab = Lab()
    lab.ask(b"rare", ERROR)
    for number in range(1000):
        lab.ask(b"%d" % number, NAN)
    assert lab.poll()["waiting"] == repeats.MAX_KEPT_REQUESTS
    assert lab.kinds()["nan"][0] == 1000
    process = lab.connect()
    process.respond(GOOD)
    lab.poll()
    if process.inbox:
        process.respond(GOOD)
    assert lab.kinds()["error"] == [1, 1, 1, 1]
    large = Lab()
    for number in range(4):
        large.ask(bytes([number]) * (repeats.MAX_KEPT_BYTES // 2), NAN)
    assert large.poll()["waiting"] == 2
    crashes = Lab()
    for number in range(4):
        crashes.send(bytes(repeats.MAX_KEPT_BYTES // 2))
        crashes.send(b"%d" % number)
        crashes.crash()
        if not crashes.previous:
            crashes.connect().respond(GOOD)  # the large one is known from here on, but stays with each crash
        crashes.queue.fail_expired(0.0)
        crashes.candidate.suspect_requests.remove_all(lambda _: True)
        crashes.restart()
    assert crashes.poll()["waiting"] <= 2


def test_a_slow_response_is_compared_on_the_same_input() -> None:
    lab = Lab(slow_us=50_000, percent=200)
    for body, took_us, previous_us in ((b"a", 100_000, 10_000), (b"b", 100_000, 90_000), (b"c", 10_000, 1)):
        lab.ask(body, Response(200, NO_JSON, b"", busy_us=took_us))
        if took_us > 50_000:
            (lab.connect() if not lab.previous else lab.previous[-1]) and lab.poll()
            lab.previous[-1].respond(Response(200, NO_JSON, b"", busy_us=previous_us))
    assert lab.kinds() == {"slow": [2, 2, 1, 1]}


def test_after_a_crash_each_request_is_sent_alone_so_that_the_others_do_not_suffer() -> None:
    lab = Lab()
    first, poison, last = (lab.send(body) for body in (b"a", b"poison", b"b"))
    lab.crash()
    lab.restart()
    later = lab.send(b"c")
    assert [request.body for request in lab.process.inbox] == [b"a"]
    lab.respond(GOOD)
    lab.respond(GOOD)
    assert [request.body for request in lab.process.inbox] == [b"poison"]
    lab.crash()
    lab.restart()
    lab.respond(GOOD)
    failure = _result(poison)
    assert isinstance(failure, RequestFailed)
    assert failure.status == 500
    assert [_result(request) for request in (first, last, later)] == [GOOD, GOOD, GOOD]


@pytest.mark.parametrize("is_poison_good", [False, True])
def test_a_crash_is_confirmed_only_if_the_previous_release_responds_to_all_requests_of_that_moment(
    is_poison_good: bool,
) -> None:
    lab = Lab()
    for body in (b"a", b"poison", b"b"):
        lab.send(body)
    lab.crash()
    process = lab.connect()
    for _ in range(3):
        if process.inbox:
            process.respond(GOOD if process.inbox[0].body != b"poison" or is_poison_good else ERROR)
        lab.poll()
    assert lab.kinds() == {"crash": [1, 1, int(is_poison_good), int(is_poison_good)]}
    assert lab.poll()["waiting"] == 0


@pytest.mark.parametrize("is_known_to_be_safe", [False, True])
def test_a_request_that_crashed_the_candidate_goes_to_the_previous_release_only_if_that_is_safe(
    is_known_to_be_safe: bool,
) -> None:
    lab = Lab()
    poison = lab.send(b"poison")
    lab.crash()
    process = lab.connect()
    if is_known_to_be_safe:
        process.respond(GOOD)
    else:
        process.on_lost()
    assert lab.kinds()["crash"][2] == int(is_known_to_be_safe)
    target = FrontGeneration(1, "1.1", (FrontModel("", {}),), CounterWindow(lab.now), sender=Process())
    lab.queue.publish(target)
    lab.queue.retire(2, lambda: None)
    assert isinstance(target.sender, Process)
    assert [request.body for request in target.sender.inbox] == ([b"poison"] if is_known_to_be_safe else [])
    failure = _result(poison)
    assert failure is None if is_known_to_be_safe else isinstance(failure, RequestFailed) and failure.status == 500


def test_a_crash_right_after_a_response_is_due_to_that_request_and_one_in_idleness_to_none() -> None:
    lab = Lab()
    lab.ask(b"late", GOOD)
    lab.crash()
    assert lab.kinds() == {"crash": [1, 0, 0, 0]}
    lab.restart()
    lab.now += 2
    lab.crash()
    assert lab.poll()["crashes_without_request"] == 1


def test_a_stop_by_the_supervisor_is_no_crash() -> None:
    lab = Lab()
    requests = [lab.send(b"%d" % number) for number in range(2)]
    lab.queue.expect_stop(2)
    lab.crash()
    lab.restart()
    assert lab.process.inbox == requests
    assert lab.kinds() == {}
    assert lab.candidate.window.crashes == 0
    lab.crash()
    lab.queue.expect_stop(2)  # too late: the process has just crashed on its own
    lab.restart()
    lab.crash()
    assert lab.kinds()["crash"][0] == lab.candidate.window.crashes == 2


def test_after_a_stop_by_the_supervisor_a_suspect_stays_with_the_candidate() -> None:
    lab = Lab()
    poison = lab.send(b"poison")
    lab.crash()
    lab.restart()
    lab.queue.expect_stop(2)
    lab.crash()
    target = FrontGeneration(1, "1.1", (FrontModel("", {}),), CounterWindow(lab.now), sender=Process())
    lab.queue.publish(target)
    assert isinstance(target.sender, Process)
    assert target.sender.inbox == []
    lab.restart()
    assert lab.process.inbox == [poison]


def test_a_stop_by_the_supervisor_ends_a_hang_so_that_the_next_process_is_not_ended_for_it() -> None:
    lab = Lab()
    request = lab.send(b"slow")
    lab.now += repeats.HANG_AFTER_S + 0.5
    lab.poll()
    lab.queue.expect_stop(2)
    lab.crash()
    lab.connect().respond(Response(200, NO_JSON, b"", busy_us=8_000_000))
    lab.now += 60
    lab.restart()
    assert not lab.poll()["is_hung"]
    assert lab.kinds() == {"hang": [1, 1, 0, 0]}, "the candidate had 10.5 s, of the 16 s that are allowed"
    lab.respond(GOOD)
    assert _result(request) == GOOD


@pytest.mark.parametrize(("previous_s", "confirmed_after_s"), [(1.0, 11), (8.0, 17), (None, None)])
def test_a_hang_is_confirmed_when_the_candidate_exceeds_the_time_of_the_previous_release(
    previous_s: float | None, confirmed_after_s: int | None
) -> None:
    lab = Lab(percent=200)
    request = lab.send(b"hang")
    lab.now += repeats.HANG_AFTER_S + 0.5
    lab.poll()
    process = lab.connect()
    assert not lab.poll()["is_hung"]
    if previous_s is None:
        lab.now += repeats.REPEAT_DEADLINE_S + 1
        lab.poll()
        assert process.closed
        assert lab.kinds() == {"hang": [1, 1, 0, 0]}
        assert not lab.poll()["is_hung"]
        lab.now += 20
        assert lab.poll()["is_hung"], "after the deadline, whatever the previous release does"
    else:
        process.respond(Response(200, NO_JSON, b"", busy_us=round(previous_s * 1e6)))
        assert confirmed_after_s is not None
        while lab.now < 1000 + confirmed_after_s:
            lab.now += 0.25
            lab.poll()
        assert lab.poll()["is_hung"]
        assert lab.kinds() == {"hang": [1, 1, 1, 1]}
    lab.crash()  # the supervisor ends it
    failure = _result(request)
    assert isinstance(failure, RequestFailed)
    assert failure.status == 504
    assert list(lab.kinds()) == ["hang"]


def test_a_slow_input_that_the_previous_release_needs_as_long_for_proves_nothing() -> None:
    lab = Lab(percent=200)
    lab.send(b"slow")
    lab.now += 12
    lab.poll()
    lab.respond(GOOD)
    process = lab.connect()
    process.respond(Response(200, NO_JSON, b"", busy_us=11_000_000))
    assert lab.kinds() == {"hang": [1, 1, 0, 0]}


def test_a_repeat_without_a_response_ends_the_process_and_the_next_one_needs_another() -> None:
    lab = Lab()
    lab.ask(b"a", NAN)
    lab.ask(b"b", NAN)
    process = lab.connect()
    lab.now += repeats.REPEAT_DEADLINE_S + 1
    assert lab.poll()["needs_process"]
    assert process.closed
    assert lab.kinds() == {"nan": [2, 1, 0, 0]}
    lab.repeater.discard()
    assert lab.poll()["waiting"] == 0


def _result(request: Request) -> Response | RequestFailed | None:
    assert isinstance(request.response, RecordedResponse)
    return request.response.result
