"""What an update works with, and what it leaves behind."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Final, Protocol

from bundle.files import BundleDigest
from bundle.manifest import Manifest
from device_agent.config.config import Config
from device_agent.errors import JournalUnreadable
from device_agent.policy.journal_records import PersistentState
from device_agent.policy.planner import DeviceFacts, PatchPath, PathPolicy, find_cheapest_path, patch_edges
from device_agent.serving.family_serving import FamilyServing
from device_agent.storage.bundle_store import BundleStore
from device_agent.storage.device_directory import DeviceDirectory, PublicIdentity
from device_agent.storage.journal import Journal
from device_agent.update.probe_client import ProbeClient
from device_agent.workers.worker_pool import WorkerPool

logger = logging.getLogger(__name__)

MAX_KNOWN_RELEASES: Final = 8  # whose manifests are kept beside those that are pointed to: their patches may be links


class Signals(Protocol):
    """What can reach an update from outside."""

    def wait(self, timeout_s: float) -> str | None:
        """Sleep, or return earlier with "rollback" or "stop"."""
        ...


class Neighbors(Protocol):
    """The other families of this device, with which this one shares memory."""

    def resident_bytes(self) -> int:
        """Of all their processes."""
        ...

    def are_serving(self) -> bool:
        """Does one of them serve?"""
        ...

    def drop_spares(self) -> bool:
        """Free what their standbys hold; whether there was any."""
        ...


class NoNeighbors:
    """Of a device that follows one family, or serves nothing."""

    def resident_bytes(self) -> int:
        """None."""
        return 0

    def are_serving(self) -> bool:
        """No."""
        return False

    def drop_spares(self) -> bool:
        """None."""
        return False


class NoSignals:
    """Of an update without a daemon: nothing reaches it."""

    def wait(self, timeout_s: float) -> str | None:
        """Sleep."""
        time.sleep(timeout_s)
        return None


@dataclass(frozen=True, slots=True)
class UpdateContext:
    """What an update works with.

    Attributes:
        facts: of the device, as it is now.
        errands: a fresh set of children.
        serving: None without a daemon.
        progress: told (phase, done, total).
        first_journal: of the device's first family, or None where `journal` is that one.
        neighbors: that share the memory.
    """

    config: Config
    device: DeviceDirectory
    identity: PublicIdentity
    store: BundleStore
    journal: Journal
    probe_client: ProbeClient
    read_facts: Callable[[], DeviceFacts]
    open_workers: Callable[[], WorkerPool]
    serving: FamilyServing | None = None
    signals: Signals = field(default_factory=NoSignals)
    on_progress: Callable[[str, int, int], None] = lambda _phase, _done, _total: None
    first_journal: Journal | None = None
    neighbors: Neighbors = field(default_factory=NoNeighbors)

    @property
    def device_journal(self) -> Journal:
        """The first family's: it remembers what is the device's, such as the TPM's counter and whether it is paused."""
        return self.journal if self.first_journal is None else self.first_journal


def find_patch_path(
    context: UpdateContext,
    manifest: Manifest,
    counter_epoch: int,
    target: BundleDigest,
    facts: DeviceFacts,
    excluded_blobs: frozenset[str] = frozenset(),
) -> PatchPath:
    """The cheapest path to a bundle of a release, by what is held, spooled and configured.

    Args:
        avoided: blobs that turned out bad.

    Raises:
        NoPathUnavailable, MeteredUnavailable.
    """
    update = context.config.update
    edges = patch_edges(manifest, counter_epoch)
    for known in context.journal.bundles():
        if known.family == manifest.family and known.version != manifest.version:
            edges += patch_edges(known.parse_manifest()[0], known.counter_epoch)
    edges = [edge for edge in edges if edge.entry.blob not in excluded_blobs]
    held = context.store.digests() - set(context.journal.persistent_state.damaged_bundles)
    spooled = {edge.entry.blob: context.store.spooled_bytes(edge.entry.blob) for edge in edges}
    limit = update.metered_limit_bytes if update.metered else None
    return find_cheapest_path(target, edges, held, spooled, facts, PathPolicy(update.max_chain, limit))


def collect_garbage(context: UpdateContext) -> None:
    """Remove what no pointer names; a failure to remove is no failure of the update."""
    try:
        _delete_unreferenced(context)
    except (OSError, JournalUnreadable) as error:
        logger.warning("the store could not be cleaned: %s", error)


def _delete_unreferenced(context: UpdateContext) -> None:
    pointers, journal = context.journal.pointers, context.journal
    newest = sorted(journal.bundles(), key=lambda holding: (holding.counter_epoch, holding.counter))[
        -MAX_KNOWN_RELEASES:
    ]
    journal.delete_unreferenced(pointers.digests() | {holding.digest for holding in newest})
    candidate = journal.bundle(pointers.candidate)
    blobs: set[str] = set()
    if candidate is not None:
        blobs = {edge.entry.blob for edge in patch_edges(candidate.parse_manifest()[0], candidate.counter_epoch)}
    gone = context.store.delete_unlisted(pointers.digests(), blobs)
    if gone:
        logger.info("collected", extra={"files": len(gone)})


def mark_damaged(digest: BundleDigest) -> Callable[[PersistentState], PersistentState]:
    """Remember that a sealed bundle does not open."""
    return lambda before: replace(before, damaged_bundles=tuple(dict.fromkeys((*before.damaged_bundles, digest))))


def clear_damaged(digest: BundleDigest) -> Callable[[PersistentState], PersistentState]:
    """A sealed bundle was made anew."""
    return lambda before: replace(before, damaged_bundles=tuple(d for d in before.damaged_bundles if d != digest))
