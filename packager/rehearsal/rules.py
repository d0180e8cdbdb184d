"""The stopping rule, and three simpler rules to compare it with.

The simpler rules are what other systems offer, in short: the next stage each day; of each stage's group, halt at 5 %
failures and advance at 80 % successes; halt at 5 % failures among the devices that reported, from 20 on.
"""

from dataclasses import dataclass
from typing import Final

from bundle.plan import Plan
from bundle.stopping.counts import Counts, checkpoint_number
from bundle.stopping.decide import decide
from bundle.stopping.decisions import Go, Grow, Halt
from packager.rehearsal.devices import DAY_MINUTES, SimulatedDevices

STOPPING_RULE: Final = "stopping-rule"
RULES: Final = (STOPPING_RULE, "time", "success-percentage", "abort-percentage")
HALT_SHARE: Final = 0.05
GO_SHARE: Final = 0.80
LEAST_EXECUTED: Final = 20


@dataclass(frozen=True, slots=True)
class Move:
    """A change of the rollout.

    Attributes:
        word: "halt", "go", "grow", "ask" or "wait".
        percent_bp: share after it, in basis points.
        reason: why.
    """

    word: str
    percent_bp: int
    reason: str


class StoppingRule:
    """The stopping rule with the counts of its last checkpoint.

    Args:
        plan: the plan.
    """

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._checkpoint = (-1, -1)
        self._counts: Counts | None = None
        self._bad = -1
        self._last: Move | None = None

    def look(self, devices: SimulatedDevices, percent_bp: int, minute: int, raised: int) -> Move:
        """Return what happens to the rollout now.

        Args:
            devices: the fleet.
            percent_bp: share of the rollout.
            minute: the time.
            raised: when the share was last raised.
        """
        age_s = (minute - raised) * 60
        checkpoint = (raised, checkpoint_number(self._plan.soak_s, age_s))
        is_due = checkpoint != self._checkpoint or self._counts is None
        bad = int((devices.alive & devices.bad).sum())
        is_old = age_s >= self._plan.grow_after_s > age_s - 60
        if not is_due and bad == self._bad and not is_old and self._last is not None:
            return self._last
        self._counts = devices.counts(percent_bp, age_s, raised, None if is_due else self._counts)
        self._checkpoint, self._bad = checkpoint, bad
        found = decide(self._plan, self._counts)
        share = found.percent_bp if isinstance(found, Go | Grow) else percent_bp
        self._last = Move(found.word, share, found.reason if not isinstance(found, Halt) else found.text)
        return self._last


class SimpleRule:
    """One of the rules of other systems.

    Args:
        name: one of RULES.
        plan: the plan, for its stages.
    """

    def __init__(self, name: str, plan: Plan) -> None:
        self._name, self._plan, self._low = name, plan, 0

    def look(self, devices: SimulatedDevices, percent_bp: int, minute: int, raised: int) -> Move:
        """Return what happens to the rollout now; arguments as in `StoppingRule.look`.

        Args:
            devices: the fleet.
            percent_bp: share of the rollout.
            minute: the time.
            raised: when the share was last raised.
        """
        following = self._plan.next_stage_bp(percent_bp)
        size, good, failed = devices.group_rates(self._low, percent_bp)
        if self._name == "time":
            is_go = minute - raised >= DAY_MINUTES
        elif self._name == "success-percentage":
            if failed > HALT_SHARE * size:
                return Move("halt", percent_bp, "failed share of the group")
            is_go = good >= GO_SHARE * size
        else:
            done, bad = int(devices.done.sum()), int(devices.bad.sum())
            if done + bad >= LEAST_EXECUTED and bad >= HALT_SHARE * (done + bad):
                return Move("halt", percent_bp, "failed share of the executed")
            is_go = good >= GO_SHARE * size
        if not is_go or following is None:
            return Move("wait", percent_bp, "")
        self._low = percent_bp
        return Move("go", following, self._name)
