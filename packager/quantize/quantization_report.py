"""What a quantization did, tried and found: the values behind `--json`, the HTML page and the release's records."""

from dataclasses import dataclass
from typing import Literal

from packager.quantize.agreement import finite
from packager.quantize.gate import GateReport
from packager.quantize.sensitivity import Blame

Outcome = Literal["quantized", "refused", "inconclusive"]


@dataclass(frozen=True, slots=True)
class Trial:
    """One candidate: how it was made, how large and how good it was on the calibration half, or why it is none.

    Nodes of `wide` have more bits than the method gives, short of float. `held_back` is the verdict on the held-back
    half, of those that came so far.
    """

    method: str
    kept_float: tuple[str, ...]
    wide: tuple[str, ...]
    bytes: int | None
    relative_rms: float | None
    verdict: str
    why: str
    held_back: str | None = None

    @property
    def wide_activations(self) -> tuple[str, ...]:
        """Nodes that read 16 bits."""
        return self.wide if self.method == "static" else ()

    @property
    def wide_weights(self) -> tuple[str, ...]:
        """Nodes that have 8 bits where the others have 4."""
        return self.wide if self.method == "int4" else ()

    def as_json(self) -> dict[str, object]:
        """Plain values; an error that is no number is None."""
        plain = {name: getattr(self, name) for name in self.__slots__ if name != "wide"}
        wide = {"wide_activations": self.wide_activations, "wide_weights": self.wide_weights}
        return plain | wide | {"relative_rms": finite(self.relative_rms)}


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
    integer kernels multiply ("u8u8", "u8s7", "s8s8", "u8s8", "float"). `gate` was measured on the held-back half.
    Nodes of `kept_float` have float weights, those of `wide_activations` 16-bit activations, those of `wide_weights`
    8-bit weights where the scheme has 4. `sensitivity` is what each node, or group of neighbours, costs alone; empty
    where no repair was needed. `oldest_runtime` is the first version of onnxruntime that has the operators of the
    quantized model.
    """

    scheme: str
    float_bytes: int
    origin: str
    outcome: Outcome = "refused"
    reason: str = ""
    method: str = "none"
    numerics: str = "float"
    bytes: int | None = None
    gate: GateReport | None = None
    calibration_gate: GateReport | None = None
    kept_float: tuple[str, ...] = ()
    wide_activations: tuple[str, ...] = ()
    wide_weights: tuple[str, ...] = ()
    trials: tuple[Trial, ...] = ()
    sensitivity: tuple[Blame, ...] = ()
    notes: tuple[str, ...] = ()
    latency: Latency | None = None
    calibration_samples: int = 0
    oldest_runtime: str | None = None

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
            "wide_activations": list(self.wide_activations),
            "wide_weights": list(self.wide_weights),
            "trials": [trial.as_json() for trial in self.trials],
            "sensitivity": [blamed.as_json() for blamed in self.sensitivity],
            "notes": list(self.notes),
            "latency": self.latency.as_json() if self.latency else None,
            "calibration_samples": self.calibration_samples,
            "oldest_runtime": self.oldest_runtime,
            "origin": self.origin,
        }

    def trials_as_text(self) -> str:
        """Every trial in one line, for a person: what was tried, and what it cost."""
        head = ("method", "float", "more bits", "bytes", "error", "verdict")
        rows = [
            (
                trial.method,
                str(len(trial.kept_float)),
                str(len(trial.wide)),
                "" if trial.bytes is None else f"{trial.bytes:,}",
                "" if trial.relative_rms is None else f"{trial.relative_rms:.4f}",
                f"{trial.verdict}: {trial.why}" if trial.held_back is None else f"held back {trial.held_back}",
            )
            for trial in self.trials
        ]
        widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head) - 1)]
        return "\n".join(
            "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[-1]])
            for row in (head, *rows)
        )

    def as_text(self) -> str:
        """A few lines for a person."""
        size = f"{self.float_bytes:,} bytes float" + (f", {self.bytes:,} bytes {self.scheme}" if self.bytes else "")
        lines = [f"{self.outcome}: {self.reason}", f"size: {size}", f"method: {self.method} ({self.numerics})"]
        if self.gate is not None:
            lines.append(
                f"gate on {self.gate.samples} held-back samples ({self.gate.origin[:20]}): {self.gate.verdict}"
            )
            lines.extend(f"  {output.as_line()}" for output in self.gate.outputs)
            if self.gate.metric is not None:
                lines.append(f"  {self.gate.metric.why}")
        if self.latency is not None:
            lines.append(
                f"latency: {self.latency.float_ms:.2f} ms float, {self.latency.quantized_ms:.2f} ms {self.scheme}"
            )
        if self.oldest_runtime is not None:
            lines.append(f"loads on: onnxruntime {self.oldest_runtime} and later")
        if self.kept_float:
            lines.append(f"kept in float: {', '.join(self.kept_float)}")
        if self.wide_activations:
            lines.append(f"16-bit activations: {', '.join(self.wide_activations)}")
        if self.wide_weights:
            lines.append(f"8-bit weights: {', '.join(self.wide_weights)}")
        lines.extend(f"note: {note}" for note in self.notes)
        return "\n".join(lines)
