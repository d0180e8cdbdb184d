"""Samples that are fed to a model: from an `.npz` file, from a folder, or from memory.

1. An array is read row by row from its file, so memory has one sample at a time.
2. An archive is refused by its own headers, before it is read, if it inflates to far more than real samples do, or if
   an array's header and length disagree.
3. `origin` and `digest` identify the samples; random ones are marked as such.
4. Calibration and held-out samples alternate, so that sorted files split evenly.

The form of a sample: packager.models.inputs.
"""

import hashlib
import math
import os
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO, Final, Protocol

import numpy as np

from bundle.local_files import check_regular_file, open_local_file
from packager.errors import SampleNameMismatch, SampleShapeMismatch, SamplesUnreadable, TooFewSamples
from packager.models.inputs import (
    ModelInterface,
    Sample,
    TensorInfo,
    add_batch_axis,
    check_dtype,
    check_names,
    check_sample,
    check_shape,
    lacks_batch,
)
from packager.models.sample_files import from_stored

FOLDER_SUFFIXES: Final = (".npz", ".npy")
MAX_INFLATION: Final = 50  # numbers of real samples deflate to a quarter or a tenth, masks of ones to a thousandth
SKIP_BYTES: Final = 2**20  # read at once between two samples
FREE_INFLATED_BYTES: Final = 2**30  # below it any inflation is accepted: it is read in a few seconds


class SampleSource(Protocol):
    """A source of samples by number, as often as needed."""

    def rows(self, indices: Sequence[int]) -> Iterator[Sample]:
        """Yield the samples of `indices` (ascending), one at a time."""
        ...


@dataclass(frozen=True, slots=True)
class Samples:
    """Inputs to run a model on.
    Iterating yields one dict of arrays per sample, read again from the source each time.

    Attributes:
        source: reads the samples.
        indices: numbers of the samples in the source.
        origin: "npz:<sha256>", "folder:<sha256>", "random:<seed>" or "memory".
        digest: hexadecimal SHA-256 of the source.
    """

    source: SampleSource = field(repr=False)
    indices: tuple[int, ...] = field(repr=False)
    origin: str
    digest: str

    def __iter__(self) -> Iterator[Sample]:
        return self.source.rows(self.indices)

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def is_random(self) -> bool:
        """True if the samples were drawn at random, not given by the user."""
        return self.origin.startswith("random")

    def split_halves(self) -> tuple["Samples", "Samples"]:
        """Return (calibration samples, held-out samples): every other one; a single sample serves as both."""
        if len(self.indices) < 2:
            return self, self
        return self._select(self.indices[0::2]), self._select(self.indices[1::2])

    def take(self, count: int) -> "Samples":
        """Return at most `count` samples, evenly spread over all."""
        if count >= len(self.indices):
            return self
        positions = [round(i * (len(self.indices) - 1) / max(1, count - 1)) for i in range(count)]
        return self._select(tuple(self.indices[position] for position in positions))

    def _select(self, indices: tuple[int, ...]) -> "Samples":
        return Samples(self.source, indices, self.origin, self.digest)


def no_samples() -> Samples:
    """Return an empty list of samples, for a release without a model that the agent runs."""
    return Samples(MemorySource(()), (), "none", hashlib.sha256(b"").hexdigest())


@dataclass(frozen=True, slots=True)
class MemorySource:
    """Samples that are already in memory."""

    samples: tuple[Sample, ...]

    def rows(self, indices: Sequence[int]) -> Iterator[Sample]:
        """Yield the samples of `indices`."""
        for index in indices:
            yield self.samples[index]


@dataclass(frozen=True, slots=True)
class NpzSource:
    """Samples of one `.npz` file, read forward."""

    path: Path
    inputs: tuple[TensorInfo, ...]

    def rows(self, indices: Sequence[int]) -> Iterator[Sample]:
        """Yield the samples of `indices`; descending indices read the file again from its start."""
        with ExitStack() as stack:
            archive = stack.enter_context(zipfile.ZipFile(self.path))
            columns = {i: _Column(partial(archive.open, f"{i.name}.npy"), stack) for i in self.inputs}
            for index in indices:
                yield {
                    info.name: from_stored(add_batch_axis(column.row(index), info)) for info, column in columns.items()
                }


@dataclass(frozen=True, slots=True)
class FolderSource:
    """Samples of a folder, one file per sample."""

    paths: tuple[Path, ...]
    interface: ModelInterface

    def rows(self, indices: Sequence[int]) -> Iterator[Sample]:
        """Yield the samples of `indices`, one file each."""
        for index in indices:
            yield self._read(self.paths[index])

    def _read(self, path: Path) -> Sample:
        try:
            _check_numpy_file(path)
            loaded = np.load(path, allow_pickle=False)
            if isinstance(loaded, np.ndarray):
                if len(self.interface.inputs) != 1:
                    raise SampleNameMismatch(
                        f"{path}: one bare array, expected {len(self.interface.inputs)} named ones",
                        hint="write an .npz with one array per input",
                    )
                return {self.interface.inputs[0].name: add_batch_axis(loaded, self.interface.inputs[0])}
            with loaded:
                known = {info.name: info for info in self.interface.inputs}
                found = {name: loaded[name] for name in loaded.files}
                return {name: add_batch_axis(a, known[name]) if name in known else a for name, a in found.items()}
        except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
            raise SamplesUnreadable(f"{path}: cannot be read as a numpy file: {error}") from error


def open_inputs(inputs: Path, interface: ModelInterface) -> Samples:
    """Open an `.npz` or a folder of inputs (`load_samples`, `folder_samples`).

    Args:
        inputs: the file or folder.
        interface: inputs and outputs of the model.
    """
    return folder_samples(inputs, interface) if inputs.is_dir() else load_samples(inputs, interface)


def load_samples(path: Path, interface: ModelInterface) -> Samples:
    """Open an `.npz` of inputs and check all of it against the model.

    Args:
        path: the file; each array is named like a model input, and its first axis counts samples.
        interface: inputs and outputs of the model.

    Raises:
        SamplesUnreadable: the file is not an `.npz`, or has an array in an unsupported layout.
        SampleNameMismatch, SampleShapeMismatch, SampleDtypeMismatch: an array does not fit the model.
        TooFewSamples: there is no sample.
    """
    expected = {info.name: info for info in interface.inputs}
    try:
        check_regular_file(path)
        with zipfile.ZipFile(path) as archive:
            _check_inflation(archive, path)
            found = {name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")}
            check_names(found, expected, path)
            shapes = {name: _check_header(archive, info, path) for name, info in expected.items()}
    except (OSError, zipfile.BadZipFile, ValueError, KeyError) as error:
        raise SamplesUnreadable(
            f"{path}: cannot be read as an .npz file: {error}",
            hint="write it with numpy.savez, one array per input",
        ) from error
    counts = {name: shape[0] for name, shape in shapes.items()}
    if len(set(counts.values())) > 1:
        raise SampleShapeMismatch(f"{path}: arrays have different numbers of samples: {_list_counts(counts)}")
    count = next(iter(counts.values()), 0)
    if count == 0:
        raise TooFewSamples(f"{path}: found 0 samples, expected at least 1")
    digest = _file_digest(path)
    return Samples(NpzSource(path, interface.inputs), tuple(range(count)), f"npz:{digest}", digest)


def folder_samples(folder: Path, interface: ModelInterface) -> Samples:
    """Open a folder of inputs and check all of it against the model.

    Args:
        folder: each `.npz` in it is one sample (one array an input); each `.npy` one, for models with one input.
        interface: inputs and outputs of the model.

    Raises:
        SamplesUnreadable: the folder does not exist, or a file is not a numpy file.
        SampleNameMismatch, SampleShapeMismatch, SampleDtypeMismatch: a sample does not fit the model.
        TooFewSamples: there is no file.
    """
    if not folder.is_dir():
        raise SamplesUnreadable(f"{folder}: not a folder, expected one with .npz or .npy files")
    paths = sorted(path for path in folder.iterdir() if path.suffix in FOLDER_SUFFIXES)
    if not paths:
        raise TooFewSamples(f"{folder}: found no .npz or .npy file, expected at least 1")
    source = FolderSource(tuple(paths), interface)
    total = hashlib.sha256()
    for path, sample in zip(paths, source.rows(range(len(paths))), strict=True):
        check_sample(sample, interface, str(path))
        total.update(bytes.fromhex(_file_digest(path)))
    return Samples(source, tuple(range(len(paths))), f"folder:{total.hexdigest()}", total.hexdigest())


def samples_from(arrays: Sequence[Sample], origin: str = "memory") -> Samples:
    """Wrap samples that are in memory.

    Args:
        arrays: the samples.
        origin: recorded with them.
    """
    total = hashlib.sha256()
    for sample in arrays:
        for name, array in sorted(sample.items()):
            total.update(f"{name}{array.dtype.str}{array.shape}".encode())
            total.update(np.ascontiguousarray(array).tobytes())
    return Samples(MemorySource(tuple(arrays)), tuple(range(len(arrays))), origin, total.hexdigest())


class _Column:
    """One array of an `.npz`, read row by row.

    Members are read forward and opened again to go back: after a `seek` in a member that is not compressed, Python
    3.13.0 ends the member too early.
    """

    def __init__(self, open_member: Callable[[], IO[bytes]], stack: ExitStack) -> None:
        self._open_member = open_member
        self._restart()
        stack.callback(lambda: self._stream.close())
        self._row_bytes = self._dtype.itemsize * int(np.prod(self._shape[1:], dtype=np.int64))

    def row(self, index: int) -> np.ndarray:
        wanted = self._start + index * self._row_bytes
        if wanted < self._position:
            self._stream.close()
            self._restart()
        while self._position < wanted and (skipped := self._stream.read(min(wanted - self._position, SKIP_BYTES))):
            self._position += len(skipped)
        data = self._stream.read(self._row_bytes)
        self._position += len(data)
        if len(data) != self._row_bytes:
            raise SamplesUnreadable(f"sample {index} ends early: {len(data)} of {self._row_bytes} bytes")
        return np.frombuffer(bytearray(data), self._dtype).reshape(self._shape[1:])

    def _restart(self) -> None:
        self._stream = self._open_member()
        self._shape, self._dtype = _read_header(self._stream)
        self._start = self._position = self._stream.tell()


def _read_header(stream: IO[bytes]) -> tuple[tuple[int, ...], np.dtype]:
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran_order, dtype = read(stream)
    if dtype.hasobject:
        raise ValueError("an array contains Python objects")
    if fortran_order and len(shape) > 1:
        raise ValueError("an array is in Fortran order; save numpy.ascontiguousarray(array)")
    return shape, dtype


def _check_numpy_file(path: Path) -> None:
    """Check the headers of a file with one sample, before numpy makes arrays of the sizes that they name."""
    with open_local_file(path) as stream:
        if not zipfile.is_zipfile(stream):
            stream.seek(0)
            _check_length(stream, os.fstat(stream.fileno()).st_size, path)
            return
        with zipfile.ZipFile(stream) as archive:
            _check_inflation(archive, path)
            for member in archive.infolist():
                with archive.open(member) as part:
                    _check_length(part, member.file_size, f"{path}: array {member.filename!r}")


def _check_inflation(archive: zipfile.ZipFile, path: Path) -> None:
    size, inflated = path.stat().st_size, sum(member.file_size for member in archive.infolist())
    if inflated > max(FREE_INFLATED_BYTES, MAX_INFLATION * size):
        raise SamplesUnreadable(
            f"{path}: {size:,} bytes inflate to {inflated:,}, expected at most {MAX_INFLATION} times as many",
            hint="write it without compression, with numpy.savez",
        )


def _check_length(stream: IO[bytes], size: int, where: object) -> tuple[tuple[int, ...], np.dtype]:
    shape, dtype = _read_header(stream)
    found, expected = size - stream.tell(), math.prod(shape) * dtype.itemsize
    if found != expected:
        raise ValueError(f"{where}: an array of shape {shape} needs {expected:,} bytes, found {found:,}")
    return shape, dtype


def _check_header(archive: zipfile.ZipFile, info: TensorInfo, path: Path) -> tuple[int, ...]:
    member = archive.getinfo(f"{info.name}.npy")
    with archive.open(member) as stream:
        shape, dtype = _check_length(stream, member.file_size, f"array {info.name!r}")
    check_dtype(dtype, info, path)
    if not shape:
        raise SampleShapeMismatch(f"{path}: array {info.name!r} is a scalar, expected samples along its first axis")
    check_shape((1, *shape[1:]) if lacks_batch(shape[1:], info) else shape[1:], info, path)
    return shape


def _file_digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _list_counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))
