"""A simulated fleet for the stopping rule: when each device reports, and what the rule sees of it.

Times are hours since the device was selected. Devices send a vital a day; a device that is switched on now and then
sends one when it is. A share of the devices is mute: it takes the release, and none of its lines arrives.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bundle.plan import Plan
from bundle.stopping.counts import Counts, Group, checkpoint_s
from bundle.stopping.decide import decide
from bundle.stopping.decisions import Ask, Decision, Go, Grow, Halt

Hours = npt.NDArray[np.float64]
LOOK_H = 2.0
MAX_HOURS = 24 * 21


@dataclass(frozen=True)
class Truth:
    """Hold what a release does to devices.

    Attributes:
        failing: share of devices on which it fails and that report it.
        late_h: hours after which a failure is reported; 0 at once.
        bricked: share of devices that it silences.
        class_b: failure rate of the devices of class B, 5 % of the fleet; None as others.
        mute: share of devices of which no line arrives.
        rarely: share of devices that are switched on now and then.
    """

    failing: float
    late_h: float = 0.0
    bricked: float = 0.0
    class_b: float | None = None
    mute: float = 0.003
    rarely: float = 0.15


class SimulatedFleet:
    """One rollout on a fleet, in bucket order; every run follows from the generator.

    Args:
        plan: the plan.
        truth: what the release does.
        devices: size of the census.
        rng: source of randomness.
    """

    def __init__(self, plan: Plan, truth: Truth, devices: int, rng: np.random.Generator) -> None:
        self.plan, self._rng, self._devices = plan, rng, devices
        self.is_b = rng.random(devices) < 0.05
        chance = np.where(self.is_b, truth.failing if truth.class_b is None else truth.class_b, truth.failing)
        self._rarely = rng.random(devices) < truth.rarely
        self._mute = rng.random(devices) < truth.mute
        self.fails = rng.random(devices) < chance
        self.is_bricked = ~self.fails & (rng.random(devices) < truth.bricked)
        poll = rng.uniform(0, 1.2, devices) + np.where(self._rarely, rng.exponential(8, devices), 0)
        soak_h = plan.soak_s / 3600
        self._installed = poll + 0.1
        vital = rng.uniform(0, 24, devices) + np.where(self._rarely, rng.exponential(8, devices), 0)
        self._bad = np.where(self.fails & ~self._mute, self._installed + truth.late_h, np.inf)
        never = self.fails | self.is_bricked | self._mute
        self._complete = np.where(never, np.inf, self._installed + 0.5 + soak_h + vital)
        self._selected = np.full(devices, np.inf)
        self._raised = 0.0
        self._expose(0.0, plan.stages_bp[0])

    def run(self) -> tuple[list[Decision], float]:
        """Return the decisions other than waiting, the last one final, and the hours until then."""
        out: list[Decision] = []
        now = 0.0
        while now < MAX_HOURS:
            now += LOOK_H
            found = decide(self.plan, self.counts(now))
            if isinstance(found, Go | Grow):
                out.append(found)
                self._expose(now, found.percent_bp)
            elif isinstance(found, Halt | Ask):
                return [*out, found], now
            elif found.reason == "last-stage":
                break
        return out, now

    def counts(self, now: float) -> Counts:
        """Return the counts at a time, in hours since the rollout began."""
        age_s = round((now - self._raised) * 3600)
        point = checkpoint_s(self.plan.soak_s, age_s)
        at = self._raised + (0 if point is None else point / 3600)
        exposed = np.isfinite(self._selected)
        bad = self._selected + self._bad <= now
        heard = self._raised + self._heard <= at
        dark = self.is_bricked & (self._selected + self._installed <= self._raised)
        heard &= ~(exposed & dark)
        complete = (self._selected + self._complete <= at) & heard & ~bad

        def group(part: npt.NDArray[np.bool_]) -> Group:
            control = part & ~exposed
            return Group(
                exposed=int((part & exposed).sum()),
                bad=int((part & bad).sum()),
                complete=int((part & complete).sum()),
                silent=int((part & exposed & ~heard).sum()),
                control=int(control.sum()),
                control_silent=int((control & ~heard).sum()),
            )

        everyone = np.ones(self._devices, bool)
        return Counts(self._percent_bp, age_s, group(everyone), {"cpu:a": group(~self.is_b), "cpu:b": group(self.is_b)})

    def hit(self, now: float) -> int:
        """Return how many devices the release has damaged by a time, in hours."""
        reached = self._selected + self._installed <= now
        return int((reached & (self.fails | self.is_bricked)).sum())

    def _expose(self, now: float, percent_bp: int) -> None:
        count = self._devices * percent_bp // 10_000
        fresh = np.isinf(self._selected[:count])
        self._selected[:count][fresh] = now
        self._percent_bp, self._raised = percent_bp, now
        # a vital a day; the devices of this share install first, and a bricked one is silent from then on
        rng, n = self._rng, self._devices
        vital = rng.uniform(0, 24, n) + np.where(self._rarely, rng.exponential(8, n), 0)
        newly = np.isfinite(self._selected) & (self._selected == now)
        outcome = np.minimum(self._bad, np.where(self.is_bricked, np.inf, self._installed + 1.0))
        vital = np.where(newly, np.where(self.is_bricked & (vital > self._installed), np.inf, vital), vital)
        vital = np.where(newly, np.minimum(vital, outcome), vital)
        self._heard = np.where(self._mute, np.inf, vital)
