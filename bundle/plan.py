"""The plan of a rollout: how far, and on which evidence, it may advance (docs/format.md section 4.1).

Rules:
- A plan is the target `bundles/<family>/<channel>.plan.json` of the role `release-<family>`. The machine that publishes
  rollouts does not have the keys of that role.
- While a plan is listed, devices refuse every rollout of the channel that does not lie inside it (`check_inside_plan`).
- A rollout of the plan's release lies inside the plan if it names the plan's digest, has its salt, selects only its
  cohorts, and at most the share of its last stage.
- A rollout of one of the plan's fallbacks lies inside it at any share. No other rollout does.
- Stages rise strictly. Rates are parts per million, shares basis points.

Pure: standard library only.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from bundle import strict_json
from bundle.errors import Malformed, OutsidePlan
from bundle.rollout import Rollout
from bundle.strict_json import JSON, NAME_PATTERN, SHA256_HEX_PATTERN, StrictObject

SCHEMA: Final = "airweights.plan/1"
MAX_PLAN_BYTES: Final = 32 * 1024
BASIS_POINTS: Final = 10_000
MILLION: Final = 1_000_000
MAX_STAGES: Final = 16
MAX_FALLBACKS: Final = 64
MAX_RATE_PPM: Final = 500_000
MAX_SECONDS: Final = 365 * 86_400

DEFAULT_STAGES_BP: Final = (100, 500, 2_500, 10_000)
DEFAULT_ACCEPT_PPM: Final = 10_000
DEFAULT_REFUSE_PPM: Final = 50_000
DEFAULT_ALPHA_PPM: Final = 10_000
DEFAULT_BETA_PPM: Final = 50_000
DEFAULT_BASE_CEILING_PPM: Final = 100_000
DEFAULT_SOAK_S: Final = 86_400
GROW_AFTER_SOAKS: Final = 3  # the soak time, a daily vital, and devices that are switched on now and then


@dataclass(frozen=True, slots=True)
class PlannedRelease:
    """A release that a plan names.

    Attributes:
        version: version of the release.
        counter: counter of the release.
        manifest_digest: digest of its manifest without patches, SHA-256 in hexadecimal.
    """

    version: str
    counter: int
    manifest_digest: str

    def as_json(self) -> dict[str, JSON]:
        """Return the release as a JSON object."""
        return {"version": self.version, "counter": self.counter, "manifest_digest": self.manifest_digest}


@dataclass(frozen=True, slots=True)
class Plan:
    """Stages, rates and limits of the rollout of a release.

    Attributes:
        family: family of the release.
        channel: channel that the plan is for.
        release: the release that is rolled out.
        fallbacks: releases that the channel may be pointed back to.
        salt: the salt of all rollouts of the plan; it fixes which devices are first.
        cohorts: names of the cohorts that take part; empty means all.
        stages_bp: shares of the stages, rising, in basis points.
        accept_ppm: failure rate that is acceptable: halting such a release is an error.
        refuse_ppm: failure rate that must not pass: advancing such a release is an error.
        alpha_ppm: probability of a false halt.
        beta_ppm: probability of a false go.
        base_ceiling_ppm: share of silent devices in the control group above which a person decides.
        soak_s: time for which a release is watched at each stage, in seconds.
        grow_after_s: age of a stage from which it may grow, or a person is called, in seconds; at least `soak_s`.
    """

    family: str
    channel: str
    release: PlannedRelease
    fallbacks: tuple[PlannedRelease, ...] = ()
    salt: str = ""
    cohorts: tuple[str, ...] = ()
    stages_bp: tuple[int, ...] = DEFAULT_STAGES_BP
    accept_ppm: int = DEFAULT_ACCEPT_PPM
    refuse_ppm: int = DEFAULT_REFUSE_PPM
    alpha_ppm: int = DEFAULT_ALPHA_PPM
    beta_ppm: int = DEFAULT_BETA_PPM
    base_ceiling_ppm: int = DEFAULT_BASE_CEILING_PPM
    soak_s: int = DEFAULT_SOAK_S
    grow_after_s: int = GROW_AFTER_SOAKS * DEFAULT_SOAK_S

    def as_json(self) -> dict[str, JSON]:
        """Return the plan as a JSON object."""
        return {
            "schema": SCHEMA,
            "family": self.family,
            "channel": self.channel,
            "release": self.release.as_json(),
            "fallbacks": [release.as_json() for release in self.fallbacks],
            "salt": self.salt,
            "cohorts": list(self.cohorts),
            "stages_bp": list(self.stages_bp),
            "accept_ppm": self.accept_ppm,
            "refuse_ppm": self.refuse_ppm,
            "alpha_ppm": self.alpha_ppm,
            "beta_ppm": self.beta_ppm,
            "base_ceiling_ppm": self.base_ceiling_ppm,
            "soak_s": self.soak_s,
            "grow_after_s": self.grow_after_s,
        }

    def as_bytes(self) -> bytes:
        """Return the canonical bytes, as they are published."""
        return strict_json.encode(self.as_json())

    def digest(self) -> str:
        """Return the SHA-256 of the canonical bytes, in hexadecimal; rollouts name it."""
        return strict_json.digest(self.as_json())

    def next_stage_bp(self, percent_bp: int) -> int | None:
        """Return the share of the stage after `percent_bp`, in basis points, or None after the last."""
        return next((stage for stage in self.stages_bp if stage > percent_bp), None)

    def step_number(self, percent_bp: int) -> int:
        """Return how often the share may have been raised until it is `percent_bp`, by stages and by doubling.

        The stopping rule shares its error budget among these steps.
        """
        return sum(1 + _doublings(low, min(high, percent_bp)) for low, high in self._spans() if low <= percent_bp) or 1

    def _spans(self) -> list[tuple[int, int]]:
        return list(zip(self.stages_bp, (*self.stages_bp[1:], BASIS_POINTS), strict=True))


def parse_plan(data: bytes) -> Plan:
    """Parse a plan strictly.

    Raises:
        Malformed: the document does not follow its schema, or its numbers contradict each other.
        TooLarge: the document is longer than MAX_PLAN_BYTES.
    """
    fields = StrictObject(strict_json.decode(data, what="plan", max_bytes=MAX_PLAN_BYTES), "plan")
    schema = fields.text("schema")
    if schema != SCHEMA:
        raise Malformed(f"plan.schema: found {schema!r}, expected {SCHEMA!r}")
    out = Plan(
        family=fields.text("family", NAME_PATTERN),
        channel=fields.text("channel", NAME_PATTERN),
        release=_parse_release(fields.object("release")),
        fallbacks=tuple(_parse_release(row) for row in fields.objects("fallbacks", max_items=MAX_FALLBACKS)),
        salt=fields.text("salt", max_length=64),
        cohorts=fields.texts("cohorts", NAME_PATTERN, max_items=256),
        stages_bp=fields.integers("stages_bp", 1, BASIS_POINTS, max_items=MAX_STAGES),
        accept_ppm=fields.integer("accept_ppm", 1, MAX_RATE_PPM),
        refuse_ppm=fields.integer("refuse_ppm", 1, MAX_RATE_PPM),
        alpha_ppm=fields.integer("alpha_ppm", 1, MAX_RATE_PPM),
        beta_ppm=fields.integer("beta_ppm", 1, MAX_RATE_PPM),
        base_ceiling_ppm=fields.integer("base_ceiling_ppm", 0, MAX_RATE_PPM),
        soak_s=fields.integer("soak_s", 1, MAX_SECONDS),
        grow_after_s=fields.integer("grow_after_s", 1, MAX_SECONDS),
    )
    fields.reject_unknown()
    check_plan(out)
    return out


def check_plan(plan: Plan) -> None:
    """Check that the numbers of a plan do not contradict each other.

    Raises:
        Malformed: stages do not rise, rates are in the wrong order, or times are.
    """
    if not plan.stages_bp or any(low >= high for low, high in pairwise(plan.stages_bp)):
        raise Malformed(f"plan.stages_bp: found {list(plan.stages_bp)}, expected shares that rise")
    if plan.accept_ppm >= plan.refuse_ppm:
        raise Malformed(f"plan.refuse_ppm: found {plan.refuse_ppm}, expected more than accept_ppm, {plan.accept_ppm}")
    if plan.grow_after_s < plan.soak_s:
        raise Malformed(f"plan.grow_after_s: found {plan.grow_after_s}, expected at least soak_s, {plan.soak_s}")
    if any(release == plan.release for release in plan.fallbacks):
        raise Malformed(f"plan.fallbacks: found release {plan.release.version}, which is the plan's own")


def check_inside_plan(plan: Plan, rollout: Rollout) -> None:
    """Check that a rollout lies inside the plan of its channel.

    Args:
        plan: the plan that the release role lists for the channel.
        rollout: the rollout of the channel.

    Raises:
        OutsidePlan: it does not; the message says in what.
    """
    where = f"the rollout of {rollout.version} on channel {rollout.channel!r} of {rollout.family!r}"
    hint = "publish a rollout inside the plan, or let the release role sign another plan: packager rollout plan"
    if (rollout.family, rollout.channel) != (plan.family, plan.channel):
        raise OutsidePlan(f"{where} is not of the plan's channel {plan.channel!r} of {plan.family!r}", hint=hint)
    offered = PlannedRelease(rollout.version, rollout.counter, rollout.manifest_digest)
    if offered in plan.fallbacks:
        return
    if offered != plan.release:
        allowed = ", ".join(release.version for release in (plan.release, *plan.fallbacks))
        raise OutsidePlan(f"{where} offers a release that the plan does not name, expected {allowed}", hint=hint)
    if rollout.plan != plan.digest():
        named = "no plan" if rollout.plan is None else f"plan {rollout.plan[:16]}…"
        raise OutsidePlan(f"{where} names {named}, expected {plan.digest()[:16]}…", hint=hint)
    if rollout.salt != plan.salt:
        raise OutsidePlan(f"{where} has salt {rollout.salt!r}, expected {plan.salt!r}", hint=hint)
    if rollout.percent_bp > plan.stages_bp[-1]:
        last = f"{plan.stages_bp[-1] / 100:g} %"
        raise OutsidePlan(f"{where} selects {rollout.percent_bp / 100:g} %, the last stage is {last}", hint=hint)
    if plan.cohorts and (not rollout.cohorts or set(rollout.cohorts) - set(plan.cohorts)):
        found = ", ".join(rollout.cohorts) or "all cohorts"
        raise OutsidePlan(f"{where} selects {found}, the plan only {', '.join(plan.cohorts)}", hint=hint)


def _parse_release(row: StrictObject) -> PlannedRelease:
    out = PlannedRelease(
        row.text("version", strict_json.VERSION_PATTERN),
        row.integer("counter", 1),
        row.text("manifest_digest", SHA256_HEX_PATTERN),
    )
    row.reject_unknown()
    return out


def _doublings(low: int, high: int) -> int:
    """Return how often `low` must be doubled to reach `high`."""
    count = 0
    while low < high:
        low, count = low * 2, count + 1
    return count
