"""Which release a device may believe, decided from documents that are already authentic.

Pure: no file, no clock, no network, no TUF. The device's verifier and the publisher call the same functions, and the
supervisor, which imports neither tuf nor cryptography, reads the result.

Rules, in this order:
1. The rollout is the one asked for (family and channel), and the manifest is of that family.
2. Rollout and manifest agree on version, counter and identity (the manifest's digest without its patches).
3. The manifest lists the channel.
4. (counter epoch, counter) reaches the floor, and the epoch is not below the floor's.
5. A counter that is already known has the identity that it had.
6. The agent is new enough.
7. What is accepted raises the floor to (epoch, the manifest's `min_counter`); the floor never falls.
Only `accept` makes a `VerifiedRelease` (and `from_verifier`, which reads what the verifier process made of one).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from bundle.errors import (
    AgentTooOld,
    Bug,
    CounterReused,
    ReleaseMismatch,
    RollbackRefused,
    WrongChannel,
)
from bundle.fleet import Fleet, parse_fleet
from bundle.manifest import Manifest, parse_manifest
from bundle.rollout import Rollout, bucket, parse_rollout
from bundle.strict_json import JSON, MAX_INTEGER, SHA256_HEX_PATTERN, StrictObject, decode, encode

MAX_VERIFIED_BYTES: Final = 2 * 1024 * 1024  # manifest, rollout and fleet at their limits, and the facts

_ACCEPTANCE_PROOF: Final = object()


class ReleaseCounter(NamedTuple):
    """A counter below its epoch; compares epoch first. Targets signs the epoch, the release role the counter."""

    epoch: int
    counter: int

    def as_json(self) -> dict[str, JSON]:
        """{epoch, counter}."""
        return {"epoch": self.epoch, "counter": self.counter}

    def __str__(self) -> str:
        return f"{self.counter} (epoch {self.epoch})"


ZERO_COUNTER: Final = ReleaseCounter(0, 0)


@dataclass(frozen=True, slots=True)
class CheckContext:
    """What the verifier found out beside the documents.

    Attributes:
        repository_id: SHA-256 of the bytes of the first root, hexadecimal.
        counter_epoch: of the family, from its delegation.
        checked_at_s: the time that expiry was judged by, Unix seconds.
        expires_at_s: the earliest expiry of all metadata that this rests on, Unix seconds.
        timestamp_version: of the timestamp role; grows with everything published.
    """

    repository_id: str
    counter_epoch: int
    checked_at_s: int
    expires_at_s: int
    timestamp_version: int


@dataclass(frozen=True, slots=True)
class VerifiedRelease:
    """A release that every rule held for. `fetch`, `patch` and `stage` take nothing else.

    Attributes:
        manifest, rollout, fleet: the authentic documents.
        facts: what the check found beside them.
        floor: of the family, after this release (rule 7).
    """

    manifest: Manifest
    rollout: Rollout
    fleet: Fleet
    context: CheckContext
    floor: ReleaseCounter
    _proof: object = field(repr=False, compare=False)

    def __post_init__(self) -> None:
        if self._proof is not _ACCEPTANCE_PROOF:
            raise Bug("VerifiedRelease is made by bundle.acceptance.accept only")

    @property
    def repository_id(self) -> str:
        """Identity of the repository, as envelopes bind it."""
        return self.context.repository_id

    @property
    def counter_epoch(self) -> int:
        """Of the family, signed by targets."""
        return self.context.counter_epoch

    @property
    def checked_at_s(self) -> int:
        """Unix seconds."""
        return self.context.checked_at_s

    @property
    def expires_at_s(self) -> int:
        """Unix seconds; from then on nothing new is activated on the strength of this check."""
        return self.context.expires_at_s

    @property
    def counter(self) -> ReleaseCounter:
        """Of the release, below its epoch."""
        return ReleaseCounter(self.context.counter_epoch, self.manifest.counter)

    def as_json(self) -> dict[str, JSON]:
        """For the way from the verifier process to the supervisor."""
        return {
            "manifest": self.manifest.as_json(),
            "rollout": self.rollout.as_json(),
            "fleet": decode(self.fleet.as_bytes(), what="fleet", max_bytes=MAX_VERIFIED_BYTES),
            "facts": {name: getattr(self.context, name) for name in self.context.__dataclass_fields__},
            "floor": self.floor.as_json(),
        }

    @classmethod
    def from_verifier(cls, value: JSON) -> "VerifiedRelease":
        """Inverse of `as_json`, for what our own verifier process said. Raises MalformedRefused."""
        fields = StrictObject(value, "verified release")
        facts = fields.object("facts")
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
            ),
            floor=parse_counter(fields.object("floor")),
            _proof=_ACCEPTANCE_PROOF,
        )
        facts.reject_unknown()
        fields.reject_unknown()
        return out


@dataclass(frozen=True, slots=True)
class Eligibility:
    """Whether this device activates a release now.

    Attributes:
        is_eligible: may it?
        reason: "eligible", "metadata-expired", "halted", "not-in-cohort", "not-in-percent" or "outside-window".
        detail: one line for a person.
        retry_at_s: when the answer may change by time alone, Unix seconds, or None.
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
) -> VerifiedRelease:
    """Decide on authentic documents.

    Args:
        manifest: from the target of the release role that the rollout names.
        rollout: from the rollout role.
        fleet: from the fleet role.
        facts: of this check.
        family, channel: what the device is configured for.
        floor: remembered for the family; ZERO at first.
        known: remembered counter → identity of the release.
        agent_version: dotted numbers.

    Raises:
        ReleaseMismatchRefused, CounterReusedRefused, ChannelRefused, RollbackRefused, AgentTooOldRefused.
    """
    _check_agreement(manifest, rollout, family, channel)
    if channel not in manifest.channels:
        raise WrongChannel(
            f"release {manifest.version} of {family!r} is made for {_join_names(manifest.channels)},"
            f" and offered on channel {channel!r}",
            hint="point the rollout of this channel at a release whose manifest lists the channel",
        )
    counter = ReleaseCounter(context.counter_epoch, manifest.counter)
    if counter < floor or context.counter_epoch < floor.epoch:
        raise RollbackRefused(
            f"release {manifest.version} of {family!r} has counter {counter}, the floor is {floor}",
            hint=f"publish a release with a counter of at least {floor.counter}",
        )
    identity = manifest.digest_without_patches()
    if known_releases.get(counter, identity) != identity:
        raise CounterReused(
            f"release {manifest.version} of {family!r} has counter {counter}, which is known for a release with"
            f" identity {known_releases[counter][:16]}…, found {identity[:16]}…",
            hint="a changed release needs a counter of its own",
        )
    if _parse_dotted_version(agent_version) < _parse_dotted_version(manifest.min_agent):
        raise AgentTooOld(
            f"release {manifest.version} of {family!r} needs agent {manifest.min_agent}, this is {agent_version}",
            hint="update the agent first",
        )
    risen = max(floor, ReleaseCounter(context.counter_epoch, manifest.min_counter))
    return VerifiedRelease(manifest, rollout, fleet, context, risen, _ACCEPTANCE_PROOF)


def check_eligibility(release: VerifiedRelease, device_id: str, cohort: str, now_s: int) -> Eligibility:
    """May this device activate the release at `now_s`? Asked at planning and again right before activation."""
    rollout = release.rollout
    if now_s >= release.expires_at_s:
        return Eligibility(
            False, "metadata-expired", f"the check expired {now_s - release.expires_at_s} s ago: check again"
        )
    if rollout.halted:
        return Eligibility(False, "halted", f"the rollout of {rollout.version} is halted: {rollout.note or 'no note'}")
    if rollout.cohorts and cohort not in rollout.cohorts:
        return Eligibility(
            False, "not-in-cohort", f"the rollout is for {_join_names(rollout.cohorts)}, this is {cohort!r}"
        )
    place = bucket(rollout.salt, device_id)
    if place >= rollout.percent_bp:
        return Eligibility(
            False, "not-in-percent", f"this device is at {place} of 10000, the rollout covers {rollout.percent_bp}"
        )
    if rollout.windows and not any(window.start_s <= now_s < window.end_s for window in rollout.windows):
        opens = min((window.start_s for window in rollout.windows if window.start_s > now_s), default=None)
        when = "no window is left" if opens is None else f"the next window opens in {opens - now_s} s"
        return Eligibility(False, "outside-window", when, opens)
    return Eligibility(True, "eligible", f"release {rollout.version} may be activated")


def _check_agreement(manifest: Manifest, rollout: Rollout, family: str, channel: str) -> None:
    pairs: tuple[tuple[str, object, object], ...] = (
        ("rollout family", rollout.family, family),
        ("rollout channel", rollout.channel, channel),
        ("manifest family", manifest.family, family),
        ("manifest version", manifest.version, rollout.version),
        ("manifest counter", manifest.counter, rollout.counter),
        ("manifest identity", manifest.digest_without_patches(), rollout.manifest_digest),
    )
    for what, found, expected in pairs:
        if found != expected:
            raise ReleaseMismatch(f"{what}: found {found!r}, expected {expected!r}")


def _parse_dotted_version(version: str) -> tuple[int, ...]:
    parts = [int(part) for part in version.split("-")[0].split(".")]
    while parts and not parts[-1]:
        parts.pop()
    return tuple(parts)


def _join_names(names: tuple[str, ...]) -> str:
    return ", ".join(repr(name) for name in names) or "none"


def parse_counter(fields: StrictObject) -> ReleaseCounter:
    """A counter object {epoch, counter}. Raises MalformedRefused."""
    out = ReleaseCounter(fields.integer("epoch", 0, MAX_INTEGER), fields.integer("counter", 0, MAX_INTEGER))
    fields.reject_unknown()
    return out
