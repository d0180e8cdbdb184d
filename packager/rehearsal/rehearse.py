"""Runs of each rule on each truth, and their summary."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from bundle.acceptance import ZERO_COUNTER, CheckContext, VerifiedRelease, accept, check_eligibility
from bundle.fleet import Fleet
from bundle.manifest import Manifest
from bundle.plan import Plan
from bundle.rollout import Rollout
from packager.rehearsal.devices import DAY_MINUTES, FleetIds, SimulatedDevices
from packager.rehearsal.rules import STOPPING_RULE, SimpleRule, StoppingRule
from packager.rehearsal.truths import Truth

LOOK_MINUTES: Final = 10  # between looks of the simpler rules; the stopping rule looks each minute
COMPARED_DEVICES: Final = 10_000


@dataclass(frozen=True, slots=True)
class Run:
    """Result of one run.

    Attributes:
        rule: name of the rule.
        truth: name of the truth.
        end: "halted", "done" (the last stage), "asked" or "undecided".
        hours: hours until then, or of the whole rehearsal.
        percent_bp: share at the end, in basis points.
        updated: devices that installed the release.
        hit: devices that it damaged.
        reason: why it ended.
        steps: (minute, share in basis points, damaged devices) when the share changed, every six hours, and at the end.
        asked_h: hours until a person was called first, or None.
    """

    rule: str
    truth: str
    end: str
    hours: float
    percent_bp: int
    updated: int
    hit: int
    reason: str
    steps: tuple[tuple[int, int, int], ...]
    asked_h: float | None


@dataclass(frozen=True, slots=True)
class Rehearsal:
    """Results of all runs.

    Attributes:
        runs: the runs.
        polls: number of simulated polls.
        compared: devices whose selection was compared with the device's own rule.
        differing: of these, those that differ; 0 if the simulation is right.
        cpu_s: processor time, in seconds.
    """

    runs: tuple[Run, ...]
    polls: int
    compared: int
    differing: int
    cpu_s: float


def rehearse(
    plan: Plan,
    truths: Sequence[Truth],
    rules: Sequence[str],
    *,
    devices: int,
    days: int,
    runs: int,
    seed: int,
    on_run: Callable[[Run], None] = lambda _run: None,
) -> Rehearsal:
    """Run each rule on each truth.

    Args:
        plan: the plan.
        truths: what the release does.
        rules: names of rules.
        devices: number of devices.
        days: length of a run.
        runs: runs of each pair, with other fleets.
        seed: seed of the first run.
        on_run: called after each run.
    """
    before_s = time.process_time()
    found: list[Run] = []
    polls = compared = differing = 0
    for number in range(runs):
        ids = FleetIds.create(devices, plan.salt, seed + number)
        for truth in truths:
            for rule in rules:
                fleet = SimulatedDevices(ids, truth, plan.soak_s, seed + number)
                run = _run(plan, truth, rule, fleet, days * DAY_MINUTES)
                found.append(run)
                on_run(run)
                polls += fleet.polls
                if rule == rules[0] and number == 0:
                    sample = min(COMPARED_DEVICES, devices)
                    differing += count_differing(plan, fleet, run.percent_bp, halted=run.end == "halted", sample=sample)
                    compared += sample
    return Rehearsal(tuple(found), polls, compared, differing, time.process_time() - before_s)


def count_differing(plan: Plan, fleet: SimulatedDevices, percent_bp: int, *, halted: bool, sample: int) -> int:
    """Return how many of the first devices select themselves otherwise than the simulation does.

    Args:
        plan: the plan.
        fleet: the simulated devices.
        percent_bp: share of the rollout, in basis points.
        halted: whether the rollout is halted.
        sample: number of devices.
    """
    release = _release(plan, percent_bp, halted=halted)
    fleet.select(percent_bp, halted=halted)
    own = [check_eligibility(release, one, "", 0).is_eligible for one in fleet.ids[:sample]]
    return sum(a != bool(b) for a, b in zip(own, fleet.eligible[:sample], strict=True))


def summarize(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Return one row for each truth and rule: how the runs ended, and the medians.

    The median of the damaged devices is over all runs, that of the hours over the runs that halted.
    """
    out = []
    for truth in dict.fromkeys(run.truth for run in runs):
        for rule in dict.fromkeys(run.rule for run in runs):
            rows = [run for run in runs if (run.truth, run.rule) == (truth, rule)]
            if not rows:
                continue
            halted = [run.hours for run in rows if run.end == "halted"]
            out.append(
                {
                    "truth": truth,
                    "rule": rule,
                    "runs": len(rows),
                    **{end: sum(run.end == end for run in rows) for end in ("halted", "done", "asked", "undecided")},
                    "failing_devices_hit": round(statistics.median(run.hit for run in rows)),
                    "most_failing_devices_hit": max(run.hit for run in rows),
                    "updated": round(statistics.median(run.updated for run in rows)),
                    "halted_after_h": round(statistics.median(halted), 1) if halted else None,
                    "percent": statistics.median(run.percent_bp for run in rows) / 100,
                }
            )
    return out


def _run(plan: Plan, truth: Truth, rule: str, fleet: SimulatedDevices, end: int) -> Run:
    judge = StoppingRule(plan) if rule == STOPPING_RULE else SimpleRule(rule, plan)
    percent_bp, raised, word, reason = plan.stages_bp[0], 0, "undecided", ""
    asked: float | None = None
    steps = [(0, percent_bp, 0)]
    fleet.select(percent_bp)
    minute = 0
    for minute in range(1, end + 1):
        fleet.step(minute)
        if minute % (6 * 60) == 0:
            steps.append((minute, percent_bp, fleet.hit))
        if rule != STOPPING_RULE and minute % LOOK_MINUTES:
            continue
        move = judge.look(fleet, percent_bp, minute, raised)
        if move.word == "halt":
            word, reason = "halted", move.reason
            break
        if move.word == "ask":
            asked = minute / 60 if asked is None else asked
            reason = move.reason
        if move.word in ("go", "grow"):
            percent_bp, raised, reason = move.percent_bp, minute, ""
            fleet.select(percent_bp)
            steps.append((minute, percent_bp, fleet.hit))
    if word != "halted":
        is_last = plan.next_stage_bp(percent_bp) is None
        word = "done" if is_last else "asked" if asked is not None and reason else "undecided"
    steps.append((minute, percent_bp, fleet.hit))
    updated = int(fleet.tried.sum())
    return Run(
        rule, truth.name, word, round(minute / 60, 2), percent_bp, updated, fleet.hit, reason, tuple(steps), asked
    )


def _release(plan: Plan, percent_bp: int, *, halted: bool) -> VerifiedRelease:
    """Return a verified release of the plan's rollout, as a device has it."""
    manifest = Manifest(
        plan.family, plan.release.version, plan.release.counter, 0, (plan.channel,), "0", "1970-01-01T00:00:00Z", (), ()
    )
    rollout = Rollout(
        plan.family,
        plan.channel,
        manifest.version,
        manifest.counter,
        manifest.digest_without_patches(),
        percent_bp,
        plan.salt,
        halted=halted,
    )
    return accept(
        manifest,
        rollout,
        Fleet("0" * 64, 0, ()),
        CheckContext("0" * 64, 1, 0, 2**40, 1),
        family=plan.family,
        channel=plan.channel,
        floor=ZERO_COUNTER,
        known_releases={},
        agent_version="1",
    )


def run_as_json(run: Run) -> dict[str, Any]:
    """Return the JSON object of a run."""
    return {**asdict(run), "steps": [list(step) for step in run.steps]}
