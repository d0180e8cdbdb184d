"""Tags and digests of a repository's files in an OCI registry (docs/format.md section 19).

Pure: the packager writes by these rules, and the device's fetcher reads by them.

Rules:
- A blob or a target, whose path has its SHA-256, is a blob of that digest.
- Any other file has a tag, whose manifest has one layer: the file. A document directly in `metadata/` has its name as
  the tag; any other path has `path-` and the SHA-256 of the path.
- A layer of at most MAX_INLINE_BYTES is also in the manifest, as the descriptor's field `data`. So a timestamp costs
  one request.
"""

import hashlib
import re
from dataclasses import dataclass
from typing import Final

MANIFEST_TYPE: Final = "application/vnd.oci.image.manifest.v1+json"
FILE_TYPE: Final = "application/vnd.airweights.file.v1"
EMPTY_TYPE: Final = "application/vnd.oci.empty.v1+json"
MAX_INLINE_BYTES: Final = 48 * 1024
MAX_MANIFEST_BYTES: Final = 4 * 1024 * 1024
DIGEST_PATTERN: Final = re.compile(r"sha256:[0-9a-f]{64}")
_BLOB: Final = re.compile(r"blobs/[0-9a-f]{2}/([0-9a-f]{64})")
_TARGET: Final = re.compile(r"targets/(?:[^/]+/)*([0-9a-f]{64})\.[^/]+")
_DOCUMENT: Final = re.compile(r"metadata/([A-Za-z0-9_][A-Za-z0-9_.-]{0,127})")


@dataclass(frozen=True, slots=True)
class RegistryPlace:
    """The place of a file in a registry.

    Attributes:
        digest: `sha256:…` of the blob; "" if the file has a tag.
        tag: tag of its manifest; "" if the file has a digest.
    """

    digest: str
    tag: str


def place_of(path: str) -> RegistryPlace:
    """Return where a registry has the file with this path below the repository."""
    if found := _BLOB.fullmatch(path) or _TARGET.fullmatch(path):
        return RegistryPlace(f"sha256:{found[1]}", "")
    if found := _DOCUMENT.fullmatch(path):
        return RegistryPlace("", found[1])
    return RegistryPlace("", f"path-{hashlib.sha256(path.encode()).hexdigest()}")
