"""The front's counters for the supervisor: of a generation, of shadow mode, and of repeated requests."""

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class WindowStats:
    """Counters of one generation since it became the current one.

    Attributes:
        seconds: time since then.
        requests: requests with a response of any status.
        client_errors: responses with a 4xx status, which are not the model's fault.
        errors: responses with a 5xx status: inference failed, took too long, or crashed the process twice.
        nan: responses with NaN or infinity, if neither the inputs nor the golden outputs have any.
        crashes: crashes of its process.
        p50_us, p95_us: microseconds in the model process, of successful requests; None if there were none.
        total_p50_us, total_p95_us: microseconds since the request's arrival at the front, waiting included.
        in_flight: requests that the process has now.
        oldest_in_flight_s: seconds since the oldest of them was sent to the process.
    """

    seconds: float = 0.0
    requests: int = 0
    client_errors: int = 0
    errors: int = 0
    nan: int = 0
    crashes: int = 0
    p50_us: int | None = None
    p95_us: int | None = None
    total_p50_us: int | None = None
    total_p95_us: int | None = None
    in_flight: int = 0
    oldest_in_flight_s: float = 0.0

    def as_json(self) -> dict[str, Any]:
        """Return the counters for `status` and the journal."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class ShadowStats:
    """Counters of a candidate in shadow mode.

    Attributes:
        compared: requests that both models completed.
        agreed: those with agreeing outputs (device_agent.runtime.comparison).
        errors: requests that failed on the candidate only.
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


@dataclass(frozen=True, slots=True)
class RepeatStats:
    """Counters of the bad responses of a generation (device_agent.front.repeats).

    Attributes:
        kinds: [seen, repeated, confirmed, distinct inputs among the confirmed] by kind.
        waiting: requests that were not repeated yet.
        needs_process: a repeat is due, and no process for it is connected.
        is_hung: the process of the generation hangs and should be ended.
        losses: ends of the process.
        crashes_without_request: those without a request that could be to blame.
    """

    kinds: dict[str, list[int]] = field(default_factory=dict)
    waiting: int = 0
    needs_process: bool = False
    is_hung: bool = False
    losses: int = 0
    crashes_without_request: int = 0
