"""Arrays of samples in NPZ files, by which a process passes them to a subprocess and back.

Strings are stored as numpy's fixed-width strings. `onnx` is not imported: the subprocesses do not need it.
"""

from collections.abc import Iterable
from pathlib import Path

import numpy as np


def to_stored(array: np.ndarray) -> np.ndarray:
    """Return an array as files have it: strings of fixed width instead of objects."""
    return array.astype(str) if array.dtype == object else array


def from_stored(array: np.ndarray) -> np.ndarray:
    """Return an array as the runtime takes it: strings as objects."""
    return array.astype(object) if array.dtype.kind == "U" else array


def save_arrays(path: Path, arrays: Iterable[np.ndarray]) -> None:
    """Write arrays to a file.

    Args:
        path: the file.
        arrays: the arrays; strings as objects or of fixed width.
    """
    np.savez(path, allow_pickle=False, **{f"a{number}": to_stored(array) for number, array in enumerate(arrays)})


def load_arrays(path: Path) -> list[np.ndarray]:
    """Return the arrays of a file of `save_arrays`, in order; strings of fixed width."""
    with np.load(path, allow_pickle=False) as loaded:
        return [loaded[f"a{number}"] for number in range(len(loaded.files))]
