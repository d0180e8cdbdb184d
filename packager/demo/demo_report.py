"""The report of the demo: figures, rejected attacks, and a table of checks with what was observed."""

from dataclasses import asdict, dataclass, field
from typing import Any

from packager.demo.demo_models import Prediction
from packager.demo.update_sizes import size_lines


@dataclass(frozen=True, slots=True)
class DemoCheck:
    """One check of the demo.

    Attributes:
        name: the expected behavior.
        passed: whether the check passed.
        observed: the observed behavior, as text.
    """

    name: str
    passed: bool
    observed: str


@dataclass(slots=True)
class DemoReport:
    """The object that `packager demo --json` prints.

    Attributes:
        requests_sent, requests_failed: requests during the update under load.
        bytes: release → variant → {"patch", "full"}: size of the smallest blob and of the full download, in bytes.
        update_bytes: the update to 1.1.0: "patch", everything "downloaded", the "full" download, and the model file by
            "bsdiff4" and "gzip".
        held_out: release → correct responses to held-out samples; empty for models of the user.
        seconds: duration of each step, in seconds.
        refusals, rollbacks: {"attempt", "reason"}, one per rejected release or attack.
        predictions: outputs of the first installed model.
        latency: milliseconds before, during and after the update, and of the variants at build time.
        checks: the checks, in order.
    """

    requests_sent: int = 0
    requests_failed: int = 0
    bytes: dict[str, dict[str, dict[str, int]]] = field(default_factory=dict)
    update_bytes: dict[str, int] = field(default_factory=dict)
    held_out: dict[str, int] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    refusals: list[dict[str, str]] = field(default_factory=list)
    rollbacks: list[dict[str, str]] = field(default_factory=list)
    predictions: list[Prediction] = field(default_factory=list)
    latency: dict[str, Any] = field(default_factory=dict)
    checks: list[DemoCheck] = field(default_factory=list)
    total_seconds: float = 0.0

    @property
    def has_passed(self) -> bool:
        """True if there are checks and all passed."""
        return bool(self.checks) and all(check.passed for check in self.checks)

    def as_json(self) -> dict[str, object]:
        """Return the object that `--json` prints (docs/schemas/demo.json)."""
        return {"ok": self.has_passed, **asdict(self)}


def check_line(check: DemoCheck) -> str:
    """Return `[PASS] name: observed`, or `[FAIL] …`."""
    return f"[{'PASS' if check.passed else 'FAIL'}] {check.name}: {check.observed}"


def table_lines(report: DemoReport) -> list[str]:
    """Return the table of all checks, with a closing line that counts them."""
    width = max((len(check.name) for check in report.checks), default=0)
    rows = [
        f"  {'PASS' if check.passed else 'FAIL'}  {check.name:<{width}}  {check.observed}" for check in report.checks
    ]
    failed = sum(not check.passed for check in report.checks)
    passed = len(report.checks) - failed
    counts = f"{passed} checks passed" + (f", {failed} failed" if failed else "")
    return [*size_lines(report.update_bytes), "", "Checks", *rows, "", f"{counts} in {report.total_seconds:.0f} s"]
