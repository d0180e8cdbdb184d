"""The processes behind the generations of a family, as device_agent.serving.family_serving needs them.

`ServingBackend` starts and publishes them; device_agent.serving.serving_runtime implements it.
"""

from typing import Protocol

from bundle.variant import Variant
from device_agent.policy.journal_records import BundleRecord
from device_agent.policy.serving_counts import RepeatObservation, ServingObservation
from device_agent.policy.shadow_judge import ShadowObservation
from device_agent.runtime.bundle_fds import BundleFds


class ModelProcessHandle(Protocol):
    """A running model process."""

    @property
    def pid(self) -> int:
        """Id of the process."""
        ...

    @property
    def provider(self) -> str:
        """Execution provider that the session of its first model is on, or "" without a model."""
        ...

    def is_alive(self) -> bool:
        """Return whether the process is still running."""
        ...

    def fileno(self) -> int:
        """Return a pidfd that becomes readable when the process ends."""
        ...

    def resident_bytes(self) -> int:
        """Return the resident memory, in bytes; 0 after the process has ended."""
        ...

    def check_golden(self, golden_fd: int, tolerance_ppm: int, model: int = 0) -> None:
        """Run the golden inputs in the process, between two requests, and compare the outputs.

        Args:
            golden_fd: descriptor of the golden vectors; the caller still owns it.
            tolerance_ppm: allowed relative RMS error, in parts per million.
            model: position of the model in the bundle.

        Raises:
            Unfit: an output differs by more, or the process crashed.
            Refused: the golden vectors are malformed.
            Unavailable: the process did not reply in time and was ended.
        """
        ...

    def stop(self) -> None:
        """End the process and release its descriptors."""
        ...

    def kill(self) -> None:
        """End a process that hangs, and release its descriptors."""
        ...


class NoProcess:
    """The process of a generation whose models the agent does not run: there is none."""

    pid = 0
    provider = ""

    def is_alive(self) -> bool:
        """Return True: nothing can end."""
        return True

    def fileno(self) -> int:
        """Return -1: there is no pidfd."""
        return -1

    def resident_bytes(self) -> int:
        """Return 0: no memory is used."""
        return 0

    def check_golden(self, golden_fd: int, tolerance_ppm: int, model: int = 0) -> None:
        """Do nothing: there is no model to run.

        Args:
            golden_fd: the golden vectors, not read.
            tolerance_ppm: not used.
            model: not used.
        """

    def stop(self) -> None:
        """Do nothing: there is no process to end."""

    def kill(self) -> None:
        """Do nothing: there is no process to end."""


class ServingBackend(Protocol):
    """Starts model processes and directs requests to them; FamilyRuntime implements it."""

    def start(self, fds: BundleFds, bundle: BundleRecord, variant: Variant, generation: int) -> ModelProcessHandle:
        """Start a process and load a bundle's model into it.

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
        ...

    def publish(self, generation: int, process: ModelProcessHandle) -> int:
        """Direct requests to a generation from now on.

        Args:
            generation: its number.
            process: the process behind it.

        Returns:
            Duration of the switch, in microseconds.
        """
        ...

    def retire(self, generation: int) -> None:
        """Stop directing requests to a generation, and wait until its open ones are completed."""
        ...

    def observation(self, generation: int) -> ServingObservation:
        """Return the counters of a generation since it was published."""
        ...

    def set_shadow(self, process: ModelProcessHandle, share_ppm: int, limit_ppm: int) -> None:
        """Mirror a share of the live requests to a candidate, which runs at a low priority.

        Args:
            process: the candidate's process.
            share_ppm: share of the requests, in parts per million; 0 ends shadow mode.
            limit_ppm: relative RMS difference up to which outputs agree, in parts per million.
        """
        ...

    def shadow_observation(self) -> ShadowObservation:
        """Return the counters of the candidate in shadow mode so far."""
        ...

    def set_repeats(self, generation: int | None, slow_us: int | None, latency_percent: int) -> None:
        """Check the bad responses of a generation from now on, or end that (device_agent.front.repeats).

        Args:
            generation: number of the candidate's generation; None ends the checks.
            slow_us: microseconds above which a response is checked for latency; None for never.
            latency_percent: allowed latency, in percent of that of the previous release on the same input.
        """
        ...

    def set_repeat_process(self, process: ModelProcessHandle | None) -> None:
        """Repeat requests in a process that is not published; None drops the kept requests."""
        ...

    def expect_stop(self) -> None:
        """Announce that the process of the candidate will be stopped, which is no crash."""
        ...

    def repeat_observation(self) -> RepeatObservation | None:
        """Start the next repeat if one is due, and return the counters; None after a restart of the front."""
        ...
