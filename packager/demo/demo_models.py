"""What the demo is about: two models, inputs to build with, other inputs to ask live, and how to read an answer.

Rules:
1. Inputs that a release is built with (calibration, golden vectors) and inputs that are asked live have nothing in
   common: an answer must never be right because it was rehearsed.
2. Without inputs, random ones of the right shape are drawn, and said to be random.
"""

import json
import zipfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
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
    """One question and what the served model said."""

    file: str
    label: str
    score: float


@dataclass(frozen=True, slots=True)
class DemoModels:
    """Models and inputs, on disk below the demo's folder.

    Attributes:
        family: of the releases.
        title: one line for the story.
        old, new: float models.
        inputs: `.npz` to build releases with.
        live: `.npz` to ask with, of at least one sample.
        names: of the first live samples: the ones that are asked and shown.
        files: (path, role, name in the bundle) of what travels with the model.
        read: outputs by name → label and score.
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
    """Magika's file-type models from the package registry, asked about real files.

    Raises:
        PublishedModelUnavailable, DigestMismatchRefused.
    """
    old = fetch_published(MAGIKA_OLD, cache_directory())
    new = fetch_published(MAGIKA_NEW, cache_directory())
    kinds = file_type_model.FileTypeConfig.read(new["config.json"])
    asked = file_type_model.repository_files()
    others = tuple(path for path in file_type_model.sample_files() if path not in set(asked))
    inputs, live = folder / "inputs.npz", folder / "live.npz"
    write_npz(inputs, file_type_model.token_samples(kinds, others))
    write_npz(live, file_type_model.token_samples(kinds, asked))
    labels = folder / "labels.json"
    labels.write_text(json.dumps(list(kinds.labels)))
    return DemoModels(
        family=FAMILY,
        title=f"Magika's file-type classifier, {MAGIKA_OLD.requirement} to {MAGIKA_NEW.requirement}",
        old_model=old["model.onnx"],
        new_model=new["model.onnx"],
        build_inputs=inputs,
        live_inputs=live,
        live_names=tuple(path.relative_to(file_type_model.REPOSITORY_ROOT).as_posix() for path in asked),
        extra_files=((new["config.json"], "preprocessing", "config.json"), (labels, "labels", "labels.json")),
        read_prediction=lambda outputs: kinds.top_label(next(iter(outputs.values()))[0].astype(np.float32)),
    )


def load_own_models(folder: Path, old: Path, new: Path, inputs: Path | None) -> DemoModels:
    """The caller's models.

    Args:
        folder: to write inputs to.
        old, new: models of the same interface.
        inputs: `.npz` with one array per model input, first axis = sample; None draws random ones.

    Raises:
        Invalid kinds of packager.models.inputs: not a model, inputs that do not fit it, no size at which it runs.
    """
    interface = ModelInterface.from_file(old)
    ModelInterface.from_file(new)
    if inputs is None:
        origin = "random inputs"
        build, ask = _keep_common_shape(
            random_samples(old, RANDOM_SAMPLES, seed=1), random_samples(old, RANDOM_SAMPLES, seed=2)
        )
    else:
        origin = f"inputs from {inputs.name}"
        build, ask = _split_samples(load_samples(inputs, interface), random_samples(old, RANDOM_SAMPLES, seed=2))
    paths = folder / "inputs.npz", folder / "live.npz"
    for path, samples in zip(paths, (build, ask), strict=True):
        write_npz(path, {name: np.stack([s[name] for s in samples]) for name in samples[0]})
    return DemoModels(
        family=OWN_FAMILY,
        title=f"{old.name} to {new.name}, {origin}",
        old_model=old,
        new_model=new,
        build_inputs=paths[0],
        live_inputs=paths[1],
        live_names=tuple(f"sample {number}" for number in range(min(LIVE_SAMPLES, len(ask)))),
        extra_files=(),
        read_prediction=_largest_element,
    )


def _keep_common_shape(build: Samples, live: Samples) -> tuple[list[Arrays], list[Arrays]]:
    """An `.npz` of inputs has one shape for each input: the most frequent one that both have."""
    shapes = Counter(map(_shape_key, build))
    common = max(shapes.keys() & {_shape_key(sample) for sample in live}, key=lambda shape: shapes[shape])
    return [s for s in build if _shape_key(s) == common], [s for s in live if _shape_key(s) == common]


def _shape_key(sample: Arrays) -> tuple[tuple[str, tuple[int, ...]], ...]:
    return tuple((name, sample[name].shape) for name in sorted(sample))


def _split_samples(samples: Samples, fallback: Samples) -> tuple[list[Arrays], list[Arrays]]:
    """Rule 1: every second sample is for building; a live one equal to any of them is left out."""
    if not len(samples):
        raise TooFewSamples("found 0 samples, expected at least 1")
    rows = list(samples)
    build = rows[::2]
    rehearsed = {_sample_bytes(sample) for sample in build}
    ask = [sample for sample in rows[1::2] if _sample_bytes(sample) not in rehearsed]
    return build, ask or _keep_first_shape(fallback)


def _keep_first_shape(samples: Samples) -> list[Arrays]:
    rows = list(samples)
    return [sample for sample in rows if _shape_key(sample) == _shape_key(rows[0])]


def _sample_bytes(sample: Arrays) -> bytes:
    return b"".join(sample[name].tobytes() for name in sorted(sample))


def _largest_element(outputs: Arrays) -> tuple[str, float]:
    """Place and value of the largest element of the first numeric output."""
    name, first = next((n, out) for n, out in outputs.items() if out.dtype.kind in "fiub")
    flat = first.astype(np.float64).reshape(-1)
    if not flat.size:
        return f"{name} is empty", 0.0
    best = int(np.argmax(flat))
    return f"{name}[{best}]", float(flat[best])


def write_npz(path: Path, arrays: Mapping[str, Array]) -> None:
    """An `.npz` of `arrays`; unlike numpy.savez it takes any name, "file" too."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.asanyarray(array), allow_pickle=False)


def live_samples(path: Path, count: int) -> Sequence[Arrays]:
    """The first `count` samples of a live `.npz`."""
    with np.load(path, allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files}
    total = len(next(iter(arrays.values())))
    return [{name: array[number] for name, array in arrays.items()} for number in range(min(count, total))]
