"""Counts of a generation: its responses, its bad responses, and the summary of its probation.

This module does no I/O.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from bundle.strict_json import JSON, StrictObject

MIN_INPUTS: Final = 3
MIN_CONFIRMED: Final = 10


class BadResponse(StrEnum):
    """A kind of bad response."""

    CRASH = "crash"
    HANG = "hang"
    ERROR = "error"
    NAN = "nan"
    SLOW = "slow"


@dataclass(frozen=True, slots=True)
class BadResponseCount:
    """Bad responses of one kind.

    Attributes:
        seen: bad responses.
        repeated: those whose input the previous release got, too.
        confirmed: those that the previous release responded well to.
        inputs: distinct inputs among the confirmed ones.
    """

    seen: int = 0
    repeated: int = 0
    confirmed: int = 0
    inputs: int = 0

    @property
    def estimate(self) -> float:
        """The number of responses that would be confirmed if all were repeated."""
        return self.seen * self.confirmed / self.repeated if self.repeated else 0.0


@dataclass(frozen=True, slots=True)
class RepeatObservation:
    """Counters of the bad responses of a candidate.

    Attributes:
        counts: the counts of each kind that occurred.
        waiting: requests that were not repeated yet.
        needs_process: a repeat is due, and no process for it runs.
        is_hung: the candidate's process hangs and should be ended.
        losses: ends of the candidate's process.
        crashes_without_request: those without a request that could be to blame.
    """

    counts: Mapping[BadResponse, BadResponseCount] = field(default_factory=dict)
    waiting: int = 0
    needs_process: bool = False
    is_hung: bool = False
    losses: int = 0
    crashes_without_request: int = 0

    def count(self, kind: BadResponse) -> BadResponseCount:
        """Return the counts of one kind."""
        return self.counts.get(kind, BadResponseCount())

    @property
    def failures(self) -> BadResponseCount:
        """The sum over all kinds except slow responses."""
        found = [count for kind, count in self.counts.items() if kind is not BadResponse.SLOW]
        return BadResponseCount(
            seen=sum(count.seen for count in found),
            repeated=sum(count.repeated for count in found),
            confirmed=sum(count.confirmed for count in found),
            inputs=sum(count.inputs for count in found),
        )

    @property
    def is_evident(self) -> bool:
        """True if the confirmed failures count (device_agent.policy.probation rule 2)."""
        return self.failures.inputs >= MIN_INPUTS or self.failures.confirmed >= MIN_CONFIRMED


@dataclass(frozen=True, slots=True)
class ServingObservation:
    """Counters of one generation.

    Attributes:
        requests: answered requests, without those that were the client's mistake.
        errors: failed ones among them.
        nan: responses with NaN or infinity among them.
        p50_us: median latency in microseconds; 0 without requests.
        crashes: unexpected ends of its process.
        repeats: its bad responses, if it is in probation.
        is_alive: whether its process runs.
    """

    requests: int = 0
    errors: int = 0
    nan: int = 0
    p50_us: int = 0
    crashes: int = 0
    repeats: RepeatObservation = field(default_factory=RepeatObservation)
    is_alive: bool = True


class ProbationVerdict(StrEnum):
    """The result of a probation."""

    PASSED = "passed"
    UNTRIED = "untried"
    FAILED = "failed"
    INCONCLUSIVE = "inconclusive"


@dataclass(frozen=True, slots=True)
class ProbationSummary:
    """The result of a probation, for history, status and reports.

    Attributes:
        verdict: "passed"; "untried", without a request; "inconclusive", with fewer than were needed; or "failed".
        seconds: duration.
        requests: answered requests.
        needed_requests: requests that a conclusive probation needs.
        errors: failed requests, those that the model could not run on, and those that ended the process.
        nan: responses with NaN or infinity.
        repeated: failures whose input the previous release got, too; slow responses are not among them.
        confirmed: those that the previous release responded well to.
        latency_percent: median latency in percent of the previous generation's, or None if one had no requests.
        unit: "requests"; or "verdicts" if applications run the release: then `requests` counts the judges that have
            answered, `needed_requests` all judges, and `errors` the unhealthy verdicts.
    """

    verdict: ProbationVerdict
    seconds: int
    requests: int
    needed_requests: int
    errors: int
    nan: int
    repeated: int
    confirmed: int
    latency_percent: int | None
    unit: str = "requests"

    @property
    def is_passed(self) -> bool:
        """True if enough requests proved the candidate."""
        return self.verdict is ProbationVerdict.PASSED

    @property
    def text(self) -> str:
        """The counters in one line, for people."""
        parts = [f"{self.requests} {self.unit} in {self.seconds} s"]
        if self.requests < self.needed_requests:
            parts[0] += f", {self.needed_requests} are needed"
        if self.unit == "verdicts":
            return ", ".join([*parts, f"{self.errors} unhealthy"])
        parts += [f"{self.errors} errors", f"{self.nan} with NaN"]
        if self.repeated:
            parts.append(f"{self.confirmed} of {self.repeated} repeated ones are good on the previous release")
        if self.latency_percent is not None:
            parts.append(f"latency {self.latency_percent} % of the previous release's")
        return ", ".join(parts)

    def as_json(self) -> dict[str, JSON]:
        """Return the object `probation` of `history --json`, and of a journal record."""
        return {
            "verdict": self.verdict.value,
            "seconds": self.seconds,
            "requests": self.requests,
            "needed_requests": self.needed_requests,
            "errors": self.errors,
            "nan": self.nan,
            "repeated": self.repeated,
            "confirmed": self.confirmed,
            "latency_percent": self.latency_percent,
            "unit": self.unit,
        }

    @classmethod
    def parse(cls, fields: StrictObject) -> "ProbationSummary":
        """Parse the output of `as_json`.

        Raises:
            Malformed: a field is missing, unknown or out of range.
        """
        out = cls(
            verdict=ProbationVerdict(fields.choice("verdict", tuple(ProbationVerdict))),
            **{name: fields.integer(name) for name in ("seconds", "requests", "needed_requests", "errors", "nan")},
            repeated=fields.integer("repeated"),
            confirmed=fields.integer("confirmed"),
            latency_percent=fields.optional_integer("latency_percent"),
            unit=fields.choice("unit", ("requests", "verdicts")),
        )
        fields.reject_unknown()
        return out
