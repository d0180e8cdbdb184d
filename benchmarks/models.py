"""Model files and their inputs for the runtime's benchmarks, as bundles in memfds."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from bundle.golden import GoldenSample, write_golden
from device_agent.runtime.bundle_fds import BundleFds, sealed_memfd
from device_agent.runtime.session import LoadedModel
from device_agent.runtime.tensors import Array
from packager.inputs import ModelInterface, load_samples, random_samples

SAMPLES = 4


def inputs_for(model: Path, npz: Path | None) -> list[dict[str, Array]]:
    """A few samples: the npz's first, or such that the model was seen to run on."""
    samples = random_samples(model, SAMPLES) if npz is None else load_samples(npz, ModelInterface.from_file(model))
    return [{name: np.asarray(array) for name, array in sample.items()} for sample in samples.take(SAMPLES)]


def bundle_for(model: Path, inputs: list[dict[str, Array]]) -> BundleFds:
    """The model, its external data and its own answers as golden vectors. The caller closes it."""
    files = {"model.onnx": sealed_memfd("model", model.read_bytes())}
    external = external_files(model)
    for name, path in external.items():
        files[name] = sealed_memfd("external", path.read_bytes())
    bundle = BundleFds(files, "model.onnx", None, tuple(external))
    loaded = LoadedModel.load(bundle, threads=1)
    goldens = tuple(GoldenSample(dict(sample), loaded.run(sample)) for sample in inputs)
    files["golden.safetensors"] = sealed_memfd("golden", write_golden(goldens))
    return BundleFds(files, "model.onnx", "golden.safetensors", tuple(external))


def external_files(model: Path) -> Mapping[str, Path]:
    """The files beside a model that it names as external data."""
    import onnx

    proto = onnx.load(str(model), load_external_data=False)
    found: dict[str, Path] = {}
    for tensor in proto.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                found[entry.value] = model.parent / entry.value
    return found
