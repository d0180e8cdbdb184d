"""The results of a quantization: values behind `--json`, the HTML page and the release's records."""

from dataclasses import dataclass
from typing import Literal

from packager.quantize.agreement import finite_or_none
from packager.quantize.gate import GateReport
from packager.quantize.latency import Latency
from packager.quantize.sensitivity import NodeError

Outcome = Literal["quantized", "refused", "inconclusive"]


@dataclass(frozen=True, slots=True)
class Trial:
    """One candidate that was tried.

    Attributes:
        method: quantization method and its settings.
        float_nodes: names of nodes that stayed float.
        promoted: names of nodes with more bits than the method gives, but not float.
        bytes: size of the model; None if it could not be built.
        relative_rms: error of the worst output on the calibration samples.
        verdict: verdict on the calibration samples, or "refused" if it could not be built.
        explanation: one sentence for the verdict.
        held_out: verdict and explanation on the held-out samples, if it was judged there.
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
        """Names of the nodes with 16-bit activations."""
        return self.promoted if self.method == "static" else ()

    @property
    def promoted_weights(self) -> tuple[str, ...]:
        """Names of the nodes with 8-bit weights in an int4 model."""
        return self.promoted if self.method == "int4" else ()

    def as_json(self) -> dict[str, object]:
        """Return plain values; an error that is not finite becomes None."""
        plain = {name: getattr(self, name) for name in self.__slots__ if name != "promoted"}
        promoted = {"activations_16bit": self.promoted_activations, "weights_8bit": self.promoted_weights}
        return plain | promoted | {"relative_rms": finite_or_none(self.relative_rms)}


@dataclass(frozen=True, slots=True)
class QuantizationReport:
    """The result of quantizing one model.

    Attributes:
        scheme: a scheme of packager.quantize.schemes.
        float_bytes: bytes of the float model, external data included.
        origin: origin of the samples (`Samples.origin`).
        outcome: "quantized" (the file was written), "refused" or "inconclusive" (no file was written).
        reason: the cause of the outcome, in one line.
        method: "static", "dynamic", "weights", "int4", "fp16", "float", or "none" before one was chosen.
        numerics: types that the kernels multiply, activations before weights: "u8u8", "u8s7", "s8s8", "u8s8" or
            "float".
        bytes: size of the quantized model.
        gate: verdict on the held-out samples.
        calibration_gate: verdict on the calibration samples.
        float_nodes: names of nodes with float weights.
        promoted_activations: names of nodes with 16-bit activations.
        promoted_weights: names of nodes with 8-bit weights in an int4 model.
        trials: all candidates that were tried, in order.
        sensitivity: node errors of the chosen method, worst first; empty if no repair was needed.
        notes: steps that were skipped, and advice.
        latency: latency of both models; None if it was not measured.
        calibration_samples: number of calibration samples.
        oldest_runtime: first version of onnxruntime with all operators of the quantized model.
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
        """Return plain values for `--json` and the release's record."""
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
            "sensitivity": [node_error.as_json() for node_error in self.sensitivity],
            "notes": list(self.notes),
            "latency": self.latency.as_json() if self.latency else None,
            "calibration_samples": self.calibration_samples,
            "oldest_runtime": self.oldest_runtime,
            "origin": self.origin,
        }

    def trials_as_lines(self) -> list[str]:
        """Return a table of all trials, one line each."""
        head = ("method", "nodes in float", "with more bits", "bytes", "relative RMS", "verdict")
        rows = [
            (
                trial.method,
                str(len(trial.float_nodes)),
                str(len(trial.promoted)),
                "" if trial.bytes is None else f"{trial.bytes:,}",
                "" if trial.relative_rms is None else f"{trial.relative_rms:.4f}",
                f"{trial.verdict}: {trial.explanation}" if trial.held_out is None else f"held-out {trial.held_out}",
            )
            for trial in self.trials
        ]
        widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head) - 1)]
        return [
            "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[-1]])
            for row in (head, *rows)
        ]

    def as_lines(self) -> list[str]:
        """Return a few lines for a terminal."""
        size = f"{self.float_bytes:,} bytes float" + (f", {self.bytes:,} bytes {self.scheme}" if self.bytes else "")
        lines = [f"{self.outcome}: {self.reason}", f"size: {size}", f"method: {self.method} ({self.numerics})"]
        if self.gate is not None:
            lines.append(f"gate on {self.gate.samples} held-out samples ({self.gate.origin[:20]}): {self.gate.verdict}")
            lines.extend(f"  {output.as_line()}" for output in self.gate.outputs)
            if self.gate.metric is not None:
                lines.append(f"  {self.gate.metric.explanation}")
        if self.latency is not None:
            lines.append(f"speed: {self.latency.describe()}")
        if self.oldest_runtime is not None:
            lines.append(f"runs on: onnxruntime {self.oldest_runtime} and later")
        if self.float_nodes:
            lines.append(f"nodes in float: {', '.join(self.float_nodes)}")
        if self.promoted_activations:
            lines.append(f"16-bit activations: {', '.join(self.promoted_activations)}")
        if self.promoted_weights:
            lines.append(f"8-bit weights: {', '.join(self.promoted_weights)}")
        lines.extend(f"note: {note}" for note in self.notes)
        return lines
