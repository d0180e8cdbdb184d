"""Predict what an update receives, by kind, when it runs right after the check of `device-agent plan`.

Rules:
1. Sizes of blobs are signed. What comes beside them is measured: the heads of responses as this server sends them, and
   the second check of an update, which `plan` makes for this.
2. The update's first check is one response without a document, since the timestamp is known then.
3. An envelope of a cohort is received again, until it has opened once. A content key that came with the metadata costs
   nothing more; another one is estimated from the number of cohorts.
"""

from typing import Final

from bundle.acceptance import VerifiedRelease
from bundle.envelope_shard import HEAD_BYTES
from device_agent.policy.download_bytes import DownloadBytes, DownloadKind
from device_agent.policy.planner import PatchPath
from device_agent.update.context import UpdateContext
from device_agent.workers.worker_pool import WorkerPool

CONTENT_RECORD_BYTES: Final = 8 + 32 + 1176  # index, name, envelope of a content key
SHARD_HEADER_BYTES: Final = 16


def expect_download(
    context: UpdateContext, workers: WorkerPool, release: VerifiedRelease, path: PatchPath
) -> DownloadBytes:
    """Make the second check of an update, and return what the update would receive.

    Args:
        context: store and journal of the family.
        workers: made the first check, and looked for the cohort's envelope.
        release: result of the first check.
        path: the patches to download.

    Raises:
        Refused, Unavailable: the second check failed.
    """
    if not path.steps:
        return DownloadBytes()
    envelope = workers.received.by_kind[DownloadKind.ENVELOPE]
    before = workers.received.by_kind[DownloadKind.METADATA]
    workers.check_channel(context.journal.persistent_state, context.journal.bundles(), walk_root=True)
    second_check = workers.received.by_kind[DownloadKind.METADATA] - before
    sizes = workers.response_sizes
    patch = full = 0
    counters = set()
    for edge in path.steps:
        left = max(edge.entry.size - context.store.spooled_bytes(edge.entry.blob), 0)
        size = left + sizes.head_bytes if left else 0
        if edge.entry.base is None:
            full += size
        else:
            patch += size
        if not (release.content_envelope and edge.manifest.counter == release.manifest.counter):
            counters.add(edge.manifest.counter)
    envelope += len(counters) * (_content_shard_bytes(len(release.fleet.cohorts)) + sizes.head_bytes)
    return DownloadBytes(metadata=sizes.unchanged_bytes + second_check, envelope=envelope, patch=patch, full=full)


def _content_shard_bytes(cohorts: int) -> int:
    whole = SHARD_HEADER_BYTES + cohorts * CONTENT_RECORD_BYTES
    return whole if whole <= HEAD_BYTES else HEAD_BYTES + CONTENT_RECORD_BYTES
