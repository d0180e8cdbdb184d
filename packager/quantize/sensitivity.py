"""Measure node errors, and choose which nodes return to float or get more bits.

With e_i = relative RMS of the outputs if only node i is quantized: rounding errors of nodes are independent, so the
outputs' error is about sqrt(sum e_i^2). The smallest set to repair for a target error is therefore the worst nodes,
until the sum of the rest is below target^2.

Nodes that share a weight count as one. At most MAX_MEASURED_GROUPS are measured one by one; if a model has more,
neighbors in graph order are measured together, which bounds the cost.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
import onnx
import onnxruntime

from packager.errors import ModelDoesNotRun, QuantizationRefused
from packager.models.samples import Samples
from packager.models.sessions import open_session_of, settings_for
from packager.quantize.agreement import finite_or_none
from packager.quantize.gate import judge
from packager.quantize.search_progress import SearchProgress

SENSITIVITY_SAMPLES: Final = 8  # samples for each node; trades time for less noise
MAX_MEASURED_GROUPS: Final = 48  # models that are built and run
# of the allowed relative RMS, for the nodes that stay quantized
ERROR_TARGET_SHARES: Final = (0.8, 0.5, 0.3, 0.15, 0.05)


@dataclass(frozen=True, slots=True)
class NodeError:
    """Nodes that were quantized alone, and the squared relative RMS of the outputs.
    The error is infinite if the model broke.
    """

    nodes: tuple[str, ...]
    squared_error: float

    def as_json(self) -> dict[str, object]:
        """Return plain values; the error is None if the model broke."""
        return {"nodes": list(self.nodes), "relative_rms": finite_or_none(float(np.sqrt(self.squared_error)))}


def node_errors(
    build: Callable[[frozenset[str]], onnx.ModelProto],
    node_groups: list[tuple[str, ...]],
    reference: onnxruntime.InferenceSession,
    samples: Samples,
    progress: SearchProgress | None = None,
) -> list[NodeError]:
    """Return the error of every node or group, worst first.

    Args:
        build: makes a model in which the given nodes stay float.
        node_groups: names of all nodes that `build` can quantize, in graph order; nodes that share a weight are one
            group.
        reference: session of the float model.
        samples: inputs; SENSITIVITY_SAMPLES of them are used.
        progress: counts the groups, or None.
    """
    few = samples.take(SENSITIVITY_SAMPLES)
    found = []
    nodes = frozenset(name for group in node_groups for name in group)
    progress = progress or SearchProgress()
    parts = np.array_split(np.arange(len(node_groups)), min(len(node_groups), MAX_MEASURED_GROUPS))
    progress.plan(len(parts))
    for indices in parts:
        progress.step()
        names = tuple(name for index in indices for name in node_groups[index])
        try:
            model = build(nodes - set(names))
            report = judge(reference, open_session_of(model, settings_for(model)), few)
        except QuantizationRefused:
            continue  # it has no weight of its own
        except ModelDoesNotRun:
            found.append(NodeError(names, float("inf")))
            continue
        # an output of integers has no RMS: the share of changed values ranks its nodes
        errors = [1 - o.exact_share if o.relative_rms is None else o.relative_rms for o in report.outputs]
        worst = max(errors, default=0.0)
        broken = any(o.broken_samples for o in report.outputs)
        found.append(NodeError(names, float("inf") if broken else worst**2))
    return sorted(found, key=lambda node_error: -node_error.squared_error)


def repair_candidates(errors: list[NodeError], allowed: float) -> list[tuple[str, ...]]:
    """Return sets of nodes to repair, smallest first.
    There is one for each target error, and the worst quarter and half of all nodes.

    Args:
        errors: node errors, worst first.
        allowed: relative RMS that the gate allows.
    """
    everything = sum(len(node_error.nodes) for node_error in errors)
    sets = [nodes_to_keep_in_float(errors, share * allowed) for share in ERROR_TARGET_SHARES]
    sets += [tuple(name for b in errors[: -(-len(errors) // part)] for name in b.nodes) for part in (4, 2)]
    useful = {kept for kept in sets if 0 < len(kept) < everything}
    return sorted(useful, key=lambda kept: (len(kept), kept))


def nodes_to_keep_in_float(errors: list[NodeError], max_error: float) -> tuple[str, ...]:
    """Return the names of the worst nodes, as many as bring the error of the rest down to `max_error`.

    Args:
        errors: node errors, worst first.
        max_error: relative RMS.
    """
    left = sum(node_error.squared_error for node_error in errors if np.isfinite(node_error.squared_error))
    kept: list[str] = []
    for node_error in errors:
        if np.isfinite(node_error.squared_error):
            if left <= max_error**2:
                break
            left -= node_error.squared_error
        kept.extend(node_error.nodes)
    return tuple(kept)


def with_outputs(model: onnx.ModelProto, names: list[str]) -> onnx.ModelProto:
    """Return a copy of the model whose outputs include the given values.

    Args:
        model: any model.
        names: names of values of the top graph.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    existing = {value.name for value in copy.graph.output}
    copy.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in existing)
    return copy
