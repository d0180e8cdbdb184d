"""What serves now, what waits behind it, and the switch between the two.

Rules:
1. `publish` starts nothing and stops nothing: the candidate's process is started before, and what it replaces stays
   resident until `settle`. So going back (`restore`) is one more switch.
2. A process that ends is reported by its generation number, once, from a thread that sleeps on its pidfd.
3. Stopping a process that serves nothing any more waits until its requests are answered.
4. Where two generations do not fit into memory the current one is stopped first (`stop_current`): requests wait for its
   successor, and going back means loading it again.
"""

import os
import select
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

from bundle.files import BundleDigest
from bundle.manifest import Variant
from device_agent.policy.journal_records import BundleRecord
from device_agent.policy.probation import ServingObservation
from device_agent.policy.shadow_judge import ShadowObservation
from device_agent.runtime.bundle_fds import BundleFds


class ModelProcessHandle(Protocol):
    """A model process."""

    @property
    def pid(self) -> int: ...

    def is_alive(self) -> bool: ...

    def fileno(self) -> int: ...

    def resident_bytes(self) -> int: ...

    def stop(self) -> None: ...


class ServingBackend(Protocol):
    """What the supervisor needs of the runtime (device_agent.runtime)."""

    def start(self, fds: BundleFds, bundle: BundleRecord, variant: Variant, generation: int) -> ModelProcessHandle:
        """Load and warm. Raises Unfit, Refused, Unavailable."""
        ...

    def publish(self, generation: int, process: ModelProcessHandle) -> int:
        """Requests go to this generation from now on; microseconds that it took."""
        ...

    def retire(self, generation: int) -> None:
        """Take it out and wait for its last answer."""
        ...

    def observation(self, generation: int) -> ServingObservation:
        """What was seen of it since it was published."""
        ...

    def set_shadow(self, process: ModelProcessHandle, share_ppm: int, limit_ppm: int) -> None:
        """Let it hear a share of the live requests at a low priority; 0 ends that."""
        ...

    def shadow_observation(self) -> ShadowObservation:
        """What the candidate in the shadow did so far."""
        ...


@dataclass(frozen=True, slots=True)
class Generation:
    """One generation.

    Attributes:
        generation: number, grows by one each.
        holding, variant: what it serves.
        process: behind it.
    """

    number: int
    bundle: BundleRecord
    variant: Variant
    process: ModelProcessHandle

    @property
    def digest(self) -> BundleDigest:
        """Of the bundle."""
        return self.bundle.digest


class FamilyServing:
    """The generations of one family. Called by the supervisor's main thread only.

    Args:
        runtime: starts and publishes.
        on_death: told the number of a generation whose process ended; from another thread.
    """

    def __init__(self, runtime: ServingBackend, on_crash: Callable[[int], None]) -> None:
        self._runtime, self._on_crash = runtime, on_crash
        self._last_number = 0
        self.current: Generation | None = None
        self.previous: Generation | None = None
        self.standby: Generation | None = None

    def start_generation(self, bundle: BundleRecord, fds: BundleFds) -> Generation:
        """A process for a bundle; it serves nothing yet. Raises Unfit, Refused, Unavailable."""
        _, variant = bundle.parse_manifest()
        self._last_number += 1
        process = self._runtime.start(fds, bundle, variant, self._last_number)
        self._watch_process(self._last_number, os.dup(process.fileno()))
        return Generation(self._last_number, bundle, variant, process)

    def publish(self, generation: Generation) -> int:
        """The switch (rule 1). Returns microseconds."""
        took_us = self._runtime.publish(generation.number, generation.process)
        if self.current is not None and self.current is not generation:
            self._retire_and_stop(self.previous)
            self.previous = self.current
        self.current = generation
        return took_us

    def revert(self) -> None:
        """Back to what served before, if that is still resident; what served since is stopped."""
        candidate, before = self.current, self.previous
        if before is not None:
            self._runtime.publish(before.number, before.process)
        self.current, self.previous = before, None
        self._retire_and_stop(candidate)

    def stop_replaced(self) -> None:
        """The current one stays: what it replaced is stopped."""
        before, self.previous = self.previous, None
        self._retire_and_stop(before)

    def stop_current(self) -> None:
        """Rule 4."""
        stopped, self.current = self.current, None
        self._retire_and_stop(stopped)

    def drop_standby(self) -> None:
        """Free what a standby holds."""
        if self.standby is not None:
            self.standby.process.stop()
            self.standby = None

    def resident_bytes(self) -> int:
        """Of all its processes."""
        served = (self.current, self.previous, self.standby)
        return sum(one.process.resident_bytes() for one in served if one is not None)

    def set_shadow(self, generation: Generation, share_ppm: int, limit_ppm: int) -> None:
        """Let a generation that serves nothing yet hear a share of the live requests; 0 ends that."""
        self._runtime.set_shadow(generation.process, share_ppm, limit_ppm)

    def shadow_observation(self, generation: Generation) -> ShadowObservation:
        """What it did in the shadow; its process's end counts even before the front has noticed."""
        heard = self._runtime.shadow_observation()
        return heard if generation.process.is_alive() else replace(heard, crashes=1)

    def needs_standby(self) -> bool:
        """There is a current generation, and no live process of the same bundle beside it."""
        current, spare = self.current, self.standby
        return current is not None and not (spare and spare.process.is_alive() and spare.digest == current.digest)

    def set_standby(self, generation: Generation) -> None:
        """Hold a loaded process back; what was held before is stopped."""
        if self.standby is not None:
            self.standby.process.stop()
        self.standby = generation

    def take_standby(self, digest: BundleDigest) -> Generation | None:
        """The spare, if it is of this bundle and alive; it is no spare any more then."""
        spare = self.standby
        if spare is None or spare.digest != digest or not spare.process.is_alive():
            return None
        self.standby = None
        return spare

    def observation(self, generation: Generation) -> ServingObservation:
        """What was seen of a generation."""
        return self._runtime.observation(generation.number)

    def stop_unpublished(self, generation: Generation) -> None:
        """Stop a process that was never published."""
        generation.process.stop()

    def stop_all(self) -> None:
        """Stop all."""
        for served in (self.standby, self.previous, self.current):
            if served is not None:
                served.process.stop()
        self.current = self.previous = self.standby = None

    def _retire_and_stop(self, generation: Generation | None) -> None:
        if generation is not None:
            self._runtime.retire(generation.number)
            generation.process.stop()

    def _watch_process(self, generation: int, pidfd: int) -> None:
        call_on_exit(pidfd, lambda: self._on_crash(generation))


def call_on_exit(pidfd: int, callback: Callable[[], None]) -> None:
    """Call `act` from a thread once a process has ended; the pidfd is closed then."""

    def sleep() -> None:
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        poll.poll()
        os.close(pidfd)
        callback()

    threading.Thread(target=sleep, name=f"pidfd-{pidfd}", daemon=True).start()
