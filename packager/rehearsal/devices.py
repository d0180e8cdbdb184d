"""The simulated devices, in steps of a minute.

Each device polls once an hour at its own minute; at each minute, a sixtieth of the devices polls. What a device does at
a poll: it sends the vital that is due (one a day, and one when the soak time ends), the report that is due, and
installs the release if the rollout selects it. Delays and shares are constants below; they are assumptions.

All arrays have one element per device. Times are minutes since the start; NEVER is after the end.
"""

import hashlib
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import numpy as np
import numpy.typing as npt

from bundle.rollout import bucket
from bundle.stopping.counts import Counts, Group
from packager.rehearsal.truths import Truth

Minutes = npt.NDArray[np.int32]
Mask = npt.NDArray[np.bool_]

POLL_MINUTES: Final = 60
DAY_MINUTES: Final = 1440
PROBATION_MINUTES: Final = 35  # download, probe and half an hour of probation
FAILURE_MINUTES: Final = 5
NEVER: Final = 2**30
DEAD: Final = 0.03  # devices that never answer, and so are in no census
RARELY: Final = 0.15  # devices that are online now and then
RARELY_ON: Final = 0.12  # probability that such a device is online in its hour
MOSTLY_ON: Final = 0.99
CLASS_B: Final = 0.05
OUTAGE: Final = (6 * 60, 54 * 60)


@dataclass(frozen=True, slots=True)
class FleetIds:
    """The devices of a fleet, and their buckets in the rollout.

    Attributes:
        ids: ids of the devices.
        buckets: their buckets, in basis points.
    """

    ids: list[str]
    buckets: Minutes

    @classmethod
    def create(cls, count: int, salt: str, seed: int) -> "FleetIds":
        """Return a fleet of devices with their buckets.

        Args:
            count: number of devices.
            salt: the salt of the rollout.
            seed: another seed gives other devices.
        """
        ids = [hashlib.sha256(f"{seed}/{number}".encode()).hexdigest() for number in range(count)]
        return cls(ids, np.fromiter((bucket(salt, one) for one in ids), np.int32, count))


class SimulatedDevices:
    """A fleet of simulated devices, and what is known about them.

    Args:
        fleet: the devices.
        truth: what the release does.
        soak_s: soak time of the plan, in seconds.
        seed: seed of all randomness.

    Attributes:
        buckets: bucket of each device in the rollout.
        eligible: devices that the rollout selects now.
        bad: devices with a report or vital that counts against the release.
        done: devices that reported success after their probation.
        tried: devices that installed the release.
        damaged: devices on which the release fails or that it silences.
    """

    def __init__(self, fleet: "FleetIds", truth: Truth, soak_s: int, seed: int) -> None:
        count = len(fleet.ids)
        self._rng = rng = np.random.default_rng(seed)
        self._truth, self._soak = truth, -(-soak_s // 86_400) * DAY_MINUTES  # devices count whole days
        self.ids, self.buckets = fleet.ids, fleet.buckets
        self.alive = rng.random(count) >= DEAD
        self._on = np.where(rng.random(count) < RARELY, RARELY_ON, MOSTLY_ON).astype(np.float32)
        self._on[~self.alive] = 0
        self.is_b = rng.random(count) < CLASS_B
        chance = np.where(self.is_b & (truth.class_b is not None), truth.class_b or 0.0, truth.failing)
        self._fails = rng.random(count) < chance
        self._bricks = ~self._fails & (rng.random(count) < truth.bricked)
        self.damaged = self._fails | self._bricks
        self._is_hidden = rng.random(count) < truth.hidden_control
        self._is_dark = np.zeros(count, bool)
        self._is_dark[rng.choice(count, min(truth.dark_site, count), replace=False)] = True
        self._vital = rng.integers(0, DAY_MINUTES, count).astype(np.int32)  # when the next vital is due
        self._soak_end = np.full(count, NEVER, np.int32)
        self._report = np.full(count, NEVER, np.int32)
        self._late = np.full(count, NEVER, np.int32)
        self._heard = np.full(count, -1, np.int32)
        self._installed = np.full(count, NEVER, np.int32)
        self._complete = np.zeros(count, bool)
        self.tried, self.bad, self.done = (np.zeros(count, bool) for _ in range(3))
        self.eligible = np.zeros(count, bool)
        edges = np.linspace(0, count, POLL_MINUTES + 1).astype(int)
        self._slices = [slice(int(low), int(high)) for low, high in pairwise(edges)]
        self.polls = 0

    def select(self, percent_bp: int, *, halted: bool = False) -> None:
        """Set the share of the rollout.

        Args:
            percent_bp: share in basis points.
            halted: no device installs the release any more.
        """
        self.eligible = np.zeros(len(self.ids), bool) if halted else self.buckets < percent_bp

    def step(self, minute: int) -> None:
        """Let the devices poll whose minute it is."""
        part = self._slices[minute % POLL_MINUTES]
        on = self._rng.random(part.stop - part.start, np.float32) < self._on[part]
        if self._truth.dark_site and OUTAGE[0] <= minute < OUTAGE[1]:
            on &= ~self._is_dark[part]
        polling = part.start + np.flatnonzero(on)
        self.polls += len(polling)
        self._send(polling, minute)
        fresh = polling[self.eligible[polling] & ~self.tried[polling]]
        if not len(fresh):
            return
        self.tried[fresh] = True
        self._installed[fresh] = minute
        is_late = self._truth.late_h > 0
        failing = fresh[self._fails[fresh]]
        self._report[fresh] = minute + PROBATION_MINUTES
        self._soak_end[fresh] = minute + PROBATION_MINUTES + self._soak
        if is_late:
            self._late[failing] = minute + self._truth.late_h * 60
        else:
            self._report[failing] = minute + FAILURE_MINUTES
        bricked = fresh[self._bricks[fresh]]
        self._on[bricked], self._report[bricked] = 0, NEVER

    def _send(self, polling: npt.NDArray[np.int64], minute: int) -> None:
        reporting = polling[self._report[polling] <= minute]
        if len(reporting):
            self._report[reporting] = NEVER
            self._heard[reporting] = minute
            if self._truth.late_h:
                self.done[reporting] = True
            else:
                self.bad[reporting[self._fails[reporting]]] = True
                self.done[reporting[~self._fails[reporting]]] = True
        if self._truth.late_h:
            late = polling[self._late[polling] <= minute]
            self._late[late], self._heard[late], self.bad[late] = NEVER, minute, True
        due = polling[(self._vital[polling] <= minute) | (self._soak_end[polling] <= minute)]
        self._soak_end[due[self._soak_end[due] <= minute]] = NEVER
        self._vital[due] = minute + DAY_MINUTES
        self._heard[due] = minute
        soaked = due[self.done[due] & (minute - self._installed[due] - PROBATION_MINUTES >= self._soak)]
        self._complete[soaked[~self._fails[soaked]]] = True

    def counts(self, percent_bp: int, age_s: int, raised: int, frozen: Counts | None) -> Counts:
        """Return the counts of the stopping rule.

        Args:
            percent_bp: share of the rollout, in basis points.
            age_s: seconds since it was last raised.
            raised: minute at which it was last raised.
            frozen: counts of the last checkpoint, or None to count silence now.
        """
        groups = {"": self.alive, "cpu:a": self.alive & ~self.is_b, "cpu:b": self.alive & self.is_b}
        bad = {name: int((part & self.bad).sum()) for name, part in groups.items()}
        if frozen is not None:
            before = {"": frozen.whole, **frozen.strata}
            found = {name: _with_bad(group, bad[name]) for name, group in before.items()}
        else:
            found = {name: self._group(part, percent_bp, raised, bad[name]) for name, part in groups.items()}
        return Counts(percent_bp, age_s, found.pop(""), found)

    def _group(self, part: Mask, percent_bp: int, raised: int, bad: int) -> Group:
        exposed = part & (self.buckets < percent_bp)
        control = part & ~exposed
        heard = self._heard >= raised
        return Group(
            exposed=int(exposed.sum()),
            bad=bad,
            complete=int((exposed & self._complete & ~self.bad & heard).sum()),
            silent=int((exposed & ~heard).sum()),
            control=int(control.sum()),
            control_silent=int((control & (~heard | self._is_hidden)).sum()),
        )

    def group_rates(self, low_bp: int, percent_bp: int) -> tuple[int, int, int]:
        """Return the sizes of one stage's group: devices, reported successes and reported failures.

        Args:
            low_bp: share before the stage.
            percent_bp: share of the stage.
        """
        group = (self.buckets >= low_bp) & (self.buckets < percent_bp)
        failed = int((group & self.bad).sum())
        return int(group.sum()), int((group & self.done & ~self.bad).sum()), failed

    @property
    def hit(self) -> int:
        """Number of damaged devices that installed the release."""
        return int((self.tried & self.damaged).sum())


def _with_bad(group: Group, bad: int) -> Group:
    """Return a group with more bad devices, which are no longer complete or silent."""
    more = max(0, bad - group.bad)
    complete = min(group.complete, group.exposed - bad)
    return Group(group.exposed, group.bad + more, complete, group.silent, group.control, group.control_silent)
