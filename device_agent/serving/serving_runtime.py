"""The processes behind the generations: one front, and a model process for each generation.

Rules:
1. One front is started for all families. If it crashes, it is started again at the same address, and the serving
   generations are published again.
2. A request survives a crash of its model process, because the front sends it once more. It survives a switch, because
   it has a lease on its generation.
3. If requests would have to wait for a model, the next model process does its imports while its bundle is decrypted
   (`prestart`).
"""

import contextlib
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Final, TypeVar, cast

from bundle.errors import Refused, Unavailable
from bundle.requirements import Runtime
from bundle.variant import Variant
from device_agent.config.config import Config
from device_agent.config.serve import ServeSettings
from device_agent.errors import DrainTimeout, WorkerCrashed, WorkerTimeout
from device_agent.host.device_facts import has_endpoint
from device_agent.policy.journal_records import BundleRecord
from device_agent.policy.serving_counts import BadResponse, BadResponseCount, RepeatObservation, ServingObservation
from device_agent.policy.shadow_judge import ShadowObservation
from device_agent.process.jail import MAX_THREADS, JailPolicy
from device_agent.process.memory_lock import swap_is_enabled
from device_agent.runtime.handles import (
    BundleFds,
    FrontHandle,
    GenerationSpec,
    ModelProcess,
    PrestartedProcess,
    ServeConfig,
)
from device_agent.runtime.no_front import NoFront
from device_agent.runtime.wire import KEPT_BODIES
from device_agent.serving.serving_backend import ModelProcessHandle

T = TypeVar("T")

DRAIN_TIMEOUT_S: Final = 30.0
MAX_RESPONSE_DELAY_S: Final = 30.0  # half of ServeConfig.response_deadline_s


class ServingRuntime:
    """The front and the prestarted model process, which all families share.

    Only the supervisor's main thread may call it.

    Args:
        config: the device's configuration.

    Raises:
        ConfigInvalid: the listen address is malformed.
        AddressUnavailable: the address is in use or not allowed.
        Unavailable: the front cannot be started.
    """

    def __init__(self, config: Config) -> None:
        self._config = config
        self._jail = JailPolicy(allow_unjailed=config.allow_unjailed)
        self._model_jail = _model_jail(self._jail, config.serve)
        self._prestarting: tuple[threading.Thread, list[PrestartedProcess]] | None = None
        self._family_runtimes = {family: FamilyRuntime(self, family, config.serve) for family in config.families}
        self._listen = config.serve.listen
        self.front = self._start_front()
        if self._listen.startswith("tcp:"):
            # keep the port that the system chose, so that a restarted front has the same address
            self._listen = "tcp:" + self.front.address.removeprefix("http://")

    @property
    def address(self) -> str:
        """The address that clients connect to."""
        return self.front.address

    def family_runtime(self, family: str) -> "FamilyRuntime":
        """Return the part of one configured family."""
        return self._family_runtimes[family]

    @property
    def model_jail(self) -> JailPolicy:
        """The jail policy of model processes."""
        return self._model_jail

    def reconfigure(self, config: Config) -> None:
        """Apply the settings of `[serve]` that need no restart (device_agent.config.reload).

        Threads and limits of a model process apply to the next one.

        Raises:
            Unavailable: the front crashed, and could not be started again.
        """
        self._config = config
        self._model_jail = _model_jail(self._jail, config.serve)
        for family_runtime in self._family_runtimes.values():
            family_runtime.settings = config.serve
        serve = config.serve
        self.call_front(lambda front: front.set_access(serve.allowed_hosts, serve.allowed_origins))

    def prestart(self, runtime: Runtime) -> None:
        """Start a model process of a runtime without a model, for the next `FamilyRuntime.start` (rule 3).

        `discard_prestarted` ends it if no family has taken it.
        """
        jail = replace(self._model_jail, runtime=runtime.name, provider=runtime.provider)
        self.discard_prestarted()
        started: list[PrestartedProcess] = []

        def begin() -> None:
            with contextlib.suppress(Unavailable, Refused):  # `start` tries again and reports the error
                started.append(PrestartedProcess.start(jail))

        thread = threading.Thread(target=begin, name="prestart", daemon=True)
        self._prestarting = thread, started
        thread.start()

    def discard_prestarted(self) -> None:
        """End the prestarted process, if there is one."""
        if (unused := self.take_prestarted()) is not None:
            unused.stop()

    def take_prestarted(self) -> PrestartedProcess | None:
        """Return the prestarted process and forget it; None if there is none."""
        if self._prestarting is None:
            return None
        (thread, started), self._prestarting = self._prestarting, None
        thread.join()
        return started[0] if started else None

    def is_responding(self) -> bool:
        """Return whether the front is alive and every published family responds to requests."""
        return self.front.is_alive() and all(
            family_runtime.is_responding() for family_runtime in self._family_runtimes.values()
        )

    def restart_front(self) -> None:
        """Start the front again if it has crashed, and publish the serving generations to it.

        Raises:
            Unavailable: the front cannot be started.
        """
        if self.front.is_alive():
            return
        with contextlib.suppress(Unavailable):
            self.front.stop()
        self.front = self._start_front()
        for family_runtime in self._family_runtimes.values():
            family_runtime.republish()

    def stop(self) -> None:
        """Stop accepting requests, complete the open ones, and end the front."""
        self.front.stop()

    def call_front(self, act: Callable[[FrontHandle], T]) -> T:
        """Call the front; if it has crashed, restart it and call once more (rule 1)."""
        try:
            return act(self.front)
        except (WorkerCrashed, WorkerTimeout):
            self.restart_front()
            return act(self.front)

    def _start_front(self) -> FrontHandle:
        if not has_endpoint():
            return cast("FrontHandle", NoFront())
        awaited = tuple(
            family for family, family_runtime in self._family_runtimes.items() if family_runtime.is_published
        )
        serve = self._config.serve
        return FrontHandle.start(
            ServeConfig(
                self._listen,
                self._config.families,
                awaited,
                group=serve.group,
                mode=int(serve.mode, 8),
                allowed_hosts=serve.allowed_hosts,
                allowed_origins=serve.allowed_origins,
                max_body_bytes=serve.max_body_bytes,
                max_kept_bytes=KEPT_BODIES * serve.max_body_bytes,
                max_connections=serve.max_connections,
                jail=self._jail,
            )
        )


def _model_jail(jail: JailPolicy, serve: ServeSettings) -> JailPolicy:
    threads = MAX_THREADS + serve.threads
    libraries, devices = serve.provider_libraries, serve.devices
    return replace(jail, lock_memory=True, threads=threads, provider_libraries=libraries, devices=devices)


class FamilyRuntime:
    """The `ServingBackend` of one family (device_agent.serving.family_serving). Created by ServingRuntime.

    Args:
        runtime: the shared part.
        family: the family's name, under which the front serves it.
        settings: threads and limits of a model process.

    Attributes:
        settings: those of the next model process.
        on_idle: called repeatedly while a model process loads; an error that it raises ends it, and is raised.
    """

    def __init__(self, runtime: ServingRuntime, family: str, settings: ServeSettings) -> None:
        self._runtime, self._family, self.settings = runtime, family, settings
        self.on_idle: Callable[[], None] | None = None
        self._published: ModelProcess | None = None
        self._is_watched = False  # in a probation, which ends a process that hangs

    @property
    def is_published(self) -> bool:
        """True if a generation serves, or will again after a restart."""
        return self._published is not None

    @property
    def is_jailed(self) -> bool:
        """True if the model process is confined, or if there is none."""
        return self._published is None or self._published.is_jailed

    @property
    def is_swappable(self) -> bool:
        """True if memory of the model process could be written to swap."""
        return self._published is not None and not self._published.is_memory_locked and swap_is_enabled()

    def start(self, fds: BundleFds, bundle: BundleRecord, variant: Variant, generation: int) -> ModelProcess:
        """Start a process, load a bundle's model and warm it on the golden inputs.

        Args:
            fds: the plain files of the bundle; the caller still owns them.
            bundle: the journal's record of the bundle.
            variant: the variant of its manifest.
            generation: number of the new generation.

        Raises:
            Unfit: the model does not load, breaks its contract, or crashes.
            Refused: the golden vectors are malformed.
            Unavailable: no process can be started.
        """
        first, *others = variant.models
        spec = GenerationSpec(
            family=bundle.family,
            generation=generation,
            version=bundle.version,
            variant=bundle.variant,
            contract=first.contract,
            further=tuple((model.name, model.contract) for model in others),
            model=first.name,
            threads=self.settings.threads,
            max_body_bytes=self.settings.max_body_bytes,
            request_memory_bytes=self.settings.request_memory_bytes,
        )
        # load in the background while another process serves requests; at full speed if requests wait for this one
        is_serving = self._published is not None and self._published.is_alive()
        return ModelProcess.start(
            fds,
            spec,
            self._runtime.model_jail,
            prestarted=self._runtime.take_prestarted(),
            in_background=is_serving,
            on_idle=self.on_idle,
        )

    def publish(self, generation: int, process: ModelProcessHandle) -> int:
        """Direct the family's requests to a process from now on.

        Args:
            generation: number of its generation.
            process: a process that `start` returned.

        Returns:
            Duration of the switch within the front, in microseconds.
        """
        assert isinstance(process, ModelProcess)
        assert process.spec.generation == generation
        self._published = process
        return round(self._runtime.call_front(lambda front: front.publish(self._family, process)) * 1e6)

    def retire(self, generation: int) -> None:
        """Stop directing requests to a generation; wait at most DRAIN_TIMEOUT_S for its open ones."""
        if self._published is not None and self._published.spec.generation == generation:
            self._published = None  # `is_responding` expects no responses until the next `publish`
        with contextlib.suppress(DrainTimeout):
            self._runtime.call_front(lambda front: front.retire(self._family, generation, DRAIN_TIMEOUT_S))

    def observation(self, generation: int) -> ServingObservation:
        """Return the front's counters of a generation since it was published."""
        window = self._runtime.call_front(lambda front: front.window(self._family, generation))
        return ServingObservation(
            requests=window.requests - window.client_errors,
            errors=window.errors,
            nan=window.nan,
            p50_us=window.p50_us or 0,
            crashes=window.crashes,
        )

    def set_repeats(self, generation: int | None, slow_us: int | None, latency_percent: int) -> None:
        """Check the bad responses of a generation from now on, or end that.

        Args:
            generation: number of the candidate's generation; None ends the checks.
            slow_us: microseconds above which a response is checked for latency; None for never.
            latency_percent: allowed latency, in percent of that of the previous release on the same input.
        """
        self._is_watched = False
        self._runtime.call_front(lambda front: front.set_repeats(self._family, generation, slow_us, latency_percent))
        self._is_watched = generation is not None

    def set_repeat_process(self, process: ModelProcessHandle | None) -> None:
        """Repeat requests in a process that is not published; None drops the kept requests."""
        assert process is None or isinstance(process, ModelProcess)
        self._runtime.call_front(lambda front: front.set_repeat_process(self._family, process))

    def expect_stop(self) -> None:
        """Announce to the front that the process of the candidate will be stopped, which is no crash."""
        self._runtime.call_front(lambda front: front.expect_stop(self._family))

    def repeat_observation(self) -> RepeatObservation | None:
        """Start the next repeat if one is due, and return the counters; None after a restart of the front."""
        found = self._runtime.call_front(lambda front: front.repeat_stats(self._family))
        if found is None:
            return None
        return RepeatObservation(
            counts={BadResponse(kind): BadResponseCount(*counts) for kind, counts in found.kinds.items()},
            waiting=found.waiting,
            needs_process=found.needs_process,
            is_hung=found.is_hung,
            losses=found.losses,
            crashes_without_request=found.crashes_without_request,
        )

    def set_shadow(self, process: ModelProcessHandle, share_ppm: int, limit_ppm: int) -> None:
        """Mirror a share of the live requests to a candidate, which runs at a low priority.

        Args:
            process: the candidate's process.
            share_ppm: share of the requests, in parts per million; 0 ends shadow mode.
            limit_ppm: relative RMS difference up to which outputs agree, in parts per million.
        """
        assert isinstance(process, ModelProcess)
        process.set_background(is_background=share_ppm > 0)
        self._runtime.call_front(lambda front: front.set_shadow(self._family, process, share_ppm, limit_ppm))

    def shadow_observation(self) -> ShadowObservation:
        """Return the counters of shadow mode; all zero after a restart of the front."""
        stats = self._runtime.call_front(lambda front: front.shadow_stats(self._family))
        return ShadowObservation(stats.compared, stats.agreed, stats.errors, stats.nan, stats.crashes)

    def is_responding(self) -> bool:
        """Return whether this family responds to requests.

        It does if nothing is published, or if its process is alive and no request has waited MAX_RESPONSE_DELAY_S for
        it. In a probation it always does, because the probation handles crashes and hangs: a restart of the daemon
        would end it.
        """
        process = self._published
        if process is None or self._is_watched:
            return True
        try:
            window = self._runtime.front.window(self._family, process.spec.generation)
        except Unavailable:
            return False
        return process.is_alive() and window.oldest_in_flight_s < MAX_RESPONSE_DELAY_S

    def republish(self) -> None:
        """Publish the serving generation to a front that was restarted.

        Raises:
            Unavailable: the front crashed again.
        """
        if self._published is not None and self._published.is_alive():
            self._runtime.front.publish(self._family, self._published)
