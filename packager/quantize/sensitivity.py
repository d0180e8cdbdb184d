"""Which nodes of a quantized model spoil the answers, and which of them must go back to float.

Rules:
1. A node's error is the relative RMS of the output with that node alone quantized, over a few samples; nodes that
   share a weight are one.
2. Errors of nodes add up in squares, as independent rounding does; so the smallest set to keep in float is the worst
   nodes, until the sum of the rest is below the aim.
3. At most MAX_TRIED are tried one by one; where a model has more, neighbours in graph order are tried together, so
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
from packager.models.sessions import session_of, settings_for
from packager.quantize.agreement import finite
from packager.quantize.gate import judge

SAMPLES: Final = 8
MAX_TRIED: Final = 48
AIMS: Final = (0.8, 0.5, 0.3, 0.15, 0.05)  # of the allowed relative RMS, for what stays quantized


@dataclass(frozen=True, slots=True)
class Blame:
    """Nodes that were quantized alone, and the squared relative RMS that this cost."""

    nodes: tuple[str, ...]
    squared: float

    def as_json(self) -> dict[str, object]:
        """Plain values; `relative_rms` is None where the answers broke."""
        return {"nodes": list(self.nodes), "relative_rms": finite(float(np.sqrt(self.squared)))}


def blame(
    build: Callable[[frozenset[str]], onnx.ModelProto],
    families: list[tuple[str, ...]],
    reference: onnxruntime.InferenceSession,
    samples: Samples,
) -> list[Blame]:
    """The blame of every node or group (rules 1 and 3), worst first.

    Args:
        build: makes a model with the given nodes kept in float.
        families: names of all nodes that `build` can quantize, in graph order, those that share a weight together.
        reference: a session of the float model.
        samples: SAMPLES of them are used.
    """
    few = samples.take(SAMPLES)
    found = []
    nodes = frozenset(name for family in families for name in family)
    for spots in np.array_split(np.arange(len(families)), min(len(families), MAX_TRIED)):
        names = tuple(name for spot in spots for name in families[spot])
        try:
            model = build(nodes - set(names))
            report = judge(reference, session_of(model, settings_for(model)), few)
        except QuantizationRefused:
            continue  # it has no weight of its own
        except ModelDoesNotRun:
            found.append(Blame(names, float("inf")))
            continue
        # an output of whole numbers has no RMS: the share of values that changed ranks its nodes
        errors = [1 - o.exact_share if o.relative_rms is None else o.relative_rms for o in report.outputs]
        worst = max(errors, default=0.0)
        broken = any(o.broken_samples for o in report.outputs)
        found.append(Blame(names, float("inf") if broken else worst**2))
    return sorted(found, key=lambda blamed: -blamed.squared)


def repairs(blames: list[Blame], allowed: float) -> list[tuple[str, ...]]:
    """Sets of nodes to keep in float, smallest first: by rule 2 for each of AIMS, else the worst quarter and half."""
    everything = sum(len(blamed.nodes) for blamed in blames)
    sets = [keep_in_float(blames, share * allowed) for share in AIMS]
    sets += [tuple(name for b in blames[: -(-len(blames) // part)] for name in b.nodes) for part in (4, 2)]
    useful = {kept for kept in sets if 0 < len(kept) < everything}
    return sorted(useful, key=lambda kept: (len(kept), kept))


def keep_in_float(blames: list[Blame], aim: float) -> tuple[str, ...]:
    """The worst nodes, so many that the rest stays within relative RMS `aim` (rule 2)."""
    left = sum(blamed.squared for blamed in blames if np.isfinite(blamed.squared))
    kept: list[str] = []
    for blamed in blames:
        if np.isfinite(blamed.squared):
            if left <= aim**2:
                break
            left -= blamed.squared
        kept.extend(blamed.nodes)
    return tuple(kept)


def with_outputs(model: onnx.ModelProto, names: list[str]) -> onnx.ModelProto:
    """A copy whose graph also gives the values `names`."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    existing = {value.name for value in copy.graph.output}
    copy.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in existing)
    return copy
