"""Inputs of jobs, named by their digest: a job has no path, so it can run on another machine.

Rules:
1. A job names a `Source`. The process that runs the job resolves it to a file: one that this process planned with
   (`remember_source`), or one that a `SourceFinder` finds, for example in a content-addressed cache.
2. A file from a finder is hashed once in each process, before its first byte is used. A file that this process planned
   with was verified when its bundle was opened; the finished patch is applied in any case (check_patch).
3. The finder travels with the job, the content does not.
"""

import hashlib
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from packager.errors import SourceMismatch, SourceMissing


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


_planned: dict[Source, Path] = {}  # files that this process planned with
_verified: dict[Source, Path] = {}  # files from a finder, hashed
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


def prepare_source(source: Source, finder: SourceFinder) -> None:
    """Find and hash the file of a source, unless this process did so before.

    Args:
        source: the content.
        finder: finds the file.

    Raises:
        SourceMissing: the file is not found, or cannot be read.
        SourceMismatch: the file has other bytes.
    """
    with _lock:
        if source in _verified and _verified[source].exists():
            return
        path = finder.find(source)
        if path is None:
            raise SourceMissing(f"no file with the SHA-256 {source.sha256[:16]}… is found on this worker")
        try:
            with path.open("rb") as stream:
                found = hashlib.file_digest(stream, "sha256").hexdigest()
        except OSError as error:
            raise SourceMissing(f"{path}: {error.strerror}", hint="is the folder shared with this worker?") from error
        if found != source.sha256:
            raise SourceMismatch(f"{path} has the SHA-256 {found[:16]}…, expected {source.sha256[:16]}…")
        _verified[source] = path


def read_source(source: Source, offset: int, size: int) -> bytes:
    """Read bytes of a source.

    Args:
        source: the content.
        offset: first byte.
        size: number of bytes.

    Raises:
        SourceMissing: the file is not known in this process.
    """
    with (_verified.get(source) or planned_path(source)).open("rb") as stream:
        stream.seek(offset)
        return stream.read(size)
