"""A candidate that hears some of the live requests and whose answers nobody gets.

Rules:
1. A share of the requests that the current generation has answered goes, with that answer, to the candidate's process.
   It runs the request itself, compares, and tells only whether it agrees (device_agent.runtime.comparison).
2. Live requests come first: nothing waits for a candidate. At most one request is with it; while it is busy, the share
   is not made up for later. Compressed requests and answers are left out.
3. Only counters leave this place.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

from device_agent.front.generations import Request, Sender
from device_agent.runtime import wire
from device_agent.runtime.wire import Response

PPM: Final = 1_000_000
FIRST_REQUEST_NUMBER: Final = (
    1 << 62
)  # apart from those of live requests, which the same process may get after a publish


class DiscardedResponse:
    """An outcome that nobody waits for."""

    def set_result(self, _result: Response) -> None:
        """Nothing."""

    def set_exception(self, _exception: BaseException) -> None:
        """Nothing."""

    def done(self) -> bool:
        """As if the client had gone."""
        return True


class ShadowConnector(Protocol):
    """Makes the channel to the candidate's process."""

    def __call__(self, *, on_response: Callable[[int, Response], None], on_lost: Callable[[], None]) -> Sender: ...


@dataclass(eq=False, slots=True)
class ShadowCounters:
    """Attributes:
    compared: answers that could be compared.
    agreed: of these.
    errors: requests that failed on the candidate though the live model answered them.
    nan: answers with NaN or infinity that the live answer's rule would flag.
    worst_ppm: largest relative RMS difference, parts per million.
    crashes: 1 once its process has died.
    """

    compared: int = 0
    agreed: int = 0
    errors: int = 0
    nan: int = 0
    worst_ppm: int = 0
    crashes: int = 0


class ShadowMirror:
    """One candidate.

    Args:
        process: the supervisor's name for it.
        share_ppm: of the live requests.
        limit_ppm: relative RMS difference that still agrees.
        connect: makes its channel.
    """

    def __init__(self, process: str, share_ppm: int, limit_ppm: int, connect: ShadowConnector) -> None:
        self.process = process
        self.counters = ShadowCounters()
        self._share_ppm = share_ppm
        self._limit_ppm = limit_ppm
        self._share_credit_ppm = 0
        self._sent_requests = 0
        self._is_busy = False
        self._sender: Sender | None = connect(on_response=self._handle_response, on_lost=self._handle_lost_process)

    def mirror(self, request: Request, response: Response) -> None:
        """A live request was answered (rules 1 and 2)."""
        self._share_credit_ppm = min(self._share_credit_ppm + self._share_ppm, PPM)
        if self._share_credit_ppm < PPM or self._is_busy or self._sender is None or response.status != 200:
            return
        if request.flags & wire.COMPRESSED:
            return
        self._share_credit_ppm -= PPM
        self._sent_requests += 1
        self._is_busy = True
        trailer = wire.SHADOW_TRAILER.pack(len(response.body), response.json_bytes, self._limit_ppm)
        body = b"".join((request.body, response.body, trailer))
        shadowed = Request(wire.SHADOW, request.json_bytes, body, DiscardedResponse(), request.arrived_s)
        shadowed.number = FIRST_REQUEST_NUMBER + self._sent_requests
        self._sender.send(shadowed)

    def close(self) -> None:
        """No more; an answer that is under way is dropped."""
        if self._sender is not None:
            self._sender.close()
            self._sender = None

    def _handle_response(self, number: int, response: Response) -> None:
        if number != FIRST_REQUEST_NUMBER + self._sent_requests:
            return
        self._is_busy = False
        self.counters.nan += response.has_nan
        try:
            found = json.loads(response.body) if response.status == 200 else {}
            agrees, ppm = bool(found["agrees"]), int(found["relative_rms_ppm"])
        except (ValueError, KeyError, TypeError):
            self.counters.errors += 1
            return
        self.counters.compared += 1
        self.counters.agreed += agrees
        self.counters.worst_ppm = max(self.counters.worst_ppm, ppm)

    def _handle_lost_process(self) -> None:
        self._sender = None
        self.counters.crashes += 1
