"""What the demo says in the end: figures, refusals, and a table of claims with what was seen for each."""

from dataclasses import asdict, dataclass, field
from typing import Any

from packager.demo.demo_models import Prediction


@dataclass(frozen=True, slots=True)
class DemoCheck:
    """Something the demo set out to show, and what was seen."""

    name: str
    passed: bool
    observed: str


@dataclass(slots=True)
class DemoReport:
    """What `packager demo --json` prints.

    Attributes:
        bytes: release → variant → {"patch", "full"}: blob sizes from the base and from nothing.
        seconds: by step.
        refusals, rollbacks: {"attempt", "reason"}.
        latency: milliseconds before, during and after the update, and of the variants at build time.
    """

    requests_sent: int = 0
    requests_failed: int = 0
    bytes: dict[str, dict[str, dict[str, int]]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    refusals: list[dict[str, str]] = field(default_factory=list)
    rollbacks: list[dict[str, str]] = field(default_factory=list)
    predictions: list[Prediction] = field(default_factory=list)
    latency: dict[str, Any] = field(default_factory=dict)
    checks: list[DemoCheck] = field(default_factory=list)

    @property
    def has_passed(self) -> bool:
        """Every claim held, and there were some."""
        return bool(self.checks) and all(claim.passed for claim in self.checks)

    def as_json(self) -> dict[str, object]:
        """The one object on stdout (docs/schemas/demo.json)."""
        return {"ok": self.has_passed, **asdict(self)}


def render_table(report: DemoReport) -> str:
    """What was proven, for a person."""
    width = max((len(claim.name) for claim in report.checks), default=0)
    rows = [f"{'yes' if claim.passed else 'NO ':<4} {claim.name:<{width}}  {claim.observed}" for claim in report.checks]
    verdict = "All of it held." if report.has_passed else "Not all of it held."
    return "\n".join(["", "What was proven", *rows, verdict])
