"""The models of the demo: two versions, samples to build with, and other samples to request.

Rules:
- The samples that releases are built with (calibration, golden vectors) and the requested samples are disjoint, so that
  no output is correct because it was recorded.
- Without inputs, random samples of the right shape are drawn, and the title says so.
"""

import json
import zipfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from packager.demo import file_type_model
from packager.demo.published_model import MAGIKA_NEW, MAGIKA_OLD, cache_directory, fetch_published
from packager.errors import TooFewSamples
from packager.models.inputs import ModelInterface
from packager.models.random_inputs import random_samples
from packager.models.samples import Samples, load_samples

Array = npt.NDArray[np.generic]
Arrays = dict[str, Array]

FAMILY: Final = "filetype"
OWN_FAMILY: Final = "demo"
RANDOM_SAMPLES: Final = 24
LIVE_SAMPLES: Final = 8


@dataclass(frozen=True, slots=True)
class Prediction:
    """The label and score of one requested sample."""

    file: str
    label: str
    score: float


@dataclass(frozen=True, slots=True)
class DemoModels:
    """Models and inputs of the demo, below its folder.

    Attributes:
        family: family of the releases.
        title: one line about the models.
        old_model, new_model: float models.
        build_inputs: `.npz` to build releases with.
        live_inputs: `.npz` of requests, at least one sample.
        live_names: names of the first live samples, whose predictions are printed.
        extra_files: further files of the bundle: (path, role, name in the bundle).
        read_prediction: returns label and score of outputs by name.
    """

    family: str
    title: str
    old_model: Path
    new_model: Path
    build_inputs: Path
    live_inputs: Path
    live_names: tuple[str, ...]
    extra_files: tuple[tuple[Path, str, str], ...]
    read_prediction: Callable[[Arrays], tuple[str, float]]


def load_published_models(folder: Path) -> DemoModels:
    """Load Magika's file-type models from the package registry, with samples of real files.

    Raises:
        PublishedModelUnavailable: pip cannot download a model.
        DigestMismatch: pip downloaded another file.
    """
    with ThreadPoolExecutor(2) as downloads:
        old, new = downloads.map(lambda model: fetch_published(model, cache_directory()), (MAGIKA_OLD, MAGIKA_NEW))
    kinds = file_type_model.FileTypeConfig.read(new["config.json"])
    requested = file_type_model.repository_files()
    others = tuple(path for path in file_type_model.sample_files() if path not in set(requested))
    inputs, live = folder / "inputs.npz", folder / "live.npz"
    write_npz(inputs, file_type_model.token_samples(kinds, others))
    write_npz(live, file_type_model.token_samples(kinds, requested))
    labels = folder / "labels.json"
    labels.write_text(json.dumps(list(kinds.labels)))
    return DemoModels(
        family=FAMILY,
        title=f"Magika's file-type classifier, {MAGIKA_OLD.requirement} to {MAGIKA_NEW.requirement}",
        old_model=old["model.onnx"],
        new_model=new["model.onnx"],
        build_inputs=inputs,
        live_inputs=live,
        live_names=tuple(path.relative_to(file_type_model.REPOSITORY_ROOT).as_posix() for path in requested),
        extra_files=((new["config.json"], "preprocessing", "config.json"), (labels, "labels", "labels.json")),
        read_prediction=lambda outputs: kinds.top_label(next(iter(outputs.values()))[0].astype(np.float32)),
    )


def load_own_models(folder: Path, old: Path, new: Path, inputs: Path | None) -> DemoModels:
    """Load models of the user.

    Args:
        folder: folder to write samples to.
        old: first model.
        new: second model, with the same interface.
        inputs: `.npz` with one array per model input, first axis = sample; None draws random samples.

    Raises:
        Invalid: a file is not a model, or the inputs do not fit it (packager.models.inputs).
    """
    interface = ModelInterface.from_file(old)
    ModelInterface.from_file(new)
    if inputs is None:
        origin = "random inputs"
        build, requested = _keep_common_shape(
            random_samples(old, RANDOM_SAMPLES, seed=1), random_samples(old, RANDOM_SAMPLES, seed=2)
        )
    else:
        origin = f"inputs from {inputs.name}"
        build, requested = _split_samples(load_samples(inputs, interface), random_samples(old, RANDOM_SAMPLES, seed=2))
    paths = folder / "inputs.npz", folder / "live.npz"
    for path, samples in zip(paths, (build, requested), strict=True):
        write_npz(path, {name: np.stack([s[name] for s in samples]) for name in samples[0]})
    return DemoModels(
        family=OWN_FAMILY,
        title=f"{old.name} to {new.name}, {origin}",
        old_model=old,
        new_model=new,
        build_inputs=paths[0],
        live_inputs=paths[1],
        live_names=tuple(f"sample {number}" for number in range(min(LIVE_SAMPLES, len(requested)))),
        extra_files=(),
        read_prediction=_largest_element,
    )


def _keep_common_shape(build: Samples, live: Samples) -> tuple[list[Arrays], list[Arrays]]:
    """Keep the samples of the most frequent shape in both; an `.npz` has one shape per input."""
    shapes = Counter(map(_shape_key, build))
    common = max(shapes.keys() & {_shape_key(sample) for sample in live}, key=lambda shape: shapes[shape])
    return [s for s in build if _shape_key(s) == common], [s for s in live if _shape_key(s) == common]


def _shape_key(sample: Arrays) -> tuple[tuple[str, tuple[int, ...]], ...]:
    return tuple((name, sample[name].shape) for name in sorted(sample))


def _split_samples(samples: Samples, fallback: Samples) -> tuple[list[Arrays], list[Arrays]]:
    """Split samples into build and live ones; drop live samples that equal a build sample."""
    if not len(samples):
        raise TooFewSamples("found 0 samples, expected at least 1")
    rows = list(samples)
    build = rows[::2]
    built = {_sample_bytes(sample) for sample in build}
    live = [sample for sample in rows[1::2] if _sample_bytes(sample) not in built]
    return build, live or _keep_first_shape(fallback)


def _keep_first_shape(samples: Samples) -> list[Arrays]:
    rows = list(samples)
    return [sample for sample in rows if _shape_key(sample) == _shape_key(rows[0])]


def _sample_bytes(sample: Arrays) -> bytes:
    return b"".join(sample[name].tobytes() for name in sorted(sample))


def _largest_element(outputs: Arrays) -> tuple[str, float]:
    """Return position and value of the largest element of the first numeric output."""
    name, first = next((n, out) for n, out in outputs.items() if out.dtype.kind in "fiub")
    flat = first.astype(np.float64).reshape(-1)
    if not flat.size:
        return f"{name} is empty", 0.0
    best = int(np.argmax(flat))
    return f"{name}[{best}]", float(flat[best])


def write_npz(path: Path, arrays: Mapping[str, Array]) -> None:
    """Write an `.npz`; unlike numpy.savez, it allows every array name, including "file".

    Args:
        path: file to write.
        arrays: arrays by name.
    """
    with zipfile.ZipFile(path, "w") as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.asanyarray(array), allow_pickle=False)


def live_samples(path: Path, count: int) -> Sequence[Arrays]:
    """Return the first samples of an `.npz`.

    Args:
        path: `.npz` file, first axis = sample.
        count: largest number of samples.
    """
    with np.load(path, allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files}
    total = len(next(iter(arrays.values())))
    return [{name: array[number] for name, array in arrays.items()} for number in range(min(count, total))]
