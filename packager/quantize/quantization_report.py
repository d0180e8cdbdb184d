"""What a quantization did, tried and found: the values behind `--json`, the HTML page and the release's records."""

from dataclasses import dataclass
from typing import Literal

from packager.quantize.agreement import finite_or_none
from packager.quantize.gate import GateReport
from packager.quantize.sensitivity import NodeError

Outcome = Literal["quantized", "refused", "inconclusive"]


@dataclass(frozen=True, slots=True)
class Trial:
    """One candidate: how it was made, how large and how good it was on the calibration half, or why it is none.

    Nodes of `wide` have more bits than the method gives, short of float. `held_back` is the verdict on the held-back
    half, of those that came so far.
    """

    method: str
    float_nodes: tuple[str, ...]
    promoted: tuple[str, ...]
    bytes: int | None
    relative_rms: float | None
    verdict: str
    explanation: str
    held_out: str | None = None

    @property
    def promoted_activations(self) -> tuple[str, ...]:
        """Nodes that read 16 bits."""
        return self.promoted if self.method == "static" else ()

    @property
    def promoted_weights(self) -> tuple[str, ...]:
        """Nodes that have 8 bits where the others have 4."""
        return self.promoted if self.method == "int4" else ()

    def as_json(self) -> dict[str, object]:
        """Plain values; an error that is no number is None."""
        plain = {name: getattr(self, name) for name in self.__slots__ if name != "promoted"}
        wide = {"activations_16bit": self.promoted_activations, "weights_8bit": self.promoted_weights}
        return plain | wide | {"relative_rms": finite_or_none(self.relative_rms)}


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
    8-bit weights where the scheme has 4. `sensitivity` is what each node, or group of neighbors, costs alone; empty
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
    float_nodes: tuple[str, ...] = ()
    promoted_activations: tuple[str, ...] = ()
    promoted_weights: tuple[str, ...] = ()
    trials: tuple[Trial, ...] = ()
    sensitivity: tuple[NodeError, ...] = ()
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
            "float_nodes": list(self.float_nodes),
            "activations_16bit": list(self.promoted_activations),
            "weights_8bit": list(self.promoted_weights),
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
                str(len(trial.float_nodes)),
                str(len(trial.promoted)),
                "" if trial.bytes is None else f"{trial.bytes:,}",
                "" if trial.relative_rms is None else f"{trial.relative_rms:.4f}",
                f"{trial.verdict}: {trial.explanation}" if trial.held_out is None else f"held back {trial.held_out}",
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
                lines.append(f"  {self.gate.metric.explanation}")
        if self.latency is not None:
            lines.append(
                f"latency: {self.latency.float_ms:.2f} ms float, {self.latency.quantized_ms:.2f} ms {self.scheme}"
            )
        if self.oldest_runtime is not None:
            lines.append(f"loads on: onnxruntime {self.oldest_runtime} and later")
        if self.float_nodes:
            lines.append(f"kept in float: {', '.join(self.float_nodes)}")
        if self.promoted_activations:
            lines.append(f"16-bit activations: {', '.join(self.promoted_activations)}")
        if self.promoted_weights:
            lines.append(f"8-bit weights: {', '.join(self.promoted_weights)}")
        lines.extend(f"note: {note}" for note in self.notes)
        return "\n".join(lines)
