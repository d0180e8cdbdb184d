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
from device_agent.errors import DrainTimeout, WorkerCrashed, WorkerTimeout
from device_agent.policy.journal_records import BundleRecord
from device_agent.policy.probation import ServingObservation
from device_agent.policy.shadow_judge import ShadowObservation
from device_agent.process.jail import JailPolicy
from device_agent.process.memory_lock import swap_is_enabled
from device_agent.runtime.handles import (
    BundleFds,
    FrontHandle,
    GenerationSpec,
    ModelProcess,
    PrestartedProcess,
    ServeConfig,
)
from device_agent.serving.family_serving import ModelProcessHandle

T = TypeVar("T")

DRAIN_TIMEOUT_S: Final = 30.0
MAX_RESPONSE_DELAY_S: Final = 30.0  # half of what the front lets a request wait for its answer


class ServingRuntime:
    """What all families share: the front, and the model process that is begun beside other work.

    Args:
        config: of the device.
    """

    def __init__(self, config: Config) -> None:
        self._config = config
        self._jail = JailPolicy(allow_unjailed=config.allow_unjailed)
        self._model_jail = replace(self._jail, lock_memory=True)
        self._prestarting: tuple[threading.Thread, list[PrestartedProcess]] | None = None
        self._family_runtimes = {
            family: FamilyRuntime(self, family, config.serve.threads) for family in config.families
        }
        self._listen = config.serve.listen
        self.front = self._start_front()
        if self.front.address.startswith("http://"):
            # a port that the system chose stays the same for the life of the daemon
            self._listen = "tcp:" + self.front.address.removeprefix("http://")

    @property
    def address(self) -> str:
        """Where clients connect."""
        return self.front.address

    def family_runtime(self, family: str) -> "FamilyRuntime":
        """Of a family of the configuration."""
        return self._family_runtimes[family]

    @property
    def model_jail(self) -> JailPolicy:
        """Of a model process."""
        return self._model_jail

    def prestart(self) -> None:
        """Begin a model process, without its model, for the next `start` (rule 3); `cool_down` ends it unused."""
        self.discard_prestarted()
        started: list[PrestartedProcess] = []

        def begin() -> None:
            with contextlib.suppress(Unavailable):  # `start` tries again, and says why
                started.append(PrestartedProcess.start(self._model_jail))

        thread = threading.Thread(target=begin, name="warm-up", daemon=True)
        self._prestarting = thread, started
        thread.start()

    def discard_prestarted(self) -> None:
        """End what `warm_up` began and nobody took."""
        if (unused := self.take_prestarted()) is not None:
            unused.stop()

    def take_prestarted(self) -> PrestartedProcess | None:
        """What `warm_up` began, or None."""
        if self._prestarting is None:
            return None
        (thread, started), self._prestarting = self._prestarting, None
        thread.join()
        return started[0] if started else None

    def is_responding(self) -> bool:
        """Every family that is published answers."""
        return self.front.is_alive() and all(outlet.is_responding() for outlet in self._family_runtimes.values())

    def restart_front(self) -> None:
        """Start the front again where it has died, with what was published. Raises Unavailable."""
        if self.front.is_alive():
            return
        with contextlib.suppress(Unavailable):
            self.front.stop()
        self.front = self._start_front()
        for outlet in self._family_runtimes.values():
            outlet.republish()

    def stop(self) -> None:
        """Stop accepting, answer what is here, end."""
        self.front.stop()

    def call_front(self, act: Callable[[FrontHandle], T]) -> T:
        """Ask the front; rule 1, in the middle of a switch too."""
        try:
            return act(self.front)
        except (WorkerCrashed, WorkerTimeout):
            self.restart_front()
            return act(self.front)

    def _start_front(self) -> FrontHandle:
        awaited = tuple(family for family, outlet in self._family_runtimes.items() if outlet.is_published)
        return FrontHandle.start(ServeConfig(self._listen, self._config.families, awaited, jail=self._jail))


class FamilyRuntime:
    """One family's part: implements `device_agent.serving.family_serving.Runtime`. Made by a Switchboard.

    Args:
        switchboard: whose it is.
        family: under whose name the front answers.
        threads: of a model process.
    """

    def __init__(self, runtime: ServingRuntime, family: str, threads: int) -> None:
        self._runtime, self._family, self._threads = runtime, family, threads
        self._published: ModelProcess | None = None

    @property
    def is_published(self) -> bool:
        """Something serves, or is about to again."""
        return self._published is not None

    @property
    def is_jailed(self) -> bool:
        """The model process is confined; true where there is none."""
        return self._published is None or self._published.is_jailed

    @property
    def is_swappable(self) -> bool:
        """Memory of the model process may be swapped out."""
        return self._published is not None and not self._published.is_memory_locked and swap_is_enabled()

    def start(self, fds: BundleFds, bundle: BundleRecord, variant: Variant, generation: int) -> ModelProcess:
        """Load and warm. Raises Unfit, Refused, Unavailable."""
        spec = GenerationSpec(
            family=bundle.family,
            generation=generation,
            version=bundle.version,
            variant=bundle.variant,
            contract=variant.contract,
            threads=self._threads,
        )
        # what nobody waits for does not take the processor from requests; after a crash everybody waits
        is_serving = self._published is not None and self._published.is_alive()
        return ModelProcess.start(
            fds, spec, self._runtime.model_jail, prestarted=self._runtime.take_prestarted(), in_background=is_serving
        )

    def publish(self, generation: int, process: ModelProcessHandle) -> int:
        """Requests go there from now on. Returns microseconds that the switch took within the front."""
        assert isinstance(process, ModelProcess)
        assert process.spec.generation == generation
        self._published = process
        return round(self._runtime.call_front(lambda front: front.publish(self._family, process)) * 1e6)

    def retire(self, generation: int) -> None:
        """Take it out and wait for its last answer, at most DRAIN_S."""
        if self._published is not None and self._published.spec.generation == generation:
            self._published = None  # nothing is expected to answer until the next `publish`
        with contextlib.suppress(DrainTimeout):
            self._runtime.call_front(lambda front: front.retire(self._family, generation, DRAIN_TIMEOUT_S))

    def observation(self, generation: int) -> ServingObservation:
        """Since it was published."""
        window = self._runtime.call_front(lambda front: front.window(self._family, generation))
        return ServingObservation(
            requests=window.requests - window.client_errors,
            errors=window.errors,
            nan=window.nan,
            p50_us=window.p50_us or 0,
            crashes=window.crashes,
        )

    def set_shadow(self, process: ModelProcessHandle, share_ppm: int, limit_ppm: int) -> None:
        """Let a candidate hear a share of the live requests at a low priority; 0 ends that."""
        assert isinstance(process, ModelProcess)
        process.set_background(is_background=share_ppm > 0)
        self._runtime.call_front(lambda front: front.set_shadow(self._family, process, share_ppm, limit_ppm))

    def shadow_observation(self) -> ShadowObservation:
        """What the candidate in the shadow did so far; nothing after a restart of the front."""
        stats = self._runtime.call_front(lambda front: front.shadow_stats(self._family))
        return ShadowObservation(stats.compared, stats.agreed, stats.errors, stats.nan, stats.crashes)

    def is_responding(self) -> bool:
        """Nothing is published, or its process is there and no request has waited for it for ANSWER_S."""
        process = self._published
        if process is None:
            return True
        try:
            window = self._runtime.front.window(self._family, process.spec.generation)
        except Unavailable:
            return False
        return process.is_alive() and window.oldest_in_flight_s < MAX_RESPONSE_DELAY_S

    def republish(self) -> None:
        """To a front that was started anew. Raises Unavailable."""
        if self._published is not None and self._published.is_alive():
            self._runtime.front.publish(self._family, self._published)
