"""One attempt to update: its target, its costs, its result.

Rules:
- An attempt starts with a check (or an operator's rollback) and has exactly one outcome.
- The journal, `history`, `update --json` and the device's reports describe it with the same fields. Times are integers
  with the unit in the name.
- An attempt is written to the history if it found a release or failed. A check that finds nothing new is not.
"""

from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Final

from bundle.errors import AirweightsError
from bundle.files import BundleDigest
from bundle.strict_json import JSON, NAME_PATTERN, SHA256_HEX_PATTERN, VERSION_PATTERN, StrictObject
from device_agent.policy.download_bytes import DownloadBytes
from device_agent.policy.followed_rollout import FollowedRollout, parse_followed
from device_agent.policy.serving_counts import ProbationSummary

MAX_DETAIL_CHARACTERS: Final = 1000
PHASES: Final = ("check", "fetch", "patch", "probe", "swap", "shadow", "probation")
DOWNTIME: Final = "downtime"  # stored among the phases: time without a model, because two did not fit into memory


class Outcome(StrEnum):
    """The result of an attempt, in one word."""

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
}
assert EXIT_CODES.keys() == set(Outcome)


@dataclass(frozen=True, slots=True)
class Rejection:
    """The recorded decision against a candidate. It is recorded before anything is undone.

    Attributes:
        outcome: the outcome that the attempt will have.
        reason: stable reason of the error.
        detail: one line for a person, at most MAX_DETAIL_CHARACTERS.
        quarantines: whether the bundle is put into quarantine.
    """

    outcome: Outcome
    reason: str
    detail: str
    quarantines: bool

    @classmethod
    def from_error(cls, error: AirweightsError, outcome: Outcome, *, quarantines: bool) -> "Rejection":
        """Create the rejection for an error.

        Args:
            error: the error that ended the attempt; its reason and message are recorded.
            outcome: the outcome that the attempt will have.
            quarantines: whether the bundle is put into quarantine.
        """
        return cls(outcome, error.reason, one_line(error.message), quarantines)

    def as_json(self) -> dict[str, JSON]:
        """Return the field `rejection` of a journal record."""
        return {
            "outcome": self.outcome.value,
            "reason": self.reason,
            "detail": self.detail,
            "quarantines": self.quarantines,
        }

    @classmethod
    def parse(cls, fields: StrictObject) -> "Rejection":
        """Parse the output of `as_json`.

        Raises:
            Malformed: a field is missing, unknown or out of range.
        """
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
    """One run of the update state machine, as far as it got.

    Attributes:
        number: one more than the number of the newest attempt in the history.
        trigger: "poll", "operator", "start" or "rollback".
        started_ms: time of the start, in Unix milliseconds.
        target: digest of the candidate's bundle, or None before a release was found.
        release: version of the candidate's release, or None.
        counter: counter of the candidate's release, or 0.
        variant: name of the candidate's variant, or None.
        followed: the rollout that selected the candidate, or None before a release was found.
        from_release: version that was active at the start, or None.
        downloaded: bytes received over the network in this attempt, by kind.
        patch_bytes: size of all blobs of the chosen patch path.
        full_bytes: size of the cheapest full download, or 0 if the release has none.
        phases_ms: milliseconds by phase name (PHASES and DOWNTIME).
        swap_us: duration of the switch of the requests to the candidate, in microseconds, or None.
        states: the states of the attempt in order.
        rejection: the decision against the candidate, or None.
        probation: the result of its probation, or None without one.
    """

    number: int
    trigger: str
    started_ms: int
    target: BundleDigest | None = None
    release: str | None = None
    counter: int = 0
    variant: str | None = None
    followed: FollowedRollout | None = None
    from_release: str | None = None
    downloaded: DownloadBytes = field(default_factory=DownloadBytes)
    patch_bytes: int = 0
    full_bytes: int = 0
    phases_ms: dict[str, int] = field(default_factory=dict)
    swap_us: int | None = None
    states: tuple[str, ...] = ()
    rejection: Rejection | None = None
    probation: ProbationSummary | None = None

    def with_phase(self, name: str, elapsed_ms: int) -> "Attempt":
        """Return a copy with time added to a phase.

        Args:
            name: one of PHASES, or DOWNTIME.
            elapsed_ms: milliseconds to add.
        """
        return replace(self, phases_ms={**self.phases_ms, name: self.phases_ms.get(name, 0) + elapsed_ms})

    def as_json(self) -> dict[str, JSON]:
        """Return the journal record."""
        return {
            "number": self.number,
            "trigger": self.trigger,
            "started_ms": self.started_ms,
            "target": self.target,
            "release": self.release,
            "counter": self.counter,
            "variant": self.variant,
            "followed": None if self.followed is None else self.followed.as_json(),
            "from_release": self.from_release,
            "downloaded": self.downloaded.as_json(),
            "patch_bytes": self.patch_bytes,
            "full_bytes": self.full_bytes,
            "phases_ms": dict(self.phases_ms),
            "swap_us": self.swap_us,
            "states": list(self.states),
            "rejection": None if self.rejection is None else self.rejection.as_json(),
            "probation": None if self.probation is None else self.probation.as_json(),
        }

    @classmethod
    def parse(cls, fields: StrictObject) -> "Attempt":
        """Parse the output of `as_json`.

        Raises:
            Malformed: a field is missing, unknown or out of range.
        """
        target = fields.optional_text("target", SHA256_HEX_PATTERN)
        phases = fields.object("phases_ms")
        rejection = fields.value("rejection")
        states = fields.value("states")
        out = cls(
            number=fields.integer("number"),
            trigger=fields.text("trigger"),
            started_ms=fields.integer("started_ms"),
            target=None if target is None else BundleDigest(target),
            release=fields.optional_text("release", VERSION_PATTERN),
            counter=fields.integer("counter"),
            variant=fields.optional_text("variant", NAME_PATTERN),
            followed=parse_followed(fields),
            from_release=fields.optional_text("from_release", VERSION_PATTERN),
            downloaded=DownloadBytes.parse(fields.object("downloaded")),
            patch_bytes=fields.integer("patch_bytes"),
            full_bytes=fields.integer("full_bytes"),
            phases_ms={name: phases.integer(name) for name in phases.remaining_names()},
            swap_us=fields.optional_integer("swap_us"),
            states=tuple(str(state) for state in states) if isinstance(states, list) else (),
            rejection=(
                None if rejection is None else Rejection.parse(StrictObject(rejection, f"{fields.where}.rejection"))
            ),
            probation=_parse_probation(fields),
        )
        fields.reject_unknown()
        return out


@dataclass(frozen=True, slots=True)
class UpdateResult:
    """A finished attempt: a row of the history, and the output of `update`.

    Attributes:
        attempt: the attempt when it finished.
        outcome: its result in one word.
        reason: stable reason of the error; for an update that too few requests tried, the verdict; or "".
        detail: one line for a person, or "".
        finished_ms: time of the end, in Unix milliseconds.
    """

    attempt: Attempt
    outcome: Outcome
    reason: str
    detail: str
    finished_ms: int

    @property
    def outcome_text(self) -> str:
        """Return the outcome for people; an update that no or few requests have tried says so."""
        probation = self.attempt.probation
        if self.outcome is not Outcome.UPDATED or probation is None or probation.is_passed:
            return self.outcome.value
        return f"{self.outcome.value}, {probation.verdict.value}"

    @property
    def exit_code(self) -> int:
        """Return the exit code of a command that ran this attempt."""
        return EXIT_CODES[self.outcome]

    @property
    def is_change(self) -> bool:
        """Return whether the attempt changed what serves; such a result is never of one kind with another."""
        return self.outcome in (Outcome.UPDATED, Outcome.ROLLED_BACK)

    def is_of_kind(self, other: "UpdateResult") -> bool:
        """Check whether both failed for the same reason on the same bundle; the detail may differ."""
        kind = (self.outcome, self.reason, self.attempt.target, self.attempt.release)
        return not self.is_change and kind == (other.outcome, other.reason, other.attempt.target, other.attempt.release)

    def as_record(self) -> dict[str, JSON]:
        """Return the journal record."""
        return {
            "outcome": self.outcome.value,
            "reason": self.reason,
            "detail": self.detail,
            "finished_ms": self.finished_ms,
            "attempt": self.attempt.as_json(),
        }

    @classmethod
    def parse(cls, fields: StrictObject) -> "UpdateResult":
        """Parse the output of `as_record`.

        Raises:
            Malformed: a field is missing, unknown or out of range.
        """
        out = cls(
            attempt=Attempt.parse(fields.object("attempt")),
            outcome=Outcome(fields.choice("outcome", tuple(Outcome))),
            reason=fields.text("reason"),
            detail=fields.text("detail", max_length=MAX_DETAIL_CHARACTERS),
            finished_ms=fields.integer("finished_ms"),
        )
        fields.reject_unknown()
        return out

    def as_json(self) -> dict[str, JSON]:
        """Return the flat object that `update --json` and `history --json` print."""
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
            "download_bytes": a.downloaded.total,
            "downloaded": a.downloaded.as_json(),
            "patch_bytes": a.patch_bytes,
            "full_download_bytes": a.full_bytes,
            "phases_ms": {name: a.phases_ms[name] for name in PHASES if name in a.phases_ms},
            "swap_us": a.swap_us,
            "downtime_ms": a.phases_ms.get(DOWNTIME, 0),
            "probation": None if a.probation is None else a.probation.as_json(),
            "states": list(a.states),
            "started_ms": a.started_ms,
            "finished_ms": self.finished_ms,
            "exit_code": self.exit_code,
        }

    @classmethod
    def from_json(cls, fields: StrictObject) -> "UpdateResult":
        """Parse the output of `as_json`, which has no number and no rejection: they are 0 and None.

        Raises:
            Malformed: a field is missing, unknown or out of range.
        """
        target, states = fields.optional_text("bundle", SHA256_HEX_PATTERN), fields.value("states")
        phases, downtime_ms = fields.object("phases_ms"), fields.integer("downtime_ms")
        fields.integer("exit_code")  # follows from `outcome`
        fields.integer("download_bytes")  # the sum of `downloaded`
        attempt = Attempt(
            number=0,
            trigger=fields.text("trigger"),
            started_ms=fields.integer("started_ms"),
            target=None if target is None else BundleDigest(target),
            release=fields.optional_text("release", VERSION_PATTERN),
            counter=fields.optional_integer("counter") or 0,
            variant=fields.optional_text("variant", NAME_PATTERN),
            downloaded=DownloadBytes.parse(fields.object("downloaded")),
            patch_bytes=fields.integer("patch_bytes"),
            full_bytes=fields.integer("full_download_bytes"),
            phases_ms={name: phases.integer(name) for name in phases.remaining_names()},
            swap_us=fields.optional_integer("swap_us"),
            states=tuple(str(state) for state in states) if isinstance(states, list) else (),
            probation=_parse_probation(fields),
        )
        out = cls(
            attempt=attempt.with_phase(DOWNTIME, downtime_ms) if downtime_ms else attempt,
            outcome=Outcome(fields.choice("outcome", tuple(Outcome))),
            reason=fields.optional_text("reason") or "",
            detail=fields.optional_text("detail", max_length=MAX_DETAIL_CHARACTERS) or "",
            finished_ms=fields.integer("finished_ms"),
        )
        fields.reject_unknown()
        return out


def _parse_probation(fields: StrictObject) -> ProbationSummary | None:
    value = fields.value("probation") if fields.has("probation") else None  # older journals have no such field
    return None if value is None else ProbationSummary.parse(StrictObject(value, f"{fields.where}.probation"))


def one_line(text: str) -> str:
    """Return `text` as one printable line of at most MAX_DETAIL_CHARACTERS."""
    flat = " ".join(text.split())
    return "".join(c if c.isprintable() else "?" for c in flat)[:MAX_DETAIL_CHARACTERS]
