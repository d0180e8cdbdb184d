"""The bytes that an attempt received, and the metered limit on them.

Rules:
- The limit (`update.metered_limit_bytes`) bounds everything that is received for one bundle, heads of the responses
  and wasted bytes included, in all attempts together. A blob's transfer ends when it is reached; what was received
  stays in the spool.
- An attempt counts if it fetched; polls that fetch nothing do not, or a waiting update could never start.
- The record is written at each progress of a blob and at the end of a phase. A bundle that was installed clears it.
"""

from typing import Final

from bundle.files import BundleDigest
from device_agent.policy.download_bytes import DownloadBytes
from device_agent.policy.journal_records import MeteredRecord
from device_agent.update.context import UpdateContext, metered_bytes_spent
from device_agent.workers.worker_pool import WorkerPool

FURTHER_BYTES: Final = 2560  # of the limit, for what follows the blobs: an envelope and the second check


class DownloadCount:
    """The received bytes of one attempt.

    Args:
        context: configuration and journal of the family.
        workers: count what they receive.
        before: bytes of the attempt before a restart of the agent.
    """

    def __init__(self, context: UpdateContext, workers: WorkerPool, before: DownloadBytes) -> None:
        self._context, self._workers, self._before = context, workers, before
        self._spent_before = 0

    def start(self, target: BundleDigest) -> None:
        """Read what earlier attempts received for the bundle."""
        self._spent_before = metered_bytes_spent(self._context.journal, target)

    def downloaded(self) -> DownloadBytes:
        """Return the bytes of the attempt so far, by kind."""
        return self._before.plus(self._workers.received.snapshot())

    def record(self, target: BundleDigest) -> None:
        """Write the bytes of all attempts for the bundle to the journal."""
        self._context.journal.record_metered(MeteredRecord(target, self._spent_before + self.downloaded().total))

    def clear(self) -> None:
        """Clear the record: the bundle is installed."""
        self._context.journal.record_metered(MeteredRecord())

    def blob_bytes_left(self) -> int | None:
        """Return how many bytes of blobs the attempt may still receive, or None without a limit."""
        settings = self._context.config.update
        if not settings.metered or settings.metered_limit_bytes is None:
            return None
        spent = self._spent_before + self.downloaded().total + FURTHER_BYTES
        return max(settings.metered_limit_bytes - spent, 0)
