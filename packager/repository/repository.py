"""The repository: stage changes, sign them, publish them.

- Staging changes nothing that devices see. `sign` adds the signatures of the given keys; others can sign later.
- Blobs and envelope shards are stored in `published/` before the manifest that names them.
- `publish` refuses documents below their threshold, runs the client check, and replaces the timestamp last
  (packager.repository.publishing).
- One publisher at a time holds the repository's lock. A publication builds on the published timestamp; if another
  publisher was first, PublishConflict names it.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from securesystemslib.signer import Key, Signer
from tuf.api.metadata import Metadata, Targets

from bundle.fleet import FLEET_TARGET, Cohort, Fleet
from bundle.manifest import Manifest, parse_manifest
from bundle.plan import Plan, PlannedRelease, check_inside_plan, parse_plan
from bundle.rollout import Rollout, parse_rollout
from bundle.trust.role_names import FLEET_ROLE, plan_target, release_target, rollout_target
from keys.registry import Registry
from packager.errors import (
    FamilyUnknown,
    NothingStaged,
    PublishConflict,
    RepositoryMissing,
    StagingInvalid,
)
from packager.repository import tuf_documents
from packager.repository.garbage_collection import GarbageReport, collect_garbage
from packager.repository.layout import (
    check_names,
    copy_into,
    last_publisher,
    lock_repository,
    make_folder,
    sync_directory,
    write_file,
)
from packager.repository.listing import RepositoryListing
from packager.repository.published import PublishedDocuments
from packager.repository.publishing import PublishReport, Send, publish, stage_renewal, stage_rollout_change
from packager.repository.role_changes import next_targets
from packager.repository.staged_view import StagedView
from packager.repository.staging import SignReport, Staging


class Repository(RepositoryListing):
    """A repository that can be changed; get one from `open` or packager.repository.creation.

    Args:
        root: the repository's folder (packager.repository.layout).

    Attributes:
        send: publishes to a store before the folder's own timestamp is written (packager.repository.publishing).
    """

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.send: Send | None = None

    @classmethod
    def open(cls, root: Path) -> "Repository":
        """Open an existing repository.

        Raises:
            RepositoryMissing: the folder contains no repository.
        """
        repository = cls(root)
        if not repository._layout.metadata.is_dir():
            raise RepositoryMissing(
                f"there is no repository in {root}", hint="correct --repo, or create one with `packager repo init`"
            )
        return repository

    # -- staging -------------------------------------------------------------------------------------------------------

    def put_blob(self, source: Path) -> str:
        """Copy a blob into the repository, synced, and return its SHA-256 in hexadecimal."""
        copy, sha256 = copy_into(source, self._layout.published / "blobs")
        path = self._layout.blob(sha256)
        make_folder(path.parent)
        copy.replace(path)
        sync_directory(path.parent)
        return sha256

    def put_shard(self, relative: str, data: bytes, *, is_synced: bool = True) -> None:
        """Store a shard of envelopes.

        Args:
            relative: path below `published/`, in `envelopes/`.
            data: the shard.
            is_synced: sync the file; False only for many at once, if the caller ends with one `os.sync`.

        Raises:
            StagingInvalid: the path leaves `envelopes/`, or has a hidden part.
        """
        parts = Path(relative).parts
        if parts[:1] != ("envelopes",) or any(part in ("..", "/") or part.startswith(".") for part in parts):
            raise StagingInvalid(f"path of a shard {relative!r} is not a plain path below envelopes/")
        write_file(self._layout.published / relative, data, is_synced=is_synced)

    def stage_manifest(self, manifest: Manifest) -> None:
        """Stage a release, or further patches of a listed release.

        Raises:
            FamilyUnknown: the family is not delegated.
            StagingInvalid: the version or the counter belongs to another release, or a blob is missing.
        """
        listed = {known.version: known for known in self.releases(manifest.family)}
        same = listed.pop(manifest.version, None)
        if same is not None and same.digest_without_patches() != manifest.digest_without_patches():
            raise StagingInvalid(
                f"{manifest.family} {manifest.version} is listed already, with other content",
                hint="release the changed content under a new version",
            )
        # a listed release may get more patches, even if later releases have higher counters
        for known in listed.values() if same is None else ():
            if known.counter >= manifest.counter:
                raise StagingInvalid(
                    f"{manifest.family} {manifest.version} has counter {manifest.counter},"
                    f" but the listed release {known.version} has counter {known.counter}",
                    hint=f"use counter {self.next_counter(manifest.family)}",
                )
        for name, variant in manifest.variants:
            for patch in variant.patches:
                if not self._layout.blob(patch.blob).exists():
                    raise StagingInvalid(
                        f"release {manifest.version}, variant {name}: blob {patch.blob[:16]}… is not in the repository"
                    )
        data = manifest.as_bytes()
        parse_manifest(data)
        self._stage_target(release_target(manifest.family, manifest.version), data)

    def stage_rollout(self, rollout: Rollout, *, forged: bool = False) -> None:
        """Stage the rollout of a channel.

        Args:
            rollout: names a listed release of the family.
            forged: skip the checks, as an attacker with stolen rollout keys would; for tests and drills.

        Raises:
            FamilyUnknown: the family is not delegated.
            StagingInvalid: there is no such release, its counter or digest differs, or it is not made for the channel.
            OutsidePlan: the rollout does not lie inside the plan of the channel.
        """
        if not forged:
            _check_rollout(rollout, self.manifest(rollout.family, rollout.version))
            plan = self.plan(rollout.family, rollout.channel)
            if plan is not None:
                check_inside_plan(plan, rollout)
        parse_rollout(rollout.as_bytes())
        self._stage_target(rollout_target(rollout.family, rollout.channel), rollout.as_bytes())

    def stage_plan(self, plan: Plan) -> None:
        """Stage the plan of a channel, in place of the one before.

        Raises:
            FamilyUnknown: the family is not delegated.
            Malformed: the numbers of the plan contradict each other.
            StagingInvalid: a release that the plan names is not listed, or not made for the channel.
        """
        parse_plan(plan.as_bytes())
        for named in (plan.release, *plan.fallbacks):
            manifest = self.manifest(plan.family, named.version)
            if manifest is None or named != PlannedRelease(
                manifest.version, manifest.counter, manifest.digest_without_patches()
            ):
                raise StagingInvalid(f"family {plan.family!r} has no release {named.version} of the plan")
            if plan.channel not in manifest.channels:
                raise StagingInvalid(f"release {named.version} is not made for channel {plan.channel!r}")
        self._stage_target(plan_target(plan.family, plan.channel), plan.as_bytes())

    def remove_plan(self, family: str, channel: str) -> None:
        """Stage the removal of a channel's plan.

        Args:
            family: a delegated family.
            channel: name of the channel.

        Raises:
            FamilyUnknown: the family is not delegated.
            StagingInvalid: the channel has no plan.
        """
        if self.plan(family, channel) is None:
            raise StagingInvalid(f"family {family!r} has no plan for channel {channel!r}")
        with lock_repository(self._layout):
            Staging(self._layout).withdraw(plan_target(family, channel))

    def stage_fleet(self, fleet: Fleet) -> None:
        """Stage a fleet document, unless it equals the current one.

        Raises:
            StagingInvalid: a cohort's epoch decreases, or its key changes without a new epoch.
        """
        for before in self._cohorts():
            now = fleet.cohort(before.name)
            is_lower = now is not None and now.epoch < before.epoch
            is_other_key = now is not None and now.epoch == before.epoch and now.public_key != before.public_key
            if is_lower or is_other_key:
                raise StagingInvalid(
                    f"cohort {before.name!r}: epoch {before.epoch} is listed, a new key needs epoch {before.epoch + 1}"
                )
        if StagedView(self._layout).target(FLEET_ROLE, FLEET_TARGET) != fleet.as_bytes():
            self._stage_target(FLEET_TARGET, fleet.as_bytes())

    def stage_cohort(self, cohort: Cohort) -> Fleet:
        """Stage the fleet document with a cohort's new epoch and the registry's current digest; return it."""
        registry = Registry(self.registry_path)
        others = tuple(known for known in self._cohorts() if known.name != cohort.name)
        cohorts = tuple(sorted((*others, cohort), key=lambda entry: entry.name))
        fleet = Fleet(registry.digest(), len(registry), cohorts)
        self.stage_fleet(fleet)
        return fleet

    def stage_registry(self) -> Fleet:
        """Stage the fleet document with the registry's current digest; return it."""
        registry = Registry(self.registry_path)
        fleet = replace(self.fleet(), registry_digest=registry.digest(), devices=len(registry))
        self.stage_fleet(fleet)
        return fleet

    def withdraw(self, family: str, version: str) -> None:
        """Stage the withdrawal of a release: it is no longer listed.

        Args:
            family: a delegated family.
            version: version of the release.

        Raises:
            FamilyUnknown: the family is not delegated.
            StagingInvalid: there is no such release.
        """
        if self.manifest(family, version) is None:
            listed = ", ".join(manifest.version for manifest in self.releases(family)) or "none"
            raise StagingInvalid(f"family {family!r} has no release {version}, listed releases: {listed}")
        with lock_repository(self._layout):
            Staging(self._layout).withdraw(release_target(family, version))

    def add_family(self, family: str, keys: Mapping[str, Sequence[Key]]) -> None:
        """Stage the delegation of a new family; the keys of targets and of the family must sign it.

        Args:
            family: name of the family.
            keys: public keys of `release-FAMILY` and of `rollout-FAMILY`.

        Raises:
            StagingInvalid: the family is delegated already.
            ThresholdInvalid: a role has too few keys of a kind.
            FamilyUnknown: the name is malformed, or a role has no keys.
        """
        check_names([family])
        if family in self.families():
            raise StagingInvalid(f"family {family!r} is delegated already")
        with lock_repository(self._layout):
            published, staging = PublishedDocuments(self._layout), Staging(self._layout)
            targets = next_targets(published, staging)
            for role in tuf_documents.family_roles(family):
                if not keys.get(role):
                    raise FamilyUnknown(f"role {role!r} has no keys", hint=f"give keys of {role}")
                tuf_documents.delegate(targets, role, keys[role], classical=tuf_documents.is_classical(published.root))
            staging.put_document("targets", Metadata[Targets](targets))

    # -- signing and publishing ----------------------------------------------------------------------------------------

    def sign(self, signers: Sequence[Signer]) -> SignReport:
        """Turn the staged changes into documents, and sign them with those signers that their roles list.

        Raises:
            NothingStaged: there are no staged changes.
            PublishConflict: another process holds the repository's lock.
        """
        with lock_repository(self._layout):
            published, staging = PublishedDocuments(self._layout), Staging(self._layout)
            if staging.is_empty:
                raise NothingStaged("nothing is staged", hint="stage a release, a rollout or a key change first")
            now_s = int(time.time())
            staging.prepare(published, now_s)
            report = staging.sign(published, signers, now_s)
            staging.save()
            return report

    def publish(self, *, check_clients: bool = True) -> PublishReport:
        """Check and publish the signed changes; the steps are those of `packager.repository.publishing`.

        Args:
            check_clients: run the client check; False only for tests and drills that publish releases to be refused.

        Raises:
            NothingStaged: there are no staged changes.
            BelowThreshold: a signature is missing, or something was staged after the last signature.
            PublishConflict: another publisher was first, or holds the lock.
            AirweightsError: the client check failed with the error that a device would raise.
        """
        with lock_repository(self._layout):
            published, staging = PublishedDocuments(self._layout), Staging(self._layout)
            if staging.is_empty:
                raise NothingStaged("nothing is staged", hint="stage a release, a rollout or a key change first")
            report = publish(self._layout, published, staging, check_clients=check_clients, send=self.send)
            staging.discard()
            return report

    def refresh(self, signers: Sequence[Signer]) -> PublishReport:
        """Publish a new timestamp, and the snapshot and the signable rollout roles that need a new expiry.

        A snapshot or rollout role stays as it is while it has RENEWAL_SHARE of its validity left and its signatures,
        so that devices download the timestamp only. Staged changes stay staged.

        Raises:
            BelowThreshold: the signers of the timestamp, or of a snapshot that is due, are missing.
            PublishConflict: another publisher was first, or holds the lock.
            AirweightsError: the client check failed with the error that a device would raise.
        """
        with lock_repository(self._layout):
            published = PublishedDocuments(self._layout)
            renewed = stage_renewal(self._layout, published, signers, is_due_only=True)
            return publish(self._layout, published, renewed, check_clients=True, is_renewal=True, send=self.send)

    def publish_rollout(self, rollout: Rollout, expected: Rollout | None, signers: Sequence[Signer]) -> PublishReport:
        """Publish one channel's rollout immediately; staged changes stay staged.

        Args:
            rollout: names a published release of the family.
            expected: the published rollout that the change is based on; None for a new channel.
            signers: the signers of the family's rollout role, snapshot and timestamp.

        Raises:
            PublishConflict: the published rollout is not `expected`, or another process holds the lock.
            FamilyUnknown: the family is not delegated.
            StagingInvalid: there is no such release, its counter or digest differs, or it is not made for the channel.
            OutsidePlan: the rollout does not lie inside the plan of the channel.
            BelowThreshold: signers are missing.
            AirweightsError: the client check failed with the error that a device would raise.
        """
        with lock_repository(self._layout):
            published = PublishedDocuments(self._layout)
            if self.published_rollout(rollout.family, rollout.channel) != expected:
                raise PublishConflict(
                    f"the rollout of family {rollout.family!r}, channel {rollout.channel!r}, has changed since it was"
                    f" read: {last_publisher(self._layout)}",
                    hint="check `packager rollout status`, and repeat the change if it still applies",
                )
            _check_rollout(rollout, self.published_manifest(rollout.family, rollout.version))
            plan = self.published_plan(rollout.family, rollout.channel)
            if plan is not None:
                check_inside_plan(plan, rollout)
            change = stage_rollout_change(self._layout, published, rollout, signers)
            return publish(self._layout, published, change, check_clients=True, send=self.send)

    @property
    def is_staging_empty(self) -> bool:
        """True if there are no staged changes."""
        return Staging(self._layout).is_empty

    def discard(self) -> None:
        """Discard all staged changes."""
        with lock_repository(self._layout):
            Staging(self._layout).discard()

    def collect_garbage(self, *, dry_run: bool, grace_s: int | None = None) -> GarbageReport:
        """Delete published files that devices no longer need (packager.repository.garbage_collection).

        Args:
            dry_run: report the files to delete, but delete nothing.
            grace_s: keep what fell out of use less than this many seconds ago; None for the default of one day.
        """
        with lock_repository(self._layout):
            return collect_garbage(
                self._layout,
                [manifest for family in self.families() for manifest in self.releases(family)],
                {cohort.name: cohort for cohort in self._cohorts()},
                dry_run=dry_run,
                grace_s=grace_s,
            )

    def _stage_target(self, name: str, data: bytes) -> None:
        with lock_repository(self._layout):
            Staging(self._layout).put_target(name, data)


def _check_rollout(rollout: Rollout, manifest: Manifest | None) -> None:
    if manifest is None:
        raise StagingInvalid(f"family {rollout.family!r} has no release {rollout.version}")
    expected = (manifest.counter, manifest.digest_without_patches())
    if expected != (rollout.counter, rollout.manifest_digest):
        raise StagingInvalid(
            f"the rollout names counter {rollout.counter} and digest {rollout.manifest_digest[:16]}…,"
            f" release {rollout.version} has counter {expected[0]} and digest {expected[1][:16]}…"
        )
    if rollout.channel not in manifest.channels:
        channels = ", ".join(manifest.channels) or "no channel"
        raise StagingInvalid(f"release {rollout.version} is made for {channels}, not for channel {rollout.channel!r}")
