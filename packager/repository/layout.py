"""Where things lie in a repository's folder, and how a file gets there whole.

    repository/
      published/            what is served, as it is: nothing here is secret
        metadata/  targets/  blobs/  envelopes/
      staging/              prepared, not yet published: metadata/ targets/ withdrawn.json base.json
      observer/             what a device of each channel would remember of the last publication
      registry.jsonl        the devices
      publish.lock, published-by.json

Rules:
1. A file is written beside its place, synced, and renamed. A published file other than `timestamp.json` never changes.
2. One publisher at a time holds the lock; who waits too long is told who holds it.
"""

import fcntl
import getpass
import hashlib
import json
import os
import socket
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bundle import strict_json
from packager.errors import FamilyUnknown, PublishConflict

LOCK_TIMEOUT_S: Final = 10.0
LOCK_POLL_INTERVAL_S: Final = 0.05
COPY_CHUNK_BYTES: Final = 1024 * 1024


@dataclass(frozen=True, slots=True)
class RepositoryLayout:
    """The paths below a repository's folder."""

    root: Path

    @property
    def published(self) -> Path:
        """What is served."""
        return self.root / "published"

    @property
    def metadata(self) -> Path:
        """Published metadata."""
        return self.published / "metadata"

    @property
    def targets(self) -> Path:
        """Published manifests, rollouts, fleet documents."""
        return self.published / "targets"

    @property
    def staging(self) -> Path:
        """What waits to be signed and published."""
        return self.root / "staging"

    @property
    def observer(self) -> Path:
        """Memory of the rehearsed devices."""
        return self.root / "observer"

    @property
    def registry(self) -> Path:
        """The devices."""
        return self.root / "registry.jsonl"

    @property
    def lock(self) -> Path:
        """Rule 2."""
        return self.root / "publish.lock"

    @property
    def published_by(self) -> Path:
        """Who published last."""
        return self.root / "published-by.json"

    def blob(self, sha256: str) -> Path:
        """A published blob."""
        return self.published / "blobs" / sha256[:2] / sha256

    def envelope(self, relative: str) -> Path:
        """A published envelope."""
        return self.published / "envelopes" / relative


def write_file(path: Path, data: bytes, *, is_synced: bool = True) -> None:
    """Rule 1. `is_synced` False only for many files at once, with one `os.sync` after the last of them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=".part-")
    try:
        with open(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fchmod(file.fileno(), 0o644)
            if is_synced:
                os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    if is_synced:
        sync_directory(path.parent)


def copy_into(source: Path, folder: Path) -> tuple[Path, str]:
    """Copy a file into `folder` under a temporary name, synced. Returns the copy and its SHA-256."""
    folder.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=folder, prefix=".part-")
    digest = hashlib.sha256()
    try:
        with open(descriptor, "wb") as out, source.open("rb") as file:
            while chunk := file.read(COPY_CHUNK_BYTES):
                digest.update(chunk)
                out.write(chunk)
            out.flush()
            os.fsync(out.fileno())
        Path(name).chmod(0o644)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    return Path(name), digest.hexdigest()


def sync_directory(path: Path) -> None:
    """Make names in a folder durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def lock_repository(layout: RepositoryLayout) -> Iterator[None]:
    """Rule 2. Raises PublishConflict."""
    descriptor = os.open(layout.lock, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        deadline = time.monotonic() + LOCK_TIMEOUT_S
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() > deadline:
                    holder = os.pread(descriptor, 256, 0).decode(errors="replace") or "another process"
                    raise PublishConflict(f"{layout.lock} is held by {holder}", hint="try again") from error
                time.sleep(LOCK_POLL_INTERVAL_S)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, describe_process().encode(), 0)
        yield
        os.ftruncate(descriptor, 0)
    finally:
        os.close(descriptor)


def describe_process() -> str:
    """User, host and process, for people."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()} (process {os.getpid()})"


def record_publisher(layout: RepositoryLayout, timestamp_version: int) -> None:
    """Note who published, for the one who comes second."""
    record = {"timestamp_version": timestamp_version, "by": describe_process(), "at_s": int(time.time())}
    write_file(layout.published_by, json.dumps(record).encode())


def last_publisher(layout: RepositoryLayout) -> str:
    """Who published last, for people."""
    try:
        record = json.loads(layout.published_by.read_bytes())
        return f"{record['by']} published timestamp {record['timestamp_version']} at Unix time {record['at_s']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "somebody else published"


def check_names(names: Sequence[str]) -> None:
    """Raises FamilyUnknown for what is no name."""
    for name in names:
        if not strict_json.NAME_PATTERN.fullmatch(name):
            raise FamilyUnknown(f"name {name!r}: expected lower-case letters, digits, '.', '_' and '-', at most 64")
