"""The real runtime behind `device_agent.serving.family_serving`: the front's process, and a process for each
generation.

Rules:
1. The front is started once, for all families. If it dies it is started again at the same address, and what serves is
   published again.
2. A request outlives both a model process (the front sends it once more) and a switch (it holds a lease).
3. Where everybody waits, the imports of the next model process run beside the unsealing of its bundle (`warm_up`).
"""

import contextlib
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Final, TypeVar

from bundle.errors import Unavailable
from bundle.manifest import Variant
from device_agent.config.config import Config
from device_agent.errors import ChildDied, ChildTimeout, DrainUnavailable
from device_agent.policy.journal_records import Holding
from device_agent.policy.probation import Observed
from device_agent.policy.shadow_judge import Heard
from device_agent.process.jail import JailPolicy
from device_agent.process.memory_lock import is_there_swap
from device_agent.runtime.handles import BundleFds, Front, GenerationSpec, ModelProcess, ServeConfig, Standby
from device_agent.serving.family_serving import Process

T = TypeVar("T")

DRAIN_S: Final = 30.0
ANSWER_S: Final = 30.0  # half of what the front lets a request wait for its answer


class Switchboard:
    """What all families share: the front, and the model process that is begun beside other work.

    Args:
        config: of the device.
    """

    def __init__(self, config: Config) -> None:
        self._config = config
        self._jail = JailPolicy(allow_unjailed=config.allow_unjailed)
        self._model_jail = replace(self._jail, lock_memory=True)
        self._warming: tuple[threading.Thread, list[Standby]] | None = None
        self._outlets = {family: Outlet(self, family, config.serve.threads) for family in config.families}
        self._listen = config.serve.listen
        self.front = self._start_front()
        if self.front.address.startswith("http://"):
            # a port that the system chose stays the same for the life of the daemon
            self._listen = "tcp:" + self.front.address.removeprefix("http://")

    @property
    def address(self) -> str:
        """Where clients connect."""
        return self.front.address

    def outlet(self, family: str) -> "Outlet":
        """Of a family of the configuration."""
        return self._outlets[family]

    @property
    def model_jail(self) -> JailPolicy:
        """Of a model process."""
        return self._model_jail

    def warm_up(self) -> None:
        """Begin a model process, without its model, for the next `start` (rule 3); `cool_down` ends it unused."""
        self.cool_down()
        started: list[Standby] = []

        def begin() -> None:
            with contextlib.suppress(Unavailable):  # `start` tries again, and says why
                started.append(Standby.start(self._model_jail))

        thread = threading.Thread(target=begin, name="warm-up", daemon=True)
        self._warming = thread, started
        thread.start()

    def cool_down(self) -> None:
        """End what `warm_up` began and nobody took."""
        if (unused := self.take_warm()) is not None:
            unused.stop()

    def take_warm(self) -> Standby | None:
        """What `warm_up` began, or None."""
        if self._warming is None:
            return None
        (thread, started), self._warming = self._warming, None
        thread.join()
        return started[0] if started else None

    def is_answering(self) -> bool:
        """Every family that is published answers."""
        return self.front.alive() and all(outlet.is_answering() for outlet in self._outlets.values())

    def revive(self) -> None:
        """Start the front again where it has died, with what was published. Raises Unavailable."""
        if self.front.alive():
            return
        with contextlib.suppress(Unavailable):
            self.front.stop()
        self.front = self._start_front()
        for outlet in self._outlets.values():
            outlet.publish_again()

    def stop(self) -> None:
        """Stop accepting, answer what is here, end."""
        self.front.stop()

    def with_front(self, act: Callable[[Front], T]) -> T:
        """Ask the front; rule 1, in the middle of a switch too."""
        try:
            return act(self.front)
        except (ChildDied, ChildTimeout):
            self.revive()
            return act(self.front)

    def _start_front(self) -> Front:
        awaited = tuple(family for family, outlet in self._outlets.items() if outlet.is_published)
        return Front.start(ServeConfig(self._listen, self._config.families, awaited, jail=self._jail))


class Outlet:
    """One family's part: implements `device_agent.serving.family_serving.Runtime`. Made by a Switchboard.

    Args:
        switchboard: whose it is.
        family: under whose name the front answers.
        threads: of a model process.
    """

    def __init__(self, switchboard: Switchboard, family: str, threads: int) -> None:
        self._switchboard, self._family, self._threads = switchboard, family, threads
        self._published: ModelProcess | None = None

    @property
    def is_published(self) -> bool:
        """Something serves, or is about to again."""
        return self._published is not None

    @property
    def is_jailed(self) -> bool:
        """The model process is confined; true where there is none."""
        return self._published is None or self._published.jailed

    @property
    def is_swappable(self) -> bool:
        """Memory of the model process may be swapped out."""
        return self._published is not None and not self._published.memory_locked and is_there_swap()

    def start(self, fds: BundleFds, holding: Holding, variant: Variant, generation: int) -> ModelProcess:
        """Load and warm. Raises Unfit, Refused, Unavailable."""
        spec = GenerationSpec(
            family=holding.family,
            generation=generation,
            version=holding.version,
            variant=holding.variant,
            contract=variant.contract,
            threads=self._threads,
        )
        # what nobody waits for does not take the processor from requests; after a crash everybody waits
        is_serving = self._published is not None and self._published.alive()
        return ModelProcess.start(
            fds, spec, self._switchboard.model_jail, standby=self._switchboard.take_warm(), in_background=is_serving
        )

    def publish(self, generation: int, process: Process) -> int:
        """Requests go there from now on. Returns microseconds that the switch took within the front."""
        assert isinstance(process, ModelProcess)
        assert process.spec.generation == generation
        self._published = process
        return round(self._switchboard.with_front(lambda front: front.publish(self._family, process)) * 1e6)

    def retire(self, generation: int) -> None:
        """Take it out and wait for its last answer, at most DRAIN_S."""
        if self._published is not None and self._published.spec.generation == generation:
            self._published = None  # nothing is expected to answer until the next `publish`
        with contextlib.suppress(DrainUnavailable):
            self._switchboard.with_front(lambda front: front.retire(self._family, generation, DRAIN_S))

    def observe(self, generation: int) -> Observed:
        """Since it was published."""
        window = self._switchboard.with_front(lambda front: front.window(self._family, generation))
        return Observed(
            requests=window.requests - window.client_errors,
            errors=window.errors,
            nan=window.nan,
            p50_us=window.p50_us or 0,
            crashes=window.crashes,
        )

    def shadow(self, process: Process, share_ppm: int, limit_ppm: int) -> None:
        """Let a candidate hear a share of the live requests at a low priority; 0 ends that."""
        assert isinstance(process, ModelProcess)
        process.set_background(is_background=share_ppm > 0)
        self._switchboard.with_front(lambda front: front.shadow(self._family, process, share_ppm, limit_ppm))

    def heard(self) -> Heard:
        """What the candidate in the shadow did so far; nothing after a restart of the front."""
        stats = self._switchboard.with_front(lambda front: front.shadow_stats(self._family))
        return Heard(stats.compared, stats.agreed, stats.errors, stats.nan, stats.crashes)

    def is_answering(self) -> bool:
        """Nothing is published, or its process is there and no request has waited for it for ANSWER_S."""
        process = self._published
        if process is None:
            return True
        try:
            window = self._switchboard.front.window(self._family, process.spec.generation)
        except Unavailable:
            return False
        return process.alive() and window.oldest_in_flight_s < ANSWER_S

    def publish_again(self) -> None:
        """To a front that was started anew. Raises Unavailable."""
        if self._published is not None and self._published.alive():
            self._switchboard.front.publish(self._family, self._published)
