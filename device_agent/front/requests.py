"""One open request, its error, and the interfaces that carry and observe requests. No I/O here."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from device_agent.front.peers import UNKNOWN_PEER
from device_agent.runtime.wire import Response


class RequestFailed(Exception):
    """A request fails with this response instead of the model's.

    Args:
        status: HTTP status.
        message: error message for the client.
        closes_connection: close the connection after the response.
    """

    def __init__(self, status: int, message: str, *, closes_connection: bool = False) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.closes_connection = closes_connection


class Sender(Protocol):
    """Carries requests to one model process."""

    def send(self, request: "Request") -> None:
        """Send a request now or later. Its response is reported elsewhere."""
        ...

    def close(self) -> None:
        """Close the channel to the process."""
        ...


class TrafficMirror(Protocol):
    """Receives copies of live requests and their responses; device_agent.front.shadow implements it."""

    def mirror(self, request: "Request", response: Response) -> None:
        """Receive one completed request.

        Args:
            request: the live request.
            response: the current generation's response.
        """
        ...


class ResponseObserver(Protocol):
    """Observes the bad responses of one generation; device_agent.front.repeats implements it."""

    @property
    def generation(self) -> int:
        """Number of the generation."""
        ...

    def record_response(self, request: "Request", response: Response) -> None:
        """Receive one completed request of the generation.

        Args:
            request: the live request.
            response: its response.
        """
        ...

    def record_loss(self, requests: Sequence["Request"]) -> bool:
        """Receive the open requests of a process that ended; return whether it hung, and was ended for that."""
        ...

    def record_stop(self) -> None:
        """Receive the end of a process that the supervisor stopped."""
        ...


class ResponseFuture(Protocol):
    """Receives the response of one request; asyncio.Future is one."""

    def set_result(self, result: Response, /) -> None:
        """Complete the request with a response."""
        ...

    def set_exception(self, exception: BaseException, /) -> None:
        """Complete the request with RequestFailed."""
        ...

    def done(self) -> bool:
        """Return whether the request is complete or its client is gone."""
        ...


@dataclass(eq=False, slots=True)
class Request:
    """One open request of a client.

    Attributes:
        flags, json_bytes: as in wire.FrameHead.
        body: the request body, opaque.
        response: receives the response or RequestFailed.
        arrived_s: arrival, on the monotonic clock.
        version: version of the release that the client asks for, or None.
        peer: user id of the client, or UNKNOWN_PEER.
        model: name of the model at the endpoint.
        model_number: position of the model in the generation of the last dispatch.
        number: number of the last dispatch.
        attempts: number of dispatches.
        dispatched_s: time of the last dispatch, on the monotonic clock.
        is_expired: it failed because it took too long, and was counted then.
        is_suspect: a process ended while it had this request, so that it is sent alone
            (device_agent.front.generations rule 6).
        may_move: the previous release has responded to it well, so that another generation may get it.
    """

    flags: int
    json_bytes: int
    body: bytes | bytearray
    response: ResponseFuture
    arrived_s: float
    version: str | None = None
    peer: int = UNKNOWN_PEER
    model: str = ""
    model_number: int = 0
    number: int = 0
    attempts: int = 0
    dispatched_s: float = 0.0
    is_expired: bool = False
    is_suspect: bool = False
    may_move: bool = False

    def set_response(self, response: Response) -> None:
        """Complete the request, unless its client is gone or it has expired."""
        if not self.response.done():
            self.response.set_result(response)

    def fail(self, status: int, message: str) -> None:
        """Complete the request with an error, unless its client is gone or it has expired.

        Args:
            status: HTTP status.
            message: error message for the client.
        """
        if not self.response.done():
            self.response.set_exception(RequestFailed(status, message))
