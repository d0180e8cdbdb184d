"""Where the files of a repository lie, relative to its URL (docs/format.md, Repository).

Pure: the device's supervisor builds these names, and it loads no cryptographic library.
"""

import hashlib
from typing import Final

METADATA_FOLDER: Final = "metadata"
TARGETS_FOLDER: Final = "targets"
NAME_LABEL: Final = b"airweights envelope name v1"


def blob_path(sha256: str) -> str:
    """A blob, by the SHA-256 of its ciphertext."""
    return f"blobs/{sha256[:2]}/{sha256}"


def content_envelope_path(family: str, counter: int, variant: str, name: str) -> str:
    """The content key of a variant, sealed to one cohort epoch; `name` from `envelope_name`."""
    return f"envelopes/content/{family}/{counter}/{variant}/{name}"


def cohort_envelope_path(cohort: str, epoch: int, name: str) -> str:
    """The private key of a cohort epoch, sealed to one device; `name` from `envelope_name`."""
    return f"envelopes/cohorts/{cohort}/{epoch}/{name}"


def envelope_name(recipient: bytes, epoch: int) -> str:
    """64 hexadecimal digits: SHA-256 of label ‖ epoch (u64, big-endian) ‖ recipient public key."""
    return hashlib.sha256(NAME_LABEL + epoch.to_bytes(8, "big") + recipient).hexdigest()
