"""One attempt to update: what it aims at, what it cost, how it ended.

Rules:
1. An attempt begins with a check and ends with one outcome. Its record is the same in the journal, in `history`, in
   `update --json` and in a report; times are integers with their unit in the name.
2. Only an attempt that found something, or failed, goes into the history; a check that finds nothing new leaves no row.
"""

from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Final

from bundle.errors import AirweightsError
from bundle.files import BundleDigest
from bundle.strict_json import JSON, NAME_PATTERN, SHA256_HEX_PATTERN, VERSION_PATTERN, StrictObject

MAX_DETAIL_CHARACTERS: Final = 1000
PHASES: Final = ("check", "fetch", "patch", "probe", "swap", "shadow", "probation")
DOWNTIME: Final = "downtime"  # kept among the phases: how long nothing served because two models did not fit


class Outcome(StrEnum):
    """How an attempt ended."""

    NOTHING_NEW = "nothing-new"
    UPDATED = "updated"
    STAGED = "staged"
    WAITING = "waiting"
    ROLLED_BACK = "rolled-back"
    REFUSED = "refused"
    UNFIT = "unfit"
    INCONCLUSIVE = "inconclusive"
    UNAVAILABLE = "unavailable"
    INTERRUPTED = "interrupted"
    FAILED = "failed"


EXIT_CODES: Final[dict[Outcome, int]] = {
    Outcome.NOTHING_NEW: 0,
    Outcome.UPDATED: 0,
    Outcome.STAGED: 0,
    Outcome.WAITING: 0,
    Outcome.ROLLED_BACK: 5,
    Outcome.REFUSED: 3,
    Outcome.UNFIT: 5,
    Outcome.INCONCLUSIVE: 5,
    Outcome.UNAVAILABLE: 4,
    Outcome.INTERRUPTED: 4,
    Outcome.FAILED: 70,
}
assert EXIT_CODES.keys() == set(Outcome)


@dataclass(frozen=True, slots=True)
class Rejection:
    """Why an attempt is about to end against its candidate; recorded before anything is undone.

    Attributes:
        outcome: what the attempt will be.
        reason: the error's stable reason.
        detail: one line.
        quarantines: whether the bundle is put into quarantine.
    """

    outcome: Outcome
    reason: str
    detail: str
    quarantines: bool

    @classmethod
    def from_error(cls, error: AirweightsError, outcome: Outcome, *, quarantines: bool) -> "Rejection":
        """The verdict that an error means."""
        return cls(outcome, error.reason, one_line(error.message), quarantines)

    def as_json(self) -> dict[str, JSON]:
        """The `verdict` object."""
        return {
            "outcome": self.outcome.value,
            "reason": self.reason,
            "detail": self.detail,
            "quarantines": self.quarantines,
        }

    @classmethod
    def parse(cls, fields: StrictObject) -> "Rejection":
        """Inverse of `as_json`. Raises MalformedRefused."""
        out = cls(
            Outcome(fields.choice("outcome", tuple(Outcome))),
            fields.text("reason"),
            fields.text("detail", max_length=MAX_DETAIL_CHARACTERS),
            fields.flag("quarantines"),
        )
        fields.reject_unknown()
        return out


@dataclass(frozen=True, slots=True)
class Attempt:
    """Rule 1.

    Attributes:
        number: grows by one an attempt.
        trigger: "poll", "operator", "start" or "rollback".
        started_ms: Unix milliseconds.
        target: bundle digest, once it is known; likewise release, counter and variant.
        download_bytes: that came over the wire in this attempt (blobs only).
        patch_bytes: of the plan's blobs; full_bytes: of the cheapest way from nothing.
        phases_ms: milliseconds by name (PHASES, and DOWNTIME).
        swap_us: from "publish" to the first request that the new generation can take.
        states: the chain of states gone through.
        verdict: recorded before undoing.
    """

    number: int
    trigger: str
    started_ms: int
    target: BundleDigest | None = None
    release: str | None = None
    counter: int = 0
    variant: str | None = None
    download_bytes: int = 0
    patch_bytes: int = 0
    full_bytes: int = 0
    phases_ms: dict[str, int] = field(default_factory=dict)
    swap_us: int | None = None
    states: tuple[str, ...] = ()
    rejection: Rejection | None = None

    def with_phase(self, name: str, elapsed_ms: int) -> "Attempt":
        """The same with time added to a phase."""
        return replace(self, phases_ms={**self.phases_ms, name: self.phases_ms.get(name, 0) + elapsed_ms})

    def as_json(self) -> dict[str, JSON]:
        """The journal's record."""
        return {
            "number": self.number,
            "trigger": self.trigger,
            "started_ms": self.started_ms,
            "target": self.target,
            "release": self.release,
            "counter": self.counter,
            "variant": self.variant,
            "download_bytes": self.download_bytes,
            "patch_bytes": self.patch_bytes,
            "full_bytes": self.full_bytes,
            "phases_ms": dict(self.phases_ms),
            "swap_us": self.swap_us,
            "states": list(self.states),
            "verdict": None if self.rejection is None else self.rejection.as_json(),
        }

    @classmethod
    def parse(cls, fields: StrictObject) -> "Attempt":
        """Inverse of `as_json`. Raises MalformedRefused."""
        target = fields.optional_text("target", SHA256_HEX_PATTERN)
        phases = fields.object("phases_ms")
        verdict = fields.value("verdict")
        states = fields.value("states")
        out = cls(
            number=fields.integer("number"),
            trigger=fields.text("trigger"),
            started_ms=fields.integer("started_ms"),
            target=None if target is None else BundleDigest(target),
            release=fields.optional_text("release", VERSION_PATTERN),
            counter=fields.integer("counter"),
            variant=fields.optional_text("variant", NAME_PATTERN),
            download_bytes=fields.integer("download_bytes"),
            patch_bytes=fields.integer("patch_bytes"),
            full_bytes=fields.integer("full_bytes"),
            phases_ms={name: phases.integer(name) for name in phases.remaining_names()},
            swap_us=fields.optional_integer("swap_us"),
            states=tuple(str(state) for state in states) if isinstance(states, list) else (),
            rejection=None if verdict is None else Rejection.parse(StrictObject(verdict, f"{fields.where}.verdict")),
        )
        fields.reject_unknown()
        return out


@dataclass(frozen=True, slots=True)
class UpdateResult:
    """A finished attempt: a row of the history, and what `update` prints.

    Attributes:
        outcome, reason, detail: reason and detail are "" where there is nothing to say.
        finished_ms: Unix milliseconds.
    """

    attempt: Attempt
    outcome: Outcome
    reason: str
    detail: str
    finished_ms: int

    @property
    def exit_code(self) -> int:
        """Of a command that ran this attempt."""
        return EXIT_CODES[self.outcome]

    def is_same_as(self, other: "UpdateResult") -> bool:
        """Did both end in the same way over the same bundle, without having changed anything?"""
        same = (self.outcome, self.reason, self.detail, self.attempt.target)
        is_change = self.outcome in (Outcome.UPDATED, Outcome.ROLLED_BACK)
        return not is_change and same == (other.outcome, other.reason, other.detail, other.attempt.target)

    def as_json(self) -> dict[str, JSON]:
        """The journal's record."""
        return {
            "outcome": self.outcome.value,
            "reason": self.reason,
            "detail": self.detail,
            "finished_ms": self.finished_ms,
            "attempt": self.attempt.as_json(),
        }

    @classmethod
    def parse(cls, fields: StrictObject) -> "UpdateResult":
        """Inverse of `as_json`. Raises MalformedRefused."""
        out = cls(
            attempt=Attempt.parse(fields.object("attempt")),
            outcome=Outcome(fields.choice("outcome", tuple(Outcome))),
            reason=fields.text("reason"),
            detail=fields.text("detail", max_length=MAX_DETAIL_CHARACTERS),
            finished_ms=fields.integer("finished_ms"),
        )
        fields.reject_unknown()
        return out

    def summary(self) -> dict[str, object]:
        """What `update --json` and `history --json` print: flat."""
        a = self.attempt
        return {
            "outcome": self.outcome.value,
            "reason": self.reason or None,
            "detail": self.detail or None,
            "release": a.release,
            "counter": a.counter or None,
            "variant": a.variant,
            "bundle": a.target,
            "trigger": a.trigger,
            "download_bytes": a.download_bytes,
            "patch_bytes": a.patch_bytes,
            "full_bytes": a.full_bytes,
            "phases_ms": {name: a.phases_ms[name] for name in PHASES if name in a.phases_ms},
            "swap_us": a.swap_us,
            "downtime_ms": a.phases_ms.get(DOWNTIME, 0),
            "states": list(a.states),
            "started_ms": a.started_ms,
            "finished_ms": self.finished_ms,
            "exit_code": self.exit_code,
        }


def one_line(text: str) -> str:
    """`text` as one printable line of bounded length."""
    flat = " ".join(text.split())
    return "".join(c if c.isprintable() else "?" for c in flat)[:MAX_DETAIL_CHARACTERS]
