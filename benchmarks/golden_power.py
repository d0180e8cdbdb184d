"""Measure golden vectors: what they cost in bytes, and which damage they find.

    python -m benchmarks.golden_power MODEL.onnx...

Of every model, golden vectors are recorded with random inputs, and again for a copy with small changes in all weights,
as a fine-tune would make them. `update` is the patch between the two with golden vectors, `alone` without. Damaged
copies have one weight set to zero, one channel of a weight with its sign flipped, or one weight scaled by 1.02, for
weights spread over the model. They are compared with the golden vectors (`sketch`), and with whole outputs of up to 8
samples as they were drawn (`whole`). A copy that neither finds is not counted.
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
from packager.models.inputs import Sample, load_proto
from packager.models.random_inputs import random_samples
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


def damaged_copies(proto: onnx.ModelProto) -> Iterator[tuple[str, onnx.ModelProto]]:
    """Yield (kind of damage, model) for WEIGHTS weights."""
    weights = [
        tensor
        for tensor in proto.graph.initializer
        if tensor.data_type == onnx.TensorProto.FLOAT and np.prod(tensor.dims) >= MIN_ELEMENTS
    ]
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
    for tensor in copy.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT and np.prod(tensor.dims) >= MIN_ELEMENTS:
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


def patch_bytes(base: Path, target: Path, folder: Path) -> int:
    """Return the size of the patch between two files."""
    path = folder / "patch"
    with path.open("wb") as out:
        return make_patch(open_bundle(base), open_bundle(target), out).plain_size


def measure(model: Path, folder: Path) -> str:
    """Return the row of one model."""
    proto = load_proto(model)
    samples = random_samples(model, SAMPLES)
    first, second = folder / "1.bin", folder / "2.bin"
    report = record_golden(model, samples, first, SAMPLES)
    golden = read_golden_file(first.read_bytes())
    tuned = folder / "tuned.onnx"
    onnx.save(tune(proto, 1), str(tuned))
    record_golden(tuned, samples, second, SAMPLES, earlier=golden)
    alone, added = patch_bytes(model, tuned, folder), patch_bytes(first, second, folder)
    inputs = [dict(sample) for sample in samples]
    expected = outputs_of(model, inputs)
    found = {"sketch": 0, "whole": 0, "damaged": 0}
    for _, copy in damaged_copies(proto):
        path = folder / "damaged.onnx"
        onnx.save(copy, str(path))
        try:
            by_whole = 1e6 * whole_error(outputs_of(path, inputs), expected) > report.tolerance_ppm
            by_sketch = is_found(
                outputs_of(path, [vector.inputs for vector in golden.samples]), golden.samples, report.tolerance_ppm
            )
        except AirweightsError:
            continue
        found["damaged"] += by_whole or by_sketch
        found["sketch"] += by_sketch
        found["whole"] += by_whole
    whole_bytes = sum(array.nbytes for sample in (*inputs, *expected) for array in sample.values())
    codes = "/".join(sorted({item.code for sample in golden.inputs for item in sample.values()}))
    return (
        f"| {model.stem} | {model.stat().st_size:,} | {whole_bytes:,} | {report.bytes:,} | {report.samples} {codes} | "
        f"{alone:,} | {added:,} | {report.tolerance_ppm:,} | {found['whole']} | {found['sketch']} | "
        f"{found['damaged']} |"
    )


def main() -> int:
    """Print one row for each model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=Path, nargs="+")
    print(
        "| model | bytes | golden, whole | golden | samples | update alone | golden in it | ppm | whole | sketch | of |"
    )
    print("| --- | ---: | ---: | ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for model in parser.parse_args().models:
        with tempfile.TemporaryDirectory() as folder:
            try:
                print(measure(model, Path(folder)), flush=True)
            except AirweightsError as error:
                print(f"| {model.stem} | {error.message} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
