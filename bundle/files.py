"""The files of a bundle: which there are, how big, and their digests.

Rules:
1. A path is relative, `/`-separated, of segments that start with a letter, digit or `_`: no `..`, no hidden file, no
   absolute path, nothing a file system reads as something else. At most 8 segments and 200 characters.
2. A list is sorted by path and has no path twice, nor one that is another's folder.
3. The bundle digest is the SHA-256 of the canonical JSON of [{path, role, sha256, size}, ...] (docs/format.md).
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
MAX_FILE_BYTES: Final = 2**40  # 1 TiB: an offset always fits 2^53
ROLES: Final = ("model", "external-data", "golden", "labels", "preprocessing", "tokenizer", "package", "other")


@dataclass(frozen=True, slots=True, order=True)
class BundleFile:
    """One plain file of a bundle.

    Attributes:
        path: relative path (rule 1).
        role: one of ROLES.
        size: bytes.
        sha256: lower-case hexadecimal digest of the content.
    """

    path: str
    role: str
    size: int
    sha256: str

    def as_json(self) -> dict[str, JSON]:
        """The object of the manifest's `files` list."""
        return {"path": self.path, "role": self.role, "size": self.size, "sha256": self.sha256}


@dataclass(frozen=True, slots=True)
class BundleDirectory:
    """A plain bundle on a file system, on the packager's side only.

    Attributes:
        root: the folder that the paths of `files` are relative to.
        files: sorted by path.
    """

    root: Path
    files: tuple[BundleFile, ...]


def parse_files(rows: list[StrictObject]) -> tuple[BundleFile, ...]:
    """The `files` list of a manifest or a patch header, checked under rules 1 and 2. Raises MalformedRefused."""
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
    """Rule 2. Raises MalformedRefused."""
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


def bundle_digest(files: Iterable[BundleFile]) -> BundleDigest:
    """Rule 3."""
    return BundleDigest(strict_json.digest([file.as_json() for file in files]))


def scan_directory(root: Path, roles: dict[str, str]) -> BundleDirectory:
    """List and hash a folder.

    Args:
        root: an existing folder; symbolic links inside are refused.
        roles: path → role; a path that is not named is "other".

    Raises:
        Invalid: the folder is missing, or holds a name that rule 1 does not allow.
    """
    if not root.is_dir():
        raise Invalid(f"bundle folder {root} is not a folder")
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
    return BundleDirectory(root, tuple(sorted(files)))
