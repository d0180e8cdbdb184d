"""The census of a rollout: which devices are exposed, in which stratum, and what their lines say.

`bundle.stopping.counts` defines each count; the numbers of its rules are in the comments here. A census is made from
verified lines, so that the one who decides does not have to believe the collector. From the collector come the times of
receipt: it can delay a line, which makes a device late or silent.

Rules beside those of the definition:
- A device is complete if a vital says that it serves the release, that its probation passed or that nothing had to be
  judged, and that it did so for the whole days of the soak time. Only the device counts those days.
- A device is bad if one of its reports counts against the release (bundle.report_weights), or a vital says that the
  release fails (`Vital.is_failing`).
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from sqlalchemy import select

from bundle.device_report import DeviceReport, SignedReport
from bundle.errors import Refused
from bundle.plan import Plan
from bundle.rollout import bucket
from bundle.stopping.counts import CENSUS_WINDOW_S, MAX_STRATA, Counts, Group, checkpoint_s
from bundle.vital import Vital
from fleet.database import Database
from fleet.line import ReceivedLine, SignedLine, parse_line, verify_line
from fleet.queries import read_lines
from fleet.standing import UNKNOWN
from fleet.tables import DEVICE

DAY_S: Final = 86_400
PASSED: Final = ("passed", "none")  # verdicts of a vital: nothing had to be judged on a first install


@dataclass(frozen=True, slots=True)
class CensusDevice:
    """A registered device that is not revoked.

    Attributes:
        device_id: its id, 64 hexadecimal digits.
        cohort: its cohort.
        ed25519_public: the key that signs its lines, 32 bytes.
    """

    device_id: str
    cohort: str
    ed25519_public: bytes


@dataclass(slots=True)
class _Facts:
    """What the lines of one device say.

    Attributes:
        heard_s: times of receipt.
        is_bad: a line counts against the release.
        complete_s: receipt of the first line that reports the end of probation and soak, or None.
        is_suspect: two lines contradict each other.
        strata: kind → (receipt, value) of variant, processor and agent, before the release was taken; the newest.
        reports: (log, number) → digest, and the digest before it.
        vitals: (log, number) → digest.
    """

    heard_s: list[int] = field(default_factory=list)
    is_bad: bool = False
    complete_s: int | None = None
    is_suspect: bool = False
    strata: dict[str, tuple[int, str]] = field(default_factory=dict)
    reports: dict[tuple[str, int], tuple[str, str | None]] = field(default_factory=dict)
    vitals: dict[tuple[str, int], str] = field(default_factory=dict)


class Census:
    """The devices of a rollout, and what their lines say; lines can be added at any time.

    Args:
        plan: the signed plan.
        devices: all registered devices that are not revoked.
        began_s: when the first stage began, Unix seconds.
    """

    def __init__(self, plan: Plan, devices: Iterable[CensusDevice], began_s: int) -> None:
        self._plan, self._began_s = plan, began_s
        self._devices = {d.device_id: d for d in devices if not plan.cohorts or d.cohort in plan.cohorts}
        self._buckets = {name: bucket(plan.salt, name) for name in self._devices}
        self._facts: dict[str, _Facts] = defaultdict(_Facts)
        self._members: frozenset[str] | None = None

    @property
    def are_members_fixed(self) -> bool:
        """Return whether `fix_members` was called."""
        return self._members is not None

    def members(self) -> frozenset[str]:
        """Return the ids of the counted devices: the fixed ones, or those that the lines show (rule 1)."""
        return frozenset(name for name in self._devices if self._is_member(name))

    def shown_members(self) -> frozenset[str]:
        """Return the ids of the devices that the lines show to be members, whatever was fixed."""
        return frozenset(name for name in self._devices if self._was_heard(name))

    def fix_members(self, members: frozenset[str]) -> None:
        """Count these devices from now on, as far as they are registered, whatever lines come or are missing."""
        self._members = members

    @property
    def since_s(self) -> int:
        """Return the time from which lines are needed, Unix seconds."""
        return self._began_s - CENSUS_WINDOW_S

    def add_verified(self, received_s: int, line: SignedLine) -> None:
        """Add a line whose signature and repository were verified; lines of other families change nothing.

        Args:
            received_s: time of its receipt, Unix seconds.
            line: the line.
        """
        content = line.report if isinstance(line, SignedReport) else line.vital
        if line.device_id not in self._devices or content.family != self._plan.family or received_s < self.since_s:
            return
        facts = self._facts[line.device_id]
        facts.heard_s.append(received_s)
        if isinstance(content, DeviceReport):
            self._add_report(facts, received_s, content)
        else:
            self._add_vital(facts, received_s, content)

    def add_lines(self, lines: Iterable[ReceivedLine], repository_id: str) -> Counter[str]:
        """Verify lines as they came, add the good ones, and return how many were refused, by reason.

        Args:
            lines: the lines.
            repository_id: id of the repository, 64 hexadecimal digits.
        """
        refused: Counter[str] = Counter()
        for received in lines:
            try:
                line = parse_line(received.data)
                device = self._devices.get(line.device_id)
                if device is None:
                    continue
                verify_line(line, device.ed25519_public, repository_id)
            except Refused as error:
                refused[error.reason] += 1
                continue
            self.add_verified(received.received_s, line)
        return refused

    def counts(self, percent_bp: int, raised_s: int, now_s: int) -> Counts:
        """Return the counts at one look.

        Args:
            percent_bp: share of devices that the rollout selects, in basis points.
            raised_s: when the share was last raised, Unix seconds.
            now_s: the time of the look, Unix seconds.
        """
        age_s = max(0, now_s - raised_s)
        checkpoint = checkpoint_s(self._plan.soak_s, age_s)
        window = None if checkpoint is None else (raised_s, raised_s + checkpoint)
        members = [name for name in self._devices if self._is_member(name)]
        sums: dict[str, Counter[str]] = defaultdict(Counter)
        for name in members:
            row = self._count_device(name, percent_bp, window)
            for group in ("", *self._strata_of(name)):
                sums[group].update(row)
        whole = _group(sums.pop("", Counter()))
        # which strata are kept depends on the census only, never on what the release did
        largest = sorted(sums, key=lambda name: (-sums[name]["member"], name))[:MAX_STRATA]
        return Counts(percent_bp, age_s, whole, {name: _group(sums[name]) for name in sorted(largest)})

    def bad_devices(self) -> tuple[str, ...]:
        """Return the ids of the devices on which the release failed, sorted."""
        return tuple(sorted(name for name, facts in self._facts.items() if facts.is_bad and not facts.is_suspect))

    def suspects(self) -> tuple[str, ...]:
        """Return the ids of the devices whose lines contradict each other, sorted."""
        return tuple(sorted(name for name, facts in self._facts.items() if facts.is_suspect))

    def _is_member(self, name: str) -> bool:
        return self._was_heard(name) if self._members is None else name in self._members

    def _was_heard(self, name: str) -> bool:
        # rule 1: registered, in the cohorts, heard from in the days before
        facts = self._facts.get(name)
        return facts is not None and any(self.since_s <= at < self._began_s for at in facts.heard_s)

    def _count_device(self, name: str, percent_bp: int, window: tuple[int, int] | None) -> Mapping[str, int]:
        facts = self._facts[name]
        is_heard = window is None or any(window[0] <= at <= window[1] for at in facts.heard_s)
        is_silent = window is not None and (facts.is_suspect or not is_heard)  # rules 4 to 6
        row = {"member": 1}
        if self._buckets[name] >= percent_bp:  # rule 2
            return row | {"control": 1, "control_silent": int(is_silent)}
        row |= {"exposed": 1, "silent": int(is_silent)}
        if facts.is_suspect:
            return row
        if facts.is_bad:
            return row | {"bad": 1}
        is_complete = window is not None and facts.complete_s is not None and facts.complete_s <= window[1]
        return row | {"complete": int(is_complete and is_heard)}

    def _strata_of(self, name: str) -> Iterator[str]:
        # rule 7: one stratum of each kind, from what the device said before it took the release
        strata = self._facts[name].strata
        yield f"cohort:{self._devices[name].cohort}"
        for kind in ("variant", "cpu", "agent"):
            yield f"{kind}:{strata.get(kind, (0, UNKNOWN))[1]}"

    def _add_report(self, facts: _Facts, received_s: int, report: DeviceReport) -> None:
        key, digest = (report.log, report.sequence), report.digest()
        before = facts.reports.get((report.log, report.sequence - 1))
        after = facts.reports.get((report.log, report.sequence + 1))
        if (
            facts.reports.setdefault(key, (digest, report.previous))[0] != digest
            or (before is not None and before[0] != report.previous)
            or (after is not None and after[1] != digest)
        ):
            facts.is_suspect = True
        if self._is_planned(report.channel, report.release, report.counter):
            facts.is_bad |= report.is_failure
        elif received_s < self._began_s:
            _set_newer(facts, received_s, variant=report.variant, agent=report.agent)

    def _add_vital(self, facts: _Facts, received_s: int, vital: Vital) -> None:
        digest = vital.digest()
        if facts.vitals.setdefault((vital.log, vital.number), digest) != digest:
            facts.is_suspect = True
        if self._is_planned(vital.channel, vital.release, vital.counter):
            facts.is_bad |= vital.is_failing
            days = -(-self._plan.soak_s // DAY_S)
            is_passed = vital.probation in PASSED and vital.served_days >= days
            if is_passed and (facts.complete_s is None or received_s < facts.complete_s):
                facts.complete_s = received_s
        elif received_s < self._began_s:
            _set_newer(facts, received_s, variant=vital.variant, cpu=vital.cpu, agent=vital.agent)

    def _is_planned(self, channel: str, release: str | None, counter: int) -> bool:
        planned = self._plan.release
        return (channel, release, counter) == (self._plan.channel, planned.version, planned.counter)


def take_census(database: Database, plan: Plan, began_s: int) -> Census:
    """Return the census of a rollout from the lines of a store, each of which is verified again.

    Args:
        database: the store.
        plan: the signed plan.
        began_s: when the first stage began, Unix seconds.

    Raises:
        FleetStoreUnavailable: the store cannot be read.
    """
    with database.read() as connection:
        query = select(DEVICE.c.device_id, DEVICE.c.cohort, DEVICE.c.ed25519_public).where(~DEVICE.c.is_revoked)
        devices = [CensusDevice(r.device_id, r.cohort, bytes(r.ed25519_public)) for r in connection.execute(query)]
    census = Census(plan, devices, began_s)
    census.add_lines(read_lines(database, plan.family, census.since_s), database.repository_id)
    return census


def _set_newer(facts: _Facts, received_s: int, **values: str | None) -> None:
    for kind, value in values.items():
        if value is not None and received_s >= facts.strata.get(kind, (0, ""))[0]:
            facts.strata[kind] = (received_s, value)


def _group(sums: Counter[str]) -> Group:
    return Group(**{name: sums[name] for name in Group.__dataclass_fields__})
