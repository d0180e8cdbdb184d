"""A model process, as the supervisor holds it."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from bundle.contract import Contract
from device_agent.errors import ModelProcessCrashed, WorkerCrashed, WorkerFailed, WorkerTimeout
from device_agent.process.jail import JailPolicy
from device_agent.process.worker_process import WorkerProcess, parse_reply
from device_agent.runtime.bundle_fds import BundleFds

MODULE: Final = "device_agent.workers.model_process"
LOAD_DEADLINE_S: Final = 120.0  # a 1 GB model on a slow core; the probe has loaded it before within its own deadline
LOADING_NICENESS_INCREMENT: Final = 10
MAX_BODY_BYTES: Final = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class GenerationSpec:
    """One generation of a family.

    Attributes:
        family: whose requests it answers.
        generation: number that the supervisor gives; one bundle can come back under another number.
        version, variant: of the release.
        contract: of the variant; None: whatever the model says of itself.
        threads: of the model's intra-op pool; 0: one a processor, at most 4.
        max_body_bytes: of a request once decompressed.
    """

    family: str
    generation: int
    version: str
    variant: str
    contract: Contract | None
    threads: int = 0
    max_body_bytes: int = MAX_BODY_BYTES

    def as_json(self) -> dict[str, Any]:
        """For the children."""
        return {
            "family": self.family,
            "generation": self.generation,
            "version": self.version,
            "variant": self.variant,
            "contract": None if self.contract is None else self.contract.as_json(),
            "threads": self.threads,
            "max_body_bytes": self.max_body_bytes,
        }


def _may_lower_niceness() -> bool:
    # CAP_SYS_NICE (bit 23): without it a child that was made nicer stays so
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("CapEff:"):
            return bool(int(line.split()[1], 16) >> 23 & 1)
    return False


class PrestartedProcess:
    """A model process without a model: its imports done, in its jail, so that a crash costs only the loading.

    It holds some 45 MiB. Made by `start`, used once by `ModelProcess.start(..., standby=...)`.
    """

    def __init__(self, worker: WorkerProcess) -> None:
        self.worker = worker

    @classmethod
    def start(cls, jail: JailPolicy | None = None) -> "PrestartedProcess":
        """Raises Unavailable: no process can be started, or no jail."""
        return cls(WorkerProcess.start(MODULE, jail or JailPolicy()))

    def is_alive(self) -> bool:
        """It can be used."""
        return self.worker.is_alive()

    def stop(self) -> None:
        """End it unused; any number of times."""
        self.worker.stop()


class ModelProcess:
    """One loaded and warmed generation in a child process. Made by `start`; `stop` unloads it.

    Attributes:
        spec: what was asked for.
        load_us, warm_us: microseconds of session creation and of the golden runs.
        channel: the front's end of the request channel, kept so that a restarted front can take it over.
    """

    def __init__(self, worker: WorkerProcess, spec: GenerationSpec, facts: Mapping[str, Any], channel: int) -> None:
        self._worker = worker
        self.spec = spec
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
    ) -> "ModelProcess":
        """Load a bundle's model in a new process and warm it on the golden inputs.

        Args:
            bundle: still the caller's; it can be closed afterwards.
            spec: of the generation.
            jail: of the process.
            standby: to use instead of a new process, with the jail that it has; a dead one is as none. It is this
                process's from here on.
            in_background: start, load and warm in steps with rests between, so that requests to the running model do
                not feel it; also at a low priority where this process may take niceness back (CAP_SYS_NICE).
            deadline_s: for loading and warming.

        Raises:
            Unfit: ModelUnfit, ContractUnfit, InferenceUnfit or ModelProcessUnfit.
            Refused: the golden vectors are malformed.
            Unavailable: no process can be started, or no jail.
        """
        jail = jail or JailPolicy()
        nice = os.getpriority(os.PRIO_PROCESS, 0) + jail.nice if in_background and _may_lower_niceness() else None
        if prestarted is not None and prestarted.is_alive():
            worker = prestarted.worker
        else:
            lowered = jail.nice if nice is None else jail.nice + LOADING_NICENESS_INCREMENT
            worker = WorkerProcess.start(MODULE, replace(jail, nice=lowered, is_paced=in_background))
        value, fds = bundle.to_message()
        try:
            request = {**spec.as_json(), "is_paced": in_background, "bundle": value}
            loaded = worker.call("load", request, fds, deadline_s=deadline_s)
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
                return cls(worker, spec, loaded.value, loaded.fds[0])
        except WorkerFailed as error:
            worker.kill()
            loaded.close()
            raise ModelProcessCrashed(error.message) from error

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._worker.pid

    @property
    def is_jailed(self) -> bool:
        """It is confined."""
        return self._worker.jail.is_confined

    @property
    def is_memory_locked(self) -> bool:
        """None of its memory can be swapped out."""
        return self._worker.jail.memory_locked

    def is_alive(self) -> bool:
        """It has not ended."""
        return self._worker.is_alive()

    def fileno(self) -> int:
        """A pidfd: readable once it has ended."""
        return self._worker.fileno()

    def resident_bytes(self) -> int:
        """VmRSS; 0 once it has ended."""
        return self._worker.memory_bytes("VmRSS")

    def peak_bytes(self) -> int:
        """VmHWM; 0 once it has ended."""
        return self._worker.memory_bytes("VmHWM")

    def cpu_s(self) -> float:
        """Processor seconds so far."""
        return self._worker.cpu_s()

    def set_background(self, *, is_background: bool) -> None:
        """Low priority, or back to this process's own; nothing where that could not be taken back (CAP_SYS_NICE)."""
        if _may_lower_niceness():
            own = os.getpriority(os.PRIO_PROCESS, 0)
            self._worker.set_nice(min(own + LOADING_NICENESS_INCREMENT, 19) if is_background else own)

    def facts(self) -> dict[str, Any]:
        """What is loaded into the process: {"modules": [...], "uid": ...}."""
        return self._worker.call("facts", deadline_s=30).value

    def describe_exit(self) -> str:
        """How it ended, for a message."""
        return self._worker.describe_exit()

    def stop(self) -> None:
        """End the process; any number of times. Retire its generation in the front first."""
        self._worker.stop()
        self._close_channel()

    def kill(self) -> None:
        """End it at once, for a process that hangs in native code."""
        self._worker.kill()
        self._close_channel()

    def _close_channel(self) -> None:
        if self.channel >= 0:
            os.close(self.channel)
            self.channel = -1
