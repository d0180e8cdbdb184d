"""Which nodes of a quantized model spoil the answers, and which of them must go back to float.

Rules:
1. A node's error is the relative RMS of the output with that node alone quantized, over a few samples; nodes that
   share a weight are one.
2. Errors of nodes add up in squares, as independent rounding does; so the smallest set to keep in float is the worst
   nodes, until the sum of the rest is below the aim.
3. At most MAX_TRIED are tried one by one; where a model has more, neighbors in graph order are tried together, so
   that the cost is bounded.
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

SENSITIVITY_SAMPLES: Final = 8
MAX_MEASURED_GROUPS: Final = 48
ERROR_TARGET_SHARES: Final = (0.8, 0.5, 0.3, 0.15, 0.05)  # of the allowed relative RMS, for what stays quantized


@dataclass(frozen=True, slots=True)
class NodeError:
    """Nodes that were quantized alone, and the squared relative RMS that this cost."""

    nodes: tuple[str, ...]
    squared_error: float

    def as_json(self) -> dict[str, object]:
        """Plain values; `relative_rms` is None where the answers broke."""
        return {"nodes": list(self.nodes), "relative_rms": finite_or_none(float(np.sqrt(self.squared_error)))}


def node_errors(
    build: Callable[[frozenset[str]], onnx.ModelProto],
    node_groups: list[tuple[str, ...]],
    reference: onnxruntime.InferenceSession,
    samples: Samples,
) -> list[NodeError]:
    """The blame of every node or group (rules 1 and 3), worst first.

    Args:
        build: makes a model with the given nodes kept in float.
        families: names of all nodes that `build` can quantize, in graph order, those that share a weight together.
        reference: a session of the float model.
        samples: SAMPLES of them are used.
    """
    few = samples.take(SENSITIVITY_SAMPLES)
    found = []
    nodes = frozenset(name for family in node_groups for name in family)
    for spots in np.array_split(np.arange(len(node_groups)), min(len(node_groups), MAX_MEASURED_GROUPS)):
        names = tuple(name for spot in spots for name in node_groups[spot])
        try:
            model = build(nodes - set(names))
            report = judge(reference, open_session_of(model, settings_for(model)), few)
        except QuantizationRefused:
            continue  # it has no weight of its own
        except ModelDoesNotRun:
            found.append(NodeError(names, float("inf")))
            continue
        # an output of whole numbers has no RMS: the share of values that changed ranks its nodes
        errors = [1 - o.exact_share if o.relative_rms is None else o.relative_rms for o in report.outputs]
        worst = max(errors, default=0.0)
        broken = any(o.broken_samples for o in report.outputs)
        found.append(NodeError(names, float("inf") if broken else worst**2))
    return sorted(found, key=lambda blamed: -blamed.squared_error)


def repair_candidates(errors: list[NodeError], allowed: float) -> list[tuple[str, ...]]:
    """Sets of nodes to keep in float, smallest first: by rule 2 for each of AIMS, else the worst quarter and half."""
    everything = sum(len(blamed.nodes) for blamed in errors)
    sets = [nodes_to_keep_in_float(errors, share * allowed) for share in ERROR_TARGET_SHARES]
    sets += [tuple(name for b in errors[: -(-len(errors) // part)] for name in b.nodes) for part in (4, 2)]
    useful = {kept for kept in sets if 0 < len(kept) < everything}
    return sorted(useful, key=lambda kept: (len(kept), kept))


def nodes_to_keep_in_float(errors: list[NodeError], max_error: float) -> tuple[str, ...]:
    """The worst nodes, so many that the rest stays within relative RMS `aim` (rule 2)."""
    left = sum(blamed.squared_error for blamed in errors if np.isfinite(blamed.squared_error))
    kept: list[str] = []
    for blamed in errors:
        if np.isfinite(blamed.squared_error):
            if left <= max_error**2:
                break
            left -= blamed.squared_error
        kept.extend(blamed.nodes)
    return tuple(kept)


def with_outputs(model: onnx.ModelProto, names: list[str]) -> onnx.ModelProto:
    """A copy whose graph also gives the values `names`."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    existing = {value.name for value in copy.graph.output}
    copy.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in existing)
    return copy
