"""Measure golden vectors: what they cost in bytes, and which damage they find.

    python -m benchmarks.golden_power MODEL.onnx...

Of every model, golden vectors are recorded, and again for a copy with small changes in all weights, as of a fine-tune.
Inputs come from `MODEL.npz` beside the model (first axis = sample; `benchmarks.published_models` writes such files), or
are random. "golden" is the patch without a base of the file of golden vectors, "update" the patch between the two
models, "golden in it" the patch between the two files of golden vectors.

Damaged copies have one weight set to zero, one channel of a weight with its sign flipped, or one weight scaled by 1.02,
for weights spread over the model. "by whole" compares whole outputs of up to 8 samples, as they were drawn, "by golden"
the golden vectors. A copy that neither finds is not counted. The columns count copies by damage: zero, flip, scale.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import numpy as np
import onnx
from onnx import numpy_helper

from bundle.errors import AirweightsError, GoldenMismatch
from bundle.golden.comparison import GoldenVector, check_outputs
from bundle.golden.golden_file import read_golden_file
from bundle.golden.relative_error import relative_rms
from packager.diff.bundle_folder import open_bundle
from packager.diff.write.make_patch import make_patch
from packager.models.golden_vectors import record_golden
from packager.models.graphs import all_tensors
from packager.models.inputs import ModelInterface, Sample, load_proto
from packager.models.random_inputs import random_samples
from packager.models.samples import Samples, load_samples, samples_from
from packager.models.sessions import open_session, run_session

WEIGHTS: Final = 6  # damaged weights of each model
MIN_ELEMENTS: Final = 64
SAMPLES: Final = 8
Change = Callable[[np.ndarray], np.ndarray]


def flip_channel(values: np.ndarray) -> np.ndarray:
    """Return a copy with the sign of the first channel flipped."""
    out = values.copy()
    out[0] = -out[0]
    return out


CHANGES: Final[dict[str, Change]] = {
    "zero": np.zeros_like,
    "flip": flip_channel,
    "scale": lambda values: (values * 1.02).astype(values.dtype),
}


def float_weights(proto: onnx.ModelProto) -> list[onnx.TensorProto]:
    """Return the weights of at least two axes: initializers, and constants of nodes and branches."""
    return [
        tensor
        for tensor in all_tensors(proto)
        if tensor.data_type == onnx.TensorProto.FLOAT and len(tensor.dims) > 1 and np.prod(tensor.dims) >= MIN_ELEMENTS
    ]


def damaged_copies(proto: onnx.ModelProto) -> Iterator[tuple[str, onnx.ModelProto]]:
    """Yield (kind of damage, model) for WEIGHTS weights."""
    weights = float_weights(proto)
    for index in sorted({round(i * (len(weights) - 1) / (WEIGHTS - 1)) for i in range(WEIGHTS)}) if weights else ():
        kept = weights[index].SerializeToString()
        for kind, change in CHANGES.items():
            values = numpy_helper.to_array(weights[index])
            weights[index].CopyFrom(numpy_helper.from_array(change(values), weights[index].name))
            yield kind, proto
            weights[index].ParseFromString(kept)


def tune(proto: onnx.ModelProto, seed: int) -> onnx.ModelProto:
    """Return a copy with small changes in all float weights."""
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    rng = np.random.default_rng(seed)
    for tensor in float_weights(copy):
        values = numpy_helper.to_array(tensor)
        step = 1e-3 * float(values.std()) * rng.standard_normal(values.shape)
        tensor.CopyFrom(numpy_helper.from_array((values + step).astype(np.float32), tensor.name))
    return copy


def outputs_of(model: Path, inputs: list[Sample]) -> list[Sample]:
    """Run a model on all inputs."""
    running = open_session(model)
    names = [output.name for output in running.get_outputs()]
    return [dict(zip(names, run_session(running, sample), strict=True)) for sample in inputs]


def is_found(outputs: list[Sample], golden: tuple[GoldenVector, ...], tolerance_ppm: int) -> bool:
    """Return whether the golden vectors refuse the outputs."""
    try:
        for found, vector in zip(outputs, golden, strict=True):
            check_outputs(found, vector, tolerance_ppm=tolerance_ppm, where="golden")
    except GoldenMismatch:
        return True
    return False


def whole_error(outputs: list[Sample], expected: list[Sample]) -> float:
    """Return the largest relative RMS error of a whole output."""
    worst = 0.0
    for found, golden in zip(outputs, expected, strict=True):
        for name, array in golden.items():
            if found[name].shape != array.shape or (array.dtype.kind != "f" and not np.array_equal(found[name], array)):
                return 1.0
            with np.errstate(all="ignore"):
                error = relative_rms(found[name], array) if array.dtype.kind == "f" else 0.0
            worst = max(worst, error if np.isfinite(error) else 1.0)
    return worst


def read_samples(model: Path) -> Samples:
    """Return samples of the `.npz` beside a model, evenly spread, or random ones."""
    path = model.with_suffix(".npz")
    if not path.is_file():
        return random_samples(model, SAMPLES)
    samples = load_samples(path, ModelInterface.from_file(model))
    rows = np.linspace(0, len(samples) - 1, SAMPLES).astype(int)
    return samples_from([sample for row, sample in enumerate(samples) if row in rows])


def patch_bytes(base: Path | None, target: Path, folder: Path) -> int:
    """Return the size of the patch between two files, or of the full download without a base."""
    path = folder / "patch"
    with path.open("wb") as out:
        return make_patch(None if base is None else open_bundle(base), open_bundle(target), out).plain_size


def measure(model: Path, folder: Path) -> str:
    """Return the row of one model."""
    proto = load_proto(model)
    samples = read_samples(model)
    first, second = folder / "1.bin", folder / "2.bin"
    report = record_golden(model, samples, first, SAMPLES)
    golden = read_golden_file(first.read_bytes())
    tuned = folder / "tuned.onnx"
    onnx.save(tune(proto, 1), str(tuned))
    record_golden(tuned, samples, second, SAMPLES, earlier=golden)
    first_download = patch_bytes(None, first, folder)
    alone, added = patch_bytes(model, tuned, folder), patch_bytes(first, second, folder)
    inputs = [dict(sample) for sample in samples]
    expected = outputs_of(model, inputs)
    found = {way: dict.fromkeys(CHANGES, 0) for way in ("damaged", "whole", "sketch")}
    for kind, copy in damaged_copies(proto):
        path = folder / "damaged.onnx"
        onnx.save(copy, str(path))
        try:
            by_whole = 1e6 * whole_error(outputs_of(path, inputs), expected) > report.tolerance_ppm
            by_sketch = is_found(
                outputs_of(path, [vector.inputs for vector in golden.samples]), golden.samples, report.tolerance_ppm
            )
        except AirweightsError:
            continue
        found["damaged"][kind] += by_whole or by_sketch
        found["sketch"][kind] += by_sketch
        found["whole"][kind] += by_whole
    whole_bytes = sum(array.nbytes for sample in (*inputs, *expected) for array in sample.values())
    counts = " | ".join(", ".join(map(str, found[way].values())) for way in ("damaged", "whole", "sketch"))
    return (
        f"| {model.stem} | {model.stat().st_size:,} | {whole_bytes:,} | {first_download:,} | {alone:,} | {added:,} | "
        f"{counts} |"
    )


def main() -> int:
    """Print one row for each model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=Path, nargs="+")
    print("| model | bytes | whole, bytes | golden, bytes | update | golden in it | damaged | by whole | by golden |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | --- | --- | --- |")
    for model in parser.parse_args().models:
        with tempfile.TemporaryDirectory() as folder:
            try:
                print(measure(model, Path(folder)), flush=True)
            except AirweightsError as error:
                print(f"| {model.stem} | {error.message} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
