"""Find random inputs that a model runs on: sizes are tried in a subprocess until one runs.

1. The model runs only in the subprocess: one that crashes, hangs or exhausts memory ends only the subprocess.
2. Sizes 1..MAX_SIZE are tried, likely ones first. The first axis of an input with two or more axes is a batch of size
   1, unless nothing runs that way.
3. Unknown values are kept small: integers below 64 (then below 2), masks of ones, lengths equal to the size.
4. The subprocess prints each attempt before it starts, so that after a crash the search continues behind it.
"""

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Final, TypeAlias

import numpy as np

from packager.errors import ModelCrashes, ModelDoesNotRun, NoWorkingInput
from packager.models.inputs import ModelInterface, Sample, TensorInfo
from packager.models.samples import Samples, samples_from

Sizes: TypeAlias = dict[str, int]

MAX_SIZE: Final = 4096
LIKELY_SIZES: Final = (
    16,
    32,
    64,
    128,
    224,
    256,
    512,
    8,
    48,
    96,
    320,
    640,
    1024,
    4,
    2,
    1,
    160,
    192,
    384,
    576,
    768,
    2048,
)
SPATIAL_SIZES: Final = (64, 224, 32, 128, 96, 48, 256, 320, 640, 512, 16, 299, 384, 416, 28, 8, 1, 1024)
LIKELY_RANKS: Final = (2, 3, 4, 1, 0)
INTEGER_BOUNDS: Final = (64, 2)  # exclusive; larger integers exceed small vocabularies
LIKELY_SCALARS: Final = (1, 16000, 8000, 0, 2)  # flags, and the two sampling rates of speech models
MAX_EXTRA_SIZES: Final = 2  # beside the first that runs, for golden vectors of smallest and largest shapes
FAST_RUN_S: Final = 1.0  # larger sizes are tried only while one run takes less
MAX_CRASHES: Final = 4
MAX_CHILD_MEMORY_SHARE: Final = 0.75  # of physical memory
STATE_WORDS: Final = ("state", "hidden", "cell", "cache", "h0", "c0", "h_0", "c_0", "hx", "cx", "past")
SEQUENCE_WORDS: Final = ("seq", "len", "time", "frame", "token", "sample", "height", "width")
WORDS: Final = ("a", "b", "red", "green", "yes", "no", "0", "1.5", "")  # inputs that take strings
STATE_SCALE: Final = 0.1  # standard deviation; states are bounded by tanh in most recurrent nets


@dataclass(frozen=True, slots=True)
class Recipe:
    """The choices from which inputs are drawn.

    Attributes:
        sizes: a size for every symbol.
        integer_bound: exclusive bound of integers.
        scalar: value of integer scalars.
        rank: number of axes of inputs that do not declare it.
    """

    sizes: Sizes
    integer_bound: int = INTEGER_BOUNDS[0]
    scalar: int = LIKELY_SCALARS[0]
    rank: int = 0


def draw_sample(interface: ModelInterface, recipe: Recipe, seed: int, index: int) -> Sample:
    """Draw one random sample; the same arguments give the same sample, and other numbers other samples.

    Args:
        interface: inputs and outputs of the model.
        recipe: sizes and bounds of the inputs.
        seed: seed that all samples share.
        index: number of the sample.
    """
    rng = np.random.default_rng([seed, index])
    return {info.name: _draw_array(info, recipe, rng, index) for info in with_rank(interface, recipe.rank).inputs}


def with_rank(interface: ModelInterface, rank: int) -> ModelInterface:
    """Return the interface with `rank` axes of unknown size for inputs that do not declare their number.

    Args:
        interface: inputs and outputs of the model.
        rank: number of axes.
    """
    inputs = (i if i.is_ranked else replace(i, shape=(None,) * rank, is_ranked=True) for i in interface.inputs)
    return replace(interface, inputs=tuple(inputs))


def random_samples(model: Path, count: int, seed: int = 0, *, limit_s: float = 120.0) -> Samples:
    """Draw random samples that a model runs on; a subprocess finds the sizes.

    Args:
        model: an ONNX file.
        count: number of samples.
        seed: seed of the random number generator.
        limit_s: seconds of the search.

    Raises:
        ModelUnreadable: the file is not an ONNX model.
        InputUnsupported: an input has an unsupported type.
        NoWorkingInput: nothing ran within `limit_s` seconds.
        ModelCrashes: the model crashed its process MAX_CRASHES times.
    """
    interface = ModelInterface.from_file(model)
    recipes = find_recipes(model, interface, limit_s)
    # change in pairs: every other sample is held out, and both halves must see every size and state
    drawn = [draw_sample(interface, recipes[index // 4 % len(recipes)], seed, index) for index in range(count)]
    return replace(samples_from(drawn), origin=f"random:{seed}")


def find_recipes(model: Path, interface: ModelInterface, limit_s: float) -> list[Recipe]:
    """Return recipes on which the model ran, in the order in which they were found.

    Args:
        model: an ONNX file.
        interface: inputs and outputs of the model.
        limit_s: seconds of the search.

    Raises:
        NoWorkingInput: nothing ran within `limit_s` seconds.
        ModelCrashes: the model crashed its process MAX_CRASHES times.
        ModelDoesNotRun: the model does not load.
    """
    deadline = time.monotonic() + limit_s
    skip, last_error = 0, "none, the time limit was reached first"
    for _ in range(MAX_CRASHES):
        command = [sys.executable, "-m", "packager.models.random_inputs", str(model), str(skip)]
        child = _run_child(command, max(1.0, deadline - time.monotonic()))
        found = [line for line in child.lines if isinstance(line, Recipe)]
        if found:
            return found
        for line in child.lines:
            if isinstance(line, Recipe):
                continue
            if "refused" in line:
                raise ModelDoesNotRun(line["refused"])
            last_error = line.get("error", last_error)
            skip = int(line.get("trying", skip))
        if child.is_complete or time.monotonic() >= deadline:
            break
        skip += 1
    else:
        raise ModelCrashes(f"{model}: crashed its process {MAX_CRASHES} times while inputs were searched")
    inputs = "; ".join(str(info) for info in interface.inputs)
    raise NoWorkingInput(
        f"{model}: found no input that it runs on within {limit_s:.0f} s ({inputs}); last error: {last_error}",
        hint="give real inputs with --inputs FILE.npz (one array per model input, first axis = sample)",
    )


def recipe_candidates(interface: ModelInterface) -> Iterator[Recipe]:
    """Yield all recipes to try, likely ones first."""
    if all(info.is_ranked for info in interface.inputs):
        yield from _all_recipes(interface)
        return
    for rank in LIKELY_RANKS:
        for recipe in _all_recipes(with_rank(interface, rank)):
            yield replace(recipe, rank=rank)


def _all_recipes(interface: ModelInterface) -> Iterator[Recipe]:
    batch, free = _symbols(interface)
    has_integers = any(np.dtype(info.dtype).kind in "iu" and not _is_scalar(info) for info in interface.inputs)
    has_scalars = any(np.dtype(info.dtype).kind in "iu" and _is_scalar(info) for info in interface.inputs)
    knobs = list(
        product(
            LIKELY_SCALARS if has_scalars else LIKELY_SCALARS[:1],
            INTEGER_BOUNDS if has_integers else INTEGER_BOUNDS[:1],
        )
    )
    likely = SPATIAL_SIZES if any(len(info.shape) >= 4 for info in interface.inputs) else LIKELY_SIZES
    every = list(dict.fromkeys((*likely, *range(1, MAX_SIZE + 1))))
    ones = dict.fromkeys(batch, 1)

    def with_knobs(sizes: Sizes) -> Iterator[Recipe]:
        for scalar, bound in knobs:
            yield Recipe(sizes, bound, scalar)

    if not free:
        yield from with_knobs(ones)
    for size in likely if free else ():
        yield from with_knobs(ones | dict.fromkeys(free, size))
    for one in free if len(free) > 1 else ():
        for size in likely:
            yield from with_knobs(ones | dict.fromkeys(free, 1) | {one: size})
    if len(free) > 1:
        for sizes in product(likely[:8], repeat=min(len(free), 3)):
            yield from with_knobs(ones | dict(zip(free, (*sizes, *[sizes[-1]] * len(free)), strict=False)))
    for size in every if free else ():
        yield from with_knobs(ones | dict.fromkeys(free, size))
    for size in every if batch else ():
        yield from with_knobs(dict.fromkeys((*batch, *free), size))


def symbol_of(info: TensorInfo, axis: int) -> str | None:
    """Return the name under which a size is searched; None if the model fixes the size.

    Args:
        info: an input.
        axis: number of the axis.
    """
    size = info.shape[axis]
    if isinstance(size, int):
        return None
    return size if size is not None else f"{info.name}/{axis}"


@dataclass(frozen=True, slots=True)
class _ChildOutput:
    lines: list[Recipe | dict[str, str]]
    is_complete: bool


def _run_child(command: list[str], limit_s: float) -> "_ChildOutput":
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    try:
        done = subprocess.run(command, capture_output=True, timeout=limit_s, env=environment, check=False)
        output, is_complete = done.stdout, done.returncode == 0
    except subprocess.TimeoutExpired as error:
        output, is_complete = error.stdout or b"", False
    lines = []
    for line in output.splitlines():
        # skip the cut last line of a subprocess that was killed, and messages of the runtime, which are not JSON
        try:
            event = json.loads(line)
        except ValueError:
            continue
        lines.append(
            Recipe(**event["found"]) if "found" in event else {key: str(value) for key, value in event.items()}
        )
    return _ChildOutput(lines, is_complete)


def _symbols(interface: ModelInterface) -> tuple[list[str], list[str]]:
    batch: dict[str, None] = {}
    free: dict[str, None] = {}
    for info in interface.inputs:
        for axis in range(len(info.shape)):
            symbol = symbol_of(info, axis)
            if symbol is None:
                continue
            is_sequence = (
                any(word in symbol.lower().split("/")[0] for word in SEQUENCE_WORDS) and "batch" not in symbol.lower()
            )
            is_state = info.shape[axis] is None and any(word in info.name.lower() for word in STATE_WORDS)
            is_batch = "batch" in symbol.lower() or is_state or (axis == 0 and len(info.shape) > 1 and not is_sequence)
            (batch if is_batch else free)[symbol] = None
    return list(batch), [symbol for symbol in free if symbol not in batch]


def _is_scalar(info: TensorInfo) -> bool:
    return not info.shape or info.shape == (1,)


def _draw_array(info: TensorInfo, recipe: Recipe, rng: np.random.Generator, index: int) -> np.ndarray:
    shape = tuple(
        size if isinstance(size, int) else recipe.sizes[symbol_of(info, axis) or ""]
        for axis, size in enumerate(info.shape)
    )
    dtype: np.dtype = np.dtype(info.dtype)
    name = info.name.lower()
    if dtype.kind == "O":
        return np.asarray(rng.choice(WORDS, shape), object)
    if dtype.kind == "b":
        return np.ones(shape, dtype) if "mask" in name else rng.integers(0, 2, shape, dtype=np.uint8).astype(dtype)
    if dtype.kind in "iu":
        return _draw_integers(info, shape, recipe, rng)
    if any(word in name for word in STATE_WORDS):
        return np.asarray(STATE_SCALE * (index // 2 % 2) * rng.standard_normal(shape), dtype)
    if len(shape) == 4 and shape[1] in (1, 3, 4):
        return _draw_picture(shape, rng).astype(dtype)
    signal: np.ndarray = (rng.standard_normal(shape) + _draw_tones(shape, rng)) * 2.0 ** rng.uniform(-1.5, 1.0)
    return np.asarray(signal, dtype)


def _draw_picture(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Return blocks of several sizes and a little noise, float64 [batch, channels, height, width] in 0..1."""
    height, width = shape[2:]
    picture = 0.1 * rng.random(shape)
    for block in (16, 4):
        coarse = rng.random((*shape[:2], -(-height // block), -(-width // block)))
        picture += 0.45 * coarse.repeat(block, axis=2).repeat(block, axis=3)[:, :, :height, :width]
    return np.asarray(picture)


def _draw_tones(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Return two waves along the last axis, of random pitch and strength, float64 of `shape`."""
    places = np.arange(shape[-1] if shape else 1)
    waves = sum(rng.uniform(0, 2) * np.sin(places * rng.uniform(0.01, 1.0) + rng.uniform(0, 6)) for _ in range(2))
    return np.broadcast_to(waves if shape else 0.0, shape)


def _draw_integers(info: TensorInfo, shape: tuple[int, ...], recipe: Recipe, rng: np.random.Generator) -> np.ndarray:
    dtype: np.dtype = np.dtype(info.dtype)
    name = info.name.lower()
    if "mask" in name:
        return np.ones(shape, dtype)
    if "token_type" in name or "segment" in name:
        return np.zeros(shape, dtype)
    if "len" in name and len(shape) <= 1:
        return np.full(shape, max(recipe.sizes.values(), default=recipe.scalar), dtype)
    if _is_scalar(info):
        return np.full(shape, recipe.scalar, dtype)
    if dtype == np.uint8 and len(shape) >= 3:
        return rng.integers(0, 256, shape).astype(dtype)
    return rng.integers(0, recipe.integer_bound, shape).astype(dtype)


def _search_in_child(model: str, skip: int) -> None:
    """Try recipes; print JSON objects, one per line: "trying" before each, then "error" or "found"."""
    limit = int(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") * MAX_CHILD_MEMORY_SHARE)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    from packager.models.sessions import open_session, runtime_errors  # only the subprocess needs the runtime

    interface = ModelInterface.from_file(Path(model))
    try:
        running = open_session(Path(model))
    except ModelDoesNotRun as error:
        print(json.dumps({"refused": error.message[:400]}), flush=True)
        return

    def runs(recipe: Recipe) -> float | None:
        start = time.monotonic()
        try:
            running.run(None, draw_sample(interface, recipe, 0, 0))
        except runtime_errors() as error:
            print(json.dumps({"error": " ".join(str(error).split())[:400]}), flush=True)
            return None
        return time.monotonic() - start

    for number, recipe in enumerate(recipe_candidates(interface)):
        if number < skip:
            continue
        print(json.dumps({"trying": number}), flush=True)
        elapsed_s = runs(recipe)
        if elapsed_s is not None:
            _print_recipe(recipe)
            _print_larger_recipes(interface, recipe, elapsed_s, runs)
            return


def _print_recipe(recipe: Recipe) -> None:
    print(json.dumps({"found": asdict(recipe)}), flush=True)


def _print_larger_recipes(
    interface: ModelInterface, recipe: Recipe, elapsed_s: float, runs: Callable[[Recipe], float | None]
) -> None:
    _, free = _symbols(with_rank(interface, recipe.rank))
    found = 0
    for factor in (2.0, 0.5, 4.0):
        larger = {name: int(size * factor) if name in free else size for name, size in recipe.sizes.items()}
        is_new = free and all(1 <= size <= MAX_SIZE for size in larger.values())
        is_worth_it = is_new and found < MAX_EXTRA_SIZES and elapsed_s * factor**2 < FAST_RUN_S
        if is_worth_it and runs(replace(recipe, sizes=larger)) is not None:
            _print_recipe(replace(recipe, sizes=larger))
            found += 1


if __name__ == "__main__":
    _search_in_child(sys.argv[1], int(sys.argv[2]))
