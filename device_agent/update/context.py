"""What an update works with, and what it leaves behind."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Final, Protocol

from bundle.files import BundleDigest
from bundle.manifest import Manifest
from device_agent.config.config import Config
from device_agent.errors import JournalUnavailable
from device_agent.policy.journal_records import Remembered
from device_agent.policy.planner import DeviceFacts, Plan, Policy, edges_of, plan_update
from device_agent.serving.family_serving import Serving
from device_agent.storage.bundle_store import Store
from device_agent.storage.device_directory import DeviceDirectory, PublicIdentity
from device_agent.storage.journal import Journal
from device_agent.update.probe_client import Prober
from device_agent.workers.worker_pool import Errands

logger = logging.getLogger(__name__)

KNOWN_RELEASES: Final = 8  # whose manifests are kept beside those that are pointed to: their patches may be links


class Signals(Protocol):
    """What can reach an update from outside."""

    def wait(self, timeout_s: float) -> str | None:
        """Sleep, or return earlier with "rollback" or "stop"."""
        ...


class Neighbours(Protocol):
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


class NoNeighbours:
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
class Agent:
    """What an update works with.

    Attributes:
        facts: of the device, as it is now.
        errands: a fresh set of children.
        serving: None without a daemon.
        progress: told (phase, done, total).
        first_journal: of the device's first family, or None where `journal` is that one.
        neighbours: that share the memory.
    """

    config: Config
    device: DeviceDirectory
    identity: PublicIdentity
    store: Store
    journal: Journal
    prober: Prober
    facts: Callable[[], DeviceFacts]
    errands: Callable[[], Errands]
    serving: Serving | None = None
    signals: Signals = field(default_factory=NoSignals)
    progress: Callable[[str, int, int], None] = lambda _phase, _done, _total: None
    first_journal: Journal | None = None
    neighbours: Neighbours = field(default_factory=NoNeighbours)

    @property
    def device_journal(self) -> Journal:
        """The first family's: it remembers what is the device's, such as the TPM's counter and whether it is paused."""
        return self.journal if self.first_journal is None else self.first_journal


def plan_to(
    agent: Agent,
    manifest: Manifest,
    counter_epoch: int,
    target: BundleDigest,
    facts: DeviceFacts,
    avoided: frozenset[str] = frozenset(),
) -> Plan:
    """The cheapest path to a bundle of a release, by what is held, spooled and configured.

    Args:
        avoided: blobs that turned out bad.

    Raises:
        NoPathUnavailable, MeteredUnavailable.
    """
    update = agent.config.update
    edges = edges_of(manifest, counter_epoch)
    for known in agent.journal.holdings():
        if known.family == manifest.family and known.version != manifest.version:
            edges += edges_of(known.parsed()[0], known.counter_epoch)
    edges = [edge for edge in edges if edge.entry.blob not in avoided]
    held = agent.store.held() - set(agent.journal.remembered.damaged)
    spooled = {edge.entry.blob: agent.store.spooled_bytes(edge.entry.blob) for edge in edges}
    limit = update.metered_limit_bytes if update.metered else None
    return plan_update(target, edges, held, spooled, facts, Policy(update.max_chain, limit))


def collect(agent: Agent) -> None:
    """Remove what no pointer names; a failure to remove is no failure of the update."""
    try:
        _collect(agent)
    except (OSError, JournalUnavailable) as error:
        logger.warning("the store could not be cleaned: %s", error)


def _collect(agent: Agent) -> None:
    pointers, journal = agent.journal.pointers, agent.journal
    newest = sorted(journal.holdings(), key=lambda holding: (holding.counter_epoch, holding.counter))[-KNOWN_RELEASES:]
    journal.forget(pointers.all() | {holding.digest for holding in newest})
    candidate = journal.holding(pointers.candidate)
    blobs: set[str] = set()
    if candidate is not None:
        blobs = {edge.entry.blob for edge in edges_of(candidate.parsed()[0], candidate.counter_epoch)}
    gone = agent.store.collect(pointers.all(), blobs)
    if gone:
        logger.info("collected", extra={"files": len(gone)})


def with_damaged(digest: BundleDigest) -> Callable[[Remembered], Remembered]:
    """Remember that a sealed bundle does not open."""
    return lambda before: replace(before, damaged=tuple(dict.fromkeys((*before.damaged, digest))))


def without_damaged(digest: BundleDigest) -> Callable[[Remembered], Remembered]:
    """A sealed bundle was made anew."""
    return lambda before: replace(before, damaged=tuple(d for d in before.damaged if d != digest))
