"""Samples in one file, for processes that do not see where the samples come from.

The file is an uncompressed `.npz`; the array `I-J` is input J of sample I. The names of the inputs are not in the file.
"""

import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from packager.models.inputs import Sample
from packager.models.sample_files import from_stored, to_stored
from packager.models.samples import Samples


@dataclass(frozen=True, slots=True)
class PackedSource:
    """Samples of a packed file.

    Attributes:
        path: the file.
        names: names of the inputs.
    """

    path: Path
    names: tuple[str, ...]

    def rows(self, indices: Sequence[int]) -> Iterator[Sample]:
        """Yield the samples of `indices`."""
        with np.load(self.path, allow_pickle=False) as arrays:
            for index in indices:
                yield {name: from_stored(arrays[f"{index}-{place}"]) for place, name in enumerate(self.names)}


def pack_samples(samples: Samples, path: Path) -> tuple[str, ...]:
    """Write samples to a file, one at a time, and return the names of their inputs.

    Args:
        samples: at least one sample; all have the same inputs.
        path: the file to write.
    """
    names: tuple[str, ...] = ()
    with zipfile.ZipFile(path, "x", allowZip64=True) as archive:
        for index, sample in enumerate(samples):
            names = names or tuple(sample)
            for place, name in enumerate(names):
                with archive.open(f"{index}-{place}.npy", "w", force_zip64=True) as out:
                    np.lib.format.write_array(out, np.ascontiguousarray(to_stored(sample[name])), allow_pickle=False)
    return names
