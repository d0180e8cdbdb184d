"""Validators of HTTP responses (RFC 9110 section 8.8), and what a device stores of them.

The stored file lies beside tuf's cache and is not trusted: a wrong one costs a request.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bundle import strict_json
from bundle.errors import Refused
from bundle.strict_json import JSON, SHA256_HEX_PATTERN, StrictObject

TIMESTAMP_NAME: Final = "timestamp.json"
COMPRESSED_TIMESTAMP_NAME: Final = "timestamp.awz"
STATE_NAME: Final = "validators.json"
STATE_SCHEMA: Final = "airweights.validators/1"
MAX_STATE_BYTES: Final = 16 * 1024
MAX_VALIDATOR_CHARACTERS: Final = 512
MAX_URL_CHARACTERS: Final = 4096


@dataclass(frozen=True, slots=True)
class Validators:
    """The validators of a response (RFC 9110 section 8.8), as the server sent them.

    Attributes:
        etag: the ETag, or "".
        last_modified: the Last-Modified date, or "".
    """

    etag: str = ""
    last_modified: str = ""


@dataclass(frozen=True, slots=True)
class Download:
    """The response to a conditional request.

    Attributes:
        data: the file, or None if it is not modified.
        validators: the validators of the file.
    """

    data: bytes | None
    validators: Validators


FetchIfChanged = Callable[[str, int, Validators], Download]
"""Return the file at a URL, of at most the given number of bytes, unless its validators still match.

Raises as `bundle.trust.updater.Fetch` does, and:
    UnexpectedNotModified: the server responds with 304, and the validators are empty.
"""


@dataclass(frozen=True, slots=True)
class SourceState:
    """The facts about one repository URL that are stored between two checks.

    Attributes:
        metadata_url: base URL of the metadata files.
        name: name of the file that the stored timestamp came from.
        sha256: SHA-256 of the stored timestamp, uncompressed.
        validators: the validators of that file.
        root_version: version of root at its last walk, 0 if it was never walked.
        boot_id: the boot of that walk.
        boot_elapsed_s: seconds since that boot.
        snapshots: family → version of the snapshot at its last complete check, whose documents are stored.
    """

    metadata_url: str
    name: str
    sha256: str
    validators: Validators
    root_version: int
    boot_id: str
    boot_elapsed_s: int
    snapshots: Mapping[str, int]

    def as_json(self) -> dict[str, JSON]:
        """Return the stored object (docs/format.md section 11)."""
        return {
            "schema": STATE_SCHEMA,
            "metadata_url": self.metadata_url,
            "name": self.name,
            "sha256": self.sha256,
            "etag": self.validators.etag,
            "last_modified": self.validators.last_modified,
            "root_version": self.root_version,
            "boot_id": self.boot_id,
            "boot_elapsed_s": self.boot_elapsed_s,
            "snapshots": dict(self.snapshots),
        }


def read_source_state(path: Path, metadata_url: str) -> SourceState | None:
    """Return the stored state, or None if none is stored or it is damaged.

    Of another URL's state, only the snapshots are returned: validators and walks of root belong to one URL.

    Args:
        path: the stored file.
        metadata_url: base URL of the metadata files.
    """
    try:
        data = path.read_bytes()
        fields = StrictObject(strict_json.decode(data, what="validators", max_bytes=MAX_STATE_BYTES), "validators")
        fields.choice("schema", (STATE_SCHEMA,))
        snapshots = fields.object("snapshots")
        state = SourceState(
            metadata_url=fields.text("metadata_url", max_length=MAX_URL_CHARACTERS),
            name=fields.choice("name", (TIMESTAMP_NAME, COMPRESSED_TIMESTAMP_NAME)),
            sha256=fields.text("sha256", SHA256_HEX_PATTERN),
            validators=Validators(
                fields.text("etag", max_length=MAX_VALIDATOR_CHARACTERS),
                fields.text("last_modified", max_length=MAX_VALIDATOR_CHARACTERS),
            ),
            root_version=fields.integer("root_version"),
            boot_id=fields.text("boot_id"),
            boot_elapsed_s=fields.integer("boot_elapsed_s"),
            snapshots={family: snapshots.integer(family) for family in snapshots.remaining_names()},
        )
        fields.reject_unknown()
    except (OSError, Refused):
        return None
    if state.metadata_url == metadata_url:
        return state
    return SourceState(metadata_url, COMPRESSED_TIMESTAMP_NAME, state.sha256, Validators(), 0, "", 0, state.snapshots)
