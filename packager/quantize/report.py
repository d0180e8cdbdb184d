"""What a quantization did, tried and found: the values behind `--json`, the HTML page and the release's records."""

from dataclasses import dataclass
from typing import Literal

from packager.quantize.fidelity import GateReport

Outcome = Literal["quantized", "refused", "inconclusive"]


@dataclass(frozen=True, slots=True)
class Trial:
    """One candidate: how it was made, how large and how good it was on the calibration half, or why it is none."""

    method: str
    kept_float: tuple[str, ...]
    bytes: int | None
    relative_rms: float | None
    verdict: str
    why: str

    def as_json(self) -> dict[str, object]:
        """Plain values."""
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(frozen=True, slots=True)
class Latency:
    """Median of one run at the given number of threads, in milliseconds, on this machine."""

    float_ms: float
    quantized_ms: float
    threads: int

    @property
    def ratio(self) -> float:
        """Quantized over float: below 1 is faster."""
        return self.quantized_ms / self.float_ms if self.float_ms else 1.0

    def as_json(self) -> dict[str, object]:
        """Plain values."""
        return {
            "float_ms": self.float_ms,
            "quantized_ms": self.quantized_ms,
            "ratio": self.ratio,
            "threads": self.threads,
        }


@dataclass(frozen=True, slots=True)
class QuantizationReport:
    """The whole story of one variant.

    `outcome` is "quantized" (the file was written), "refused" or "inconclusive" (no file was written; `reason`
    says why, in one line). `method` is how it was done ("static", "dynamic", "weights", "float"); `numerics` what the
    integer kernels multiply ("u8u8", "u8s7", "float"). `gate` was measured on the held-back half.
    """

    scheme: str
    outcome: Outcome
    reason: str
    method: str
    numerics: str
    float_bytes: int
    bytes: int | None
    gate: GateReport | None
    calibration_gate: GateReport | None
    kept_float: tuple[str, ...]
    trials: tuple[Trial, ...]
    notes: tuple[str, ...]
    latency: Latency | None
    calibration_samples: int
    origin: str

    def as_json(self) -> dict[str, object]:
        """Plain values."""
        return {
            "scheme": self.scheme,
            "outcome": self.outcome,
            "reason": self.reason,
            "method": self.method,
            "numerics": self.numerics,
            "float_bytes": self.float_bytes,
            "bytes": self.bytes,
            "gate": self.gate.as_json() if self.gate else None,
            "calibration_gate": self.calibration_gate.as_json() if self.calibration_gate else None,
            "kept_float": list(self.kept_float),
            "trials": [trial.as_json() for trial in self.trials],
            "notes": list(self.notes),
            "latency": self.latency.as_json() if self.latency else None,
            "calibration_samples": self.calibration_samples,
            "origin": self.origin,
        }

    def as_text(self) -> str:
        """A few lines for a person."""
        size = f"{self.float_bytes:,} bytes float" + (f", {self.bytes:,} bytes {self.scheme}" if self.bytes else "")
        lines = [f"{self.outcome}: {self.reason}", f"size: {size}", f"method: {self.method} ({self.numerics})"]
        if self.gate is not None:
            lines.append(
                f"gate on {self.gate.samples} held-back samples ({self.gate.origin[:20]}): {self.gate.verdict}"
            )
            for output in self.gate.outputs:
                figures = {
                    "relative RMS": output.relative_rms,
                    "cosine p1": output.cosine_p1,
                    "top-1": output.top1_agreement,
                }
                shown = ", ".join(f"{name} {value:.4f}" for name, value in figures.items() if value is not None)
                lines.append(f"  {output.name}: {shown}{'' if output.varies else ' (does not vary)'}")
        if self.latency is not None:
            lines.append(
                f"latency: {self.latency.float_ms:.2f} ms float, {self.latency.quantized_ms:.2f} ms {self.scheme}"
            )
        if self.kept_float:
            lines.append(f"kept in float: {', '.join(self.kept_float)}")
        lines.extend(f"note: {note}" for note in self.notes)
        return "\n".join(lines)
