"""Inputs of jobs, named by their digest: a job has no path, so it can run on another machine.

Rules:
1. A job names a `Source`. The process that runs the job resolves it to a file: one that this process planned with
   (`remember_source`), or one that a `SourceFinder` finds, for example in a content-addressed cache.
2. A file from a finder is hashed once in each process, before its first byte is used. A file that this process planned
   with was verified when its bundle was opened; the finished patch is applied in any case (check_patch).
3. The finder travels with the job, the content does not.
4. A process keeps what it found for its next jobs. Of the files that no job reads at the moment, it keeps the last ones
   used, MAX_IDLE_BYTES in all: what a finder decrypted into memory is memory of the worker.
"""

import hashlib
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from packager.errors import SourceMismatch, SourceMissing

MAX_IDLE_BYTES: Final = 256 << 20


@dataclass(frozen=True, slots=True)
class Source:
    """The content of a file.

    Attributes:
        sha256: its SHA-256, in hexadecimal.
        size: its bytes.
    """

    sha256: str
    size: int


NOWHERE: Final = Source("", 0)  # of a position that is never read


class SourceFinder(Protocol):
    """Finds the files of sources, in the process that runs a job. It is sent to other processes."""

    def find(self, source: Source) -> Path | None:
        """Return a local file that should have this content, or None."""

    def release(self, path: Path) -> None:
        """Give back a file that `find` returned; no job reads it any more."""


@dataclass(frozen=True, slots=True)
class LocalFinder:
    """Finds files on this machine.

    Attributes:
        paths: the sources, each with its path.
    """

    paths: tuple[tuple[Source, str], ...]

    def find(self, source: Source) -> Path | None:
        """Return the path of a source, or None if it is not known."""
        return next((Path(path) for known, path in self.paths if known == source), None)

    def release(self, path: Path) -> None:
        """Do nothing: the file stays where it is."""


@dataclass(slots=True)
class _Found:
    """A file from a finder, hashed.

    Attributes:
        path: the file.
        finder: who found it.
        jobs: how many jobs read it at the moment.
    """

    path: Path
    finder: SourceFinder
    jobs: int = 0


_planned: dict[Source, Path] = {}  # files that this process planned with
_verified: dict[Source, _Found] = {}  # the last used one is the last
_lock: Final = threading.Lock()


def remember_source(source: Source, path: Path) -> None:
    """Let jobs that run in this process read a source from a file.

    Args:
        source: the content.
        path: a file that has it.
    """
    _planned[source] = path


def planned_path(source: Source) -> Path:
    """Return the file that this process planned with.

    Raises:
        SourceMissing: there is none.
    """
    if source not in _planned:
        raise SourceMissing(f"no file with the SHA-256 {source.sha256[:16]}… is known here")
    return _planned[source]


@contextmanager
def open_sources(sources: Sequence[Source], finder: SourceFinder) -> Iterator[None]:
    """Find and hash the files of a job, and keep them while it runs, as a context manager.

    Args:
        sources: what the job reads.
        finder: finds the files that this process does not have yet.

    Raises:
        SourceMissing: a file is not found, or cannot be read.
        SourceMismatch: a file has other bytes.
    """
    taken: list[_Found] = []
    try:
        for source in sources:
            with _lock:
                found = _find(source, finder)
                found.jobs += 1
                taken.append(found)
        yield
    finally:
        with _lock:
            for found in taken:
                found.jobs -= 1
            _release_idle()


def _find(source: Source, finder: SourceFinder) -> _Found:
    known = _verified.pop(source, None)
    if known is not None and known.path.exists():
        _verified[source] = known
        return known
    path = finder.find(source)
    if path is None:
        raise SourceMissing(f"no file with the SHA-256 {source.sha256[:16]}… is found on this worker")
    try:
        with path.open("rb") as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise SourceMissing(f"{path}: {error.strerror}", hint="is the folder shared with this worker?") from error
    if found != source.sha256:
        finder.release(path)
        raise SourceMismatch(f"{path} has the SHA-256 {found[:16]}…, expected {source.sha256[:16]}…")
    _verified[source] = _Found(path, finder)
    return _verified[source]


def _release_idle() -> None:
    idle = [(source, found) for source, found in _verified.items() if not found.jobs]
    size = sum(source.size for source, _ in idle)
    for source, found in idle:
        if size <= MAX_IDLE_BYTES:
            return
        size -= source.size
        del _verified[source]
        found.finder.release(found.path)


def find_path(source: Source) -> Path:
    """Return the file of a source in this process.

    Raises:
        SourceMissing: the file is not known in this process.
    """
    found = _verified.get(source)
    return planned_path(source) if found is None else found.path


def read_source(source: Source, offset: int, size: int) -> bytes:
    """Read bytes of a source.

    Args:
        source: the content.
        offset: first byte.
        size: number of bytes.

    Raises:
        SourceMissing: the file is not known in this process.
    """
    with find_path(source).open("rb") as stream:
        stream.seek(offset)
        return stream.read(size)
