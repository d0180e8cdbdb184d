"""The copy of a release's content shard that came with an archive.

The archive with a release has the shard only once; it is kept beside the documents until the family has another
release. Nothing verifies a copy: its envelope opens for the cohort, or the device downloads the published one.
"""

import logging
from collections.abc import Mapping
from pathlib import Path

from bundle.envelope_shard import MAX_SHARD_BYTES, find_envelope
from bundle.errors import DownloadFailed, Refused
from bundle.fleet import Fleet
from bundle.manifest import Manifest
from bundle.repository_paths import content_shard_path, envelope_name

logger = logging.getLogger(__name__)


def read_content_envelope(
    folder: Path, members: Mapping[str, bytes], manifest: Manifest, fleet: Fleet, cohort: str
) -> str:
    """Return the content envelope of a release for a cohort, in hexadecimal, or "" without a usable copy.

    Args:
        folder: folder of the check's documents, where the shard is kept.
        members: path below the repository's URL → content of each shard in the archive.
        manifest: the release.
        fleet: the fleet document of the same check.
        cohort: name of the cohort, or "".

    Raises:
        OSError: the copy cannot be kept.
    """
    path = content_shard_path(manifest.family, manifest.counter)
    kept = folder / f"{manifest.family}.content-shard"
    row = fleet.cohort(cohort)
    if row is None:
        return ""
    head = path.encode() + b"\n"
    if path in members:
        partial = kept.with_suffix(".part")
        partial.write_bytes(head + members[path])
        partial.replace(kept)
    try:
        with kept.open("rb") as file:
            data = file.read(MAX_SHARD_BYTES)
        if not data.startswith(head):
            return ""
        return find_envelope(data[len(head) :], envelope_name(row.public_key, row.epoch)).hex()
    except OSError:
        return ""
    except (Refused, DownloadFailed) as error:
        logger.debug("%s is not used (%s): %s", kept.name, error.reason, error.message)
        return ""
