"""Load model files and their inputs as bundles in memfds, for the benchmarks of the runtime."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from bundle.contract import TensorSpec
from bundle.golden.golden_file import GoldenSample, write_golden
from device_agent.runtime.bundle_fds import BundleFds, create_sealed_memfd
from device_agent.runtime.session import OnnxModel
from device_agent.runtime.tensors import Array
from packager.models.inputs import ModelInterface
from packager.models.random_inputs import random_samples
from packager.models.samples import load_samples

SAMPLES = 4


def make_inputs(model: Path, npz: Path | None) -> list[dict[str, Array]]:
    """Return SAMPLES samples: the first ones of the `.npz` file, or random ones on which the model runs."""
    if npz is not None:
        samples = load_samples(npz, ModelInterface.from_file(model))
    elif _takes_strings(model):
        return _make_text_inputs(model)
    else:
        samples = random_samples(model, SAMPLES)
    return [{name: np.asarray(array) for name, array in sample.items()} for sample in samples.take(SAMPLES)]


def _takes_strings(model: Path) -> bool:
    return any(tensor.dtype == "string" for tensor in _load_model(model).inputs)


def _make_text_inputs(model: Path) -> list[dict[str, Array]]:
    """Return short texts for string inputs, which random_samples does not support, and zeros for all others."""

    def tensor(spec: TensorSpec, number: int) -> Array:
        shape = [size if isinstance(size, int) else 1 for size in spec.shape]
        return np.full(shape, f"text {number}", object) if spec.dtype == "string" else np.zeros(shape, spec.dtype)

    return [{spec.name: tensor(spec, number) for spec in _load_model(model).inputs} for number in range(SAMPLES)]


def _load_model(model: Path) -> OnnxModel:
    external = find_external_files(model)
    files = {name: create_sealed_memfd(name, path.read_bytes()) for name, path in external.items()}
    bundle = BundleFds({"m": create_sealed_memfd("m", model.read_bytes()), **files}, "m", None, tuple(external))
    try:
        return OnnxModel.load(bundle, threads=1)
    finally:
        bundle.close()


def make_bundle(model: Path, inputs: list[dict[str, Array]]) -> BundleFds:
    """Return a bundle of the model, its external data and golden vectors with its own outputs; the caller closes it."""
    files = {"model.onnx": create_sealed_memfd("model", model.read_bytes())}
    external = find_external_files(model)
    for name, path in external.items():
        files[name] = create_sealed_memfd("external", path.read_bytes())
    bundle = BundleFds(files, "model.onnx", None, tuple(external))
    loaded = OnnxModel.load(bundle, threads=1)
    if any(tensor.dtype == "string" for tensor in (*loaded.inputs, *loaded.outputs)):
        return bundle  # golden vectors do not support strings
    goldens = tuple(GoldenSample(dict(sample), loaded.run(sample)) for sample in inputs)
    files["golden.bin"] = create_sealed_memfd("golden", write_golden(goldens))
    return BundleFds(files, "model.onnx", "golden.bin", tuple(external))


def find_external_files(model: Path) -> Mapping[str, Path]:
    """Return the external-data files that a model names, by location."""
    import onnx

    proto = onnx.load(str(model), load_external_data=False)
    found: dict[str, Path] = {}
    for tensor in proto.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                found[entry.value] = model.parent / entry.value
    return found
