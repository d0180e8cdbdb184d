"""The sizes of random inputs that are tried on a model, in their order.

1. Likely and small sizes come first, for every number of axes that an input may have; then several likely sizes, then
   all up to MAX_SIZE.
2. The first axis of an input with two or more axes is a batch of size 1, unless nothing runs that way.
3. Sizes that make more than MAX_LIKELY_ELEMENTS or MAX_ELEMENTS numbers, and four times those of the fixed axes, are
   left out: drawing the numbers would take all the time of the search.
4. `one_size_varied` and `sizes_varied` show whether an error depends on sizes.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import chain, product
from typing import Final, TypeAlias

import numpy as np

from packager.models.inputs import ModelInterface, TensorInfo

Sizes: TypeAlias = dict[str, int]

MAX_SIZE: Final = 4096
MAX_LIKELY_ELEMENTS: Final = 1 << 22  # of all inputs of a sample
MAX_ELEMENTS: Final = 1 << 20
SMALL_SIZES: Final = tuple(range(1, 65))
LIKELY_SIZES: Final = (
    16, 32, 64, 128, 224, 256, 512, 8, 48, 96, 320, 640, 1024, 4, 2, 1, 160, 192, 384, 576, 768, 2048,
)  # fmt: skip
SPATIAL_SIZES: Final = (64, 224, 32, 128, 96, 48, 256, 320, 640, 512, 16, 299, 384, 416, 28, 8, 1, 1024)
LIKELY_RANKS: Final = (2, 3, 4, 1, 0, 5)
CONTRASTING_SIZES: Final = (7, 5, 12, 3, 11, 9, 2, 13, 10)
INTEGER_BOUNDS: Final = (64, 2)  # exclusive; larger integers exceed small vocabularies
LIKELY_SCALARS: Final = (1, 16000, 8000, 0, 2)  # flags, and the two sampling rates of speech models
STATE_WORDS: Final = ("state", "hidden", "cell", "cache", "h0", "c0", "h_0", "c_0", "hx", "cx", "past")
SEQUENCE_WORDS: Final = ("seq", "len", "time", "frame", "token", "sample", "height", "width")


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


def with_rank(interface: ModelInterface, rank: int) -> ModelInterface:
    """Return the interface with `rank` axes of unknown size for inputs that do not declare their number.

    Args:
        interface: inputs and outputs of the model.
        rank: number of axes.
    """
    inputs = (i if i.is_ranked else replace(i, shape=(None,) * rank, is_ranked=True) for i in interface.inputs)
    return replace(interface, inputs=tuple(inputs))


def recipe_candidates(interface: ModelInterface) -> Iterator[Recipe]:
    """Yield all recipes to try, likely ones first."""
    forms = _forms(interface)
    for stage in (_likely_recipes, _mixed_recipes, _other_recipes):
        for rank, form in forms:
            for recipe in stage(form):
                yield replace(recipe, rank=rank)


def one_size_varied(interface: ModelInterface, recipe: Recipe) -> dict[str, list[Recipe]]:
    """Return recipes that differ from one in one size, by symbol; under "" in the number of axes.

    Args:
        interface: inputs and outputs of the model.
        recipe: the given recipe.
    """
    found = {
        symbol: [replace(recipe, sizes=recipe.sizes | {symbol: size}) for size in CONTRASTING_SIZES if size != present][
            :3
        ]
        for symbol, present in recipe.sizes.items()
    }
    others = [(rank, form) for rank, form in _forms(interface) if rank != recipe.rank]
    if others:
        found[""] = [
            replace(recipe, rank=rank, sizes=dict.fromkeys(chain(*symbols_of(form)), size))
            for rank, form in others
            for size in CONTRASTING_SIZES[:2]
        ]
    return found


def sizes_varied(interface: ModelInterface, recipe: Recipe, kept: set[str]) -> Iterator[Recipe]:
    """Yield recipes with a size of its own for each symbol, and with each value of integers.

    Args:
        interface: inputs and outputs of the model.
        recipe: the recipe whose number of axes and sizes of `kept` are used.
        kept: symbols that keep their sizes.
    """
    form = with_rank(interface, recipe.rank)
    for turn in range(3):
        sizes = {
            symbol: present if symbol in kept else CONTRASTING_SIZES[(turn + 2 * place) % len(CONTRASTING_SIZES)]
            for place, (symbol, present) in enumerate(recipe.sizes.items())
        }
        for varied in _with_values(form, sizes):
            yield replace(varied, rank=recipe.rank)


def _forms(interface: ModelInterface) -> list[tuple[int, ModelInterface]]:
    """Return the interface with each likely number of axes, where one is unknown."""
    if all(info.is_ranked for info in interface.inputs):
        return [(0, interface)]
    return [(rank, with_rank(interface, rank)) for rank in LIKELY_RANKS]


def _likely_recipes(interface: ModelInterface) -> Iterator[Recipe]:
    """Yield recipes with one size for all axes but the batch: likely sizes, then small ones."""
    batch, free = symbols_of(interface)
    ones = dict.fromkeys(batch, 1)
    if not free:
        yield from _with_values(interface, ones)
        return
    for size in dict.fromkeys((*_likely_sizes(interface), *SMALL_SIZES)):
        yield from _recipes_of(interface, ones | dict.fromkeys(free, size), MAX_LIKELY_ELEMENTS)


def _mixed_recipes(interface: ModelInterface) -> Iterator[Recipe]:
    """Yield recipes with several likely sizes."""
    batch, free = symbols_of(interface)
    if len(free) < 2:
        return
    likely = _likely_sizes(interface)
    ones = dict.fromkeys(batch, 1)
    one_large = (ones | dict.fromkeys(free, 1) | {one: size} for one in free for size in likely)
    mixed = (
        ones | dict(zip(free, (*sizes, *[sizes[-1]] * len(free)), strict=False))
        for sizes in product(likely[:8], repeat=min(len(free), 3))
    )
    for sizes in chain(one_large, mixed):
        yield from _recipes_of(interface, sizes, MAX_ELEMENTS)


def _other_recipes(interface: ModelInterface) -> Iterator[Recipe]:
    """Yield recipes with one size for all axes but the batch, then for all axes."""
    batch, free = symbols_of(interface)
    every = list(dict.fromkeys((*_likely_sizes(interface), *range(1, MAX_SIZE + 1))))
    ones = dict.fromkeys(batch, 1)
    equal = (ones | dict.fromkeys(free, size) for size in every if free)
    batches = (dict.fromkeys((*batch, *free), size) for size in every if batch)
    for sizes in chain(equal, batches):
        yield from _recipes_of(interface, sizes, MAX_ELEMENTS)


def _recipes_of(interface: ModelInterface, sizes: Sizes, limit: int) -> Iterator[Recipe]:
    """Yield a recipe for each value of integers, unless the sizes make more than `limit` numbers."""
    smallest = _count_elements(interface, dict.fromkeys(sizes, 1))
    if _count_elements(interface, sizes) <= max(limit, 4 * smallest):
        yield from _with_values(interface, sizes)


def _with_values(interface: ModelInterface, sizes: Sizes) -> Iterator[Recipe]:
    """Yield a recipe for each value of integers that may make a difference."""
    integers = [info for info in interface.inputs if np.dtype(info.dtype).kind in "iu"]
    scalars = LIKELY_SCALARS if any(is_scalar(info) for info in integers) else LIKELY_SCALARS[:1]
    bounds = INTEGER_BOUNDS if any(not is_scalar(info) for info in integers) else INTEGER_BOUNDS[:1]
    for scalar, bound in product(scalars, bounds):
        yield Recipe(sizes, bound, scalar)


def _likely_sizes(interface: ModelInterface) -> tuple[int, ...]:
    return SPATIAL_SIZES if any(len(info.shape) >= 4 for info in interface.inputs) else LIKELY_SIZES


def _count_elements(interface: ModelInterface, sizes: Sizes) -> int:
    return sum(
        math.prod(size if isinstance(size, int) else sizes[symbol_of(info, axis) or ""]
                  for axis, size in enumerate(info.shape))
        for info in interface.inputs
    )  # fmt: skip


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


def symbols_of(interface: ModelInterface) -> tuple[list[str], list[str]]:
    """Return the symbols of batch axes, and those of other axes without a fixed size."""
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


def is_scalar(info: TensorInfo) -> bool:
    """Return whether an input is one number."""
    return not info.shape or info.shape == (1,)
