"""Export the files of serving releases into a folder in memory.

It is for applications that can only read named files.

    EXPORT/FAMILY                     symbolic link to the folder of the serving release
    EXPORT/.export-FAMILY-N/PATH      its files, mode 0440

Rules:
1. The folder is on tmpfs or ramfs, never on a disk. It belongs to the agent's user, and no other user can write to it.
   What is in it and was not made by an export is refused, never removed and never followed.
2. The files of the next release are written first. Then one rename replaces the link, and the files before it are
   removed. An application sees the files of one release through the link, or none.
3. What is exported is the serving release or nothing: after a rollback the previous release, and nothing after an error
   or when the family stops serving. A start removes what a crash left, a stop removes everything.
4. One thread for each family writes, so that no swap waits for it.
"""

import contextlib
import errno
import logging
import os
import re
import stat
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from bundle.errors import AirweightsError
from bundle.strict_json import NAME_PATTERN
from device_agent.errors import ExportFolderForeign, ExportNotInMemory
from device_agent.policy.export_status import ExportStatus
from device_agent.policy.journal_records import BundleRecord

logger = logging.getLogger(__name__)

MEMORY_FILESYSTEMS: Final = ("tmpfs", "ramfs")
FOLDER_PREFIX: Final = ".export-"
FOLDER_PATTERN: Final = re.compile(rf"\.export-{NAME_PATTERN.pattern}")
FILE_MODE: Final = 0o440
FOLDER_MODE: Final = 0o750
COPY_BYTES: Final = 1 << 20
MOUNTS: Final = Path("/proc/self/mountinfo")

Unseal = Callable[[BundleRecord, Sequence[str]], dict[str, int]]


def check_export_filesystem(folder: Path) -> tuple[str, bool]:
    """Return the type of the file system of an export folder, and whether it can be swapped out.

    Args:
        folder: the folder; one that does not exist has the file system of its nearest parent.

    Raises:
        ExportNotInMemory: it is neither tmpfs nor ramfs.
        ExportFolderForeign: the folder is a symbolic link, or no folder.
    """
    existing = folder
    while not os.path.lexists(existing):
        existing = existing.parent
    if existing == folder and (folder.is_symlink() or not folder.is_dir()):
        raise ExportFolderForeign(f"serve.export: {folder} is not a folder", hint="name a folder, without links")
    found, options = _filesystem_of(existing)
    if found not in MEMORY_FILESYSTEMS:
        raise ExportNotInMemory(
            f"serve.export: {folder} is on {found or 'an unknown file system'}, expected tmpfs or ramfs",
            hint="name a folder below /run, or mount a tmpfs there",
        )
    return found, found == "tmpfs" and "noswap" not in options


def prepare_export_folder(folder: Path) -> None:
    """Create the folder if it is missing, and remove what an earlier daemon left in it.

    Raises:
        ExportNotInMemory: it is not on tmpfs or ramfs.
        ExportFolderForeign: it is another user's, others can write to it, or something else is in it.
    """
    try:
        check_export_filesystem(folder)
        folder.mkdir(FOLDER_MODE, parents=True, exist_ok=True)
        check_export_filesystem(folder)
        found = folder.stat()
        if found.st_uid != os.geteuid():
            raise ExportFolderForeign(
                f"serve.export: {folder} belongs to user {found.st_uid}, the agent is user {os.geteuid()}",
                hint="create it for the agent's user, with the group of the application",
            )
        if found.st_mode & 0o022:
            raise ExportFolderForeign(
                f"serve.export: {folder} has mode {stat.S_IMODE(found.st_mode):04o}, others can write to it",
                hint=f"chmod 2750 {folder}",
            )
        with os.scandir(folder) as entries:
            left = sorted(entries, key=lambda entry: entry.name)
        for entry in left:
            _check_own(entry, folder)
        for entry in left:
            _remove(folder, entry.name)
    except OSError as error:
        raise ExportFolderForeign(
            f"serve.export: {folder}: {error.strerror}", hint="create it for the agent's user"
        ) from error


class FamilyExport:
    """The exported files of one family. Any thread may call it.

    Args:
        folder: the export folder, prepared by `prepare_export_folder`.
        family: name of the family.
        unseal: unseals files of a bundle by path and returns descriptors, which the caller closes.
        serving: returns the serving bundle and its generation number, or None.
    """

    def __init__(
        self, folder: Path, family: str, unseal: Unseal, serving: Callable[[], tuple[BundleRecord, int] | None]
    ) -> None:
        self._folder, self._family = folder, family
        self._unseal, self._serving = unseal, serving
        self._filesystem, self._is_swappable = check_export_filesystem(folder)
        self._number = 0
        self._made: list[str] = []  # names of folders and links in the export folder, beside the family's link
        self._exported: BundleRecord | None = None
        self._error: str | None = None
        self._is_closing, self._is_changed = False, False
        self._condition = threading.Condition()
        self._thread = threading.Thread(target=self._run, name=f"export-{family}", daemon=True)
        self._thread.start()

    def changed(self) -> None:
        """Export what serves now, in the other thread."""
        with self._condition:
            self._is_changed = True
            self._condition.notify_all()

    def close(self) -> None:
        """Remove the exported files, after a running export has ended."""
        with self._condition:
            self._is_closing = True
            self._condition.notify_all()
        self._thread.join()

    def status(self) -> ExportStatus:
        """Return what is exported now."""
        exported = self._exported
        return ExportStatus(
            str(self._folder / self._family),
            None if exported is None else exported.version,
            self._filesystem,
            self._is_swappable,
            self._error,
        )

    def _run(self) -> None:
        while True:
            with self._condition:
                self._condition.wait_for(lambda: self._is_changed or self._is_closing)
                self._is_changed = False
                if self._is_closing:
                    break
            self._export_serving()
        self._withdraw()

    def _export_serving(self) -> None:
        found = self._serving()
        if found is None:
            self._error = None
            self._withdraw()
            return
        bundle = found[0]
        if self._exported is not None and self._exported.digest == bundle.digest:
            return
        self._number += 1
        name = f"{FOLDER_PREFIX}{self._family}-{self._number}"
        try:
            self._write(bundle, name)
            self._switch(bundle, name)
        except (AirweightsError, OSError) as error:
            self._error = error.message if isinstance(error, AirweightsError) else f"{self._folder}: {error.strerror}"
            logger.error("release %s is not exported: %s", bundle.version, self._error)
            self._withdraw()
            return
        self._error = None
        logger.info("exported", extra={"family": self._family, "release": bundle.version, "path": str(self._folder)})

    def _write(self, bundle: BundleRecord, name: str) -> None:
        paths = [file.path for file in bundle.parse_manifest()[1].files]
        root = self._folder / name
        self._made.append(name)
        _make_folder(root)
        fds = self._unseal(bundle, paths)
        try:
            for path in paths:
                target = root / path
                for parent in reversed(target.relative_to(root).parents[:-1]):
                    if not (root / parent).is_dir():
                        _make_folder(root / parent)
                _copy(fds[path], target)
                os.close(fds.pop(path))  # frees its memory, unless an application has borrowed it
        finally:
            for fd in fds.values():
                os.close(fd)

    def _switch(self, bundle: BundleRecord, name: str) -> None:
        new = f"{name}.new"
        self._made.append(new)
        (self._folder / new).symlink_to(name)
        (self._folder / new).rename(self._folder / self._family)
        self._exported = bundle
        self._remove_made(kept=name)

    def _withdraw(self) -> None:
        self._exported = None
        try:
            link = self._folder / self._family
            if link.is_symlink():
                link.unlink()
            self._remove_made()
        except OSError as error:
            logger.error("exported files of %s are not removed: %s", self._family, error)

    def _remove_made(self, kept: str | None = None) -> None:
        for name in [each for each in self._made if each != kept]:
            _remove(self._folder, name)
            self._made.remove(name)


def _filesystem_of(path: Path) -> tuple[str, tuple[str, ...]]:
    """Return type and options of the file system of a path; ("", ()) if they are unknown."""
    device = path.stat().st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    with contextlib.suppress(OSError):
        for line in MOUNTS.read_text(encoding="utf-8", errors="replace").splitlines():
            mount, _, described = line.partition(" - ")
            fields = described.split(" ")
            if mount.split(" ")[2] == number:
                return fields[0], tuple(fields[-1].split(","))
    return "", ()


def _check_own(entry: "os.DirEntry[str]", folder: Path) -> None:
    """Check that an entry of the export folder was made by an export."""
    is_own = entry.stat(follow_symlinks=False).st_uid == os.geteuid()
    name = entry.name.removesuffix(".new")
    if entry.is_symlink():
        is_named = NAME_PATTERN.fullmatch(name) or FOLDER_PATTERN.fullmatch(name)
        is_export = is_named is not None and FOLDER_PATTERN.fullmatch(str(Path(entry.path).readlink())) is not None
    else:
        is_export = entry.is_dir(follow_symlinks=False) and FOLDER_PATTERN.fullmatch(entry.name) is not None
    if not is_own or not is_export:
        raise ExportFolderForeign(
            f"serve.export: {folder} contains {entry.name!r}, which the agent did not make",
            hint="name a folder of its own for exported files",
        )


def _remove(folder: Path, name: str) -> None:
    from shutil import rmtree  # not in memory otherwise; follows no link

    path = folder / name
    if path.is_symlink():
        path.unlink()
    elif path.exists():
        rmtree(path)


def _make_folder(path: Path) -> None:
    path.mkdir(0o700)
    # with the setgid bit that it has inherited: then its files have the group of the export folder
    path.chmod(FOLDER_MODE | path.stat().st_mode & stat.S_ISGID)


def _copy(source: int, target: Path) -> None:
    fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o400)
    try:
        size, offset = os.fstat(source).st_size, 0
        while offset < size:
            sent = os.sendfile(fd, source, offset, min(COPY_BYTES, size - offset))
            if not sent:
                raise OSError(errno.EIO, "the file became shorter")
            offset += sent
        os.fchmod(fd, FILE_MODE)
    finally:
        os.close(fd)
