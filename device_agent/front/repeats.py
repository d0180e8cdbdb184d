"""Repeats: bad responses of a candidate are checked with the same request on the previous release.

Theory of operation. A response of a candidate in probation is bad if it is an error, has NaN, is slow, or never came
because the process crashed or hangs. Its request is kept here until it was repeated in a separate process of the
previous release, which gets no other requests. If the previous release responds well, the bad response is confirmed: it
counts against the candidate (device_agent.policy.probation). If not, the request is to blame.

    keep       a bad response: count it; known input → settle at once; else keep the request
    poll       the supervisor polls the counters: start the next repeat, or end one that takes too long
    settle     the previous release responded: count, for this request and all kept ones with the same input

Rules:
1. Live requests never wait for a repeat. There is at most one at a time, and at most MAX_REPEATS in PERIOD_S.
2. Requests are kept in memory only, at most MAX_KEPT_REQUESTS and MAX_KEPT_BYTES. If more are bad, a random one of the
   kind that has the most is dropped, so that a flood of one kind hides no other. Only counters leave this process.
3. All repeats run in a process of their own, because a request that crashes the candidate may crash the previous
   release as well, and a rollback needs that. A repeat without a response in REPEAT_DEADLINE_S ends the process.
4. A crash or a hang is due to one of the requests that the process had then, and it is not known which: all of them
   are repeated, and it is confirmed only if the previous release responds well to each. Without such a request, the one
   before is repeated, if it ended less than CRASH_DELAY_S ago.
5. Slow responses and hangs are confirmed by time: the candidate took longer than `latency_percent` of the time that the
   previous release took for the same input, plus an allowance for the scheduler.
"""

import hashlib
import os
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from device_agent.front.requests import Request, Sender
from device_agent.front.shadow import DiscardedResponse, ShadowConnector
from device_agent.runtime.wire import Response

MAX_REPEATS: Final = 10
PERIOD_S: Final = 60.0
REPEAT_DEADLINE_S: Final = 30.0
HANG_AFTER_S: Final = 10.0  # a slower request is repeated before it has a response
CRASH_DELAY_S: Final = 1.0  # a damaged heap is often noticed when the outputs are freed
MAX_KEPT_REQUESTS: Final = 16
MAX_KEPT_BYTES: Final = 64 * 1024 * 1024  # the largest body
MAX_KNOWN_INPUTS: Final = 256
LATENCY_ALLOWANCE_US: Final = 5_000  # as in device_agent.policy.probation
FIRST_REQUEST_NUMBER: Final = 1 << 61  # above all numbers of live requests
KINDS: Final = ("crash", "hang", "error", "nan", "slow")


@dataclass(eq=False, slots=True)
class BadResponseCounters:
    """Counters of one kind of bad response.

    Attributes:
        seen: bad responses.
        repeated: those whose input was repeated.
        confirmed: those that the previous release responds well to.
        inputs: digests of the distinct inputs among the confirmed ones; at most MAX_KNOWN_INPUTS.
    """

    seen: int = 0
    repeated: int = 0
    confirmed: int = 0
    inputs: set[bytes] = field(default_factory=set)

    def confirm(self, digest: bytes) -> None:
        """Count one confirmed response, by the digest of its input."""
        self.confirmed += 1
        if len(self.inputs) < MAX_KNOWN_INPUTS:
            self.inputs.add(digest)


@dataclass(eq=False, slots=True)
class KeptRequest:
    """A request with a bad response, or one of several that a crash or hang can be due to.

    Attributes:
        event: the bad response.
        request: the live request.
        digest: digest of its input.
    """

    event: "BadEvent"
    request: Request
    digest: bytes


@dataclass(eq=False, slots=True)
class BadEvent:
    """One bad response, crash or hang.

    Attributes:
        kind: one of KINDS.
        requests: the requests that it can be due to; more than one after a crash or hang.
        started_s: start of the hang, on the monotonic clock.
        took_us: time on the candidate in microseconds, or None while it hangs.
        open_digests: digests of the inputs that were not repeated yet.
        previous_us: longest time of the previous release, in microseconds; None if it has not responded well to one.
    """

    kind: str
    requests: tuple[Request, ...]
    started_s: float = 0.0
    took_us: int | None = None
    open_digests: set[bytes] = field(default_factory=set)
    previous_us: int | None = 0
    digest: bytes = b""

    @property
    def is_good_before(self) -> bool:
        """True if the previous release responded well to all requests."""
        return not self.open_digests and self.previous_us is not None


class RequestRepeater:
    """Checks the bad responses of one generation; the ResponseObserver of its family's queue.

    Args:
        generation: number of the candidate's generation.
        slow_us: time in the model process above which a response is checked for latency, or None for never.
        latency_percent: allowed latency in percent of the previous release's (rule 5).
        deadline_s: seconds after which a running request counts as hanging, whatever the previous release does.
        clock: returns monotonic seconds.
    """

    def __init__(
        self,
        generation: int,
        slow_us: int | None,
        latency_percent: int,
        deadline_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.generation = generation
        self._slow_us, self._latency_percent, self._deadline_s = slow_us, latency_percent, deadline_s
        self._clock = clock
        self._counters = {kind: BadResponseCounters() for kind in KINDS}
        self._crashes_without_request = 0
        self._losses = 0
        self._waiting: list[KeptRequest] = []
        self._known: dict[bytes, int | None] = {}  # microseconds of the previous release; None: no good response
        self._running: KeptRequest | None = None
        self._sent_s: deque[float] = deque(maxlen=MAX_REPEATS)
        self._repeats = 0
        self._sender: Sender | None = None
        self._hanging: BadEvent | None = None
        self._is_hang_confirmed = False
        self._last: tuple[Request, float] | None = None

    # called by the queue of the family

    def record_response(self, request: Request, response: Response) -> None:
        """Keep the request of a bad response.

        Args:
            request: a request that the candidate completed.
            response: its response.
        """
        self._last = request, self._clock()
        if self._hanging is not None and request in self._hanging.requests:
            self._end_hang(self._hanging)
        if response.status >= 500 or response.is_rejected:
            self._keep("error", (request,))
        elif response.status < 400 and response.has_nan:
            self._keep("nan", (request,))
        elif response.status < 400 and self._slow_us is not None and response.busy_us > self._slow_us:
            self._keep("slow", (request,), took_us=response.busy_us)

    def record_loss(self, requests: Sequence[Request]) -> bool:
        """Keep the requests that the candidate's process had when it ended (rule 4).

        Args:
            requests: those without a response.

        Returns:
            Whether the process hung and was ended, so that its requests must not be sent again.
        """
        self._losses += 1
        if self._hanging is not None:
            self._end_hang(self._hanging)
            return True
        if not requests and self._last is not None and self._clock() - self._last[1] < CRASH_DELAY_S:
            requests = (self._last[0],)
        if requests:
            self._keep("crash", tuple(requests))
        else:
            self._crashes_without_request += 1
        return False

    def record_stop(self) -> None:
        """End the hang of a process that the supervisor stopped: the next process does not hang."""
        if self._hanging is not None:
            self._end_hang(self._hanging)

    # called for the supervisor

    def connect(self, connect: ShadowConnector) -> None:
        """Use another process for the repeats.

        Args:
            connect: opens its channel.
        """
        self.close()
        self._sender = connect(on_response=self._handle_response, on_lost=self._handle_lost_process)

    def close(self) -> None:
        """Close the channel of the process; a repeat in it counts as one without a response."""
        if self._sender is not None:
            self._sender.close()
            self._sender = None
        self._finish(None)

    def discard(self) -> None:
        """Drop the kept requests, because no process of the previous release can run."""
        self._waiting.clear()

    def poll(self, leases: Sequence[Request]) -> dict[str, Any]:
        """Do what is due, and return the counters.

        Args:
            leases: the requests that the candidate's process has, oldest first.
        """
        now = self._clock()
        self._watch_leases(leases, now)
        if self._running is not None and now - self._sent_s[-1] > REPEAT_DEADLINE_S:
            self.close()
        may_repeat = len(self._sent_s) < MAX_REPEATS or now - self._sent_s[0] > PERIOD_S
        if self._waiting and self._sender is not None and self._running is None and may_repeat:
            self._send_next(self._sender, now)
        return {
            "kinds": {
                kind: [found.seen, found.repeated, found.confirmed, len(found.inputs)]
                for kind, found in self._counters.items()
            },
            "waiting": len(self._waiting) + (self._running is not None),
            "needs_process": bool(self._waiting) and self._sender is None and may_repeat,
            "is_hung": self._is_hung(now),
            "losses": self._losses,
            "crashes_without_request": self._crashes_without_request,
        }

    def _watch_leases(self, leases: Sequence[Request], now: float) -> None:
        if self._hanging is not None:
            self._confirm_hang(self._hanging)
        elif leases:
            # since the response before, if that came later: the process handles one request after the other
            started_s = max(leases[0].dispatched_s, 0.0 if self._last is None else self._last[1])
            if now - started_s > HANG_AFTER_S:
                self._hanging = self._keep("hang", tuple(leases), started_s=started_s)

    def _confirm_hang(self, hanging: BadEvent) -> None:
        # each time anew: the candidate may exceed the limit only after the previous release has responded
        if not self._is_hang_confirmed and hanging.is_good_before and self._took_us(hanging) > self._limit_us(hanging):
            self._is_hang_confirmed = True
            self._counters["hang"].confirm(hanging.digest)

    def _took_us(self, event: BadEvent) -> int:
        return round((self._clock() - event.started_s) * 1e6) if event.took_us is None else event.took_us

    def _is_hung(self, now: float) -> bool:
        hanging = self._hanging
        return hanging is not None and (self._is_hang_confirmed or now - hanging.started_s > self._deadline_s)

    def _end_hang(self, hanging: BadEvent) -> None:
        self._confirm_hang(hanging)
        hanging.took_us = self._took_us(hanging)
        self._hanging, self._is_hang_confirmed = None, False

    def _keep(
        self, kind: str, requests: tuple[Request, ...], *, started_s: float = 0.0, took_us: int | None = None
    ) -> BadEvent:
        self._counters[kind].seen += 1
        event = BadEvent(kind, requests, started_s, took_us)
        kept = [KeptRequest(event, request, _digest(request)) for request in requests]
        event.digest = kept[0].digest
        event.open_digests = {each.digest for each in kept}
        for digest in {each.digest for each in kept if each.digest in self._known}:
            self._settle(event, digest, self._known[digest])
        self._waiting += [each for each in kept if each.digest in event.open_digests]
        while len(self._waiting) > 1 and (
            len(self._waiting) > MAX_KEPT_REQUESTS or self._kept_bytes() > MAX_KEPT_BYTES
        ):
            self._drop_one()
        return event

    def _kept_bytes(self) -> int:
        # of all requests of an event, because those that were repeated already stay in memory with it
        return sum(
            len(body) for body in {id(r): r.body for each in self._waiting for r in each.event.requests}.values()
        )

    def _drop_one(self) -> None:
        def count(kind: str) -> int:
            return sum(each.event.kind == kind for each in self._waiting)

        most = max(KINDS, key=count)
        same = [each.event for each in self._waiting if each.event.kind == most]
        dropped = same[_random_below(len(same))]
        # without one of its requests, nothing is known of the event
        self._waiting = [each for each in self._waiting if each.event is not dropped]

    def _send_next(self, sender: Sender, now: float) -> None:
        # the kind with the fewest repeats first: each gets its share of them
        kinds = {kept.event.kind for kept in self._waiting}
        kind = min((kind for kind in KINDS if kind in kinds), key=lambda each: self._counters[each].repeated)
        same = [kept for kept in self._waiting if kept.event.kind == kind]
        event = same[_random_below(len(same))].event
        kept = self._running = next(each for each in same if each.event is event)
        self._waiting.remove(kept)
        self._sent_s.append(now)
        self._repeats += 1
        live = kept.request
        repeated = Request(live.flags, live.json_bytes, live.body, DiscardedResponse(), live.arrived_s)
        repeated.model_number = live.model_number  # both releases have the same models, in one order
        repeated.number = FIRST_REQUEST_NUMBER + self._repeats
        sender.send(repeated)

    def _handle_response(self, number: int, response: Response) -> None:
        if number == FIRST_REQUEST_NUMBER + self._repeats:
            self._finish(response.busy_us if response.status == 200 and not response.has_nan else None)

    def _handle_lost_process(self) -> None:
        self._sender = None
        self._finish(None)

    def _finish(self, previous_us: int | None) -> None:
        running, self._running = self._running, None
        if running is None:
            return
        while len(self._known) >= MAX_KNOWN_INPUTS:
            del self._known[next(iter(self._known))]
        self._known[running.digest] = previous_us
        events = [running.event]
        for kept in self._waiting:
            if kept.digest == running.digest and kept.event not in events:
                events.append(kept.event)
        self._waiting = [kept for kept in self._waiting if kept.digest != running.digest]
        for event in events:
            self._settle(event, running.digest, previous_us)
            if not event.open_digests:
                self._waiting = [kept for kept in self._waiting if kept.event is not event]

    def _settle(self, event: BadEvent, digest: bytes, previous_us: int | None) -> None:
        if digest not in event.open_digests:
            return
        event.open_digests.discard(digest)
        if event.previous_us is None or previous_us is None:
            event.previous_us = None
            event.open_digests.clear()  # the other requests cannot prove anything any more
        else:
            event.previous_us = max(event.previous_us, previous_us)
        if event.open_digests:
            return
        counters = self._counters[event.kind]
        counters.repeated += 1
        if not event.is_good_before or (event.kind == "hang" and event.took_us is None):
            return  # a request that still runs is confirmed by `_watch_leases`
        if event.kind not in ("slow", "hang") or self._took_us(event) > self._limit_us(event):
            counters.confirm(event.digest)
            for request in event.requests:
                request.may_move = True

    def _limit_us(self, event: BadEvent) -> int:
        return (event.previous_us or 0) * self._latency_percent // 100 + LATENCY_ALLOWANCE_US


def _digest(request: Request) -> bytes:
    salt = request.json_bytes.to_bytes(8, "big") + request.model_number.to_bytes(8, "big")
    return hashlib.blake2b(request.body, digest_size=16, salt=salt).digest()


def _random_below(count: int) -> int:
    return int.from_bytes(os.urandom(4), "big") % count
