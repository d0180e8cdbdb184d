"""One generation in the front: its counters, and what it has and takes. No I/O here.

The rules are those of device_agent.front.generations.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from device_agent.front.fair_queue import FairQueue
from device_agent.front.requests import Request, Sender
from device_agent.runtime.latency import LatencyHistogram
from device_agent.runtime.wire import MAX_IN_FLIGHT_REQUESTS, Response

LARGE_BODY_BYTES: Final = 1024 * 1024
MAX_LARGE_REQUESTS: Final = 2  # with a process; it handles small requests while it parses these
UNLIMITED_BYTES: Final = 2**63


@dataclass(eq=False, slots=True)
class CounterWindow:
    """Counters of one generation since it became current (rule 5).

    Attributes:
        since_s: start of the window, on the monotonic clock.
        requests: completed requests of any status.
        client_errors: responses with a 4xx status.
        errors: responses with a 5xx status, and requests that failed after dispatch.
        nan_responses: responses that the model process flagged.
        crashes: crashes of the process.
        busy_us: time in the model process, of successful requests.
        total_us: time from arrival to response, of all requests.
    """

    since_s: float
    requests: int = 0
    client_errors: int = 0
    errors: int = 0
    nan_responses: int = 0
    crashes: int = 0
    busy_us: LatencyHistogram = field(default_factory=LatencyHistogram)
    total_us: LatencyHistogram = field(default_factory=LatencyHistogram)

    def record_response(self, response: Response, total_us: int) -> None:
        """Count one response of the model process.

        Args:
            response: response of the model process.
            total_us: microseconds since the request's arrival.
        """
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
        """Add the counts of another window."""
        self.requests += other.requests
        self.client_errors += other.client_errors
        self.errors += other.errors
        self.nan_responses += other.nan_responses
        self.crashes += other.crashes
        self.busy_us.merge(other.busy_us)
        self.total_us.merge(other.total_us)


@dataclass(frozen=True, slots=True)
class FrontModel:
    """One model of a generation, as the endpoint serves it.

    Attributes:
        name: its name at the endpoint (device_agent.runtime.oip.served_names).
        metadata: fields for the metadata endpoint.
        max_body_bytes: largest request body that its contract allows (device_agent.runtime.oip).
    """

    name: str
    metadata: Mapping[str, Any]
    max_body_bytes: int = UNLIMITED_BYTES


@dataclass(eq=False, slots=True)
class FrontGeneration:
    """One generation that the front knows.

    Attributes:
        number: the supervisor's number.
        version: version of the release.
        models: its models, in the order of the bundle.
        window: counters since it became current.
        process: the supervisor's name of the process behind it.
        sender: None while no process is alive.
        leases: requests that the process has, by number.
        pinned_requests: requests that wait for this generation's version.
        suspect_requests: requests that its process had when it ended (rule 6).
        on_drained: called once when it is retired and its last lease has ended.
        is_retired: it takes no new requests.
        is_stop_expected: the supervisor stops its process, which is no crash.
        past_window: counters from before the window.
    """

    number: int
    version: str
    models: tuple[FrontModel, ...]
    window: CounterWindow
    process: str = ""
    sender: Sender | None = None
    leases: dict[int, Request] = field(default_factory=dict)
    pinned_requests: FairQueue[Request] = field(default_factory=FairQueue)
    suspect_requests: FairQueue[Request] = field(default_factory=FairQueue)
    on_drained: list[Callable[[], None]] = field(default_factory=list)
    is_retired: bool = False
    is_stop_expected: bool = False
    past_window: CounterWindow = field(default_factory=lambda: CounterWindow(0.0))

    def find_model(self, name: str) -> int | None:
        """Return the position of the model that is served under a name; None if it has no such model."""
        return next((number for number, model in enumerate(self.models) if model.name == name), None)

    @property
    def lifetime(self) -> CounterWindow:
        """Counters since the generation was published first."""
        out = CounterWindow(0.0)
        out.merge(self.past_window)
        out.merge(self.window)
        return out

    @property
    def has_room(self) -> bool:
        """True if a request can be dispatched to it now."""
        is_isolated = any(request.is_suspect for request in self.leases.values())
        return self.sender is not None and len(self.leases) < MAX_IN_FLIGHT_REQUESTS and not is_isolated

    def takes(self, request: Request) -> bool:
        """Return whether a request can have a lease now (rule 2)."""
        if not self.has_room:
            return False
        if len(request.body) <= LARGE_BODY_BYTES:
            return True
        return sum(len(lease.body) > LARGE_BODY_BYTES for lease in self.leases.values()) < MAX_LARGE_REQUESTS
