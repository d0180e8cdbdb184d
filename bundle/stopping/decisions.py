"""The five results of the stopping rule.

Each has a stable `reason`, one line of text for people, and the numbers that it rests on. Logarithms of e-values are in
thousandths, probabilities in parts per billion, since documents contain integers only.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from bundle.strict_json import JSON


@dataclass(frozen=True, slots=True)
class _Result:
    """What all results have.

    Attributes:
        reason: stable name of the cause.
        text: one line for people.
        numbers: the numbers that the result rests on, by name.
    """

    reason: str
    text: str
    numbers: Mapping[str, int]

    word: ClassVar[str] = ""

    def as_json(self) -> dict[str, JSON]:
        """Return the result as a JSON object."""
        numbers: dict[str, JSON] = dict(self.numbers)
        return {"word": self.word, "reason": self.reason, "text": self.text, "numbers": numbers}


@dataclass(frozen=True, slots=True)
class Halt(_Result):
    """Halt the rollout now.

    Attributes:
        stratum: name of the stratum that halts it, or "" for the whole fleet.
    """

    stratum: str = ""

    word: ClassVar[str] = "halt"


@dataclass(frozen=True, slots=True)
class Go(_Result):
    """Advance to the next stage of the plan.

    Attributes:
        percent_bp: share of the next stage, in basis points.
    """

    percent_bp: int = 0

    word: ClassVar[str] = "go"


@dataclass(frozen=True, slots=True)
class Grow(_Result):
    """Select more devices within the stage, because too few are known to decide.

    Attributes:
        percent_bp: the new share, below that of the next stage, in basis points.
    """

    percent_bp: int = 0

    word: ClassVar[str] = "grow"


@dataclass(frozen=True, slots=True)
class Wait(_Result):
    """Change nothing: what is missing may still arrive."""

    word: ClassVar[str] = "wait"


@dataclass(frozen=True, slots=True)
class Ask(_Result):
    """Change nothing, and call a person: what is missing does not arrive by waiting."""

    word: ClassVar[str] = "ask"


Decision = Halt | Go | Grow | Wait | Ask
