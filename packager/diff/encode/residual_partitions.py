"""Cut sorted residuals into parts, so that the parts and their overhead are smallest together.

Symbols: keys k, uint8 [n], and residuals d, signed integers [n], of the same elements; A <= MAX_ATOMS atoms, ranges of
keys; classes c(d), 0 to C-1; table, counts [A, C]: how many residuals of each class an atom has.

Theory of operation. Each part has tables of its own in pcodec, so a part should end where the distribution of residuals
changes with the key. The size of a part with counts h [C] is estimated as its entropy, S log2 S - sum of h log2 h with
S = sum of h, plus the overhead of its tables. Cuts lie between keys. Neighboring keys are first joined to atoms of at
least MIN_ELEMENTS residuals; then dynamic programming over the end of the last part finds the cheapest cuts: best[e] =
min over s < e of best[s] + bits(atoms s to e).

Classes: small magnitudes are classes of their own; larger ones are classified by sign, exponent and two more bits. The
bits below the class are noise and cost the same in every part.

Source of the gain: docs/benchmarks.md, row "where sorted residuals are cut": 0.1 to 0.2 % on fp32 and fp16, 1 to 2 % on
adapters, over cutting at every 4,096 elements.
"""

from typing import Final

import numpy as np
import numpy.typing as npt

from bundle.patch.elements import Signed

MAX_ATOMS: Final = 32
MIN_ELEMENTS: Final = 1024
PART_OVERHEAD_BITS: Final = 8.0 * 40  # head and tables of a pcodec file
CLASS_OVERHEAD_BITS: Final = 12.0  # an entry of pcodec's tables
PART_OVERHEAD_SHARE: Final = 0.001  # of the bits of all residuals, for the device's time of another part
EXACT_MAGNITUDES: Final = 32  # magnitudes below it are classes of their own
CLASS_COUNT: Final = 2 * (EXACT_MAGNITUDES + 4 * 64)


def find_best_cuts(keys: npt.NDArray[np.uint8], residual: Signed) -> list[int]:
    """Return the cheapest cuts among the residuals sorted by key: 0, …, n.

    Args:
        keys: k, uint8 [n].
        residual: d, signed integers [n], in the same order as `keys`.
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
    """Return the first key of each atom, and 256."""
    total = int(histogram.sum())
    min_elements = max(MIN_ELEMENTS, total // MAX_ATOMS)
    edges, in_atom, left = [0], 0, total
    for key, number in enumerate(histogram.tolist()):
        in_atom += number
        left -= number
        if in_atom >= min_elements and left >= min_elements:
            edges.append(key + 1)
            in_atom = 0
    return [*edges, 256]


def _classify_residuals(residual: Signed) -> npt.NDArray[np.intp]:
    """Return the class of each residual, 0 to CLASS_COUNT - 1."""
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
    """Return the end of each part, as a number of atoms."""
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
    """Return the entropy of each row of counts, in bits."""
    totals = counts.sum(axis=1)
    bits: npt.NDArray[np.float64] = totals * np.log2(np.maximum(totals, 1))
    bits -= (counts * np.log2(np.maximum(counts, 1))).sum(axis=1)
    return bits
