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
from device_agent.policy.journal_records import Holding
from device_agent.policy.probation import Observed
from device_agent.policy.shadow_judge import Heard
from device_agent.runtime.bundle_fds import BundleFds


class Process(Protocol):
    """A model process."""

    @property
    def pid(self) -> int: ...

    def alive(self) -> bool: ...

    def fileno(self) -> int: ...

    def resident_bytes(self) -> int: ...

    def stop(self) -> None: ...


class Runtime(Protocol):
    """What the supervisor needs of the runtime (device_agent.runtime)."""

    def start(self, fds: BundleFds, holding: Holding, variant: Variant, generation: int) -> Process:
        """Load and warm. Raises Unfit, Refused, Unavailable."""
        ...

    def publish(self, generation: int, process: Process) -> int:
        """Requests go to this generation from now on; microseconds that it took."""
        ...

    def retire(self, generation: int) -> None:
        """Take it out and wait for its last answer."""
        ...

    def observe(self, generation: int) -> Observed:
        """What was seen of it since it was published."""
        ...

    def shadow(self, process: Process, share_ppm: int, limit_ppm: int) -> None:
        """Let it hear a share of the live requests at a low priority; 0 ends that."""
        ...

    def heard(self) -> Heard:
        """What the candidate in the shadow did so far."""
        ...


@dataclass(frozen=True, slots=True)
class Served:
    """One generation.

    Attributes:
        generation: number, grows by one each.
        holding, variant: what it serves.
        process: behind it.
    """

    generation: int
    holding: Holding
    variant: Variant
    process: Process

    @property
    def digest(self) -> BundleDigest:
        """Of the bundle."""
        return self.holding.digest


class Serving:
    """The generations of one family. Called by the supervisor's main thread only.

    Args:
        runtime: starts and publishes.
        on_death: told the number of a generation whose process ended; from another thread.
    """

    def __init__(self, runtime: Runtime, on_death: Callable[[int], None]) -> None:
        self._runtime, self._on_death = runtime, on_death
        self._number = 0
        self.current: Served | None = None
        self.previous: Served | None = None
        self.spare: Served | None = None

    def start(self, holding: Holding, fds: BundleFds) -> Served:
        """A process for a bundle; it serves nothing yet. Raises Unfit, Refused, Unavailable."""
        _, variant = holding.parsed()
        self._number += 1
        process = self._runtime.start(fds, holding, variant, self._number)
        self._watch(self._number, os.dup(process.fileno()))
        return Served(self._number, holding, variant, process)

    def publish(self, served: Served) -> int:
        """The switch (rule 1). Returns microseconds."""
        took_us = self._runtime.publish(served.generation, served.process)
        if self.current is not None and self.current is not served:
            self._drop(self.previous)
            self.previous = self.current
        self.current = served
        return took_us

    def restore(self) -> None:
        """Back to what served before, if that is still resident; what served since is stopped."""
        candidate, before = self.current, self.previous
        if before is not None:
            self._runtime.publish(before.generation, before.process)
        self.current, self.previous = before, None
        self._drop(candidate)

    def settle(self) -> None:
        """The current one stays: what it replaced is stopped."""
        before, self.previous = self.previous, None
        self._drop(before)

    def stop_current(self) -> None:
        """Rule 4."""
        stopped, self.current = self.current, None
        self._drop(stopped)

    def drop_spare(self) -> None:
        """Free what a standby holds."""
        if self.spare is not None:
            self.spare.process.stop()
            self.spare = None

    def resident_bytes(self) -> int:
        """Of all its processes."""
        served = (self.current, self.previous, self.spare)
        return sum(one.process.resident_bytes() for one in served if one is not None)

    def shadow(self, served: Served, share_ppm: int, limit_ppm: int) -> None:
        """Let a generation that serves nothing yet hear a share of the live requests; 0 ends that."""
        self._runtime.shadow(served.process, share_ppm, limit_ppm)

    def heard(self, served: Served) -> Heard:
        """What it did in the shadow; its process's end counts even before the front has noticed."""
        heard = self._runtime.heard()
        return heard if served.process.alive() else replace(heard, crashes=1)

    def needs_spare(self) -> bool:
        """There is a current generation, and no live process of the same bundle beside it."""
        current, spare = self.current, self.spare
        return current is not None and not (spare and spare.process.alive() and spare.digest == current.digest)

    def keep_spare(self, served: Served) -> None:
        """Hold a loaded process back; what was held before is stopped."""
        if self.spare is not None:
            self.spare.process.stop()
        self.spare = served

    def take_spare(self, digest: BundleDigest) -> Served | None:
        """The spare, if it is of this bundle and alive; it is no spare any more then."""
        spare = self.spare
        if spare is None or spare.digest != digest or not spare.process.alive():
            return None
        self.spare = None
        return spare

    def observe(self, served: Served) -> Observed:
        """What was seen of a generation."""
        return self._runtime.observe(served.generation)

    def abandon(self, served: Served) -> None:
        """Stop a process that was never published."""
        served.process.stop()

    def stop(self) -> None:
        """Stop all."""
        for served in (self.spare, self.previous, self.current):
            if served is not None:
                served.process.stop()
        self.current = self.previous = self.spare = None

    def _drop(self, served: Served | None) -> None:
        if served is not None:
            self._runtime.retire(served.generation)
            served.process.stop()

    def _watch(self, generation: int, pidfd: int) -> None:
        when_ended(pidfd, lambda: self._on_death(generation))


def when_ended(pidfd: int, act: Callable[[], None]) -> None:
    """Call `act` from a thread once a process has ended; the pidfd is closed then."""

    def sleep() -> None:
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        poll.poll()
        os.close(pidfd)
        act()

    threading.Thread(target=sleep, name=f"pidfd-{pidfd}", daemon=True).start()
