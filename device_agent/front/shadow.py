"""Shadow mode: a candidate receives copies of live requests, and no client receives its responses.

Rules:
1. A share of the requests that the current generation completed is sent, with its response, to the candidate's process.
   That runs the request, compares the outputs, and returns only whether they agree (device_agent.runtime.comparison).
2. Live requests never wait for a candidate. It has at most one request at a time, and requests that arrive meanwhile
   are not made up for. Compressed requests are not mirrored, nor those that the live model answers with NaN: they
   would count against the candidate alone.
3. Only counters are kept; requests and responses are not.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from device_agent.front.requests import Request, Sender
from device_agent.runtime import wire
from device_agent.runtime.wire import Response

PPM: Final = 1_000_000
# above all numbers of live requests, which the same process can receive after it is published
FIRST_REQUEST_NUMBER: Final = 1 << 62


class DiscardedResponse:
    """A ResponseFuture whose result is not used."""

    def set_result(self, _result: Response) -> None:
        """Ignore the response of the candidate."""

    def set_exception(self, _exception: BaseException) -> None:
        """Ignore the error of the candidate."""

    def done(self) -> bool:
        """Return True, as if the client had gone."""
        return True


class ShadowConnector(Protocol):
    """Opens the channel to the candidate's process."""

    def __call__(self, *, on_response: Callable[[int, Response], None], on_lost: Callable[[], None]) -> Sender: ...


@dataclass(eq=False, slots=True)
class ShadowCounters:
    """Counters of a candidate in shadow mode.

    Attributes:
        compared: requests whose outputs were compared.
        agreed: those that agreed.
        errors: requests that failed on the candidate although the live model completed them.
        nan: responses of the candidate with NaN or infinity.
        worst_ppm: largest relative RMS difference, in parts per million.
        crashes: 1 after its process has ended.
    """

    compared: int = 0
    agreed: int = 0
    errors: int = 0
    nan: int = 0
    worst_ppm: int = 0
    crashes: int = 0


class ShadowMirror:
    """Mirrors requests to one candidate.

    Args:
        process: the supervisor's name of its process.
        share_ppm: share of the live requests, in parts per million.
        limit_ppm: relative RMS difference up to which outputs agree, in parts per million.
        connect: opens its channel.
        models: names of its models at the endpoint, in order; requests for others are not mirrored.

    Attributes:
        counters: the result so far.
    """

    def __init__(
        self, process: str, share_ppm: int, limit_ppm: int, connect: ShadowConnector, models: Sequence[str]
    ) -> None:
        self.process = process
        self._models = tuple(models)
        self.counters = ShadowCounters()
        self._share_ppm = share_ppm
        self._limit_ppm = limit_ppm
        self._share_credit_ppm = 0
        self._sent_requests = 0
        self._is_busy = False
        self._sender: Sender | None = connect(on_response=self._handle_response, on_lost=self._handle_lost_process)

    def mirror(self, request: Request, response: Response) -> None:
        """Send a completed live request to the candidate, if it is in the share (rules 1 and 2).

        Args:
            request: the live request.
            response: the live model's response.
        """
        self._share_credit_ppm = min(self._share_credit_ppm + self._share_ppm, PPM)
        if self._share_credit_ppm < PPM or self._is_busy or self._sender is None or response.status != 200:
            return
        if request.flags & wire.COMPRESSED or response.has_nan or request.model not in self._models:
            return
        self._share_credit_ppm -= PPM
        self._sent_requests += 1
        self._is_busy = True
        trailer = wire.SHADOW_TRAILER.pack(len(response.body), response.json_bytes, self._limit_ppm)
        body = b"".join((request.body, response.body, trailer))
        shadowed = Request(wire.SHADOW, request.json_bytes, body, DiscardedResponse(), request.arrived_s)
        shadowed.model_number = self._models.index(request.model)
        shadowed.number = FIRST_REQUEST_NUMBER + self._sent_requests
        self._sender.send(shadowed)

    def close(self) -> None:
        """Close the channel; the response of an open request is dropped."""
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
