"""The standing of a device and family, and the tally of all standings. No I/O.

Rules:
- A standing is a function of the newest report and the newest vital of the log that began last, so that the order in
  which lines arrive does not change it. Newest means: the highest number. The device's clock decides nothing.
- A vital names the newest report that existed when it was made: that decides which of the two is newer.
- A device is counted once in each kind of the tally, under the release that it stands for: the one that serves, or the
  one that failed on it. A suspect device is counted in the kind "suspect" only.
"""

import json
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Final

from bundle.device_report import UPDATED, DeviceReport
from bundle.vital import Vital

UNKNOWN: Final = "unknown"
FAILED: Final = "failed"  # state of a device on which the release failed; else it is the state of its vital
STRATUM_KINDS: Final = ("variant", "cpu", "cohort", "agent")

TallyRow = tuple[str, str, str, str, str]
"""A row of the tally: family, channel, release, kind, value."""


@dataclass(frozen=True, slots=True)
class ReportFacts:
    """The facts of a report that a standing keeps; the names are those of DeviceReport."""

    sequence: int
    outcome: str
    reason: str
    is_failure: bool
    channel: str
    release: str
    counter: int
    from_release: str | None
    variant: str | None
    agent: str

    @classmethod
    def from_report(cls, report: DeviceReport) -> "ReportFacts":
        """Return the facts of a report."""
        return cls(**{name: getattr(report, name) for name in cls.__dataclass_fields__})


@dataclass(frozen=True, slots=True)
class VitalFacts:
    """The facts of a vital that a standing keeps; the names are those of Vital."""

    number: int
    reports: int
    state: str
    reason: str
    is_failing: bool
    channel: str
    release: str | None
    counter: int
    offered: str | None
    variant: str | None
    cpu: str
    agent: str

    @classmethod
    def from_vital(cls, vital: Vital) -> "VitalFacts":
        """Return the facts of a vital."""
        return cls(**{name: getattr(vital, name) for name in cls.__dataclass_fields__})


@dataclass(frozen=True, slots=True)
class Standing:
    """The newest facts about a device and family.

    Attributes:
        log: the log that began last.
        log_started_s: receipt of its first line, Unix seconds.
        report: facts of its newest report, or None.
        vital: facts of its newest vital, or None.
        last_cpu: class of the processor in the last vital of an earlier log, or UNKNOWN.
    """

    log: str
    log_started_s: int
    report: ReportFacts | None = None
    vital: VitalFacts | None = None
    last_cpu: str = UNKNOWN
    _derived: "list[Position]" = field(default_factory=list, repr=False, compare=False)

    @property
    def position(self) -> "Position":
        """Return where the device stands, derived from report and vital."""
        if not self._derived:
            self._derived.append(_derive(self.report, self.vital, self.last_cpu))
        return self._derived[0]

    def with_report(self, report: DeviceReport) -> "Standing":
        """Return the standing after a report of its log; an older report changes nothing."""
        if self.report is not None and report.sequence <= self.report.sequence:
            return self
        return replace(self, report=ReportFacts.from_report(report), _derived=[])

    def with_vital(self, vital: Vital) -> "Standing":
        """Return the standing after a vital of its log; an older vital changes nothing."""
        if self.vital is not None and vital.number <= self.vital.number:
            return self
        return replace(self, vital=VitalFacts.from_vital(vital), _derived=[])

    def facts_json(self) -> str:
        """Return report and vital as JSON text for the store."""
        parts = (self.report, self.vital)
        rows = [None if part is None else [getattr(part, n) for n in part.__dataclass_fields__] for part in parts]
        return json.dumps([*rows, self.last_cpu], separators=(",", ":"))

    @classmethod
    def from_store(cls, log: str, log_started_s: int, facts: str) -> "Standing":
        """Return the standing of a stored row.

        Args:
            log: the log that began last.
            log_started_s: receipt of its first line, Unix seconds.
            facts: result of `facts_json`.
        """
        report, vital, cpu = json.loads(facts)
        return cls(
            log,
            log_started_s,
            None if report is None else ReportFacts(*report),
            None if vital is None else VitalFacts(*vital),
            cpu,
        )


@dataclass(frozen=True, slots=True)
class Position:
    """The position of a device in a family.

    Attributes:
        channel: channel that the device follows.
        release: version that serves, or that failed; UNKNOWN without one.
        counter: its counter.
        state: FAILED, a state of a vital, or "updated" or "rejected" before a newer vital.
        reason: reason of the state, or "".
        outcome: outcome of the newest report, or UNKNOWN.
        offered: version that the channel offers, as the device says, or None.
        variant: variant that serves or was tried, or UNKNOWN.
        cpu: class of the processor, or UNKNOWN.
        agent: version of the agent.
    """

    channel: str
    release: str
    counter: int
    state: str
    reason: str
    outcome: str
    offered: str | None
    variant: str
    cpu: str
    agent: str


def standing_in_log(before: Standing | None, log: str, log_started_s: int) -> Standing | None:
    """Return the standing that a line of a log changes, or None if a later log exists.

    Args:
        before: the standing before, or None.
        log: log of the line.
        log_started_s: receipt of the first line of that log, Unix seconds.
    """
    if before is None:
        return Standing(log, log_started_s)
    if before.log == log:
        return before
    if (log_started_s, log) < (before.log_started_s, before.log):
        return None
    return Standing(log, log_started_s, last_cpu=before.position.cpu)


def tally_rows(standing: Standing, family: str, cohort: str, *, is_suspect: bool) -> Counter[TallyRow]:
    """Return the rows of the tally in which a device is counted.

    Args:
        standing: the standing of the device.
        family: the family.
        cohort: cohort of the device.
        is_suspect: whether the device's lines contradict each other.
    """
    at = standing.position
    if is_suspect:
        return Counter([(family, at.channel, at.release, "suspect", "suspect")])
    strata = {"variant": at.variant, "cpu": at.cpu, "cohort": cohort, "agent": at.agent}
    values = {"state": at.state, "outcome": at.outcome, **strata}
    rows = [(family, at.channel, at.release, kind, value) for kind, value in values.items()]
    if at.state == FAILED:
        rows.append((family, at.channel, at.release, "failure", at.reason or UNKNOWN))
        rows += [(family, at.channel, at.release, f"failed-{kind}", value) for kind, value in strata.items()]
    elif at.reason:
        rows.append((family, at.channel, at.release, "reason", at.reason))
    return Counter(rows)


def _derive(report: ReportFacts | None, vital: VitalFacts | None, last_cpu: str) -> Position:
    cpu = last_cpu if vital is None else vital.cpu
    outcome = UNKNOWN if report is None else report.outcome
    if vital is not None and (report is None or vital.reports >= report.sequence):
        is_refused = report is not None and report.is_failure and report.release == vital.offered != vital.release
        if not is_refused:
            return Position(
                vital.channel,
                vital.release or UNKNOWN,
                vital.counter,
                FAILED if vital.is_failing else vital.state,
                vital.reason,
                outcome,
                vital.offered,
                vital.variant or UNKNOWN,
                cpu,
                vital.agent,
            )
    assert report is not None
    if report.outcome == UPDATED or report.is_failure:
        release, counter = report.release, report.counter
        state = FAILED if report.is_failure else UPDATED
    else:
        release, counter, state = report.from_release or UNKNOWN, 0, "rejected"
    variant = report.variant or UNKNOWN
    return Position(
        report.channel, release, counter, state, report.reason, outcome, report.release, variant, cpu, report.agent
    )
