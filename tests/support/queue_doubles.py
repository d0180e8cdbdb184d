"""Doubles at the edges of a front's queue: a model process, and the future that a client waits for."""

from device_agent.front.requests import Request, RequestFailed
from device_agent.runtime.wire import Response


class Process:
    """A model process that responds when the test calls `QueueHarness.respond`."""

    def __init__(self) -> None:
        self.inbox: list[Request] = []
        self.closed = False

    def send(self, request: Request) -> None:
        assert not self.closed, "a request was sent to a closed process"
        self.inbox.append(request)

    def close(self) -> None:
        self.closed = True


class RecordedResponse:
    """A ResponseFuture that records the result of a request."""

    def __init__(self) -> None:
        self.result: Response | RequestFailed | None = None

    def set_result(self, result: Response) -> None:
        assert self.result is None, "completed twice"
        self.result = result

    def set_exception(self, exception: BaseException) -> None:
        assert self.result is None, "completed twice"
        assert isinstance(exception, RequestFailed)
        self.result = exception

    def done(self) -> bool:
        return self.result is not None
