"""Measure variants on this device (device_agent.policy.variant_choice).

Rules:
- The ratio of a candidate to the reference graph is measured in its probe, if its name has no measurement yet. On a
  first install, where nothing runs to compare with, the manifest's ratio is the expectation: a candidate that takes
  twice as long is reported, and one beyond `health.first_latency_percent` is refused.
- A change of choice is confirmed before the candidate serves: the active bundle is measured, too. If the gain is not
  there, the attempt ends, and the one that follows at once keeps the active variant.
- Other variants are measured if their bundle is in the store, or cheap to fetch: at most CHEAP_SHARE_PERCENT of the
  update's bytes, and never on a metered connection. No failure there has an effect on the update. A stop of the agent,
  or an operator's request, ends it there as everywhere.
"""

import logging
from typing import Final

from bundle.acceptance import VerifiedRelease
from bundle.contract import PPM
from bundle.errors import Invalid, Refused, Unavailable, Unfit
from bundle.manifest import Manifest
from bundle.providers import CPU
from bundle.variant import Variant
from device_agent.errors import AgentStopping, NotFaster, StoreDamaged, TooSlow, UpdateInterrupted
from device_agent.policy.journal_records import BundleRecord
from device_agent.policy.planner import DeviceFacts, choose_variant, unmet_requirement
from device_agent.policy.variant_choice import CHEAP_SHARE_PERCENT, WARNED_FACTOR_PPM, VariantMeasurements
from device_agent.update.context import UpdateContext, find_patch_path
from device_agent.workers.worker_pool import WorkerPool

logger = logging.getLogger(__name__)

AUTO: Final = "auto"


def read_measurements(context: UpdateContext, facts: DeviceFacts) -> VariantMeasurements:
    """Return the measurements that belong to the device as it is now.

    Args:
        context: configuration and journal of the family.
        facts: runtime and processor of the device.
    """
    stored = context.journal.variant_measurements
    return stored.of_device(facts.runtime, facts.cpu, context.config.update.preference)


def is_measured(context: UpdateContext, facts: DeviceFacts, name: str, variant: Variant) -> bool:
    """Return whether a variant needs no measurement: it has one, or nothing to compare it with.

    Args:
        context: configuration and journal of the family.
        facts: runtime and processor of the device.
        name: name of the variant.
        variant: the variant.
    """
    if variant.measured.reference_ratio_ppm is None or not variant.runtime.is_run_by_agent:
        return True
    return read_measurements(context, facts).factor(name) is not None


def failed_variants(context: UpdateContext, manifest: Manifest, facts: DeviceFacts) -> frozenset[str]:
    """Return the names of a release's variants for a provider that are in quarantine here.

    Args:
        context: journal of the family.
        manifest: verified manifest of the release.
        facts: runtime of the device.
    """
    found = set()
    for name, variant in manifest.variants:
        if variant.runtime.provider != CPU:
            row = context.journal.quarantine_record(variant.digest, facts.runtime)
            if row is not None and manifest.counter <= row.counter:
                found.add(name)
    return frozenset(found)


class VariantTrials:
    """Measures variants for one attempt.

    Args:
        context: configuration, stores and workers of the family.
        workers: unseal, fetch and patch bundles.
        facts: runtime, processor and memory of the device.
    """

    def __init__(self, context: UpdateContext, workers: WorkerPool, facts: DeviceFacts) -> None:
        self._context, self._workers, self._facts = context, workers, facts

    def judge_candidate(self, bundle: BundleRecord, ratio_ppm: int | None, *, is_first: bool) -> None:
        """Record the measured ratio of a candidate, and compare it with the expectation.

        Args:
            bundle: the candidate.
            ratio_ppm: its ratio to the reference graph here, or None if it was not measured.
            is_first: no model of the family runs on this device.

        Raises:
            TooSlow: it is a first install, and the ratio is beyond the health contract's limit.
        """
        _, variant = bundle.parse_manifest()
        factor = self._record(bundle.variant, variant, ratio_ppm)
        if factor is None:
            return
        limit = variant.health.first_latency_percent
        measured_on = variant.measured.cpu or "the build machine"
        detail = f"variant {bundle.variant} takes {factor / PPM:.1f} times as long, against the reference graph, as on "
        if is_first and limit is not None and factor * 100 > limit * PPM:
            raise TooSlow(f"{detail}{measured_on}; at most {limit} % are allowed")
        if factor > WARNED_FACTOR_PPM:
            logger.warning("%s%s", detail, measured_on)

    def confirm_choice(self, release: VerifiedRelease, name: str) -> None:
        """Check that a candidate of another variant than the active one is better here, as measured.

        Args:
            release: the release.
            name: variant of the candidate, which was measured.

        Raises:
            NotFaster: it is not; the attempt that follows at once keeps the active variant.
        """
        active = self._context.journal.bundle(self._context.journal.pointers.active)
        settings = self._context.config.update
        if settings.variant != AUTO or active is None or active.variant == name:
            return
        kept = release.manifest.variant(active.variant)
        if kept is None or unmet_requirement(kept, self._facts):
            return  # the device has to change
        if active.variant in failed_variants(self._context, release.manifest, self._facts):
            return
        try:
            self._measure_stored(active)
        except StoreDamaged:
            return  # it cannot be loaded again: the device has to change
        measured = read_measurements(self._context, self._facts)
        failed = failed_variants(self._context, release.manifest, self._facts)
        chosen, _ = choose_variant(release.manifest, AUTO, self._facts, active.variant, measured, failed)
        if chosen != name:
            raise NotFaster(f"variant {name} is not better than {active.variant} on this device, as measured")

    def record_change(self, name: str) -> None:
        """Record that the choice changed, if the candidate's variant is another one than the active bundle's.

        Args:
            name: variant of the candidate.
        """
        active = self._context.journal.bundle(self._context.journal.pointers.active)
        if active is None or active.variant == name or self._context.config.update.variant != AUTO:
            return
        before = read_measurements(self._context, self._facts)
        self._context.journal.record_variant_measurements(before.with_change())

    def measure_others(self, release: VerifiedRelease, chosen: str, update_bytes: int) -> None:
        """Measure the variants that are stored or cheap to fetch.

        Args:
            release: the release.
            chosen: variant of the candidate.
            update_bytes: bytes that the update downloads.
        """
        if self._context.config.update.variant != AUTO:
            return
        for bundle in self._context.journal.bundles():
            if bundle.variant != chosen and bundle.family == release.manifest.family:
                self._try_to_measure(bundle, None)
        if self._context.config.update.metered or self._context.config.update.preference != "latency":
            return
        for name, variant in release.manifest.variants:
            if name != chosen and not unmet_requirement(variant, self._facts):
                limit = update_bytes * CHEAP_SHARE_PERCENT // 100
                bundle = BundleRecord.from_manifest(release.manifest, name, release.counter_epoch)
                self._try_to_measure(bundle, limit, release)

    def _try_to_measure(
        self, bundle: BundleRecord, max_bytes: int | None, release: VerifiedRelease | None = None
    ) -> None:
        """Measure a bundle that is stored or can be fetched with `max_bytes`; ignore any failure of it."""
        _, variant = bundle.parse_manifest()
        if is_measured(self._context, self._facts, bundle.variant, variant):
            return
        try:
            is_stored = self._context.store.contains(bundle.digest)
            if not is_stored and release is not None and max_bytes is not None:
                is_stored = self._fetch(bundle, release, max_bytes)
            if is_stored:
                self._measure_stored(bundle)
        except (AgentStopping, UpdateInterrupted):
            raise
        except (Refused, Unavailable, Unfit, Invalid, OSError) as error:
            logger.info("variant not measured", extra={"variant": bundle.variant, "detail": str(error)[:200]})

    def _fetch(self, bundle: BundleRecord, release: VerifiedRelease, max_bytes: int) -> bool:
        path = find_patch_path(self._context, release.manifest, release.counter_epoch, bundle.digest, self._facts)
        if path.fetch_bytes > max_bytes:
            return False
        self._context.store.check_space(path.storage_bytes)
        key = self._context.identity.x_wing_public
        for edge in path.steps:
            self._workers.fetch_blob(edge)
            self._workers.load_content_key(release, edge, key)
        for edge in path.steps:
            self._workers.patcher.apply_patch(edge)
            self._context.store.delete_partial(edge.entry.blob)
        return True

    def _measure_stored(self, bundle: BundleRecord) -> None:
        """Measure a bundle in the store; a variant that was measured already is not measured again."""
        _, variant = bundle.parse_manifest()
        if is_measured(self._context, self._facts, bundle.variant, variant):
            return
        fds = self._workers.patcher.unseal(bundle)
        try:
            ratio_ppm = self._context.probe_client.measure_ratio(fds, variant)
        finally:
            fds.close()
        self._record(bundle.variant, variant, ratio_ppm)

    def _record(self, name: str, variant: Variant, ratio_ppm: int | None) -> int | None:
        """Record a ratio, and return its factor over the manifest's, in parts per million."""
        expected = variant.measured.reference_ratio_ppm
        if ratio_ppm is None or expected is None:
            return None
        factor = max(1, ratio_ppm * PPM // expected)
        before = read_measurements(self._context, self._facts)
        self._context.journal.record_variant_measurements(before.with_factor(name, factor))
        logger.info("variant measured", extra={"variant": name, "factor_ppm": factor})
        return factor
