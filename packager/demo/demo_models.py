"""The models of the demo: two versions, samples to build with, and other samples to request.

Rules:
- The samples that releases are built with (calibration, golden vectors) and the requested samples are disjoint, so that
  no output is correct because it was recorded.
- Without inputs, random samples of the right shape are drawn, and the title says so.
- The second version of the demo's own models is a fine-tune of the first one: its last layer is fitted to snippets of
  real files (packager.demo.head_refit). Other snippets are held out, to be sent to the device.
- Without a network and a cached model, a small model is created on this machine instead of the published one.
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
import onnx

from packager.demo import file_type_model
from packager.demo.head_refit import refit_head
from packager.demo.local_model import create_local_model, write_config
from packager.demo.published_model import MAGIKA, PublishedModelUnavailable, cache_directory, fetch_published
from packager.demo.snippets import LabeledSamples, SnippetSets, read_snippets
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
BUILD_SNIPPETS: Final = 32  # of the samples that releases are built with; as many are left out of the files
HELD_OUT_SNIPPETS: Final = 96  # are sent to the device with each version: a second or two


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
        held_out: samples of the kind that the second version was fine-tuned for, with their classes; None for models of
            the user.
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
    held_out: LabeledSamples | None = None


def load_published_models(folder: Path) -> DemoModels:
    """Load Magika's file-type model from the package registry, and fine-tune it for snippets of files.

    Args:
        folder: folder to write the second version and samples to.

    Raises:
        PublishedModelUnavailable: pip cannot download the model.
        DigestMismatch: pip downloaded another file.
    """
    files = fetch_published(MAGIKA, cache_directory())
    config = file_type_model.FileTypeConfig.read(files["config.json"])
    title = f"Magika's file-type classifier, {MAGIKA.requirement}"
    return _file_type_models(folder, title, files["model.onnx"], files["config.json"], read_snippets(config))


def load_local_models(folder: Path) -> DemoModels:
    """Create a small file-type model on this machine, and fine-tune it for snippets of real files.

    Args:
        folder: folder to write both versions and samples to.
    """
    path, model = folder / "config.json", folder / "local.onnx"
    config = write_config(path)
    snippets = read_snippets(config)
    onnx.save(create_local_model(snippets.training_files, len(config.labels)), str(model))
    return _file_type_models(folder, "a small file-type classifier, created on this machine", model, path, snippets)


def load_demo_models(folder: Path, print_line: Callable[[str], None]) -> DemoModels:
    """Load the published model, or create a small one if it cannot be downloaded.

    Args:
        folder: folder to write models and samples to.
        print_line: prints one line of progress.

    Raises:
        DigestMismatch: pip downloaded another file.
    """
    print_line("loading the published model from the cache, or with pip")
    try:
        return load_published_models(folder)
    except PublishedModelUnavailable as error:
        print_line(f"{error.message}; using a small model that is created on this machine")
        return load_local_models(folder)


def _file_type_models(folder: Path, title: str, model: Path, config: Path, snippets: SnippetSets) -> DemoModels:
    kinds = file_type_model.FileTypeConfig.read(config)
    tuned = folder / "tuned.onnx"
    onnx.save(refit_head(onnx.load(str(model)), snippets.training), str(tuned))
    requested = file_type_model.repository_files()
    others = tuple(path for path in file_type_model.sample_files() if path not in set(requested))
    inputs, live, labels = folder / "inputs.npz", folder / "live.npz", folder / "labels.json"
    built = file_type_model.token_samples(kinds, others[:-BUILD_SNIPPETS])
    chosen = snippets.training.choose(BUILD_SNIPPETS).tokens[:, None]
    write_npz(inputs, {name: np.concatenate([tokens, chosen]) for name, tokens in built.items()})
    write_npz(live, file_type_model.token_samples(kinds, requested))
    labels.write_text(json.dumps(list(kinds.labels)))
    return DemoModels(
        family=FAMILY,
        title=f"{title}; 1.1.0 is fine-tuned on {len(snippets.training.classes)} snippets of files of this machine",
        old_model=model,
        new_model=tuned,
        build_inputs=inputs,
        live_inputs=live,
        live_names=tuple(path.relative_to(file_type_model.REPOSITORY_ROOT).as_posix() for path in requested),
        extra_files=((config, "preprocessing", "config.json"), (labels, "labels", "labels.json")),
        read_prediction=lambda outputs: kinds.top_label(next(iter(outputs.values()))[0].astype(np.float32)),
        held_out=snippets.held_out.choose(HELD_OUT_SNIPPETS),
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
