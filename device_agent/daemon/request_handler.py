"""Handle the requests of the control socket, in that socket's threads.

Rules:
- `status`, `history`, `adapter-list`, `pause`, `resume` and `quarantine-clear` only read or write the journal, with a
  connection of their own: they are answered at once, whatever the main thread and the workers do.
- All other requests are queued for the supervisor's main thread, and the thread waits for the reply. A pause, and a
  rollback of the family that updates, end the update if its candidate does not serve yet.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar

from bundle.errors import Bug
from device_agent.config.families import check_family, per_family, require_one_family
from device_agent.daemon.family_service import FamilyService
from device_agent.daemon.messages import (
    AdapterRequest,
    DaemonMessage,
    PauseChanged,
    PlanRequest,
    Reply,
    RollbackRequest,
    SendReportsRequest,
    UpdateRequest,
)
from device_agent.policy.attempt import UpdateResult

SINGLE_FAMILY_COMMANDS: Final = ("rollback", "adapter-attach", "adapter-detach", "adapter-list")

T = TypeVar("T")


class RequestHandler:
    """Handler of control socket requests.

    Args:
        enqueue: queues a message for the main thread.
        open_service: returns the open service of a family, or raises JournalUnreadable.
        families: names of the families that the device follows.
    """

    def __init__(
        self,
        enqueue: Callable[[DaemonMessage], None],
        open_service: Callable[[str], FamilyService],
        families: tuple[str, ...],
    ) -> None:
        self._enqueue, self._open_service, self._families = enqueue, open_service, families

    def handle_request(self, request: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the reply to one request.

        Args:
            request: {"command": NAME, "family": NAME or None or missing, further fields of the command}.

        Raises:
            InvalidUsage: the device does not follow the family, or a command for one family names none of several.
            AgentStopping: the daemon stops before the request is handled.
            Bug: the command is unknown.
            AirweightsError: the error of the command.
        """
        command, named = request.get("command"), request.get("family")
        family = None if named is None else str(named)
        check_family(self._families, family)
        if command in SINGLE_FAMILY_COMMANDS:
            family = require_one_family(self._families, family)
        families = self._families if family is None else (family,)
        service = self._open_service
        match command:
            case "status":
                from device_agent.daemon.status import status_report  # not in memory at rest

                return status_report(per_family(self._families, lambda name: service(name).status())).as_json()
            case "history":
                return per_family(families, lambda name: service(name).history()).as_json(lambda one: one.as_json())
            case "adapter-list":
                return service(families[0]).list_adapters()
            case "update":
                update = UpdateRequest(families)
                return self._ask(update, update.reply).as_json(UpdateResult.as_json)
            case "rollback":
                rollback = RollbackRequest(families[0])
                return self._ask(rollback, rollback.reply).as_json()
            case "pause" | "resume":
                is_paused = command == "pause"
                service(self._families[0]).set_paused(is_paused=is_paused)
                self._enqueue(PauseChanged(is_paused))
                return {"paused": is_paused}
            case "plan":
                plan = PlanRequest(families)
                return self._ask(plan, plan.reply).as_json(lambda one: one.as_json())
            case "adapter-attach" | "adapter-detach":
                adapter = AdapterRequest(families[0], command, request)
                return self._ask(adapter, adapter.reply)
            case "report-send":
                send = SendReportsRequest(families)
                return self._ask(send, send.reply).as_json(lambda lines: {"lines": lines})
            case "quarantine-clear":
                digest = request.get("bundle")
                cleared = per_family(families, lambda name: service(name).clear_quarantine(digest))
                return {"cleared": sum(cleared.values())}
            case _:
                raise Bug(f"unknown command {command!r}")

    def _ask(self, message: DaemonMessage, reply: Reply[T]) -> T:
        self._enqueue(message)
        return reply.wait()
