"""Paths of a repository's folder, atomic writes, and the publisher's lock.

    repository/
      published/            the served files, none of them secret: metadata/ targets/ blobs/ envelopes/
      staging/              staged, not published: metadata/ targets/ withdrawn.json base.json
      observer/             the client check's device states (packager.repository.client_check)
      registry.jsonl        the enrolled devices (keys.registry)
      publish.lock          locked by the running publisher
      published-by.json     the last publisher
      publications.json     the times of the newest publications
      pushes.json           the timestamps that stores got from here (packager.remote)
      snapshots.json        the documents of recent snapshots (packager.repository.archives)

A file is written under a temporary name in the same folder, synced, and renamed. A published file other than
the timestamp, its compressed copy and the shards of cohort envelopes never changes. Everything below `published/` is
readable for all users, whatever the umask is, because web servers run as other users.
"""

import fcntl
import getpass
import hashlib
import json
import os
import socket
import stat
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bundle import strict_json
from packager.errors import FamilyUnknown, PublishConflict

LOCK_TIMEOUT_S: Final = 60.0  # several publishers in a row, each of which signs for some seconds
LOCK_POLL_INTERVAL_S: Final = 0.05
COPY_CHUNK_BYTES: Final = 1024 * 1024
PUBLISHED: Final = "published"
REGISTRY_NAME: Final = "registry.jsonl"
SERVED_FOLDER_MODE: Final = 0o755
SERVED_FILE_MODE: Final = 0o644
MAX_PUBLICATION_TIMES: Final = 4096  # a year of ten publications a day


@dataclass(frozen=True, slots=True)
class RepositoryLayout:
    """The paths below a repository's folder."""

    root: Path

    @property
    def published(self) -> Path:
        """The folder to serve."""
        return self.root / PUBLISHED

    @property
    def metadata(self) -> Path:
        """The folder of the published metadata."""
        return self.published / "metadata"

    @property
    def targets(self) -> Path:
        """The folder of published manifests, rollouts and fleet documents."""
        return self.published / "targets"

    @property
    def staging(self) -> Path:
        """The folder of staged changes."""
        return self.root / "staging"

    @property
    def observer(self) -> Path:
        """The folder of the client check's device states."""
        return self.root / "observer"

    @property
    def registry(self) -> Path:
        """The device registry's file."""
        return self.root / REGISTRY_NAME

    @property
    def lock(self) -> Path:
        """The file that the running publisher locks."""
        return self.root / "publish.lock"

    @property
    def publications(self) -> Path:
        """The file with the times of the newest publications."""
        return self.root / "publications.json"

    @property
    def published_by(self) -> Path:
        """The file that names the last publisher."""
        return self.root / "published-by.json"

    @property
    def pushes(self) -> Path:
        """The file with the timestamp that was last pushed to, or pulled from, each store."""
        return self.root / "pushes.json"

    @property
    def recorded_snapshots(self) -> Path:
        """The file with the documents of recent snapshots."""
        return self.root / "snapshots.json"

    def create(self) -> None:
        """Create the folders of a new repository; other users can reach what is served, and list nothing else."""
        is_new = not self.root.exists()
        make_folder(self.metadata)
        if is_new:
            self.root.chmod(stat.S_IMODE(self.root.stat().st_mode) | 0o111)

    def blob(self, sha256: str) -> Path:
        """Return the path of a blob, by its SHA-256 in hexadecimal."""
        return self.published / "blobs" / sha256[:2] / sha256


def write_file(path: Path, data: bytes, *, is_synced: bool = True) -> None:
    """Write a file atomically: under a temporary name, synced, then renamed.

    Args:
        path: the file; missing parent folders are created.
        data: its content.
        is_synced: sync file and folder; False only if the caller ends with one `os.sync`, or if nothing depends on
            the file and a power loss may damage it.
    """
    make_folder(path.parent)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=".part-")
    try:
        with open(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fchmod(file.fileno(), SERVED_FILE_MODE)
            if is_synced:
                os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    if is_synced:
        sync_directory(path.parent)


def copy_into(source: Path, folder: Path) -> tuple[Path, str]:
    """Copy a file into a folder under a temporary name, synced.

    Args:
        source: the file.
        folder: the folder; created if missing.

    Returns:
        The copy's path, and its SHA-256 in hexadecimal.
    """
    make_folder(folder)
    descriptor, name = tempfile.mkstemp(dir=folder, prefix=".part-")
    digest = hashlib.sha256()
    try:
        with open(descriptor, "wb") as out, source.open("rb") as file:
            while chunk := file.read(COPY_CHUNK_BYTES):
                digest.update(chunk)
                out.write(chunk)
            out.flush()
            os.fsync(out.fileno())
        Path(name).chmod(SERVED_FILE_MODE)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    return Path(name), digest.hexdigest()


def unreadable_paths(layout: RepositoryLayout) -> list[Path]:
    """List the folders and files below `published/`, and itself, that other users cannot read."""
    found = [] if _is_served(layout.published) else [layout.published]
    return found + sorted(path for path in layout.published.rglob("*") if not _is_served(path))


def _is_served(path: Path) -> bool:
    needed = SERVED_FOLDER_MODE if path.is_dir() else SERVED_FILE_MODE
    return path.stat().st_mode & needed & 0o005 == needed & 0o005


def make_folder(folder: Path) -> None:
    """Create a folder with its parents, readable for all users below `published/`, whatever the umask."""
    folder.mkdir(parents=True, exist_ok=True)
    parts = folder.parts
    if PUBLISHED in parts:
        first = len(parts) - parts[::-1].index(PUBLISHED)
        is_repository = Path(*parts[:first], "metadata").is_dir()
        for depth in range(first, len(parts) + 1) if is_repository else ():
            _open_folder(Path(*parts[:depth]))


def _open_folder(folder: Path) -> None:
    mode = stat.S_IMODE(folder.stat().st_mode)
    if mode & SERVED_FOLDER_MODE != SERVED_FOLDER_MODE:
        folder.chmod(mode | SERVED_FOLDER_MODE)


def sync_directory(path: Path) -> None:
    """Write a folder's file names to the disk (fsync)."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def lock_repository(layout: RepositoryLayout) -> Iterator[None]:
    """Hold the publisher's lock; wait for it up to LOCK_TIMEOUT_S.

    Raises:
        PublishConflict: another process holds it; the message names the process.
    """
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
                    raise PublishConflict(
                        f"the repository is locked by {holder} ({layout.lock})", hint="try again when it has finished"
                    ) from error
                time.sleep(LOCK_POLL_INTERVAL_S)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, describe_process().encode(), 0)
        yield
        os.ftruncate(descriptor, 0)
    finally:
        os.close(descriptor)


def describe_process() -> str:
    """Return user, host and process id of this process, as text."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()} (process {os.getpid()})"


def record_publisher(layout: RepositoryLayout, timestamp_version: int, snapshot_version: int) -> None:
    """Record who published, and when.

    A publisher that comes second names the first one, and the garbage collection must know since when a publication is
    out of use.

    Args:
        layout: the repository's paths.
        timestamp_version: version of the published timestamp.
        snapshot_version: version of the published snapshot.
    """
    now_s = int(time.time())
    record = {"timestamp_version": timestamp_version, "by": describe_process(), "at_s": now_s}
    write_file(layout.published_by, json.dumps(record).encode())
    # a renewal of the timestamp keeps the snapshot
    write_publications(layout, {snapshot_version: now_s, **publication_times(layout)})


def write_publications(layout: RepositoryLayout, times: Mapping[int, int]) -> None:
    """Write the times of the newest publications.

    Args:
        layout: the repository's paths.
        times: snapshot version → Unix time of its publication.
    """
    newest = sorted(times.items())[-MAX_PUBLICATION_TIMES:]
    write_file(layout.publications, json.dumps({str(version): at_s for version, at_s in newest}).encode())


def publication_times(layout: RepositoryLayout) -> dict[int, int]:
    """Return snapshot version → Unix time of its publication, as far as this repository recorded it."""
    try:
        record = json.loads(layout.publications.read_bytes())
        return {int(version): int(at_s) for version, at_s in record.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def last_publisher(layout: RepositoryLayout) -> str:
    """Describe who published last and when, as text."""
    try:
        record = json.loads(layout.published_by.read_bytes())
        return f"{record['by']} published timestamp {record['timestamp_version']} at Unix time {record['at_s']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "published by an unknown process"


def check_names(names: Sequence[str]) -> None:
    """Check names of families and cohorts.

    Raises:
        FamilyUnknown: a name is malformed.
    """
    for name in names:
        if not strict_json.NAME_PATTERN.fullmatch(name):
            raise FamilyUnknown(
                f"malformed name {name!r}, expected at most 64 lower-case letters, digits, '.', '_' and '-'"
            )
