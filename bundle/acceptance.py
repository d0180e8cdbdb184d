"""The acceptance rules: decide from authentic documents whether a device may install a release.

Pure: no files, clock, network or TUF. The device's verifier and the publisher's client check call the same functions.
The supervisor, which loads neither tuf nor cryptography, reads the result.

Rules of `accept`, in this order:
1. The rollout is of the requested family and channel, and the manifest is of the same family.
2. Rollout and manifest agree on version, counter and release digest (the manifest's digest without its patches).
3. The manifest lists the channel.
4. (counter epoch, counter) is at least the rollback floor, and the epoch is at least the floor's.
5. A counter that is already known belongs to the same release digest.
6. The agent has at least the version that the manifest requires.
7. If the release role lists a plan for the channel, the rollout lies inside it (bundle.plan).
8. An accepted release raises the floor to (counter epoch, `min_counter` of the manifest); the floor never falls.

A `VerifiedRelease` is a proof: only `accept` creates one, and `VerifiedRelease.from_verifier`, which reads one that the
verifier process sent.
"""

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple

from bundle.errors import (
    AgentTooOld,
    Bug,
    CounterReused,
    MetadataExpired,
    ReleaseMismatch,
    RollbackRefused,
    WrongChannel,
)
from bundle.fleet import Fleet, parse_fleet
from bundle.key_sizes import MAX_ENVELOPE_BYTES
from bundle.manifest import Manifest, parse_manifest
from bundle.ramp import allowed_share, describe_wait, ramp_bucket
from bundle.rollout import Rollout, bucket, parse_rollout
from bundle.strict_json import JSON, MAX_INTEGER, SHA256_HEX_PATTERN, StrictObject, decode, encode
from bundle.version import parse_dotted_version

if TYPE_CHECKING:
    from bundle.plan import Plan  # most channels have none: loaded with the first one

MAX_VERIFIED_BYTES: Final = 2 * 1024 * 1024  # manifest, rollout and fleet at their limits, and the context

ENVELOPE_PATTERN: Final = re.compile(r"(?:[0-9a-f]{2})*")

_ACCEPTANCE_PROOF: Final = object()


class ReleaseCounter(NamedTuple):
    """A release counter in its counter epoch; the epoch compares first.

    Attributes:
        epoch: signed by the targets role; advanced when counters must start again.
        counter: signed by the release role; grows with every release of a family.
    """

    epoch: int
    counter: int

    def as_json(self) -> dict[str, JSON]:
        """Return the object `{epoch, counter}`."""
        return {"epoch": self.epoch, "counter": self.counter}

    def __str__(self) -> str:
        return f"{self.counter} (epoch {self.epoch})"


ZERO_COUNTER: Final = ReleaseCounter(0, 0)


@dataclass(frozen=True, slots=True)
class CheckContext:
    """Facts of one check beside the documents.

    Attributes:
        repository_id: id of the repository (`bundle.trust.repository_id`), hexadecimal.
        counter_epoch: counter epoch of the family, from its delegation.
        checked_at_s: the time that expiry was judged by, Unix seconds.
        expires_at_s: the earliest expiry of all metadata that the release rests on, Unix seconds.
        timestamp_version: version of the timestamp role; grows with every publication.
        seen_s: seconds for which this device has seen the rollout of the release (bundle.trust.sightings).
    """

    repository_id: str
    counter_epoch: int
    checked_at_s: int
    expires_at_s: int
    timestamp_version: int
    seen_s: int = 0


@dataclass(frozen=True, slots=True)
class VerifiedRelease:
    """A release that passed all acceptance rules; download, patching and staging accept nothing else.

    Attributes:
        manifest: the release's manifest.
        rollout: the rollout that selects the release.
        fleet: the fleet document of the same check.
        context: facts of the check.
        plan: the plan of the channel, or None without one.
        floor: rollback floor of the family after this release.
        content_envelope: envelope of the release's content key for the device's cohort, in hexadecimal, if a copy of it
            came with the metadata, else "". Nothing verified it: it opens, or it is downloaded again.
    """

    manifest: Manifest
    rollout: Rollout
    fleet: Fleet
    context: CheckContext
    plan: "Plan | None"
    floor: ReleaseCounter
    _proof: object = field(repr=False, compare=False)
    content_envelope: str = ""

    def __post_init__(self) -> None:
        if self._proof is not _ACCEPTANCE_PROOF:
            raise Bug("a VerifiedRelease is created by bundle.acceptance.accept only")

    @property
    def repository_id(self) -> str:
        """The id of the repository, which envelopes are bound to."""
        return self.context.repository_id

    @property
    def counter_epoch(self) -> int:
        """The counter epoch of the family, signed by the targets role."""
        return self.context.counter_epoch

    @property
    def checked_at_s(self) -> int:
        """The time that expiry was judged by, in Unix seconds."""
        return self.context.checked_at_s

    @property
    def expires_at_s(self) -> int:
        """The time in Unix seconds from which this check no longer allows an activation."""
        return self.context.expires_at_s

    @property
    def counter(self) -> ReleaseCounter:
        """The counter of the release, in its counter epoch."""
        return ReleaseCounter(self.context.counter_epoch, self.manifest.counter)

    def as_json(self) -> dict[str, JSON]:
        """Return the object that the verifier process sends to the supervisor."""
        return {
            "manifest": self.manifest.as_json(),
            "rollout": self.rollout.as_json(),
            "fleet": decode(self.fleet.as_bytes(), what="fleet", max_bytes=MAX_VERIFIED_BYTES),
            "facts": {name: getattr(self.context, name) for name in self.context.__dataclass_fields__},
            "plan": None if self.plan is None else self.plan.as_json(),
            "floor": self.floor.as_json(),
            "content_envelope": self.content_envelope,
        }

    @classmethod
    def from_verifier(cls, value: JSON) -> "VerifiedRelease":
        """Parse the object that the verifier process sent; inverse of `as_json`.

        Raises:
            Malformed: the object does not follow its schema.
        """
        fields = StrictObject(value, "verified release")
        facts = fields.object("facts")
        plan = fields.value("plan")
        out = cls(
            manifest=parse_manifest(encode(fields.value("manifest"))),
            rollout=parse_rollout(encode(fields.value("rollout"))),
            fleet=parse_fleet(encode(fields.value("fleet"))),
            context=CheckContext(
                repository_id=facts.text("repository_id", SHA256_HEX_PATTERN),
                counter_epoch=facts.integer("counter_epoch"),
                checked_at_s=facts.integer("checked_at_s"),
                expires_at_s=facts.integer("expires_at_s"),
                timestamp_version=facts.integer("timestamp_version"),
                seen_s=facts.integer("seen_s"),
            ),
            plan=None if plan is None else _parse_plan(plan),
            floor=parse_counter(fields.object("floor")),
            _proof=_ACCEPTANCE_PROOF,
            content_envelope=fields.text("content_envelope", ENVELOPE_PATTERN, max_length=2 * MAX_ENVELOPE_BYTES),
        )
        facts.reject_unknown()
        fields.reject_unknown()
        return out


@dataclass(frozen=True, slots=True)
class Eligibility:
    """The decision whether a device may activate a release now.

    Attributes:
        is_eligible: True if it may.
        reason: "eligible", "metadata-expired", "halted", "not-in-cohort", "not-in-percentage", "ramp" or
            "outside-window".
        detail: one line for a person.
        retry_at_s: Unix seconds from which time alone may change the result, or None.
    """

    is_eligible: bool
    reason: str
    detail: str
    retry_at_s: int | None = None


def accept(
    manifest: Manifest,
    rollout: Rollout,
    fleet: Fleet,
    context: CheckContext,
    *,
    family: str,
    channel: str,
    floor: ReleaseCounter,
    known_releases: Mapping[ReleaseCounter, str],
    agent_version: str,
    plan: "Plan | None" = None,
) -> VerifiedRelease:
    """Apply the acceptance rules to authentic documents and return the proof.

    Args:
        manifest: the manifest of the release that the rollout names, signed by the release role.
        rollout: the rollout, signed by the rollout role.
        fleet: the fleet document, signed by the fleet role.
        context: facts of this check.
        family: the family that the device is configured for.
        channel: the channel that the device is configured for.
        floor: stored rollback floor of the family; ZERO_COUNTER before the first release.
        known_releases: stored release digest by counter.
        agent_version: version of the agent, numbers joined by dots.
        plan: the plan that the release role lists for the channel, or None.

    Raises:
        ReleaseMismatch: family, channel, version, counter or release digest disagree (rules 1 and 2).
        WrongChannel: the manifest does not list the channel (rule 3).
        RollbackRefused: the counter or its epoch is below the floor (rule 4).
        CounterReused: the counter is known for another release (rule 5).
        AgentTooOld: the manifest requires a newer agent (rule 6).
        OutsidePlan: the rollout does not lie inside the plan (rule 7).
    """
    _check_agreement(manifest, rollout, family, channel)
    if channel not in manifest.channels:
        raise WrongChannel(
            f"release {manifest.version} of {family!r} is made for channels"
            f" {_join_names(manifest.channels)}, and the rollout offers it on channel {channel!r}",
            hint="point the rollout of this channel at a release whose manifest lists the channel",
        )
    counter = ReleaseCounter(context.counter_epoch, manifest.counter)
    if counter < floor or context.counter_epoch < floor.epoch:
        raise RollbackRefused(
            f"release {manifest.version} of {family!r} has counter {counter}, the floor is {floor}",
            hint=f"publish a release with a counter of at least {floor.counter}",
        )
    found = manifest.digest_without_patches()
    if known_releases.get(counter, found) != found:
        raise CounterReused(
            f"release {manifest.version} of {family!r} has counter {counter}, which is known for a release with"
            f" digest {known_releases[counter][:16]}…, found {found[:16]}…",
            hint="publish the changed release with a new counter",
        )
    # a pre-release counts as its release
    if parse_dotted_version(agent_version.split("-")[0]) < parse_dotted_version(manifest.min_agent.split("-")[0]):
        raise AgentTooOld(
            f"release {manifest.version} of {family!r} needs agent {manifest.min_agent}, this is {agent_version}",
            hint="update the agent, then retry",
        )
    if plan is not None:
        from bundle.plan import check_inside_plan

        check_inside_plan(plan, rollout)
    risen = max(floor, ReleaseCounter(context.counter_epoch, manifest.min_counter))
    return VerifiedRelease(manifest, rollout, fleet, context, plan, risen, _ACCEPTANCE_PROOF)


def check_eligibility(release: VerifiedRelease, device_id: str, cohort: str, now_s: int) -> Eligibility:
    """Decide whether a device may activate a release; called when planning and before activation.

    Args:
        release: the release that the last check verified.
        device_id: id of the device, 64 hexadecimal digits.
        cohort: name of the device's cohort.
        now_s: the current time, Unix seconds.
    """
    rollout = release.rollout
    if now_s >= release.expires_at_s:
        return Eligibility(
            False, MetadataExpired.reason, f"the check expired {now_s - release.expires_at_s} s ago: check again"
        )
    if rollout.halted:
        return Eligibility(False, "halted", f"the rollout of {rollout.version} is halted: {rollout.note or 'no note'}")
    if rollout.cohorts and cohort not in rollout.cohorts:
        return Eligibility(
            False, "not-in-cohort", f"the rollout is for cohorts {_join_names(rollout.cohorts)}, this is {cohort!r}"
        )
    device_bp = bucket(rollout.salt, device_id)
    if device_bp >= rollout.percent_bp:
        return Eligibility(
            False,
            "not-in-percentage",
            f"this device is at {device_bp / 100:.2f} %, the rollout covers {rollout.percent_bp / 100:.2f} %",
        )
    ramp, ramp_bp = release.manifest.ramp, ramp_bucket(rollout.manifest_digest, device_id)
    seen_s = release.context.seen_s
    if ramp_bp >= allowed_share(ramp, seen_s):
        return Eligibility(False, "ramp", describe_wait(ramp, ramp_bp, seen_s))
    if rollout.windows and not any(window.start_s <= now_s < window.end_s for window in rollout.windows):
        opens = min((window.start_s for window in rollout.windows if window.start_s > now_s), default=None)
        when = "all windows have closed" if opens is None else f"the next window opens at {_utc(opens)}"
        return Eligibility(False, "outside-window", when, opens)
    return Eligibility(True, "eligible", f"release {rollout.version} may be activated")


def _utc(unix_s: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(unix_s))


def _parse_plan(value: JSON) -> "Plan":
    from bundle.plan import parse_plan

    return parse_plan(encode(value))


def _check_agreement(manifest: Manifest, rollout: Rollout, family: str, channel: str) -> None:
    pairs: tuple[tuple[str, object, object], ...] = (
        ("rollout family", rollout.family, family),
        ("rollout channel", rollout.channel, channel),
        ("manifest family", manifest.family, family),
        ("manifest version", manifest.version, rollout.version),
        ("manifest counter", manifest.counter, rollout.counter),
        ("manifest digest without patches", manifest.digest_without_patches(), rollout.manifest_digest),
    )
    for what, found, expected in pairs:
        if found != expected:
            raise ReleaseMismatch(f"{what}: found {found!r}, expected {expected!r}")


def _join_names(names: tuple[str, ...]) -> str:
    return ", ".join(repr(name) for name in names) or "none"


def parse_counter(fields: StrictObject) -> ReleaseCounter:
    """Parse an object `{epoch, counter}`.

    Raises:
        Malformed: the object does not follow its schema.
    """
    out = ReleaseCounter(fields.integer("epoch", 0, MAX_INTEGER), fields.integer("counter", 0, MAX_INTEGER))
    fields.reject_unknown()
    return out
