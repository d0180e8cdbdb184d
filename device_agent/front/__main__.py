"""The front's process: an HTTP server for apps, and the supervisor's calls on the same event loop.

Calls: `serve` (limits, families; the listening socket), `publish` (a generation; its request channel), `retire` (a pipe
that is closed when the generation is drained), `window`, `shadow`, `shadow-counters`, `metrics`, `access`, `state`,
`facts`, `repeats`, `repeat-process`, `repeat-counters`, `stop`.
"""

import asyncio
import os
import resource
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any, Final

from device_agent.front import metrics
from device_agent.front.access import AccessRules
from device_agent.front.app import EndpointApp, RequestLimits
from device_agent.front.connections import ByteLedger, ConnectionTable
from device_agent.front.front_generation import CounterWindow, FrontGeneration, FrontModel
from device_agent.front.generations import FamilyQueue
from device_agent.front.peers import PeerFinder
from device_agent.front.repeats import RequestRepeater
from device_agent.front.request_channel import RequestChannel
from device_agent.front.server import FrontServer, create_server
from device_agent.front.shadow import ShadowMirror
from device_agent.host.meters import ProcessMeter, open_energy_meters
from device_agent.process.channel import ChannelClosed, JsonObject, Message
from device_agent.process.worker import Handler, SupervisorChannel, handle_call, start_worker
from device_agent.runtime.wire import Response

RESERVED_OPEN_FILES: Final = 128  # channels, meters, and bodies in memory files
BODY_GRACE_S: Final = 1.0  # time for incomplete bodies after `stop`
SWEEP_INTERVAL_S: Final = 0.5  # deadlines are noticed this much late; no sweep runs while no request is open


class FrontProcess:
    """Handles the supervisor's calls on the event loop.

    Args:
        supervisor: the channel.
        meters: the meters that were opened before the jail closed.
        peers: finds the user of a connection; created before the jail closed.
    """

    def __init__(self, supervisor: SupervisorChannel, meters: metrics.ProcessMeters, peers: PeerFinder) -> None:
        self._supervisor, self._meters, self._peers = supervisor, meters, peers
        self._ledger = ByteLedger(0)
        self._table = ConnectionTable(0, self._ledger)
        self._loop = asyncio.get_running_loop()
        self._app: EndpointApp | None = None
        self._server: FrontServer | None = None
        self._limits: RequestLimits | None = None
        self._server_task: asyncio.Task[None] | None = None
        self._is_sweeping = self._is_unix = False
        self._handlers: dict[str, Handler] = {
            "serve": self.serve,
            "publish": self.publish,
            "retire": self.retire,
            "window": self.window,
            "state": self.state,
            "facts": self.facts,
            "metrics": self.set_supervisor_metrics,
            "access": self.set_access,
            "shadow": self.set_shadow,
            "shadow-counters": self.shadow_counters,
            "repeats": self.set_repeats,
            "repeat-process": self.set_repeat_process,
            "repeat-counters": self.repeat_counters,
        }

    async def run(self) -> None:
        """Run until the supervisor calls `stop` or closes its channel."""
        stopped = asyncio.Event()

        def take_call() -> None:
            try:
                message = self._supervisor.receive()
                if message.value.get("call") == "stop":
                    stopped.set()
                else:
                    handle_call(self._supervisor, message, self._handlers)
            except ChannelClosed:
                self._loop.remove_reader(self._supervisor.fileno())
                stopped.set()

        self._loop.add_reader(self._supervisor.fileno(), take_call)
        await stopped.wait()
        if self._server is not None and self._server_task is not None and self._app is not None:
            for queue in self._app.family_queues.values():
                queue.fail_waiting()
            self._server.request_stop()
            self._loop.call_later(BODY_GRACE_S, self._fail_incomplete)
            await self._server_task
        self._loop.remove_reader(self._supervisor.fileno())
        self._supervisor.reply({})

    def _fail_incomplete(self) -> None:
        while (connection := self._ledger.take_stalled()) is not None:
            connection.give_way()

    def serve(self, _supervisor: SupervisorChannel, message: Message) -> JsonObject:
        """Handle `serve`: start to serve on the listening socket of the message."""
        limits = RequestLimits(**message.value["limits"])
        open_files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        # the system may allow fewer open files than FrontHandle asked for
        max_connections = max(min(limits.max_connections, open_files - RESERVED_OPEN_FILES), 1)
        self._limits = limits = replace(limits, max_connections=max_connections)
        listener = socket.socket(fileno=message.fds[0])
        self._ledger = ledger = ByteLedger(limits.max_kept_bytes)
        self._table = ConnectionTable(limits.max_connections, ledger)
        self._is_unix = listener.family == socket.AF_UNIX
        access = self._access_rules(message)
        self._app = EndpointApp(limits, access, self._table, ledger, self._schedule_sweep)
        self._app.meters = self._meters
        self._meters.set_meter('process="supervisor"', ProcessMeter(*message.fds[1:]))
        for family in message.value["families"]:
            self._family_queue(family, is_awaited=family in message.value["awaited"])
        self._server = create_server(self._app, self._table, ledger, self._peers)
        self._server_task = self._loop.create_task(self._server.serve(sockets=[listener]))
        return {}

    def publish(self, _supervisor: SupervisorChannel, message: Message) -> JsonObject:
        """Handle `publish`: switch to a generation (device_agent.front.generations rule 1).

        The channel of the message is used if it belongs to a new process, and closed otherwise.

        Args:
            _supervisor: unused.
            message: the fields of FrontHandle.publish; the request channel and the process's meters.
        """
        value = message.value
        queue = self._family_queue(value["family"])
        generation = queue.generations.get(value["generation"])
        if generation is None:
            generation = FrontGeneration(
                value["generation"],
                value["version"],
                tuple(FrontModel(row["name"], row["meta"], row["max_body_bytes"]) for row in value["models"]),
                CounterWindow(time.monotonic()),
            )
        if isinstance(queue.shadow, ShadowMirror) and queue.shadow.process == value["process"]:
            self._end_shadow(queue)
        if generation.sender is None or generation.process != value["process"]:
            if generation.sender is not None:
                generation.sender.close()
                queue.handle_lost_process(generation)
            generation.sender = self._open_channel(queue, generation, message.fds[0])
            generation.process = value["process"]
            if len(message.fds) == 3:
                self._meters.set_meter(_metric_labels(queue, generation), ProcessMeter(*message.fds[1:]))
        else:
            message.close()
        before = time.perf_counter_ns()
        queue.publish(generation)
        return {"publish_ns": time.perf_counter_ns() - before}

    def retire(self, _supervisor: SupervisorChannel, message: Message) -> JsonObject:
        """Handle `retire` (device_agent.front.generations rule 4): close the pipe when drained."""
        queue = self._family_queue(message.value["family"])
        generation = queue.generations.get(message.value["generation"])

        def drained() -> None:
            os.close(message.fds[0])
            if generation is not None and not any(g.version == generation.version for g in queue.generations.values()):
                self._meters.delete_meter(_metric_labels(queue, generation))

        queue.retire(message.value["generation"], drained)
        return {}

    def window(self, _supervisor: SupervisorChannel, message: Message) -> JsonObject:
        """Handle `window`: return a generation's counters; {} if it is not loaded."""
        generation = self._family_queue(message.value["family"]).generations.get(message.value["generation"])
        return {} if generation is None else _window(generation)

    def state(self, _supervisor: SupervisorChannel, _message: Message) -> JsonObject:
        """Handle `state`: return the loaded and current generations, and how many requests wait."""
        families = {
            family: {
                "current": None if queue.current is None else queue.current.number,
                "ready": queue.is_ready,
                "generations": sorted(queue.generations),
                "waiting": len(queue.waiting_requests),
                "refused": queue.rejected_requests,
            }
            for family, queue in (self._app.family_queues if self._app else {}).items()
        }
        return {"families": families, "connections": len(self._table)}

    def set_shadow(self, _supervisor: SupervisorChannel, message: Message) -> JsonObject:
        """Handle `shadow`: mirror a share of the family's requests to a candidate; a share of 0 ends it."""
        value = message.value
        queue = self._family_queue(value["family"])
        self._end_shadow(queue)
        if value["share_ppm"] and message.fds:

            def connect(*, on_response: Callable[[int, Response], None], on_lost: Callable[[], None]) -> RequestChannel:
                return self._connect(message.fds[0], on_response, on_lost)

            queue.shadow = ShadowMirror(
                value["process"], value["share_ppm"], value["limit_ppm"], connect, value["models"]
            )
        else:
            message.close()
        return {}

    def shadow_counters(self, _supervisor: SupervisorChannel, message: Message) -> JsonObject:
        """Handle `shadow-counters`: return the candidate's counters; {} if there is none."""
        shadow = self._family_queue(message.value["family"]).shadow
        return asdict(shadow.counters) if isinstance(shadow, ShadowMirror) else {}

    def set_repeats(self, _supervisor: SupervisorChannel, message: Message) -> JsonObject:
        """Handle `repeats`: check the bad responses of a generation; without one, end that."""
        assert self._limits is not None
        value = message.value
        queue = self._family_queue(value["family"])
        if isinstance(queue.observer, RequestRepeater):
            queue.observer.close()
        queue.observer = None
        if value["generation"] is not None:
            queue.observer = RequestRepeater(
                value["generation"], value["slow_us"], value["latency_percent"], self._limits.response_deadline_s
            )
        return {}

    def set_repeat_process(self, _supervisor: SupervisorChannel, message: Message) -> JsonObject:
        """Handle `repeat-process`: repeat requests in this process; without one, drop them.

        With `is_stopping`, only note that the supervisor will stop the candidate's process.
        """
        queue = self._family_queue(message.value["family"])
        observer = queue.observer
        if not isinstance(observer, RequestRepeater):
            message.close()
        elif message.value["is_stopping"]:
            queue.expect_stop(observer.generation)
        elif message.fds:

            def connect(*, on_response: Callable[[int, Response], None], on_lost: Callable[[], None]) -> RequestChannel:
                return self._connect(message.fds[0], on_response, on_lost)

            observer.connect(connect)
        else:
            observer.discard()
        return {}

    def repeat_counters(self, _supervisor: SupervisorChannel, message: Message) -> JsonObject:
        """Handle `repeat-counters`: continue the repeats and return their counters; {} if there are none."""
        queue = self._family_queue(message.value["family"])
        if not isinstance(queue.observer, RequestRepeater):
            return {}
        generation = queue.generations.get(queue.observer.generation)
        return queue.observer.poll([] if generation is None else list(generation.leases.values()))

    def set_supervisor_metrics(self, _supervisor: SupervisorChannel, message: Message) -> JsonObject:
        """Handle `metrics`: replace the supervisor's part of `/metrics`."""
        assert self._app is not None
        self._app.supervisor_metrics = str(message.value["text"]).encode()
        return {}

    def set_access(self, _supervisor: SupervisorChannel, message: Message) -> JsonObject:
        """Handle `access`: replace the rules for Host and Origin."""
        assert self._app is not None
        self._app.access = self._access_rules(message)
        return {}

    def _access_rules(self, message: Message) -> AccessRules:
        value = message.value
        return AccessRules(value["allowed_hosts"], value["allowed_origins"], is_unix=self._is_unix)

    def facts(self, _supervisor: SupervisorChannel, _message: Message) -> JsonObject:
        """Handle `facts`: return the loaded modules and the user id, for tests and `status`."""
        return {"modules": sorted(sys.modules), "uid": os.geteuid()}

    def _family_queue(self, family: str, *, is_awaited: bool = False) -> FamilyQueue:
        assert self._app is not None
        assert self._limits is not None
        if family not in self._app.family_queues:
            first = int.from_bytes(os.urandom(7), "big")
            limits = self._limits
            self._app.family_queues[family] = FamilyQueue(
                family,
                max_waiting=limits.max_waiting,
                wait_s=limits.wait_s,
                first_number=first,
                is_awaited=is_awaited,
            )
        return self._app.family_queues[family]

    def _open_channel(self, queue: FamilyQueue, generation: FrontGeneration, fd: int) -> RequestChannel:
        channel: RequestChannel

        def lost() -> None:
            if generation.sender is channel:
                queue.handle_lost_process(generation)

        channel = self._connect(fd, lambda number, response: queue.handle_response(generation, number, response), lost)
        return channel

    def _connect(
        self, fd: int, on_response: Callable[[int, Response], None], on_lost: Callable[[], None]
    ) -> RequestChannel:
        assert self._limits is not None
        limit = self._limits.max_kept_bytes
        return RequestChannel(self._loop, fd, max_response_bytes=limit, on_response=on_response, on_lost=on_lost)

    def _end_shadow(self, queue: FamilyQueue) -> None:
        if isinstance(queue.shadow, ShadowMirror):
            queue.shadow.close()
        queue.shadow = None

    def _schedule_sweep(self) -> None:
        if not self._is_sweeping:
            self._is_sweeping = True
            self._loop.call_later(SWEEP_INTERVAL_S, self._sweep)

    def _sweep(self) -> None:
        assert self._app is not None
        assert self._limits is not None
        for queue in self._app.family_queues.values():
            queue.fail_expired(self._limits.response_deadline_s)
        self._is_sweeping = False
        if not all(queue.is_idle for queue in self._app.family_queues.values()):
            self._schedule_sweep()


def _metric_labels(queue: FamilyQueue, generation: FrontGeneration) -> str:
    return f'process="model",family="{queue.family}",version="{generation.version}"'


def _window(generation: FrontGeneration) -> dict[str, Any]:
    window, now = generation.window, time.monotonic()
    return {
        "seconds": now - window.since_s,
        "requests": window.requests,
        "client_errors": window.client_errors,
        "errors": window.errors,
        "nan": window.nan_responses,
        "crashes": window.crashes,
        "p50_us": window.busy_us.quantile_us(0.5),
        "p95_us": window.busy_us.quantile_us(0.95),
        "total_p50_us": window.total_us.quantile_us(0.5),
        "total_p95_us": window.total_us.quantile_us(0.95),
        "in_flight": len(generation.leases),
        "oldest_in_flight_s": max((now - r.dispatched_s for r in generation.leases.values()), default=0.0),
    }


def _import_all() -> tuple[metrics.ProcessMeters, PeerFinder]:
    """Import every module that the first request would import, and open every file that is read later.

    The jail closes their files before the first request.
    """

    async def nothing(_scope: object, _receive: object, _send: object) -> None: ...

    peers = PeerFinder()

    async def load() -> None:
        ledger = ByteLedger(0)
        create_server(nothing, ConnectionTable(0, ledger), ledger, peers)

    asyncio.run(load())
    return metrics.ProcessMeters(open_energy_meters(), {'process="front"': ProcessMeter.open()}), peers


async def _run(supervisor: SupervisorChannel, meters: metrics.ProcessMeters, peers: PeerFinder) -> None:
    await FrontProcess(supervisor, meters, peers).run()


def main() -> None:
    """Run the front: import, enter the jail, serve until the supervisor ends."""
    opened: list[tuple[metrics.ProcessMeters, PeerFinder]] = []
    supervisor, _ = start_worker(lambda _pace, _policy: opened.append(_import_all()))
    asyncio.run(_run(supervisor, *opened[0]))


if __name__ == "__main__":
    main()
