"""Paths of files in a repository, relative to its URL (docs/format.md section 1).

Pure: the device's supervisor builds these paths without loading a cryptographic library.
"""

import hashlib
from typing import Final

METADATA_FOLDER: Final = "metadata"
TARGETS_FOLDER: Final = "targets"
SHARDS_FOLDER: Final = "envelopes/"
NAME_LABEL: Final = b"airweights envelope name v1"
SORT_KEY_BYTES: Final = 8  # of an envelope's name, by which shards and their records are sorted


def blob_path(sha256: str) -> str:
    """Return the path of a blob; `sha256` is the digest of its ciphertext, in hexadecimal."""
    return f"blobs/{sha256[:2]}/{sha256}"


def content_shard_path(family: str, counter: int) -> str:
    """Return the path of the shard with a release's content key, sealed to each cohort.

    Args:
        family: family of the release.
        counter: counter of the release.
    """
    return f"envelopes/content/{family}/{counter}"


def cohort_shard_path(cohort: str, epoch: int, shards: int, name: str) -> str:
    """Return the path of the shard with the private key of a cohort epoch, sealed to one device.

    Args:
        cohort: name of the cohort.
        epoch: epoch of the key.
        shards: number of shards of that epoch.
        name: name of the envelope, from `envelope_name`.
    """
    return f"envelopes/cohorts/{cohort}/{epoch}/{shards}-{shard_of(name, shards)}"


def key_of(name: str) -> int:
    """Return the first 8 bytes of an envelope's name, in hexadecimal, as an integer."""
    return int(name[: 2 * SORT_KEY_BYTES], 16)


def shard_of(name: str, shards: int) -> int:
    """Return the number of the shard that contains a name.

    Args:
        name: name of the envelope, in hexadecimal.
        shards: number of shards.
    """
    return key_of(name) * shards >> 64


def family_archive_path(family: str, snapshot: int, base: int, cohort: str = "") -> str:
    """Return the path of the archive with a family's documents of one snapshot.

    Args:
        family: the family.
        snapshot: version of the snapshot.
        base: version of an earlier snapshot, whose unchanged documents are left out; 0 for all documents.
        cohort: the cohort whose content envelopes are in it; "" for the archive of all devices.
    """
    name = f"{snapshot}-{base}-{cohort}" if cohort else f"{snapshot}-{base}"
    return f"{METADATA_FOLDER}/archives/{family}/{name}.awz"


def roots_archive_path(newest: int) -> str:
    """Return the path of the archive with all roots up to version `newest`."""
    return f"{METADATA_FOLDER}/roots/{newest}.awz"


def envelope_name(recipient: bytes, epoch: int) -> str:
    """Return SHA-256(NAME_LABEL ‖ epoch (u64, big-endian) ‖ recipient) in hexadecimal: the file name.

    Args:
        recipient: public key that the envelope is sealed to.
        epoch: epoch of the cohort key.
    """
    return hashlib.sha256(NAME_LABEL + epoch.to_bytes(8, "big") + recipient).hexdigest()
