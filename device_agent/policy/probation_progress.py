"""The progress of a running probation, for `status`."""

from dataclasses import asdict, dataclass
from typing import Any

from bundle.strict_json import StrictObject


@dataclass(frozen=True, slots=True)
class ProbationProgress:
    """The progress of a running probation.

    Attributes:
        release: version of the candidate.
        requests: requests so far, or judges that have answered.
        needed_requests: requests that a verdict needs, or all judges.
        left_s: seconds until the window ends; 0 if it is extended.
        unit: "requests", or "verdicts" if applications run the release.
    """

    release: str
    requests: int
    needed_requests: int
    left_s: int
    unit: str = "requests"

    @property
    def text(self) -> str:
        """The progress in one line."""
        left = f"{self.left_s} s left" if self.left_s else "its window is over and extended"
        return f"{self.release}: {self.requests} of {self.needed_requests} {self.unit}, {left}"

    def as_json(self) -> dict[str, Any]:
        """Return the object `probation` of `status --json`."""
        return asdict(self)

    @classmethod
    def parse(cls, fields: StrictObject) -> "ProbationProgress":
        """Parse the output of `as_json`.

        Raises:
            Malformed: a field is missing, unknown or has a wrong type.
        """
        found = cls(
            fields.text("release"),
            fields.integer("requests"),
            fields.integer("needed_requests"),
            fields.integer("left_s"),
            fields.text("unit"),
        )
        fields.reject_unknown()
        return found
