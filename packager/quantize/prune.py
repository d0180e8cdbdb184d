"""Prune by magnitude: the smallest weights become zero, behind the same gate as quantization.

1. Unstructured: in each weight the given share of smallest magnitudes becomes zero; ties go by position, so that the
   same model gives the same bytes. 2:4: of each four neighbors along the inputs, the two smallest.
2. Zeros make files and patches smaller, not inference faster: no CPU kernel of the runtime uses them.
3. The result is written only if the gate passes.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import numpy as np

from packager.errors import GateFailed, GateInconclusive, QuantizationRefused
from packager.models.graphs import WeightUse, array_of, set_array, weight_uses
from packager.models.inputs import load_proto
from packager.models.model_files import save_model
from packager.models.samples import Samples
from packager.models.sessions import open_session, open_session_of
from packager.models.trial_run import run_trial
from packager.quantize.gate import DEFAULT_THRESHOLDS, GateReport, Thresholds, judge
from packager.quantize.prepare import check_quantizable, lift_constants
from packager.quantize.weight_only import MIN_ELEMENTS, channel_axis

Pattern = Literal["unstructured", "2:4"]

QUAD_WEIGHTS: Final = 4  # neighbors along the inputs
KEPT_WEIGHTS_OF_QUAD: Final = 2  # weights that stay of each four


@dataclass(frozen=True, slots=True)
class PruningReport:
    """Share of zeros among the pruned weights, their number, and the gate on the held-out samples."""

    sparsity: float
    weights: int
    gate: GateReport

    def as_json(self) -> dict[str, object]:
        """Return plain values for `--json`."""
        return {"sparsity": self.sparsity, "weights": self.weights, "gate": self.gate.as_json()}


def prune_model(
    model: Path,
    out: Path,
    samples: Samples,
    *,
    sparsity: float = 0.5,
    pattern: Pattern = "unstructured",
    thresholds: Thresholds = DEFAULT_THRESHOLDS,
) -> PruningReport:
    """Write a copy of `model` with its smallest weights set to zero.

    Args:
        model: a float ONNX file.
        out: the file to write.
        samples: inputs; the held-out half is judged.
        sparsity: share of weights that become zero, between 0 and 1; for "unstructured".
        pattern: "unstructured" or "2:4".
        thresholds: limits of the gate.

    Raises:
        QuantizationRefused: there is nothing to prune, or the sparsity is not between 0 and 1.
        GateFailed, GateInconclusive: nothing was written.
        AlreadyQuantized, WeightsNotFinite, ModelUnreadable, ModelDoesNotRun, ModelCrashes: the model cannot be used.
    """
    if not 0.0 < sparsity < 1.0:
        raise QuantizationRefused(f"sparsity {sparsity}, expected a number between 0 and 1")
    run_trial(model, samples)
    pruned = lift_constants(load_proto(model))
    check_quantizable(pruned, str(model))
    zeros = total = 0
    seen: set[int] = set()
    for use in weight_uses(pruned):
        if use.elements < MIN_ELEMENTS or id(use.tensor) in seen or use.node.op_type == "Gather":
            continue
        seen.add(id(use.tensor))
        values = prune_values(use, sparsity, pattern)
        set_array(use.tensor, values)
        zeros += int(np.count_nonzero(values == 0))
        total += values.size
    if not total:
        raise QuantizationRefused(f"{model}: found no weight of {MIN_ELEMENTS} or more elements to prune")
    verdict = judge(open_session(model), open_session_of(pruned), samples.split_halves()[1], thresholds)
    if verdict.verdict == "fail":
        raise GateFailed(f"{model}: {verdict.explanation}", hint="lower --sparsity, or train the model for it")
    if verdict.verdict == "inconclusive":
        raise GateInconclusive(
            f"{model}: {verdict.explanation}", hint="give real inputs of several kinds with --inputs"
        )
    save_model(pruned, out)
    return PruningReport(zeros / total, total, verdict)


def prune_values(use: WeightUse, sparsity: float, pattern: Pattern) -> np.ndarray:
    """Return the weight with its smallest magnitudes set to zero, in its own shape and dtype.

    Args:
        use: the node that reads the weight; it determines the axis of the channels.
        sparsity: share of zeros, for "unstructured".
        pattern: "unstructured" or "2:4".
    """
    values = array_of(use.tensor).copy()
    if pattern == "unstructured":
        flat = values.reshape(-1)
        order = np.argsort(np.abs(flat), kind="stable")
        flat[order[: int(sparsity * flat.size)]] = 0
        return flat.reshape(values.shape)
    channels_first = np.moveaxis(values, channel_axis(use), 0)
    rows = channels_first.reshape(channels_first.shape[0], -1)
    whole = rows.shape[1] // QUAD_WEIGHTS * QUAD_WEIGHTS
    quads = rows[:, :whole].reshape(rows.shape[0], -1, QUAD_WEIGHTS).copy()
    smallest = np.argsort(np.abs(quads), axis=2, kind="stable")[..., : QUAD_WEIGHTS - KEPT_WEIGHTS_OF_QUAD]
    np.put_along_axis(quads, smallest, 0, axis=2)
    full = np.concatenate([quads.reshape(rows.shape[0], -1), rows[:, whole:]], axis=1)
    return np.moveaxis(full.reshape(channels_first.shape), 0, channel_axis(use))
