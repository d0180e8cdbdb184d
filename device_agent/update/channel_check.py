"""The checks of a release: before it is fetched, and again before it serves.

Rules:
- The rollback floor is recorded in the journal with each check, and the TPM's counter is raised with it.
- While the TPM's counter is ahead of the journal, the floor is unproven, and offline packs are refused.
"""

import logging
from dataclasses import replace

from bundle.acceptance import VerifiedRelease, check_eligibility
from bundle.errors import Refused, Unavailable
from bundle.files import BundleDigest
from device_agent.errors import BundleQuarantined, NotEligible, RollbackFloorUnproven
from device_agent.host.system_clock import read_boot_clock
from device_agent.policy.followed_rollout import FollowedRollout
from device_agent.policy.journal_records import BundleRecord, TpmCounterRecord
from device_agent.policy.planner import DeviceFacts
from device_agent.storage.journal import Journal
from device_agent.update.context import UpdateContext
from device_agent.workers.worker_pool import WorkerPool

logger = logging.getLogger(__name__)


def is_active(journal: Journal, digest: BundleDigest) -> bool:
    """Return whether a bundle is active and not known to be damaged, so that an update has nothing to do.

    Args:
        journal: journal of the family.
        digest: digest of the bundle.
    """
    return journal.pointers.active == digest and digest not in journal.persistent_state.damaged_bundles


def new_device_of(context: UpdateContext) -> str:
    """Return the id of a device without an active release, which may take a fallback; else ""."""
    return context.identity.device_id if context.journal.pointers.active is None else ""


class ChannelCheck:
    """Checks the channel for one attempt.

    Args:
        context: configuration and journal of the family.
        workers: verify the release.
        facts: version of the runtime, for the quarantine.
    """

    def __init__(self, context: UpdateContext, workers: WorkerPool, facts: DeviceFacts) -> None:
        self._context, self._workers, self._facts = context, workers, facts
        self._journal = context.journal

    def check_channel(self, *, walk_root: bool = False) -> VerifiedRelease:
        """Return the verified release that the channel runs now, and record floor and time of the check.

        Args:
            walk_root: look for a new root even if the timestamp is unchanged.

        Raises:
            Refused, Unavailable: as `WorkerPool.check_channel`; the journal has the reason as `last_error`.
            RollbackFloorUnproven: the journal is older than the TPM's counter, and the release is from an offline pack.
        """
        seen = self._check_tpm_counter()
        try:
            release = self._workers.check_channel(
                self._journal.persistent_state,
                self._journal.bundles(),
                walk_root=walk_root,
                new_device=new_device_of(self._context),
            )
        except (Refused, Unavailable) as error:
            reason = error.reason
            self._journal.update_persistent_state(lambda before: replace(before, last_error=reason))
            raise
        before = self._journal.persistent_state
        is_raised = (release.floor.epoch, release.floor.counter) > (before.floor_epoch, before.floor_counter)
        checked = replace(
            before,
            floor_epoch=release.floor.epoch,
            floor_counter=release.floor.counter,
            checked_ms=release.checked_at_s * 1000,
            metadata_expires_ms=release.expires_at_s * 1000,
            offered_release=release.manifest.version,
            last_error="",
            followed=FollowedRollout.from_release(release),
        )
        self._journal.update_persistent_state(lambda _: checked)
        self._journal.record_served_time(*read_boot_clock(), 0 if release.plan is None else release.plan.soak_s)
        if seen is not None and (is_raised or self._context.device_journal.tpm_counter.is_unproven):
            # record first: after a crash in between, the journal is ahead of the TPM, which is not a rollback
            self._context.device_journal.record_tpm_counter(TpmCounterRecord(seen + 1))
            self._workers.raise_tpm_counter(seen + 1)
        return release

    def check_quarantine(self, bundle: BundleRecord) -> None:
        """Check that a bundle is not in quarantine with this version of the runtime.

        Raises:
            BundleQuarantined: it is, and no newer release contains it.
        """
        row = self._journal.quarantine_record(bundle.digest, self._facts.runtime)
        if row is not None and bundle.counter <= row.counter:
            raise BundleQuarantined(
                f"release {bundle.version} ({bundle.variant}) failed here before with {row.reason!r}, "
                f"under onnxruntime {row.runtime}",
                hint="publish a release with a higher counter, or `device-agent quarantine clear`",
            )

    def check_eligible(self, release: VerifiedRelease) -> None:
        """Check that the rollout includes this device.

        Raises:
            NotEligible: it does not.
        """
        eligibility = check_eligibility(
            release, self._context.identity.device_id, self._context.config.cohort, release.checked_at_s
        )
        if not eligibility.is_eligible:
            raise NotEligible(f"{eligibility.reason}: {eligibility.detail}")

    def check_again(self, before: VerifiedRelease) -> None:
        """Check the channel once more, before the candidate serves.

        Raises:
            NotEligible: the rollout has changed, or does not include this device any more.
            Refused, Unavailable: as `check_channel`.
        """
        release = self.check_channel(walk_root=True)
        if release.rollout.manifest_digest != before.rollout.manifest_digest:
            raise NotEligible(
                f"the rollout changed to {release.manifest.version} while {before.manifest.version} was prepared"
            )
        self.check_eligible(release)

    def _check_tpm_counter(self) -> int | None:
        """Return the TPM's counter, or None without a TPM; refuse offline packs while the floor is unproven."""
        seen, expected = self._workers.read_tpm_counter(), self._context.device_journal.tpm_counter
        if seen is None or seen <= expected.counter:
            return seen
        self._context.device_journal.record_tpm_counter(replace(expected, is_unproven=True))
        logger.warning("rollback floor unproven", extra={"tpm_counter": seen, "expected_counter": expected.counter})
        if self._context.config.repository_url.startswith("file:"):
            raise RollbackFloorUnproven(
                f"the TPM's counter is {seen}, the journal expects {expected.counter}: an old or damaged disk",
                hint="update from the network once to prove the rollback floor; then offline packs work again",
            )
        return seen
