"""Rollouts of a channel, with or without a plan (bundle.plan).

Rules:
- A rollout of the plan's release takes salt and cohorts from the plan, names its digest, and begins with its first
  stage.
- `began_s` is when the rollout of a release began, `raised_s` when its share was last raised. Both are kept as long
  as release and plan are the same, so that a census can be computed again from the signed rollout.
"""

from collections.abc import Sequence
from dataclasses import replace

from bundle.manifest import Manifest
from bundle.plan import GROW_AFTER_SOAKS, Plan, PlannedRelease
from bundle.rollout import BASIS_POINTS, Rollout, Window


def make_plan(
    manifest: Manifest,
    channel: str,
    current: Rollout | None,
    fallbacks: Sequence[Manifest] = (),
    *,
    cohorts: tuple[str, ...] = (),
    stages_bp: tuple[int, ...],
    accept_ppm: int,
    refuse_ppm: int,
    soak_s: int,
    grow_after_s: int | None = None,
    base_ceiling_ppm: int,
    alpha_ppm: int,
    beta_ppm: int,
) -> Plan:
    """Return the plan of a release.

    Args:
        manifest: the release.
        channel: the channel that it is rolled out on.
        current: the rollout of the channel, whose release is a fallback unless it is the plan's own.
        fallbacks: further releases that the channel may be pointed back to.
        cohorts: names of the cohorts that take part; empty means all.
        stages_bp: shares of the stages, in basis points.
        accept_ppm: acceptable failure rate.
        refuse_ppm: failure rate that must not pass.
        soak_s: soak time, in seconds.
        grow_after_s: age from which a stage grows, in seconds; None for GROW_AFTER_SOAKS soak times.
        base_ceiling_ppm: silent share of the control group above which a person decides.
        alpha_ppm: probability of a false halt.
        beta_ppm: probability of a false go.
    """
    release = PlannedRelease(manifest.version, manifest.counter, manifest.digest_without_patches())
    names = [PlannedRelease(one.version, one.counter, one.digest_without_patches()) for one in fallbacks]
    is_running = current is not None and current.manifest_digest == release.manifest_digest
    salt = current.salt if is_running and current is not None else f"{manifest.family}-{manifest.counter}"
    if current is not None:
        names.append(PlannedRelease(current.version, current.counter, current.manifest_digest))
    return Plan(
        family=manifest.family,
        channel=channel,
        release=release,
        fallbacks=tuple(sorted({one for one in names if one != release}, key=lambda one: one.counter)),
        salt=salt,
        cohorts=cohorts,
        stages_bp=stages_bp,
        accept_ppm=accept_ppm,
        refuse_ppm=refuse_ppm,
        alpha_ppm=alpha_ppm,
        beta_ppm=beta_ppm,
        base_ceiling_ppm=base_ceiling_ppm,
        soak_s=soak_s,
        grow_after_s=GROW_AFTER_SOAKS * soak_s if grow_after_s is None else grow_after_s,
    )


def next_rollout(
    manifest: Manifest,
    channel: str,
    before: Rollout | None,
    plan: Plan | None,
    now_s: int,
    *,
    percent_bp: int | None = None,
    salt: str | None = None,
    cohorts: tuple[str, ...] = (),
    windows: tuple[Window, ...] = (),
    note: str = "",
) -> Rollout:
    """Return the rollout that points a channel at a release.

    Args:
        manifest: the release.
        channel: name of the channel.
        before: the rollout that it replaces, or None.
        plan: the plan of the channel, or None.
        now_s: the current time, Unix seconds.
        percent_bp: share of devices, in basis points; None for all, or with a plan the share now or the first stage.
        salt: salt of the sample; None for the plan's, the one before, or a new one.
        cohorts: names of the cohorts; empty for the plan's, or all.
        windows: time windows for activation.
        note: a remark for people.
    """
    release = PlannedRelease(manifest.version, manifest.counter, manifest.digest_without_patches())
    is_planned = plan is not None and plan.release == release
    digest = plan.digest() if plan is not None and is_planned else None
    same = before if before is not None and before.manifest_digest == release.manifest_digest else None
    kept = same if same is not None and same.plan == digest else None
    if percent_bp is None and plan is not None and is_planned:
        percent_bp = plan.stages_bp[0] if kept is None else kept.percent_bp
    share = BASIS_POINTS if percent_bp is None else percent_bp
    if salt is None:
        own = f"{manifest.family}-{manifest.counter}" if same is None else same.salt
        salt = plan.salt if plan is not None and is_planned else own
    out = Rollout(
        family=manifest.family,
        channel=channel,
        version=release.version,
        counter=release.counter,
        manifest_digest=release.manifest_digest,
        percent_bp=share,
        salt=salt,
        cohorts=cohorts or (plan.cohorts if plan is not None and is_planned else ()),
        windows=windows,
        note=note,
        plan=digest,
        began_s=now_s,
        raised_s=now_s,
    )
    if kept is None:
        return out
    return replace(out, began_s=kept.began_s, raised_s=now_s if share > kept.percent_bp else kept.raised_s)
