"""What layers multiply, in both models: rows of the float model's inputs on disk, second moments of both in memory.

Rules:
1. Models run one sample at a time; at most MAX_ROWS rows a layer are used, evenly taken from the samples.
2. The float model's rows are the same for every solution: they are written to a folder once. The quantized model's are
   never stored, only their moments.
3. Layers that share an input share its moments. Neighbouring layers are measured together where a model has more than
   MAX_STAGES of them: fewer runs, less exact (relative RMS .083 became .086 with two layers a stage).
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
import onnx
import onnxruntime

from packager.inputs import Sample, Samples
from packager.quantize.runs import run, session_of
from packager.quantize.sensitivity import with_outputs
from packager.quantize.update.template import QuantizedWeight

MAX_ROWS: Final = 16_384
MAX_STAGES: Final = 40


@dataclass(slots=True)
class Moments:
    """Of one group of one input: `h` = E[x_q x_q'], `c` = E[x_q x_f'] (centred by `finish`), and the means."""

    size: int
    h: np.ndarray = field(init=False)
    c: np.ndarray = field(init=False)
    mean_q: np.ndarray = field(init=False)
    mean_f: np.ndarray = field(init=False)
    rows: int = 0
    waiting: list[tuple[np.ndarray, np.ndarray]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.h = np.zeros((self.size, self.size), np.float32)
        self.c = np.zeros((self.size, self.size), np.float32)
        self.mean_q, self.mean_f = np.zeros(self.size), np.zeros(self.size)

    def add(self, q: np.ndarray, f: np.ndarray) -> None:
        """Rows [rows, size] of both models; multiplied in bundles, since adding to `h` costs as much as many rows."""
        self.waiting.append((q.copy(), f.copy()))
        if sum(len(pair[0]) for pair in self.waiting) >= max(256, self.size):
            self._flush()

    def finish(self) -> None:
        """Sums become centred means."""
        self._flush()
        count = np.float32(max(self.rows, 1))
        self.mean_q /= count
        self.mean_f /= count
        self.h /= count
        self.c /= count
        self.h -= np.outer(self.mean_q, self.mean_q).astype(np.float32)
        self.c -= np.outer(self.mean_q, self.mean_f).astype(np.float32)

    def _flush(self) -> None:
        if self.waiting:
            q = np.concatenate([pair[0] for pair in self.waiting])
            f = np.concatenate([pair[1] for pair in self.waiting])
            self.waiting.clear()
            self.h += q.T @ q
            self.c += q.T @ f
            self.mean_q += q.sum(axis=0, dtype=np.float64)
            self.mean_f += f.sum(axis=0, dtype=np.float64)
            self.rows += len(q)


@dataclass(frozen=True, slots=True)
class Shared:
    """Weights that multiply the same rows, and where the float model's rows of each sample lie."""

    number: int
    weights: tuple[QuantizedWeight, ...]

    @property
    def first(self) -> QuantizedWeight:
        return self.weights[0]

    def path(self, folder: Path, group: int) -> Path:
        return folder / f"{self.number}-{group}.npy"


def stages(prepared: onnx.ModelProto, weights: list[QuantizedWeight]) -> list[list[Shared]]:
    """Watched weights in the order in which the float model reads them, grouped by rule 3."""
    place = {node.name: i for i, node in enumerate(prepared.graph.node)}
    layers: dict[tuple[str, ...], list[QuantizedWeight]] = {}
    for weight in sorted(weights, key=lambda w: place[w.float_node.name]):
        layers.setdefault(_layer_key(weight), []).append(weight)
    shared = [Shared(i, tuple(group)) for i, group in enumerate(layers.values())]
    together = max(1, -(-len(shared) // MAX_STAGES))
    return [shared[i : i + together] for i in range(0, len(shared), together)]


def store_float_rows(prepared: onnx.ModelProto, everything: list[Shared], samples: Samples, folder: Path) -> None:
    """Write the float model's rows of every layer into `folder` (rule 2), as float32 [rows, inputs] arrays."""
    names = sorted({shared.first.float_source or "" for shared in everything})
    running = watching(prepared, names)
    limit = row_limit(samples)
    paths = {(s.number, g): s.path(folder, g) for s in everything for g in range(shape_of(s.first)[1])}
    streams = {key: path.open("wb") for key, path in paths.items()}
    try:
        for sample in samples:
            values = values_at(running, sample, names)
            for shared in everything:
                rows = rows_of(values[shared.first.float_source or ""], shared.first, limit)
                for group, found in enumerate(rows):
                    streams[shared.number, group].write(np.ascontiguousarray(found, np.float32).tobytes())
    finally:
        for stream in streams.values():
            stream.close()


def float_rows(shared: Shared, group: int, folder: Path) -> np.ndarray:
    """The stored rows [rows, inputs] of one group, mapped from disk."""
    size = shape_of(shared.first)[0]
    path = shared.path(folder, group)
    if path.stat().st_size == 0:
        return np.zeros((0, size), np.float32)
    return np.memmap(path, np.float32, "r").reshape(-1, size)


def moments(candidate: onnx.ModelProto, stage: list[Shared], samples: Samples, folder: Path) -> list[list[Moments]]:
    """For each of `stage`, the moments of each of its groups, behind `candidate`'s prefix."""
    names = sorted({shared.first.source or "" for shared in stage})
    running = watching(candidate, names)
    found = [[Moments(shape_of(s.first)[0]) for _ in range(shape_of(s.first)[1])] for s in stage]
    stored = [[float_rows(s, g, folder) for g in range(shape_of(s.first)[1])] for s in stage]
    spots = [0] * len(stage)
    limit = row_limit(samples)
    for sample in samples:
        values = values_at(running, sample, names)
        for i, shared in enumerate(stage):
            rows = rows_of(values[shared.first.source or ""], shared.first, limit)
            for group, q in enumerate(rows):
                f = stored[i][group][spots[i] : spots[i] + len(q)]
                if len(f) == len(q):
                    found[i][group].add(q, f)
            spots[i] += len(rows[0])
    for parts in found:
        for part in parts:
            part.finish()
    return found


def row_limit(samples: Samples) -> int:
    """Rows a sample (rule 1)."""
    return max(1, MAX_ROWS // max(1, len(samples)))


def rows_of(activation: np.ndarray, weight: QuantizedWeight, limit: int) -> list[np.ndarray]:
    """float32 [rows, inputs] for each group: what `weight` multiplies, at most `limit` rows, evenly taken."""
    size, groups = shape_of(weight)
    if weight.kind == "conv":
        kernel = tuple(weight.counterpart.dims[2:])
        return [patches(activation, weight.float_node, kernel, group, groups, limit) for group in range(groups)]
    flat = activation.reshape(-1, size).astype(np.float32, copy=False)
    step = -(-len(flat) // max(1, limit))
    return [flat[:: max(1, step)]] * groups


def patches(
    image: np.ndarray, node: onnx.NodeProto, kernel: tuple[int, ...], group: int, groups: int, limit: int
) -> np.ndarray:
    """float32 [places, channels / groups * kernel]: the patches that a Conv multiplies, at most `limit` places."""
    attributes = {a.name: list(a.ints) for a in node.attribute if a.ints}
    rank = len(kernel)
    strides, dilations = attributes.get("strides", [1] * rank), attributes.get("dilations", [1] * rank)
    spans = tuple((k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True))
    pads = attributes.get("pads", [0] * 2 * rank)
    auto = next((a.s.decode() for a in node.attribute if a.name == "auto_pad"), "NOTSET")
    if auto.startswith("SAME"):
        sizes = image.shape[2:]
        total = [max(0, (-(-n // s) - 1) * s + e - n) for n, s, e in zip(sizes, strides, spans, strict=True)]
        first = [t // 2 if auto == "SAME_UPPER" else -(-t // 2) for t in total]
        pads = [*first, *[t - f for t, f in zip(total, first, strict=True)]]
    per_group = image.shape[1] // groups
    part = image[:, group * per_group : (group + 1) * per_group].astype(np.float32, copy=False)
    part = np.pad(part, [(0, 0), (0, 0), *[(pads[i], pads[i + rank]) for i in range(rank)]])
    windows = np.lib.stride_tricks.sliding_window_view(part, spans, axis=tuple(range(2, 2 + rank)))
    places = tuple(slice(None, None, s) for s in strides)
    inner = tuple(slice(None, None, d) for d in dilations)
    windows = windows[(slice(None), slice(None), *places, *inner)]
    # [batch, channels, places..., kernel...] -> [batch, places..., channels, kernel...]
    moved = np.moveaxis(windows, 1, 1 + rank)
    count = int(np.prod(moved.shape[: 1 + rank]))
    step = max(1, -(-count // max(1, limit)))
    spots = np.unravel_index(np.arange(0, count, step), moved.shape[: 1 + rank])
    return np.asarray(moved[spots].reshape(len(spots[0]), -1))


def values_at(running: onnxruntime.InferenceSession, sample: Sample, names: list[str]) -> dict[str, np.ndarray]:
    """The values `names`: from the sample itself where they are inputs, else from one run."""
    outputs = [name for name in names if name not in sample]
    found = dict(zip(outputs, run(running, sample, outputs), strict=True)) if outputs else {}
    return {name: sample[name] if name in sample else found[name] for name in names}


def watching(model: onnx.ModelProto, names: list[str]) -> onnxruntime.InferenceSession:
    """A session that gives the values `names` and computes no more than they need."""
    inputs = {value.name for value in model.graph.input}
    wanted = {name for name in names if name not in inputs}
    copy = with_outputs(model, sorted(wanted))
    if wanted:
        kept = []
        for value in copy.graph.output:
            if value.name in wanted:
                twin = onnx.ValueInfoProto()
                twin.CopyFrom(value)
                kept.append(twin)
        del copy.graph.output[:]
        copy.graph.output.extend(kept)
    return session_of(copy)


def shape_of(weight: QuantizedWeight) -> tuple[int, int]:
    """(inputs of one group, groups) of a weight's matrices."""
    dims = list(weight.counterpart.dims)
    match weight.kind:
        case "conv":
            groups = next((int(a.i) for a in weight.float_node.attribute if a.name == "group"), 1)
            return int(np.prod(dims[1:])), groups
        case "recurrent":
            return dims[2], dims[0]
        case "matrix" | "transposed" | "nbits":
            flags = {a.name: a.i for a in weight.float_node.attribute}
            return (dims[1] if flags.get("transB") else dims[0]), 1
        case "table":
            return dims[0], 1
        case _:
            return 0, 1


def _layer_key(weight: QuantizedWeight) -> tuple[str, ...]:
    cut = ""
    if weight.kind == "conv":
        # the same image is cut into other patches by another kernel, stride or padding
        cut = f"{list(weight.counterpart.dims)[1:]}"
        cut += "".join(sorted(a.SerializeToString().hex() for a in weight.float_node.attribute))
    return weight.float_source or "", weight.source or "", cut
