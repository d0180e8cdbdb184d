"""The supervisor's handle of a model process: start it, load a model into it, stop it."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from bundle.contract import Contract
from bundle.providers import CPU
from device_agent.errors import ModelProcessCrashed, WorkerCrashed, WorkerFailed, WorkerTimeout
from device_agent.process.jail import JailPolicy
from device_agent.process.replies import parse_reply
from device_agent.process.worker_process import WorkerProcess
from device_agent.runtime.bundle_fds import DEFAULT_RUNTIME, BundleFds
from device_agent.runtime.oip import served_names

MODULE: Final = "device_agent.workers.model_process"
LOAD_DEADLINE_S: Final = (
    120.0  # for a 1 GB model on a slow core; the probe has loaded it before, within its own deadline
)
GOLDEN_DEADLINE_S: Final = 60.0
LOADING_NICENESS_INCREMENT: Final = 10
MAX_BODY_BYTES: Final = 64 * 1024 * 1024
REQUEST_MEMORY_BYTES: Final = 1024 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class GenerationSpec:
    """The settings of one generation.

    Attributes:
        family: family whose requests it serves.
        generation: the supervisor's number; the same bundle can be loaded again under another number.
        version, variant: of the release.
        contract: contract that the model must have; None to accept the model's own.
        further: name and contract of each further model of the bundle, in order.
        model: name of the first model, which counts only beside others.
        threads: intra-op threads; 0 for one per processor, at most 4.
        max_body_bytes: largest request body after decompression; the contract can allow less.
        request_memory_bytes: memory that requests may use, beyond what the model and its golden inputs need; 0 for no
            limit.
    """

    family: str
    generation: int
    version: str
    variant: str
    contract: Contract | None
    threads: int = 0
    max_body_bytes: int = MAX_BODY_BYTES
    request_memory_bytes: int = REQUEST_MEMORY_BYTES
    further: tuple[tuple[str, Contract], ...] = ()
    model: str = "model"

    @property
    def served_models(self) -> tuple[tuple[str, Contract | None], ...]:
        """Return name at the endpoint and contract of each model."""
        names = served_names(self.family, (self.model, *(name for name, _ in self.further)))
        return tuple(zip(names, (self.contract, *(contract for _, contract in self.further)), strict=True))

    def as_json(self) -> dict[str, Any]:
        """Return the fields for the model process."""
        return {
            "generation": self.generation,
            "version": self.version,
            "variant": self.variant,
            "models": [
                {"name": name, "contract": None if contract is None else contract.as_json()}
                for name, contract in self.served_models
            ],
            "threads": self.threads,
            "max_body_bytes": self.max_body_bytes,
            "request_memory_bytes": self.request_memory_bytes,
        }


def _may_lower_niceness() -> bool:
    # without CAP_SYS_NICE (bit 23), a process whose priority was lowered keeps it
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("CapEff:"):
            return bool(int(line.split()[1], 16) >> 23 & 1)
    return False


class PrestartedProcess:
    """A model process that has done its imports and has no model, so that only the loading remains.

    It uses about 45 MiB. Create it with `start`; pass it to `ModelProcess.start` once.

    Attributes:
        worker: the process.
        runtime: name of the runtime that it has imported.
        provider: execution provider that it has prepared.
    """

    def __init__(self, worker: WorkerProcess, runtime: str = DEFAULT_RUNTIME, provider: str = CPU) -> None:
        self.worker, self.runtime, self.provider = worker, runtime, provider

    @classmethod
    def start(cls, jail: JailPolicy | None = None) -> "PrestartedProcess":
        """Start a model process without a model.

        Raises:
            Unavailable: the process cannot be started or confined.
        """
        jail = jail or JailPolicy()
        return cls(WorkerProcess.start(MODULE, jail), jail.runtime or DEFAULT_RUNTIME, jail.provider)

    def is_alive(self) -> bool:
        """Return whether the process can still be used."""
        return self.worker.is_alive()

    def stop(self) -> None:
        """End the unused process. Can be called repeatedly."""
        self.worker.stop()


class ModelProcess:
    """A process with one loaded and warmed generation. Create it with `start`; `stop` unloads it.

    Attributes:
        spec: the settings that it was started with.
        runtime: name of the runtime of its model.
        provider: execution provider that the session of its first model is on.
        load_us, warm_us: microseconds of the session's creation, and of the golden runs.
        channel: the front's end of the request channel; kept open, so that a restarted front can use it.
    """

    def __init__(self, worker: WorkerProcess, spec: GenerationSpec, facts: Mapping[str, Any], channel: int) -> None:
        self._worker = worker
        self.spec, self.runtime = spec, DEFAULT_RUNTIME
        self.provider = str(facts["provider"])
        self.load_us = int(facts["load_us"])
        self.warm_us = int(facts["warm_us"])
        self.channel = channel

    @classmethod
    def start(
        cls,
        bundle: BundleFds,
        spec: GenerationSpec,
        jail: JailPolicy | None = None,
        *,
        prestarted: PrestartedProcess | None = None,
        in_background: bool = False,
        deadline_s: float = LOAD_DEADLINE_S,
        on_idle: Callable[[], None] | None = None,
    ) -> "ModelProcess":
        """Start a process, load a bundle's model, and warm it on the golden inputs.

        Args:
            bundle: the model's files; the caller still owns them and can close them afterwards.
            spec: settings of the generation.
            jail: policy of the process.
            prestarted: process to use instead of a new one, with the jail that it has; ended and not used if it has
                imported another runtime or prepared another provider. It belongs to the result from then on.
            in_background: start, load and warm in steps with pauses between them, so that requests to the running model
                are not delayed. If this process may lower niceness again (CAP_SYS_NICE), the new one also loads at a
                low priority.
            deadline_s: seconds for loading and warming.
            on_idle: called repeatedly meanwhile; an error that it raises ends the process, and is raised.

        Raises:
            Unfit: ModelDoesNotLoad, ContractMismatch, InferenceFailed or ModelProcessCrashed.
            Refused: the golden vectors are malformed.
            Unavailable: the process cannot be started or confined.
        """
        jail = jail or JailPolicy()
        nice = os.getpriority(os.PRIO_PROCESS, 0) + jail.nice if in_background and _may_lower_niceness() else None
        if prestarted is not None and (bundle.runtime, bundle.provider) != (prestarted.runtime, prestarted.provider):
            prestarted.stop()
            prestarted = None
        if prestarted is not None and prestarted.is_alive():
            worker = prestarted.worker
        else:
            lowered = jail.nice if nice is None else jail.nice + LOADING_NICENESS_INCREMENT
            jail = replace(jail, nice=lowered, is_paced=in_background)
            jail = replace(jail, runtime=bundle.runtime, provider=bundle.provider)
            worker = WorkerProcess.start(MODULE, jail, on_idle=on_idle)
        value, fds = bundle.to_message()
        try:
            request = {**spec.as_json(), "is_paced": in_background, "bundle": value}
            loaded = worker.call("load", request, fds, deadline_s=deadline_s, on_idle=on_idle)
            if nice is not None:
                worker.set_nice(nice)
        except (WorkerCrashed, WorkerTimeout) as error:
            worker.kill()
            raise ModelProcessCrashed(error.message) from error
        except BaseException:
            worker.kill()
            raise
        try:
            with parse_reply(MODULE):
                out = cls(worker, spec, loaded.value, loaded.fds[0])
                out.runtime = bundle.runtime
                return out
        except WorkerFailed as error:
            worker.kill()
            loaded.close()
            raise ModelProcessCrashed(error.message) from error

    @property
    def pid(self) -> int:
        """Process id of the model process."""
        return self._worker.pid

    @property
    def is_jailed(self) -> bool:
        """True if the process is confined."""
        return self._worker.jail.is_confined

    @property
    def is_memory_locked(self) -> bool:
        """True if none of its memory can be swapped out."""
        return self._worker.jail.memory_locked

    def is_alive(self) -> bool:
        """Return whether the process is still running."""
        return self._worker.is_alive()

    def fileno(self) -> int:
        """Return a pidfd that becomes readable when the process ends."""
        return self._worker.fileno()

    def resident_bytes(self) -> int:
        """Return the resident memory (VmRSS), in bytes; 0 after the process has ended."""
        return self._worker.memory_bytes("VmRSS")

    def peak_bytes(self) -> int:
        """Return the peak memory (VmHWM), in bytes; 0 after the process has ended."""
        return self._worker.memory_bytes("VmHWM")

    def cpu_s(self) -> float:
        """Return the processor time used so far, in seconds."""
        return self._worker.cpu_s()

    def set_background(self, *, is_background: bool) -> None:
        """Lower the priority of the process, or restore this process's own.

        Does nothing if the priority could not be restored later (CAP_SYS_NICE).
        """
        if _may_lower_niceness():
            own = os.getpriority(os.PRIO_PROCESS, 0)
            self._worker.set_nice(min(own + LOADING_NICENESS_INCREMENT, 19) if is_background else own)

    def facts(self) -> dict[str, Any]:
        """Return the loaded modules and the user id: {"modules": [...], "uid": ...}."""
        return self._worker.call("facts", deadline_s=30).value

    def reset(self) -> None:
        """Bring models whose runs change their state into their initial state."""
        self._worker.call("reset", deadline_s=LOAD_DEADLINE_S)

    def check_golden(self, golden_fd: int, tolerance_ppm: int, model: int = 0) -> None:
        """Run the golden inputs in the process, between two requests, and compare the outputs.

        Args:
            golden_fd: descriptor of the golden vectors; the caller still owns it.
            tolerance_ppm: allowed relative RMS error, in parts per million.
            model: position of the model in the bundle.

        Raises:
            Unfit: an output differs by more (GoldenMismatch, NanOutput), or the process crashed (ModelProcessCrashed).
            Refused: the golden vectors are malformed.
            WorkerTimeout: the process did not reply in time and was ended.
        """
        try:
            request = {"tolerance_ppm": tolerance_ppm, "model": model}
            self._worker.call("golden", request, (golden_fd,), deadline_s=GOLDEN_DEADLINE_S)
        except WorkerCrashed as error:
            raise ModelProcessCrashed(error.message) from error

    def describe_exit(self) -> str:
        """Return one line for a message: exit code or signal, and the last lines of stderr."""
        return self._worker.describe_exit()

    def stop(self) -> None:
        """End the process. Retire its generation in the front first. Can be called repeatedly."""
        self._worker.stop()
        self._close_channel()

    def kill(self) -> None:
        """Kill the process, for one that hangs in native code. Can be called repeatedly."""
        self._worker.kill()
        self._close_channel()

    def _close_channel(self) -> None:
        if self.channel >= 0:
            os.close(self.channel)
            self.channel = -1
