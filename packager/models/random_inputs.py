"""Find random inputs that a model runs on: sizes are tried in a subprocess until one runs.

1. The model runs only in the subprocess: one that crashes, hangs or exhausts memory ends only the subprocess.
2. packager.models.input_recipes has the sizes and their order.
3. Unknown values are kept small: integers below 64 (then below 2), masks of ones, lengths equal to the size.
4. The subprocess prints each attempt before it starts, so that after a crash the search continues behind it.
5. Sizes are varied around the first input with each kind of error, after FIRST_ATTEMPTS inputs. If the error with its
   numbers stays the same, or a wrong size leads to another kind of error, then no size helps, and the search ends.
"""

import json
import os
import re
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np

from packager.errors import ModelCrashes, ModelDoesNotRun, NoWorkingInput
from packager.models.input_recipes import (
    MAX_SIZE,
    STATE_WORDS,
    Recipe,
    is_scalar,
    one_size_varied,
    recipe_candidates,
    sizes_varied,
    symbol_of,
    symbols_of,
    with_rank,
)
from packager.models.inputs import ModelInterface, Sample, TensorInfo
from packager.models.samples import Samples, samples_from

MAX_EXTRA_SIZES: Final = 2  # beside the first that runs, for golden vectors of smallest and largest shapes
FAST_RUN_S: Final = 1.0  # larger sizes are tried only while one run takes less
MAX_CRASHES: Final = 4
FIRST_ATTEMPTS: Final = 8
SOURCE_OF_ERROR: Final = re.compile(r".*(Status Message:|was false\.| \w+\.(h|cc):\d+ \w+)")
MAX_CHILD_MEMORY_SHARE: Final = 0.75  # of physical memory
WORDS: Final = ("a", "b", "red", "green", "yes", "no", "0", "1.5", "")  # inputs that take strings
STATE_SCALE: Final = 0.1  # standard deviation; states are bounded by tanh in most recurrent nets


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
        ModelDoesNotRun: the model does not load, or fails with one error on inputs of any size.
    """
    deadline = time.monotonic() + limit_s
    skip, last_error = 0, "none, the time limit was reached first"
    tried = f"within {limit_s:.0f} s"
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
            if "always" in line:
                raise ModelDoesNotRun(
                    f"{model}: fails on every random input, with one error for all sizes: {line['always']}",
                    hint="repair the layer that the error names, or give inputs that run with --inputs FILE.npz",
                )
            last_error = line.get("error", last_error)
            skip = int(line.get("trying", skip))
        if child.is_complete:
            tried = f"among {skip + 1:,} tried"
            break
        if time.monotonic() >= deadline:
            break
        skip += 1
    else:
        raise ModelCrashes(f"{model}: crashed its process {MAX_CRASHES} times while inputs were searched")
    inputs = "; ".join(str(info) for info in interface.inputs)
    raise NoWorkingInput(
        f"{model}: found no input that it runs on {tried} ({inputs}); last error: {last_error}",
        hint="give real inputs with --inputs FILE.npz (one array per model input, first axis = sample)",
    )


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
    if is_scalar(info):
        return np.full(shape, recipe.scalar, dtype)
    if dtype == np.uint8 and len(shape) >= 3:
        return rng.integers(0, 256, shape).astype(dtype)
    return rng.integers(0, recipe.integer_bound, shape).astype(dtype)


def _search_in_child(model: str, skip: int) -> None:
    """Try recipes; print a JSON object per line: "trying", "error", "found" or "always"."""
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

    def run(recipe: Recipe) -> float | str:
        """Return the seconds of a run, or its error."""
        start = time.monotonic()
        try:
            running.run(None, draw_sample(interface, recipe, 0, 0))
        except runtime_errors() as error:
            return " ".join(str(error).split())[:400]
        return time.monotonic() - start

    first_of_kind: dict[str, tuple[Recipe, str]] = {}
    for number, recipe in enumerate(recipe_candidates(interface)):
        if number < skip:
            continue
        print(json.dumps({"trying": number}), flush=True)
        result = run(recipe)
        if isinstance(result, float):
            _print_recipe(recipe)
            _print_larger_recipes(interface, recipe, result, run)
            return
        print(json.dumps({"error": result}), flush=True)
        is_new = _kind_of(result) not in first_of_kind
        first_of_kind.setdefault(_kind_of(result), (recipe, result))
        if number + 1 < skip + FIRST_ATTEMPTS:
            continue
        to_examine = (
            list(first_of_kind.values()) if number + 1 == skip + FIRST_ATTEMPTS else [(recipe, result)] * is_new
        )
        for known, found in to_examine:
            if _is_same_for_all_sizes(interface, known, found, run):
                print(json.dumps({"always": found}), flush=True)
                return


def _kind_of(error: str) -> str:
    return re.sub(r"\d+(,\d+)*", "0", error)


def _is_same_for_all_sizes(
    interface: ModelInterface, recipe: Recipe, error: str, run: Callable[[Recipe], float | str]
) -> bool:
    """Return whether other sizes give the same error, or one of another kind, and some of them the same.

    Errors without a number do not show whether they depend on a size.
    """
    if not re.search(r"\d", SOURCE_OF_ERROR.sub("", error)):
        return False
    kept = set()
    for symbol, varied in one_size_varied(interface, recipe).items():
        for other in map(run, varied):
            if isinstance(other, float) or (other != error and _kind_of(other) == _kind_of(error)):
                return False
            if other != error:
                kept.add(symbol)
    is_open = bool(recipe.sizes.keys() - kept)
    return is_open and all(run(varied) == error for varied in sizes_varied(interface, recipe, kept))


def _print_recipe(recipe: Recipe) -> None:
    print(json.dumps({"found": asdict(recipe)}), flush=True)


def _print_larger_recipes(
    interface: ModelInterface, recipe: Recipe, elapsed_s: float, run: Callable[[Recipe], float | str]
) -> None:
    _, free = symbols_of(with_rank(interface, recipe.rank))
    found = 0
    for factor in (2.0, 0.5, 4.0):
        larger = {name: int(size * factor) if name in free else size for name, size in recipe.sizes.items()}
        is_new = free and all(1 <= size <= MAX_SIZE for size in larger.values())
        is_worth_it = is_new and found < MAX_EXTRA_SIZES and elapsed_s * factor**2 < FAST_RUN_S
        if is_worth_it and isinstance(run(replace(recipe, sizes=larger)), float):
            _print_recipe(replace(recipe, sizes=larger))
            found += 1


if __name__ == "__main__":
    _search_in_child(sys.argv[1], int(sys.argv[2]))
