"""The check of an archive's members against the metadata that names them.

A member that passes is the file that the repository serves under the member's path; signatures are verified later, as
for any other file. Nothing names the digest of an envelope shard: its envelopes open, or they do not.
"""

import hashlib

from tuf.api.exceptions import LengthOrHashMismatchError, RepositoryError
from tuf.api.metadata import Metadata, Snapshot, Timestamp

from bundle.errors import ArchiveMismatch
from bundle.repository_paths import METADATA_FOLDER, SHARDS_FOLDER, TARGETS_FOLDER


def check_members(members: dict[str, bytes], timestamp: Timestamp) -> None:
    """Check the members of a family's archive against timestamp and snapshot; an empty archive passes.

    Args:
        members: path below the repository's URL → content.
        timestamp: the verified timestamp.

    Raises:
        ArchiveMismatch: a member is not the file that the metadata names.
    """
    if not members:
        return
    meta = timestamp.snapshot_meta
    path = f"{METADATA_FOLDER}/{meta.version}.snapshot.json"
    snapshot_bytes = members.get(path)
    if snapshot_bytes is None or not meta.hashes:
        raise ArchiveMismatch(f"archive: no {path}, which the timestamp names")
    try:
        meta.verify_length_and_hashes(snapshot_bytes)
        snapshot: Snapshot = Metadata[Snapshot].from_bytes(snapshot_bytes).signed
        named = {f"{METADATA_FOLDER}/{row.version}.{name}": row for name, row in snapshot.meta.items()}
        for name, data in members.items():
            if name.startswith(f"{TARGETS_FOLDER}/"):
                _check_target_member(name, data)
            elif name in named and named[name].hashes:
                named[name].verify_length_and_hashes(data)
            elif name != path and not name.startswith(SHARDS_FOLDER):
                raise ArchiveMismatch(f"archive: the snapshot does not name {name[:120]!r}")
    except LengthOrHashMismatchError as error:
        raise ArchiveMismatch(f"archive: {error}") from error
    except RepositoryError as error:
        raise ArchiveMismatch("archive: its snapshot is not TUF metadata") from error


def _check_target_member(path: str, data: bytes) -> None:
    # the file name of a target begins with its digest; tuf asks for it by the name that the verified role lists
    expected = path.rpartition("/")[2].partition(".")[0]
    if hashlib.sha256(data).hexdigest() != expected:
        raise ArchiveMismatch(f"archive: the content of {path[:120]!r} does not have the digest in its name")
