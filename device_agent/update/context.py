"""The context of an update (configuration, stores, workers), and the garbage collection afterwards."""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import TYPE_CHECKING, Final, assert_never

from bundle.files import BundleDigest
from bundle.manifest import Manifest
from bundle.providers import CPU
from device_agent.config.config import Config
from device_agent.errors import AgentStopping, JournalUnreadable, OperatorRollback, UpdateInterrupted
from device_agent.policy.app_verdicts import AppVerdicts
from device_agent.policy.journal_records import BundleRecord, PersistentState
from device_agent.policy.planner import DeviceFacts, PatchPath, PathPolicy, find_cheapest_path, patch_edges
from device_agent.serving.family_serving import FamilyServing
from device_agent.storage.bundle_store import BundleStore
from device_agent.storage.device_directory import DeviceDirectory, PublicIdentity
from device_agent.storage.journal import Journal
from device_agent.update.probe_client import ProbeClient
from device_agent.workers.worker_pool import WorkerPool

if TYPE_CHECKING:
    from device_agent.policy.probation_progress import ProbationProgress  # not in memory at rest

logger = logging.getLogger(__name__)

MAX_KNOWN_RELEASES: Final = 8  # manifests kept beside those of the pointers: their patches can be steps of a path


class Interrupt(Enum):
    """A request to leave shadow mode or probation now."""

    STOP = "stop"
    ROLLBACK = "rollback"


class Interruption:
    """Ends a running update at the request of an operator. Only the thread that updates may call it.

    Attributes:
        error: the error that `check` raises, or None.
    """

    def __init__(self) -> None:
        self._is_before_switch = self._is_activation = False
        self.error: UpdateInterrupted | OperatorRollback | None = None

    @contextmanager
    def allow(self) -> Iterator[None]:
        """Allow requests in the block. After it, and while an update is undone, they have no effect."""
        self._is_before_switch, self.error = True, None
        try:
            yield
        finally:
            self._is_before_switch = self._is_activation = False
            self.error = None

    def candidate_is_activated(self) -> None:
        """Let a rollback reject the candidate from now on: it is loaded, in shadow mode or in probation."""
        self._is_activation = True

    def candidate_serves(self) -> None:
        """Let a pause have no effect from now on: the probation is completed."""
        self._is_before_switch, self.error = False, None

    def request_pause(self) -> None:
        """End the update if its candidate does not serve yet."""
        if self._is_before_switch:
            self.error = UpdateInterrupted("an operator paused the updates")

    def request_rollback(self) -> bool:
        """End the update; return whether that rejects the candidate, so that no rollback has to follow."""
        if self._is_activation:
            self.error = OperatorRollback("an operator rejected the candidate")
        elif self._is_before_switch:
            self.error = UpdateInterrupted("an operator asked for a rollback")
        return self._is_activation

    def check(self) -> None:
        """Raise the requested error.

        Raises:
            UpdateInterrupted: the update is to end before its candidate serves.
            OperatorRollback: the candidate is to be rejected.
        """
        if self.error is not None:
            raise self.error


def sleep_uninterrupted(timeout_s: float) -> Interrupt | None:
    """Sleep for `timeout_s` seconds; without a daemon, no interrupt can arrive."""
    time.sleep(timeout_s)
    return None


@dataclass(frozen=True, slots=True)
class UpdateContext:
    """The configuration, stores and workers that an update of one family uses.

    Attributes:
        config: configuration of the family.
        device: paths of the device directory.
        identity: public keys and id of the device.
        store: sealed bundles and spool of the family.
        journal: the family's journal, open for writing.
        probe_client: probes candidates.
        read_facts: returns the facts of the device as they are now.
        open_workers: returns a new set of worker processes, without any of them started.
        serving: the generations that serve the family, or None without a daemon.
        wait: sleeps for up to the given seconds; returns earlier with the interrupt that arrived.
        on_progress: called with (phase, bytes done, bytes in all).
        first_journal: journal of the device's first family, or None if `journal` is that one.
        app_verdicts: verdicts of applications on the generation that serves.
        other_families: returns the generations of the families that share the memory; empty without a daemon.
        interruption: ends the running update.
        on_probation: called with the progress of a probation, and with None at its end.
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
    wait: Callable[[float], Interrupt | None] = sleep_uninterrupted
    on_progress: Callable[[str, int, int], None] = lambda _phase, _done, _total: None
    first_journal: Journal | None = None
    other_families: Callable[[], Sequence[FamilyServing]] = lambda: ()
    app_verdicts: AppVerdicts = field(default_factory=lambda: AppVerdicts(()))
    interruption: Interruption = field(default_factory=Interruption)
    on_probation: "Callable[[ProbationProgress | None], None]" = lambda _progress: None

    def family_facts(self) -> DeviceFacts:
        """Return the facts of the device as they are now, with what the owner allows for this family."""
        serve = self.config.serve
        providers: tuple[tuple[str, str], ...] = ((CPU, ""),)
        if serve.providers != (CPU,):
            from device_agent.update.provider_check import check_providers  # not in memory at rest

            jail = self.probe_client.jail
            providers = check_providers(serve.providers, jail, self.probe_client.on_idle)
        return replace(self.read_facts(), allows_plain=self.config.allows_plain, providers=providers)

    @property
    def device_journal(self) -> Journal:
        """Return the first family's journal, which stores the device's pause flag and TPM counter."""
        return self.journal if self.first_journal is None else self.first_journal


def memory_left(context: UpdateContext, serving: FamilyServing) -> int:
    """Return the memory for further processes in bytes, within `serve.memory_bytes`.

    Args:
        context: configuration and facts of the device.
        serving: generations of the family; those of the other families count too.
    """
    available_bytes = context.read_facts().memory_bytes
    budget_bytes = context.config.serve.memory_bytes
    if budget_bytes is None:
        return available_bytes
    used_bytes = sum(each.resident_bytes() for each in (serving, *context.other_families()))
    return min(available_bytes, max(0, budget_bytes - used_bytes))


def wait_in_phase(context: UpdateContext, timeout_s: float, version: str, phase: str) -> None:
    """Wait in shadow mode or probation; an interrupt ends it.

    Args:
        context: waits for interrupts.
        timeout_s: seconds to wait.
        version: version of the candidate's release.
        phase: "shadow mode" or "probation", for the message.

    Raises:
        OperatorRollback: an operator ended it.
        AgentStopping: the agent stops.
    """
    match interrupt := context.wait(timeout_s):
        case Interrupt.ROLLBACK:
            raise OperatorRollback(f"release {version}: an operator ended its {phase}")
        case Interrupt.STOP:
            raise AgentStopping(f"the agent was stopped in the {phase} of release {version}")
        case None:
            return
        case _:
            assert_never(interrupt)


def find_patch_path(
    context: UpdateContext,
    manifest: Manifest,
    counter_epoch: int,
    target: BundleDigest,
    facts: DeviceFacts,
    excluded_blobs: frozenset[str] = frozenset(),
) -> PatchPath:
    """Find the cheapest path to a bundle, given the store, the spool and the configuration.

    Args:
        context: configuration, stores and workers of the family.
        manifest: verified manifest of the release.
        counter_epoch: epoch of the delegation that signed the release's counter.
        target: digest of the bundle.
        facts: processor, memory, runtime and decoders of the device.
        excluded_blobs: SHA-256 of the blobs that failed in this attempt.

    Raises:
        NoPatchPath: no published patch leads to the bundle.
        MeteredLimitExceeded: the cheapest path needs more bytes than the configured limit.
    """
    update = context.config.update
    edges = patch_edges(manifest, counter_epoch)
    for known in context.journal.bundles():
        if known.family == manifest.family and known.version != manifest.version:
            edges += patch_edges(known.parse_manifest()[0], known.counter_epoch)
    edges = [edge for edge in edges if edge.entry.blob not in excluded_blobs]
    stored = context.store.digests() - set(context.journal.persistent_state.damaged_bundles)
    spooled = {edge.entry.blob: context.store.spooled_bytes(edge.entry.blob) for edge in edges}
    limit = update.metered_limit_bytes if update.metered else None
    if limit is not None:
        limit = max(limit - metered_bytes_spent(context.journal, target), 0)
    return find_cheapest_path(target, edges, stored, spooled, facts, PathPolicy(update.max_chain, limit))


def metered_bytes_spent(journal: Journal, target: BundleDigest) -> int:
    """Return the bytes that earlier attempts received for a bundle.

    Args:
        journal: the family's journal.
        target: digest of the bundle.
    """
    spent = journal.metered
    return spent.received_bytes if spent.target == target else 0


def collect_garbage(context: UpdateContext) -> None:
    """Delete the bundles and partial downloads that no pointer needs.

    An error is logged only: a file that cannot be deleted does not fail the update.
    """
    try:
        _delete_unreferenced(context)
    except (OSError, JournalUnreadable) as error:
        logger.warning("garbage collection failed: %s", error)


def _delete_unreferenced(context: UpdateContext) -> None:
    pointers, journal = context.journal.pointers, context.journal
    newest = sorted(journal.bundles(), key=release_order)[-MAX_KNOWN_RELEASES:]
    journal.delete_unreferenced(pointers.digests() | {bundle.digest for bundle in newest})
    candidate = journal.bundle(pointers.candidate)
    blobs: set[str] = set()
    if candidate is not None:
        blobs = {edge.entry.blob for edge in patch_edges(candidate.parse_manifest()[0], candidate.counter_epoch)}
    deleted = context.store.delete_unlisted(pointers.digests(), blobs)
    if deleted:
        logger.info("garbage collected", extra={"files": len(deleted)})


def release_order(bundle: BundleRecord) -> tuple[int, int]:
    """Return the key that sorts bundles from the oldest release to the newest."""
    return bundle.counter_epoch, bundle.counter


def mark_damaged(digest: BundleDigest) -> Callable[[PersistentState], PersistentState]:
    """Return the change that adds a bundle to those whose sealed file is damaged."""
    return lambda before: replace(before, damaged_bundles=tuple(dict.fromkeys((*before.damaged_bundles, digest))))


def clear_damaged(digest: BundleDigest) -> Callable[[PersistentState], PersistentState]:
    """Return the change that removes a bundle from those whose sealed file is damaged."""
    return lambda before: replace(before, damaged_bundles=tuple(d for d in before.damaged_bundles if d != digest))
