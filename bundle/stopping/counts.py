"""Counts of the stopping rule. The docstrings here define how devices are counted.

Theory. Which devices a percentage selects is decided by a hash of salt and device id. The hash knows nothing about
hardware, place or health, so the devices that are selected and those that are not yet selected are two random samples
of the same fleet: the *exposed* devices and the *control group*. All counts are taken from signed lines only.

Rules:
1. The census is fixed when the first stage of the rollout begins: all devices that are registered and not revoked, in
   the cohorts of the plan, and from which a signed line arrived in the 7 days before. Devices that come later take part
   in the rollout, and are in no count. Whether a device is in the census never depends on what the release did to it.
2. Of the census, a device is exposed if its bucket (`bundle.rollout.bucket`) is below the percentage of the rollout,
   and is in the control group otherwise.
3. A device is one device, whatever it sends: it is bad once, or it is not.
4. A suspect device (a fork of its log, a clone) is not bad, not complete and silent.
5. Everything but `bad` is counted at a checkpoint (`checkpoint_s`): from the lines that arrived until then. `bad` is
   counted at once.
6. The window of `silent` and `control_silent` begins when the percentage was last raised and ends at the checkpoint.
   It is the same for all devices: also those of earlier stages must be heard from in it.
7. A stratum has the same counts for the part of the census that shares a variant, a CPU class, a cohort or an agent
   version, from what each device said before it took the release. Each device is in one stratum of each kind. The
   strata are fixed with the census: the rule shares its error budget among them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from bundle.errors import Malformed
from bundle.strict_json import JSON, StrictObject

CENSUS_WINDOW_S: Final = 7 * 86_400
MAX_STRATA: Final = 32
MAX_STRATUM_NAME: Final = 128
BASIS_POINTS: Final = 10_000
CHECKPOINTS_PER_SOAK: Final = 4


@dataclass(frozen=True, slots=True)
class Group:
    """Counts of devices of the census, of all or of one stratum.

    Attributes:
        exposed: devices that the percentage of the rollout selects.
        bad: of `exposed`, those with a report or vital that counts against the release, at any time.
        complete: of `exposed` and not bad, those that reported the end of probation and soak, and were heard from in
            the window.
        silent: of `exposed`, those from which no line arrived in the window.
        control: devices that the percentage does not select yet.
        control_silent: of `control`, those from which no line arrived in the window.
    """

    exposed: int
    bad: int = 0
    complete: int = 0
    silent: int = 0
    control: int = 0
    control_silent: int = 0

    def __post_init__(self) -> None:
        if (
            min(self.exposed, self.bad, self.complete, self.silent, self.control, self.control_silent) < 0
            or self.bad + self.complete > self.exposed
            or self.silent + self.complete > self.exposed
            or self.control_silent > self.control
        ):
            raise Malformed(f"counts {self}: found more devices in a part than in the whole, or fewer than 0")

    @property
    def incomplete(self) -> int:
        """Number of exposed devices that are neither bad nor complete; the go test treats them as bad."""
        return self.exposed - self.bad - self.complete

    def as_json(self) -> dict[str, JSON]:
        """Return the counts as a JSON object."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


@dataclass(frozen=True, slots=True)
class Counts:
    """Counts of a rollout at one look.

    Attributes:
        percent_bp: share of devices that the rollout selects, in basis points.
        age_s: seconds since the percentage was last raised.
        whole: counts of the whole census.
        strata: counts by stratum; the name is its kind, a colon and its value, for example "cpu:cortex-a53". At most
            MAX_STRATA; of more, the largest are kept.
    """

    percent_bp: int
    age_s: int
    whole: Group
    strata: Mapping[str, Group] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 0 <= self.percent_bp <= BASIS_POINTS or self.age_s < 0:
            raise Malformed(f"counts: found {self.percent_bp} basis points and an age of {self.age_s} s")
        if len(self.strata) > MAX_STRATA:
            raise Malformed(f"counts: found {len(self.strata)} strata, at most {MAX_STRATA} are allowed")
        whole = self.whole
        for name, part in self.strata.items():
            if any(getattr(part, count) > getattr(whole, count) for count in Group.__dataclass_fields__):
                raise Malformed(f"counts: stratum {name!r} has {part}, more than the whole, {whole}")

    def as_json(self) -> dict[str, JSON]:
        """Return the counts as a JSON object."""
        return {
            "percent_bp": self.percent_bp,
            "age_s": self.age_s,
            "whole": self.whole.as_json(),
            "strata": {name: group.as_json() for name, group in sorted(self.strata.items())},
        }


def parse_counts(fields: StrictObject) -> Counts:
    """Parse the object that `Counts.as_json` returns.

    Raises:
        Malformed: the object does not follow its schema, or the counts contradict each other.
    """
    strata = fields.object("strata")
    names = strata.remaining_names()
    if any(len(name) > MAX_STRATUM_NAME for name in names):
        raise Malformed(f"{strata.where}: a name is longer than {MAX_STRATUM_NAME} characters")
    out = Counts(
        percent_bp=fields.integer("percent_bp", 0, BASIS_POINTS),
        age_s=fields.integer("age_s"),
        whole=_parse_group(fields.object("whole")),
        strata={name: _parse_group(strata.object(name)) for name in names},
    )
    fields.reject_unknown()
    return out


def checkpoint_s(soak_s: int, age_s: int) -> int | None:
    """Return the age at which silence was last counted, or None before the soak time is over.

    Checkpoints are at the soak time and after each quarter of it. A fixed series of looks lets the rule share its error
    budget among them.

    Args:
        soak_s: soak time of the plan, in seconds, at least 1.
        age_s: seconds since the percentage was last raised.
    """
    if age_s < soak_s:
        return None
    step = _step_s(soak_s)
    return soak_s + (age_s - soak_s) // step * step


def checkpoint_number(soak_s: int, age_s: int) -> int:
    """Return the number of checkpoints up to an age; 0 before the soak time is over.

    Args:
        soak_s: soak time of the plan, in seconds, at least 1.
        age_s: seconds since the percentage was last raised.
    """
    return 0 if age_s < soak_s else 1 + (age_s - soak_s) // _step_s(soak_s)


def _step_s(soak_s: int) -> int:
    return max(1, soak_s // CHECKPOINTS_PER_SOAK)


def _parse_group(fields: StrictObject) -> Group:
    out = Group(**{name: fields.integer(name) for name in Group.__dataclass_fields__})
    fields.reject_unknown()
    return out
