"""Messages that other threads queue for the supervisor's main thread: a closed union, `DaemonMessage`.

A request has a `Reply`, on which the thread of the control socket waits. The other messages need no reply.
"""

import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, TypeAlias, TypeVar

from bundle.errors import AirweightsError, Bug
from bundle.files import BundleDigest
from device_agent.config.families import FamilyResults
from device_agent.errors import AgentStopping
from device_agent.policy.attempt import UpdateResult

if TYPE_CHECKING:
    from device_agent.update.preview import Plan  # noqa: F401  # in a string below; not in the daemon's memory at rest

T = TypeVar("T")


class Reply(Generic[T]):
    """The reply to one request: set once by the main thread, awaited by one other thread."""

    def __init__(self) -> None:
        self._done = threading.Event()
        self._values: list[T] = []
        self._error: AirweightsError | None = None

    def resolve(self, action: Callable[[], T]) -> None:
        """Call `action` and set its result, or its error.

        Raises:
            Bug: `action` raised it; the waiting thread gets AgentStopping.
        """
        try:
            self._values.append(action())
        except Bug:
            raise
        except AirweightsError as error:
            self._error = error
        finally:
            self._done.set()

    def cancel(self) -> None:
        """Release the waiting thread without a reply."""
        self._done.set()

    def wait(self) -> T:
        """Wait for the reply, without a limit.

        Raises:
            AgentStopping: the request was canceled.
            AirweightsError: the error of the request.
        """
        self._done.wait()
        if self._error is not None:
            raise self._error
        if not self._values:
            raise AgentStopping("the agent is stopping")
        return self._values[0]


@dataclass(frozen=True, slots=True)
class Request(Generic[T]):
    """A message whose sender waits for a reply.

    Attributes:
        reply: set by the main thread.
    """

    reply: Reply[T] = field(default_factory=Reply, kw_only=True, repr=False)


@dataclass(frozen=True, slots=True)
class Stop:
    """End the daemon's main loop."""


@dataclass(frozen=True, slots=True)
class Reload:
    """Read the configuration again."""


@dataclass(frozen=True, slots=True)
class FrontCrashed:
    """The front process ended unexpectedly."""


@dataclass(frozen=True, slots=True)
class ModelCrashed:
    """A serving model process ended unexpectedly.

    Attributes:
        family: name of the family.
        generation: number of the crashed generation.
    """

    family: str
    generation: int


@dataclass(frozen=True, slots=True)
class BundleDamaged:
    """Files of a bundle could not be lent, because the stored bundle is damaged.

    Attributes:
        family: name of the family.
        digest: digest of the bundle.
    """

    family: str
    digest: BundleDigest


@dataclass(frozen=True, slots=True)
class UpdateRequest(Request[FamilyResults[UpdateResult]]):
    """Run one update of each named family."""

    families: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class RollbackRequest(Request[UpdateResult]):
    """Return a family to its previous release."""

    family: str


@dataclass(frozen=True, slots=True)
class ReportProbation:
    """Reply to a rollback request that has ended a probation, with the result of that attempt."""

    request: RollbackRequest


@dataclass(frozen=True, slots=True)
class PauseChanged:
    """The updates of all families were paused or resumed; the journal says so already."""

    is_paused: bool


@dataclass(frozen=True, slots=True)
class PlanRequest(Request["FamilyResults[Plan]"]):
    """Report what an update of each named family would do."""

    families: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class AdapterRequest(Request[dict[str, Any]]):
    """Attach or detach the adapter of a family; the reply is the listing of adapters.

    Attributes:
        family: name of the family.
        command: "adapter-attach" or "adapter-detach".
        fields: arguments of "adapter-attach" (device_agent.update.adapter_change).
    """

    family: str
    command: str
    fields: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class SendReportsRequest(Request[FamilyResults[int]]):
    """Send the reports and a vital of each named family now; the reply is the number of sent lines."""

    families: tuple[str, ...]


DaemonMessage: TypeAlias = (
    Stop
    | Reload
    | FrontCrashed
    | ModelCrashed
    | BundleDamaged
    | UpdateRequest
    | RollbackRequest
    | ReportProbation
    | PauseChanged
    | PlanRequest
    | AdapterRequest
    | SendReportsRequest
)


def cancel_replies(messages: Iterable[DaemonMessage]) -> None:
    """Release the threads that wait for replies to messages."""
    for message in messages:
        request = message.request if isinstance(message, ReportProbation) else message
        if isinstance(request, Request):
            request.reply.cancel()
