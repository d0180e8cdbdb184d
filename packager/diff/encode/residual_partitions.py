"""Where sorted residuals are cut into parts, so that parts and what they cost in themselves are smallest together.

Rules:
1. A part's size is estimated from the entropy of its residuals' classes: exact values where they are small, else sign,
   bit length and two bits more. What is below the class is noise, and costs the same in every part.
2. Cuts lie between keys. Neighboring keys are first joined into at most `ATOMS` runs; then dynamic programming finds
   the cheapest cuts between these.
3. Each part is charged what pcodec's tables take, and a thousandth of all for the device's time.
"""

from typing import Final

import numpy as np
import numpy.typing as npt

from bundle.patch.elements import Signed

MAX_ATOMS: Final = 32
MIN_ELEMENTS: Final = 1024
PART_OVERHEAD_BITS: Final = 8.0 * 40
CLASS_OVERHEAD_BITS: Final = 12.0
PART_OVERHEAD_SHARE: Final = 0.001
EXACT_MAGNITUDES: Final = 32  # magnitudes below it are classes of their own
CLASS_COUNT: Final = 2 * (EXACT_MAGNITUDES + 4 * 64)


def find_best_cuts(keys: npt.NDArray[np.uint8], residual: Signed) -> list[int]:
    """Positions among the sorted residuals where parts begin and end: 0, …, their count.

    Args:
        keys, residual: of the same elements, in any order.
    """
    count = len(keys)
    histogram = np.bincount(keys, minlength=256)
    edges = _split_into_atoms(histogram)
    if len(edges) < 3:
        return [0, count]
    atom_of_key = np.repeat(np.arange(len(edges) - 1), np.diff(edges))
    classes = _classify_residuals(residual)
    flat = atom_of_key[keys] * CLASS_COUNT + classes
    table = np.bincount(flat, minlength=(len(edges) - 1) * CLASS_COUNT).reshape(-1, CLASS_COUNT)
    table = table[:, table.any(axis=0)]
    chosen = _find_cheapest_ends(table)
    ends = np.cumsum(histogram)
    return [0, *(int(ends[edges[i] - 1]) for i in chosen)]


def _split_into_atoms(histogram: npt.NDArray[np.intp]) -> list[int]:
    """Keys at which the runs of rule 2 begin, and 256."""
    total = int(histogram.sum())
    least = max(MIN_ELEMENTS, total // MAX_ATOMS)
    edges, held, left = [0], 0, total
    for key, number in enumerate(histogram.tolist()):
        held += number
        left -= number
        if held >= least and left >= least:
            edges.append(key + 1)
            held = 0
    return [*edges, 256]


def _classify_residuals(residual: Signed) -> npt.NDArray[np.intp]:
    """Rule 1: 0 to `CLASSES`."""
    if residual.dtype.itemsize == 1:
        return residual.astype(np.intp) + 128
    magnitude = np.abs(residual.astype(np.float64))
    raw = magnitude.view(np.int64) >> 50  # exponent and two bits of the mantissa
    steps = np.where(
        magnitude < EXACT_MAGNITUDES,
        np.minimum(magnitude, EXACT_MAGNITUDES).astype(np.int64),
        EXACT_MAGNITUDES + raw - ((1023 + 5) << 2),
    )
    signed: npt.NDArray[np.intp] = 2 * steps + (residual < 0)
    return signed


def _find_cheapest_ends(table: npt.NDArray[np.intp]) -> list[int]:
    """Rule 2: ends of the parts, as numbers of atoms."""
    atoms = len(table)
    sums = np.concatenate([np.zeros((1, table.shape[1])), np.cumsum(table, axis=0)])
    part_bits = PART_OVERHEAD_BITS + PART_OVERHEAD_SHARE * _entropy_bits(sums[-1:])[0]
    best = np.zeros(atoms + 1)
    previous = np.zeros(atoms + 1, np.intp)
    for end in range(1, atoms + 1):
        inside = sums[end] - sums[:end]
        bits = _entropy_bits(inside)
        bits += part_bits + CLASS_OVERHEAD_BITS * np.minimum((inside > 0).sum(axis=1), 64)
        costs = best[:end] + bits
        previous[end] = int(np.argmin(costs))
        best[end] = costs[previous[end]]
    out = [atoms]
    while previous[out[-1]]:
        out.append(int(previous[out[-1]]))
    return out[::-1]


def _entropy_bits(counts: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Entropy of each row's elements."""
    totals = counts.sum(axis=1)
    bits: npt.NDArray[np.float64] = totals * np.log2(np.maximum(totals, 1))
    bits -= (counts * np.log2(np.maximum(counts, 1))).sum(axis=1)
    return bits
