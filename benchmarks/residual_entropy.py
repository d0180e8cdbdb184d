"""Compare the coder without fitted predictions with the order-0 entropy of the residuals.

    python -m benchmarks.residual_entropy [--pairs DIR] [--only PAIR]... [--json OUT]

The residual of an array that both files have with the same name, type and shape is the difference of the ordered
integers (for floats: units in the last place). Its entropy is computed per array; for floats, conditional on the
exponent of the base. Residuals above 255 are counted by their 8 leading bits plus all lower bits, so that rare values
do not lower the estimate, and half a nat is added for each cell that occurs (Miller-Madow correction). The entropy is
compared with the complete patch without fitted parameters, including headers, other bytes and checksums.
"""

import argparse
import io
import json
import sys
from pathlib import Path
from typing import Any, Final

import numpy as np

from benchmarks.patches import find_pair_files, prepare_public_pairs
from bundle.patch.elements import ELEMENT_TYPE_BY_NAME, ElementType, exponent_fields, to_ordered
from packager.diff.bundle_folder import open_bundle
from packager.diff.write.make_patch import make_patch
from packager.tensors.find_regions import find_file_regions, map_file

GOALS: Final = {True: 0.01, False: 0.02}  # floats, integers
EXACT_BITS: Final = 8
Array = np.ndarray[Any, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=Path)
    parser.add_argument("--only", action="append", help="a pair's name; may be repeated")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    rows = []
    for pair in sorted((arguments.pairs or prepare_public_pairs()).iterdir()):
        found = find_pair_files(pair) if pair.is_dir() else None
        if found is None or (arguments.only and pair.name not in arguments.only):
            continue
        rows.append(row := measure_pair(pair.name, *found))
        if row["elements"]:
            bits = (8 * row[name] / row["elements"] for name in ("entropy_bytes", "unfitted_bytes"))
            figures = "entropy {:.3f}, patch {:.3f} bits an element".format(*bits)
            print(f"{pair.name}: {figures}, {row['distance']:+.2%} (goal {row['goal']:.0%})", flush=True)
        else:
            print(f"{pair.name}: no array in common", file=sys.stderr)
    if arguments.json:
        arguments.json.write_text(json.dumps({"pairs": rows}, indent=1) + "\n")


def measure_pair(name: str, base: Path, target: Path) -> dict[str, Any]:
    """Return a row: entropy of the residuals of all common arrays, and bytes of the patch without fitted parameters."""
    bits, elements, floats = 0.0, 0, 0
    old = {(r.name, r.dtype, r.shape): r for r in find_file_regions(base)[0]}
    with map_file(base) as before, map_file(target) as after:
        for region in find_file_regions(target)[0]:
            twin = old.get((region.name, region.dtype, region.shape))
            if twin is None:
                continue
            kind = ELEMENT_TYPE_BY_NAME[region.dtype]
            sides = [
                np.frombuffer(bytes(data[r.offset : r.offset + r.size]), kind.bits)
                for data, r in ((before, twin), (after, region))
            ]
            bits += compute_residual_bits(sides[0], sides[1], kind)
            elements += sides[0].size
            floats += sides[0].size * kind.is_float
    out = io.BytesIO()
    make_patch(open_bundle(base), open_bundle(target), out, codec="unfitted")
    size, entropy = len(out.getvalue()), bits / 8
    return {
        "pair": name,
        "elements": elements,
        "entropy_bytes": round(entropy),
        "unfitted_bytes": size,
        "distance": size / entropy - 1 if entropy else 0.0,
        "goal": GOALS[2 * floats > elements],
    }


def compute_residual_bits(base: Array, target: Array, kind: ElementType) -> float:
    """Return the entropy of one array's residuals in bits; for floats, conditional on the exponent of the base.

    Args:
        base: bits of the old elements.
        target: bits of the new elements, in the same order.
        kind: element type of both.
    """
    change = (to_ordered(target, kind) - to_ordered(base, kind)).astype(np.int64)  # wraps, as in a patch
    size = np.abs(change)
    low_bits = np.maximum(np.frexp(size.astype(np.float64))[1] - EXACT_BITS, 0).astype(np.int64)
    cell = (np.sign(change) + 1) * (1 << 20) + low_bits * (1 << 10) + (size >> low_bits)
    below = float(low_bits.sum())
    if not kind.is_float:
        return _compute_entropy_bits(cell) + below
    exponent = exponent_fields(base, kind).astype(np.int64)
    return _compute_entropy_bits(exponent * (1 << 22) + cell) - _compute_entropy_bits(exponent) + below


def _compute_entropy_bits(cells: Array) -> float:
    """Return the corrected order-0 entropy of all cells, in bits."""
    counts = np.unique(cells, return_counts=True)[1].astype(np.float64)
    return float(-(counts * np.log2(counts / cells.size)).sum() + (counts.size - 1) / (2 * np.log(2)))


if __name__ == "__main__":
    main()
