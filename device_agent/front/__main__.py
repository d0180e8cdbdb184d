"""The front's process: an HTTP server for the app, and the supervisor's calls beside it.

Calls: `serve` (limits, families; the listening socket), `publish` (a generation; its request channel), `retire` (a pipe
whose closing says "drained"), `window`, `state`, `stop`, `facts`.
"""

import asyncio
import os
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, Final

from device_agent.front import metrics
from device_agent.front.app import App, Limits
from device_agent.front.generations import Generation, Slot, Window
from device_agent.front.request_channel import RequestChannel
from device_agent.front.server import FrontServer, server_for
from device_agent.front.shadow import Shadow
from device_agent.host.meters import ProcessMeter, energy_meters
from device_agent.process.channel import ChannelClosed, Message, Value
from device_agent.process.worker import Handler, Parent, answer, start
from device_agent.runtime.wire import Answer

SWEEP_S: Final = 0.5  # how late a deadline may be noticed; nothing is swept while no request is here


class FrontProcess:
    """The supervisor's calls on the event loop."""

    def __init__(self, parent: Parent, meters: metrics.Meters) -> None:
        self._parent, self._meters = parent, meters
        self._loop = asyncio.get_running_loop()
        self._app: App | None = None
        self._server: FrontServer | None = None
        self._limits: Limits | None = None
        self._serving: asyncio.Task[None] | None = None
        self._sweeping = False
        self._handlers: dict[str, Handler] = {
            "serve": self.serve,
            "publish": self.publish,
            "retire": self.retire,
            "window": self.window,
            "state": self.state,
            "facts": self.facts,
            "metrics": self.tell_metrics,
            "shadow": self.shadow,
            "shadow-counters": self.shadow_counters,
        }

    async def run(self) -> None:
        """Until the supervisor calls `stop` or closes its end."""
        stopped = asyncio.Event()

        def take_call() -> None:
            try:
                message = self._parent.receive()
                if message.value.get("call") == "stop":
                    stopped.set()
                else:
                    answer(self._parent, message, self._handlers)
            except ChannelClosed:
                self._loop.remove_reader(self._parent.fileno())
                stopped.set()

        self._loop.add_reader(self._parent.fileno(), take_call)
        await stopped.wait()
        if self._server is not None and self._serving is not None and self._app is not None:
            for slot in self._app.slots.values():
                slot.give_up()
            self._server.end()
            await self._serving
        self._loop.remove_reader(self._parent.fileno())
        self._parent.reply({})

    def serve(self, _parent: Parent, message: Message) -> Value:
        """Start to answer on the listening socket that comes along."""
        self._limits = limits = Limits(**message.value["limits"])
        self._app = App(limits, lambda: self._server.connections if self._server else 0, self._watch_deadlines)
        self._app.meters = self._meters
        self._meters.put('process="supervisor"', ProcessMeter(*message.fds[1:]))
        for family in message.value["families"]:
            self._slot(family, is_awaited=family in message.value["awaited"])
        self._server = server_for(self._app)
        listener = socket.socket(fileno=message.fds[0])
        self._serving = self._loop.create_task(self._server.serve(sockets=[listener]))
        return {}

    def publish(self, _parent: Parent, message: Message) -> Value:
        """Rule 1 of `generations`. The channel that comes along is used if it is of a new process."""
        value = message.value
        slot = self._slot(value["family"])
        generation = slot.generations.get(value["generation"])
        if generation is None:
            generation = Generation(value["generation"], value["version"], value["meta"], Window(time.monotonic()))
        if isinstance(slot.shadow, Shadow) and slot.shadow.process == value["process"]:
            self._end_shadow(slot)
        if generation.sender is None or generation.process != value["process"]:
            if generation.sender is not None:
                generation.sender.close()
                slot.lost(generation)
            generation.sender = self._channel(slot, generation, message.fds[0])
            generation.process = value["process"]
            if len(message.fds) == 3:
                self._meters.put(_labels(slot, generation), ProcessMeter(*message.fds[1:]))
        else:
            message.close()
        before = time.perf_counter_ns()
        slot.publish(generation)
        return {"publish_ns": time.perf_counter_ns() - before}

    def retire(self, _parent: Parent, message: Message) -> Value:
        """Rule 4 of `generations`."""
        slot = self._slot(message.value["family"])
        generation = slot.generations.get(message.value["generation"])

        def drained() -> None:
            os.close(message.fds[0])
            if generation is not None and not any(g.version == generation.version for g in slot.generations.values()):
                self._meters.drop(_labels(slot, generation))

        slot.retire(message.value["generation"], drained)
        return {}

    def window(self, _parent: Parent, message: Message) -> Value:
        """Rule 5 of `generations`; {} for a generation that is not here."""
        generation = self._slot(message.value["family"]).generations.get(message.value["generation"])
        return {} if generation is None else _window(generation)

    def state(self, _parent: Parent, _message: Message) -> Value:
        """What is loaded and current, and what waits."""
        slots = {
            family: {
                "current": None if slot.current is None else slot.current.number,
                "ready": slot.is_ready,
                "generations": sorted(slot.generations),
                "waiting": len(slot.waiting),
                "refused": slot.refused,
            }
            for family, slot in (self._app.slots if self._app else {}).items()
        }
        return {"slots": slots, "connections": self._server.connections if self._server else 0}

    def shadow(self, _parent: Parent, message: Message) -> Value:
        """A candidate hears a share of the family's requests from now on; a share of 0 ends it."""
        value = message.value
        slot = self._slot(value["family"])
        self._end_shadow(slot)
        if value["share_ppm"] and message.fds:

            def connect(*, answered: Callable[[int, Answer], None], lost: Callable[[], None]) -> RequestChannel:
                return self._connect(message.fds[0], answered, lost)

            slot.shadow = Shadow(value["process"], value["share_ppm"], value["limit_ppm"], connect)
        else:
            message.close()
        return {}

    def shadow_counters(self, _parent: Parent, message: Message) -> Value:
        """Of the candidate that hears now; {} without one."""
        shadow = self._slot(message.value["family"]).shadow
        return asdict(shadow.counters) if isinstance(shadow, Shadow) else {}

    def tell_metrics(self, _parent: Parent, message: Message) -> Value:
        """The supervisor's own metrics, in the text format, to be told after the front's."""
        assert self._app is not None
        self._app.further_metrics = str(message.value["text"]).encode()
        return {}

    def facts(self, _parent: Parent, _message: Message) -> Value:
        """What is loaded into this process, for tests and `status`."""
        return {"modules": sorted(sys.modules), "uid": os.geteuid()}

    def _slot(self, family: str, *, is_awaited: bool = False) -> Slot:
        assert self._app is not None
        assert self._limits is not None
        if family not in self._app.slots:
            first = int.from_bytes(os.urandom(7), "big")
            limits = self._limits
            self._app.slots[family] = Slot(
                family,
                max_waiting=limits.max_waiting,
                wait_s=limits.wait_s,
                first_number=first,
                is_awaited=is_awaited,
            )
        return self._app.slots[family]

    def _channel(self, slot: Slot, generation: Generation, fd: int) -> RequestChannel:
        channel: RequestChannel

        def lost() -> None:
            if generation.sender is channel:
                slot.lost(generation)

        channel = self._connect(fd, lambda number, answer: slot.answered(generation, number, answer), lost)
        return channel

    def _connect(self, fd: int, answered: Callable[[int, Answer], None], lost: Callable[[], None]) -> RequestChannel:
        assert self._limits is not None
        limit = self._limits.max_kept_bytes
        return RequestChannel(self._loop, fd, max_answer_bytes=limit, answered=answered, lost=lost)

    def _end_shadow(self, slot: Slot) -> None:
        if isinstance(slot.shadow, Shadow):
            slot.shadow.close()
        slot.shadow = None

    def _watch_deadlines(self) -> None:
        if not self._sweeping:
            self._sweeping = True
            self._loop.call_later(SWEEP_S, self._sweep)

    def _sweep(self) -> None:
        assert self._app is not None
        assert self._limits is not None
        for slot in self._app.slots.values():
            slot.sweep(self._limits.answer_deadline_s)
        self._sweeping = False
        if not all(slot.is_idle for slot in self._app.slots.values()):
            self._watch_deadlines()


def _labels(slot: Slot, generation: Generation) -> str:
    return f'process="model",family="{slot.family}",version="{generation.version}"'


def _window(generation: Generation) -> dict[str, Any]:
    window, now = generation.window, time.monotonic()
    return {
        "seconds": now - window.since_s,
        "requests": window.requests,
        "client_errors": window.client_errors,
        "errors": window.errors,
        "nan": window.nan,
        "crashes": window.crashes,
        "p50_us": window.busy.quantile_us(0.5),
        "p95_us": window.busy.quantile_us(0.95),
        "total_p50_us": window.total.quantile_us(0.5),
        "total_p95_us": window.total.quantile_us(0.95),
        "in_flight": len(generation.leases),
        "oldest_in_flight_s": max((now - r.dispatched_s for r in generation.leases.values()), default=0.0),
    }


def _import_all() -> metrics.Meters:
    """Every module that the first request would otherwise import: the jail has closed their files by then. What is
    read later is opened here."""

    async def nothing(_scope: object, _receive: object, _send: object) -> None: ...

    async def load() -> None:
        server_for(nothing)

    asyncio.run(load())
    return metrics.Meters(energy_meters(), {'process="front"': ProcessMeter.open()})


async def _run(parent: Parent, meters: metrics.Meters) -> None:
    await FrontProcess(parent, meters).run()


def main() -> None:
    """The process."""
    meters: list[metrics.Meters] = []
    parent, _ = start(lambda _pace: meters.append(_import_all()))
    asyncio.run(_run(parent, meters[0]))


if __name__ == "__main__":
    main()
