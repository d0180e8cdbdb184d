"""One look at a channel: plan, rollout, census and decision."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from bundle.plan import Plan, check_inside_plan
from bundle.rollout import Rollout
from bundle.stopping.counts import Counts
from bundle.stopping.decide import decide
from bundle.stopping.decisions import Decision
from bundle.strict_json import JSON
from fleet.census import Census, CensusDevice
from fleet.errors import RegistryUnsigned
from fleet.line import ReceivedLine
from keys.registry_index import open_index
from packager.errors import NoPlan
from packager.follow.lines import LineSource
from packager.repository.repository import Repository

OVERLAP_S: Final = 120  # lines that were received while the last look read are read again; a line counts once


@dataclass(frozen=True, slots=True)
class Look:
    """Counts of a rollout at one time, and the decision that follows.

    Attributes:
        plan: the plan.
        rollout: the published rollout.
        now_s: time of the look, Unix seconds.
        registry_digest: digest of the registry with the devices' keys.
        counts: the counts of the census.
        decision: the decision of the stopping rule.
        bad_devices: ids of the devices that count against the release.
        suspects: ids of the devices whose lines contradict each other.
        newest_s: receipt of the newest line, Unix seconds, or None without any.
        refused: number of refused lines by reason.
    """

    plan: Plan
    rollout: Rollout
    now_s: int
    registry_digest: str
    counts: Counts
    decision: Decision
    bad_devices: tuple[str, ...]
    suspects: tuple[str, ...]
    newest_s: int | None
    refused: dict[str, int]

    def as_json(self) -> dict[str, JSON]:
        """Return the JSON object of `rollout why`."""
        refused: dict[str, JSON] = dict(self.refused)
        return {
            "family": self.plan.family,
            "channel": self.plan.channel,
            "version": self.plan.release.version,
            "plan": self.plan.digest(),
            "now_s": self.now_s,
            "percent_bp": self.rollout.percent_bp,
            "is_halted": self.rollout.halted,
            "registry_digest": self.registry_digest,
            "decision": self.decision.as_json(),
            "counts": self.counts.as_json(),
            "bad_devices": list(self.bad_devices),
            "suspects": list(self.suspects),
            "newest_line_s": self.newest_s,
            "refused_lines": refused,
        }


@dataclass(slots=True)
class ChannelView:
    """The census of a rollout, which grows with each look.

    Attributes:
        plan: the plan.
        began_s: when the rollout began, Unix seconds.
        registry_digest: digest of the registry with the devices' keys.
        census: the census.
        repository_id: id of the repository.
        revoked: ids of the revoked devices.
        newest_s: receipt of the newest line, or None.
        refused: refused lines by reason.
    """

    plan: Plan
    began_s: int
    registry_digest: str
    census: Census
    repository_id: str
    revoked: tuple[str, ...] = ()
    newest_s: int | None = None
    refused: Counter[str] = field(default_factory=Counter)
    _recent: dict[tuple[int, bytes], None] = field(default_factory=dict)
    _read_s: int | None = None  # lines that were received before this were read

    def add(self, source: LineSource, now_s: int) -> list[ReceivedLine]:
        """Add the lines that arrived since the last look, and return them.

        Args:
            source: where the lines come from.
            now_s: the time, Unix seconds; a collector whose clock was ahead does not hide the lines until then.
        """
        fresh = [
            line
            for line in source.read(self.plan.family, self._since_s())
            if (line.received_s, line.data) not in self._recent
        ]
        self.add_lines(fresh)
        for line in fresh:
            self._recent[line.received_s, line.data] = None
        if self.newest_s is not None:
            self._read_s = min(self.newest_s, now_s)
            self._recent = {key: None for key in self._recent if key[0] >= self._since_s()}
        return fresh

    def _since_s(self) -> int:
        return self.census.since_s if self._read_s is None else self._read_s - OVERLAP_S

    def add_lines(self, lines: Sequence[ReceivedLine]) -> None:
        """Add lines that were not added before."""
        self.refused += self.census.add_lines(lines, self.repository_id)
        for line in lines:
            self.newest_s = max(self.newest_s or 0, line.received_s)

    def look(self, rollout: Rollout, now_s: int) -> Look:
        """Return the counts and the decision at a time.

        Args:
            rollout: the published rollout.
            now_s: the time, Unix seconds.
        """
        counts = self.census.counts(rollout.percent_bp, rollout.raised_s, now_s)
        return Look(
            self.plan,
            rollout,
            now_s,
            self.registry_digest,
            counts,
            decide(self.plan, counts),
            self.census.bad_devices(),
            self.census.suspects(),
            self.newest_s,
            dict(sorted(self.refused.items())),
        )


def planned_rollout(repository: Repository, family: str, channel: str) -> tuple[Plan, Rollout]:
    """Return the published plan of a channel, and the published rollout of the plan's release.

    Args:
        repository: the repository.
        family: name of the family.
        channel: name of the channel.

    Raises:
        NoPlan: there is no plan, or the channel does not run its release.
        OutsidePlan: the rollout does not lie inside the plan.
    """
    plan, rollout = repository.published_plan(family, channel), repository.published_rollout(family, channel)
    if plan is None:
        raise NoPlan(f"{family} has no plan for channel {channel!r}", hint="sign one: packager rollout plan")
    if rollout is None or rollout.manifest_digest != plan.release.manifest_digest:
        runs = "nothing" if rollout is None else rollout.version
        raise NoPlan(
            f"channel {channel!r} of {family} runs {runs}, its plan is for {plan.release.version}",
            hint="start the planned rollout: packager rollout set",
        )
    check_inside_plan(plan, rollout)
    return plan, rollout


def planned_channels(repository: Repository) -> Iterator[tuple[str, str]]:
    """Iterate over family and channel of the published rollouts that follow a plan."""
    for family in repository.families():
        for staged in repository.rollouts(family):
            rollout = repository.published_rollout(family, staged.channel)
            plan = repository.published_plan(family, staged.channel)
            if rollout is None or plan is None or rollout.manifest_digest != plan.release.manifest_digest:
                continue
            yield family, staged.channel


def open_view(repository: Repository, plan: Plan, rollout: Rollout, registry: Path | None = None) -> ChannelView:
    """Return the view of a channel, with the devices of the registry and no line yet.

    Args:
        repository: the repository.
        plan: the published plan.
        rollout: the published rollout of its release.
        registry: file of the device registry; None for that of the repository's folder.

    Raises:
        RegistryUnsigned: the registry is not the one that the fleet role signed.
        RegistryDamaged: the registry is damaged.
    """
    signed = repository.published_fleet().registry_digest
    path = registry or repository.registry_path
    with open_index(path) as index:
        if index.digest != signed:
            raise RegistryUnsigned(
                f"{path}: found digest {index.digest[:16]}…, the fleet role signed {signed[:16]}…",
                hint="restore the registry, or sign and publish the staged fleet document first",
            )
        rows = list(index.devices())
    devices = [CensusDevice(one.device_id, one.cohort, one.ed25519_public) for one in rows if not one.is_revoked]
    revoked = tuple(one.device_id for one in rows if one.is_revoked)
    census = Census(plan, devices, rollout.began_s)
    return ChannelView(plan, rollout.began_s, signed, census, repository.repository_id, revoked)
