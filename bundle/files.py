"""The files of a bundle: paths, roles, sizes and digests.

Rules:
- A path is relative and has at most 8 segments, separated by `/`, and 200 characters. Each segment starts with a
  letter, a digit or `_`: no `..`, no hidden files, no absolute paths, no names that a file system treats specially.
- A list of files is sorted by path. It contains no path twice, and no path that is the folder of another one. No two
  files or folders differ only in upper and lower case: some file systems would merge them.
- The bundle digest is the SHA-256 of the canonical JSON of [{path, role, sha256, size}, ...] (docs/format.md, 3.2).
"""

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Final, NewType

from bundle import strict_json
from bundle.errors import Invalid, Malformed
from bundle.strict_json import JSON, SHA256_HEX_PATTERN, StrictObject

BundleDigest = NewType("BundleDigest", str)

PATH_PATTERN: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*(?:/[A-Za-z0-9_][A-Za-z0-9._-]*){0,7}")
MAX_PATH_CHARACTERS: Final = 200
MAX_FILES: Final = 1024
MAX_FILE_BYTES: Final = 2**40  # 1 TiB, so that every offset in a bundle is below 2^53
ROLES: Final = ("model", "external-data", "golden", "labels", "preprocessing", "tokenizer", "package", "other")


@dataclass(frozen=True, slots=True, order=True)
class BundleFile:
    """One uncompressed, unencrypted file of a bundle.

    Attributes:
        path: relative path that matches PATH_PATTERN.
        role: one of ROLES.
        size: size in bytes.
        sha256: digest of the content, lower-case hexadecimal.
    """

    path: str
    role: str
    size: int
    sha256: str

    def as_json(self) -> dict[str, JSON]:
        """Return the file as an object of the manifest's `files` list."""
        return {"path": self.path, "role": self.role, "size": self.size, "sha256": self.sha256}


@dataclass(frozen=True, slots=True)
class BundleDirectory:
    """An unencrypted bundle in a directory of the build machine.

    Attributes:
        root: directory that the paths of `files` are relative to.
        files: all files, sorted by path.
    """

    root: Path
    files: tuple[BundleFile, ...]


def parse_files(rows: list[StrictObject]) -> tuple[BundleFile, ...]:
    """Parse the `files` list of a manifest or a patch header.

    Raises:
        Malformed: an entry does not follow its schema, or `check_files` refuses the list.
    """
    out = []
    for row in rows:
        path = row.text("path", PATH_PATTERN, max_length=MAX_PATH_CHARACTERS)
        role = row.choice("role", ROLES)
        size = row.integer("size", 0, MAX_FILE_BYTES)
        out.append(BundleFile(path, role, size, row.text("sha256", SHA256_HEX_PATTERN)))
        row.reject_unknown()
    check_files(out)
    return tuple(out)


def check_files(files: Iterable[BundleFile]) -> None:
    """Check that a list of files is sorted and that no path is the folder of another one.

    Raises:
        Malformed: the list is not sorted, contains a path twice, a path is both a file and a folder, or two paths
            differ only in case.
    """
    paths = [file.path for file in files]
    for before, after in pairwise(paths):
        if before >= after:
            raise Malformed(f"bundle files: found {after!r} after {before!r}, expected a sorted list without repeats")
    known = set(paths)
    for path in paths:
        parts = path.split("/")
        for n in range(1, len(parts)):
            if "/".join(parts[:n]) in known:
                raise Malformed(f"bundle files: {'/'.join(parts[:n])!r} is both a file and the folder of {path!r}")
    collision = find_case_collision(paths)
    if collision is not None:
        raise Malformed(f"bundle files: {collision[0]!r} and {collision[1]!r} differ only in upper and lower case")


def find_case_collision(paths: Iterable[str]) -> tuple[str, str] | None:
    """Return the first two files or folders that differ only in upper and lower case, or None.

    Args:
        paths: paths of files, which consist of ASCII characters.
    """
    spelled: dict[str, str] = {}
    for path in paths:
        parts = path.split("/")
        for n in range(1, len(parts) + 1):
            name = "/".join(parts[:n])
            first = spelled.setdefault(name.lower(), name)
            if first != name:
                return first, name
    return None


def bundle_digest(files: Iterable[BundleFile]) -> BundleDigest:
    """Return the bundle digest: the SHA-256 of the canonical JSON of all files, sorted by path."""
    return BundleDigest(strict_json.digest([file.as_json() for file in files]))


def scan_directory(root: Path, roles: dict[str, str]) -> BundleDirectory:
    """List and hash the files of a bundle directory.

    Args:
        root: an existing directory.
        roles: role by path; all other paths get the role "other".

    Raises:
        Invalid: the directory is missing or empty, or contains a symbolic link, a special file, an invalid name, or
            names that differ only in case.
    """
    if not root.is_dir():
        raise Invalid(f"bundle folder {root} is missing or not a folder")
    files = []
    for file in sorted(path for path in root.rglob("*") if path.is_symlink() or not path.is_dir()):
        path = file.relative_to(root).as_posix()
        if file.is_symlink() or not file.is_file():
            raise Invalid(f"bundle folder {root}: {path!r} is not a regular file")
        if not PATH_PATTERN.fullmatch(path) or len(path) > MAX_PATH_CHARACTERS:
            raise Invalid(f"bundle folder {root}: found the name {path!r}, expected {PATH_PATTERN.pattern}")
        with file.open("rb") as stream:
            sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
        files.append(BundleFile(path, roles.get(path, "other"), file.stat().st_size, sha256))
    if not files:
        raise Invalid(f"bundle folder {root} is empty")
    collision = find_case_collision(file.path for file in files)
    if collision is not None:
        raise Invalid(
            f"bundle folder {root}: {collision[0]!r} and {collision[1]!r} differ only in upper and lower case",
            hint="rename one of them",
        )
    return BundleDirectory(root, tuple(sorted(files)))
