"""The files of a publication: which ones are sent, in which order, with which header fields.

Rules:
1. A file is sent before the file that names it: blobs, targets and envelopes first; then the delegated documents, the
   snapshot, the archives, and a new root last. The timestamp is sent by `packager.remote.push`, when all are there.
2. What its digest or its version names never changes, so caches may keep it. The timestamp and the envelope shards
   change under their name.
3. A blob or target is named by its digest, so it may be written again. A document is not: two publishers can write
   different ones under one name. It is only created, and compared if it exists.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from packager.repository.layout import RepositoryLayout
from packager.stores.store import IMMUTABLE, SHORT_LIVED

TIMESTAMP: Final = "metadata/timestamp.json"
COMPRESSED_TIMESTAMP: Final = "metadata/timestamp.awz"
TIMESTAMPS: Final = (TIMESTAMP, COMPRESSED_TIMESTAMP)
ROOT_PATTERN: Final = re.compile(r"metadata/([0-9]+)\.root\.json")
# the number of the group that a file is sent in; the first pattern that matches counts
GROUPS: Final = (
    (re.compile(r"blobs/.*|targets/.*|envelopes/.*"), 0),
    (ROOT_PATTERN, 4),
    (re.compile(r"metadata/[0-9]+\.snapshot\.json"), 2),
    (re.compile(r"metadata/(archives|roots)/.*"), 3),
    (re.compile(r".*"), 1),
)


@dataclass(frozen=True, slots=True)
class UploadFile:
    """One file of a publication.

    Attributes:
        path: path below `published/`.
        local: the local file.
        size: its bytes.
        modified_s: when the local file was written, in Unix seconds.
    """

    path: str
    local: Path
    size: int
    modified_s: float

    @property
    def is_named_by_digest(self) -> bool:
        """True for blobs and targets."""
        return self.path.startswith(("blobs/", "targets/"))

    @property
    def is_mutable(self) -> bool:
        """True if another file may be published under the same name."""
        return self.path.startswith("envelopes/")

    @property
    def cache_control(self) -> str:
        """The value of `Cache-Control`."""
        return SHORT_LIVED if self.is_mutable else IMMUTABLE

    @property
    def group(self) -> int:
        """The number of the group that the file is sent in."""
        return next(number for pattern, number in GROUPS if pattern.fullmatch(self.path))


def list_upload_files(layout: RepositoryLayout, paths: set[str]) -> Iterator[UploadFile]:
    """Yield the files that exist locally, without the timestamp and its copy.

    Args:
        layout: the repository's paths.
        paths: paths below `published/` that the publication needs.
    """
    for path in sorted(paths):
        local = layout.published / path
        if path not in TIMESTAMPS and local.is_file():
            status = local.stat()
            yield UploadFile(path, local, status.st_size, status.st_mtime)
