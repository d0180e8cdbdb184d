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
ASKED: Final = 8


@dataclass(frozen=True, slots=True)
class Prediction:
    """One question and what the served model said."""

    file: str
    label: str
    score: float


@dataclass(frozen=True, slots=True)
class Subject:
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
    old: Path
    new: Path
    inputs: Path
    live: Path
    names: tuple[str, ...]
    files: tuple[tuple[Path, str, str], ...]
    read: Callable[[Arrays], tuple[str, float]]


def published_subject(folder: Path) -> Subject:
    """Magika's file-type models from the package registry, asked about real files.

    Raises:
        PublishedModelUnavailable, DigestMismatchRefused.
    """
    old = fetch_published(MAGIKA_OLD, cache_directory())
    new = fetch_published(MAGIKA_NEW, cache_directory())
    kinds = file_type_model.FileTypes.read(new["config.json"])
    asked = file_type_model.repository_files()
    others = tuple(path for path in file_type_model.sample_files() if path not in set(asked))
    inputs, live = folder / "inputs.npz", folder / "live.npz"
    write_npz(inputs, file_type_model.token_samples(kinds, others))
    write_npz(live, file_type_model.token_samples(kinds, asked))
    labels = folder / "labels.json"
    labels.write_text(json.dumps(list(kinds.labels)))
    return Subject(
        family=FAMILY,
        title=f"Magika's file-type classifier, {MAGIKA_OLD.requirement} to {MAGIKA_NEW.requirement}",
        old=old["model.onnx"],
        new=new["model.onnx"],
        inputs=inputs,
        live=live,
        names=tuple(path.relative_to(file_type_model.REPOSITORY).as_posix() for path in asked),
        files=((new["config.json"], "preprocessing", "config.json"), (labels, "labels", "labels.json")),
        read=lambda outputs: kinds.label(next(iter(outputs.values()))[0].astype(np.float32)),
    )


def own_subject(folder: Path, old: Path, new: Path, inputs: Path | None) -> Subject:
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
        build, ask = _one_shape(
            random_samples(old, RANDOM_SAMPLES, seed=1), random_samples(old, RANDOM_SAMPLES, seed=2)
        )
    else:
        origin = f"inputs from {inputs.name}"
        build, ask = _split(load_samples(inputs, interface), random_samples(old, RANDOM_SAMPLES, seed=2))
    paths = folder / "inputs.npz", folder / "live.npz"
    for path, samples in zip(paths, (build, ask), strict=True):
        write_npz(path, {name: np.stack([s[name] for s in samples]) for name in samples[0]})
    return Subject(
        family=OWN_FAMILY,
        title=f"{old.name} to {new.name}, {origin}",
        old=old,
        new=new,
        inputs=paths[0],
        live=paths[1],
        names=tuple(f"sample {number}" for number in range(min(ASKED, len(ask)))),
        files=(),
        read=_largest,
    )


def _one_shape(build: Samples, ask: Samples) -> tuple[list[Arrays], list[Arrays]]:
    """An `.npz` of inputs has one shape for each input: the most frequent one that both have."""
    shapes = Counter(map(_shapes, build))
    common = max(shapes.keys() & {_shapes(sample) for sample in ask}, key=lambda shape: shapes[shape])
    return [s for s in build if _shapes(s) == common], [s for s in ask if _shapes(s) == common]


def _shapes(sample: Arrays) -> tuple[tuple[str, tuple[int, ...]], ...]:
    return tuple((name, sample[name].shape) for name in sorted(sample))


def _split(samples: Samples, fallback: Samples) -> tuple[list[Arrays], list[Arrays]]:
    """Rule 1: every second sample is for building; a live one equal to any of them is left out."""
    if not len(samples):
        raise TooFewSamples("found 0 samples, expected at least 1")
    rows = list(samples)
    build = rows[::2]
    rehearsed = {_bytes(sample) for sample in build}
    ask = [sample for sample in rows[1::2] if _bytes(sample) not in rehearsed]
    return build, ask or _first_shape(fallback)


def _first_shape(samples: Samples) -> list[Arrays]:
    rows = list(samples)
    return [sample for sample in rows if _shapes(sample) == _shapes(rows[0])]


def _bytes(sample: Arrays) -> bytes:
    return b"".join(sample[name].tobytes() for name in sorted(sample))


def _largest(outputs: Arrays) -> tuple[str, float]:
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
