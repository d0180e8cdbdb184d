"""The generations of one family (current, previous, standby), and the switch between them.

Rules:
1. `publish` starts no process and stops none that is needed for a rollback: the candidate's process is started before,
   and the generation that it replaces stays loaded until `stop_replaced`. So `revert` is one more switch.
2. When a process ends, `on_crash` is called once with its generation number, from a thread that waits on its pidfd.
3. A generation that no longer serves is drained before its process is stopped: its requests are completed first.
4. If two models do not fit into memory, the current one is stopped first (`stop_current`). Requests then wait for its
   successor, and a rollback has to load the old model again.
"""

import os
import select
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace

from bundle.files import BundleDigest
from bundle.variant import Variant
from device_agent.policy.journal_records import BundleRecord
from device_agent.policy.serving_counts import RepeatObservation, ServingObservation
from device_agent.policy.shadow_judge import ShadowObservation
from device_agent.runtime.bundle_fds import BundleFds
from device_agent.serving.serving_backend import ModelProcessHandle, NoProcess, ServingBackend


@dataclass(frozen=True, slots=True)
class Generation:
    """One loaded model of a family.

    Attributes:
        number: grows by one with each generation.
        bundle, variant: the release that it serves.
        process: the process behind it; NoProcess if the agent does not run the release's models.
    """

    number: int
    bundle: BundleRecord
    variant: Variant
    process: ModelProcessHandle

    @property
    def digest(self) -> BundleDigest:
        """Digest of the bundle."""
        return self.bundle.digest

    @property
    def is_run(self) -> bool:
        """True if the agent runs its model, in a process."""
        return not isinstance(self.process, NoProcess)


class FamilyServing:
    """The generations of one family. Only the supervisor's main thread may call it.

    Args:
        runtime: starts processes and publishes them.
        on_crash: called from another thread with the number of a generation whose process ended.

    Attributes:
        current: the generation that serves, or None.
        previous: the generation before it, still loaded, or None.
        standby: a second loaded process of the current bundle, or None.
        on_change: called after another generation became `current`, or none did.
        repeater: an unpublished process of the previous bundle for repeats in a probation, or None.
    """

    def __init__(self, runtime: ServingBackend, on_crash: Callable[[int], None]) -> None:
        self._runtime, self._on_crash = runtime, on_crash
        self._last_number = 0
        self.current: Generation | None = None
        self.previous: Generation | None = None
        self.standby: Generation | None = None
        self.on_change: Callable[[], None] = lambda: None
        self.repeater: Generation | None = None

    def start_generation(self, bundle: BundleRecord, fds: BundleFds) -> Generation:
        """Start a process with a bundle's model; it serves no requests until `publish`.

        Args:
            bundle: the journal's record of the bundle.
            fds: its plain files; the caller still owns them.

        Raises:
            Unfit, Refused, Unavailable: as `ServingBackend.start`.
        """
        _, variant = bundle.parse_manifest()
        self._last_number += 1
        process = self._runtime.start(fds, bundle, variant, self._last_number)
        self._watch_process(self._last_number, os.dup(process.fileno()))
        return Generation(self._last_number, bundle, variant, process)

    def create_generation(self, bundle: BundleRecord) -> Generation:
        """Return a generation of a bundle whose models the agent does not run; applications borrow its files."""
        self._last_number += 1
        return Generation(self._last_number, bundle, bundle.parse_manifest()[1], NoProcess())

    def restart_current(self, fds: BundleFds) -> None:
        """Start the current generation again, after its process has ended; its counters continue.

        Args:
            fds: plain files of its bundle; the caller still owns them.

        Raises:
            Unfit, Refused, Unavailable: as `ServingBackend.start`.
        """
        current = self.current
        assert current is not None
        process = self._runtime.start(fds, current.bundle, current.variant, current.number)
        self._watch_process(current.number, os.dup(process.fileno()))
        self.current = replace(current, process=process)
        self._runtime.publish(current.number, process)
        current.process.stop()

    def publish(self, generation: Generation) -> int:
        """Switch to a generation; keep the one that it replaces as `previous`.

        Returns:
            Duration of the switch, in microseconds.
        """
        took_us = self._runtime.publish(generation.number, generation.process) if generation.is_run else 0
        if self.current is not None and self.current is not generation:
            self._retire_and_stop(self.previous)
            self.previous = self.current
        self.current = generation
        self.on_change()
        return took_us

    def revert(self) -> None:
        """Switch back to the previous generation, if it is still loaded, and stop the current one."""
        failed, previous = self.current, self.previous
        if previous is not None and previous.is_run:
            self._runtime.publish(previous.number, previous.process)
        self.current, self.previous = previous, None
        self.on_change()
        self._retire_and_stop(failed)

    def stop_replaced(self) -> None:
        """Stop the previous generation; the current one stays."""
        replaced, self.previous = self.previous, None
        self._retire_and_stop(replaced)

    def stop_current(self) -> None:
        """Stop the current generation first, because two models do not fit into memory (rule 4)."""
        stopped, self.current = self.current, None
        self.on_change()
        self._retire_and_stop(stopped)

    def drop_standby(self) -> None:
        """Stop the standby, if there is one."""
        if self.standby is not None:
            self.standby.process.stop()
            self.standby = None

    def resident_bytes(self) -> int:
        """Return the resident memory of all processes of this family, in bytes."""
        generations = (self.current, self.previous, self.standby, self.repeater)
        return sum(item.process.resident_bytes() for item in generations if item is not None)

    def set_shadow(self, generation: Generation, share_ppm: int, limit_ppm: int) -> None:
        """Mirror a share of the live requests to a generation that is not published.

        Args:
            generation: the candidate.
            share_ppm: share of the requests, in parts per million; 0 ends shadow mode.
            limit_ppm: relative RMS difference up to which outputs agree, in parts per million.
        """
        self._runtime.set_shadow(generation.process, share_ppm, limit_ppm)

    def shadow_observation(self, generation: Generation) -> ShadowObservation:
        """Return the counters of a candidate in shadow mode.

        A crash of its process counts at once, before the front has noticed it.
        """
        observed = self._runtime.shadow_observation()
        return observed if generation.process.is_alive() else replace(observed, crashes=1)

    def needs_standby(self) -> bool:
        """Return whether a generation is current and no live standby of the same bundle exists."""
        current, standby = self.current, self.standby
        if current is None or not current.is_run:
            return False
        return standby is None or not standby.process.is_alive() or standby.digest != current.digest

    def set_standby(self, generation: Generation) -> None:
        """Keep a loaded generation as the standby; stop the one before it."""
        if self.standby is not None:
            self.standby.process.stop()
        self.standby = generation

    def take_standby(self, digest: BundleDigest) -> Generation | None:
        """Return the standby and forget it, if it is alive and of this bundle; None otherwise."""
        standby = self.standby
        if standby is None or standby.digest != digest or not standby.process.is_alive():
            return None
        self.standby = None
        return standby

    def observation(self, generation: Generation) -> ServingObservation:
        """Return the counters of a generation since it was published."""
        return self._runtime.observation(generation.number)

    def begin_repeats(self, generation: Generation, slow_us: int | None, latency_percent: int) -> None:
        """Check the bad responses of a generation from now on.

        Args:
            generation: the candidate.
            slow_us: microseconds above which a response is checked for latency; None for never.
            latency_percent: allowed latency, in percent of that of the previous release on the same input.
        """
        self._runtime.set_repeats(generation.number, slow_us, latency_percent)

    def set_repeater(self, generation: Generation) -> None:
        """Repeat requests in a generation that is not published."""
        self.repeater = generation
        self._runtime.set_repeat_process(generation.process)

    def suspend_current(self) -> None:
        """Stop the process of the current generation until `restart_current`; its requests wait."""
        assert self.current is not None
        self._runtime.expect_stop()
        self.current.process.stop()

    def end_repeater(self) -> None:
        """End the process that was started for repeats."""
        if self.repeater is not None:
            self.repeater.process.kill()
            self.repeater = None

    def discard_repeats(self) -> None:
        """Drop the requests that wait to be repeated."""
        self._runtime.set_repeat_process(None)

    def repeat_observation(self) -> RepeatObservation | None:
        """Start the next repeat if one is due, and return the counters; None after a restart of the front."""
        return self._runtime.repeat_observation()

    def end_repeats(self) -> None:
        """End the repeats and the process that was started for them."""
        try:
            self._runtime.set_repeats(None, None, 100)
        finally:
            self.end_repeater()

    def stop_unpublished(self, generation: Generation) -> None:
        """Stop the process of a generation that was never published."""
        generation.process.stop()

    def stop_all(self) -> None:
        """Stop all processes of this family, without draining."""
        for generation in (self.repeater, self.standby, self.previous, self.current):
            if generation is not None:
                generation.process.stop()
        self.current = self.previous = self.standby = self.repeater = None

    def _retire_and_stop(self, generation: Generation | None) -> None:
        if generation is not None and generation.is_run:
            self._runtime.retire(generation.number)
            generation.process.stop()

    def _watch_process(self, generation: int, pidfd: int) -> None:
        call_on_exit(pidfd, lambda: self._on_crash(generation))


def call_on_exit(pidfd: int, callback: Callable[[], None]) -> None:
    """Call a function from another thread when a process ends.

    Args:
        pidfd: descriptor of the process; this function owns and closes it.
        callback: called once.
    """

    def wait() -> None:
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        poll.poll()
        os.close(pidfd)
        callback()

    threading.Thread(target=wait, name=f"pidfd-{pidfd}", daemon=True).start()
