"""A repository: what is published, what is staged, and the way from one to the other.

Rules:
1. Staging changes nothing that devices see. `sign` adds the signatures of the keys at hand; more can follow later.
2. `publish` refuses below threshold, then rehearses: devices of every channel check the result with their own code.
3. Blobs and envelopes lie in their place before the manifest that names them; metadata goes out from the bottom to the
   top, the timestamp last and in one rename. A publication that is cut off anywhere before is no publication.
4. One publisher at a time, and a publication builds on the one that is out: else the loser is told who won.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from securesystemslib.signer import Key, Signer
from tuf.api.metadata import Metadata, Targets

from bundle.fleet import FLEET_TARGET, Cohort, Fleet
from bundle.manifest import Manifest, parse_manifest
from bundle.rollout import Rollout, parse_rollout
from bundle.trust.role_names import FLEET_ROLE, release_target, rollout_target
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
    sync_directory,
    write_file,
)
from packager.repository.listing import RepositoryListing
from packager.repository.published import PublishedDocuments
from packager.repository.publishing import PublishReport, publish, stage_renewal, stage_rollout_change
from packager.repository.role_changes import next_targets
from packager.repository.staged_view import StagedView
from packager.repository.staging import SignReport, Staging


class Repository(RepositoryListing):
    """A listing that can be changed. Made by `open`, or by packager.repository.creation."""

    @classmethod
    def open(cls, root: Path) -> "Repository":
        """An existing one. Raises RepositoryMissing."""
        repository = cls(root)
        if not repository._layout.metadata.is_dir():
            raise RepositoryMissing(f"there is no repository in {root}", hint="`packager repo init` makes one")
        return repository

    # -- staging -------------------------------------------------------------------------------------------------------

    def put_blob(self, source: Path) -> str:
        """Copy a blob into its place. Returns its SHA-256. Raises OSError."""
        copy, sha256 = copy_into(source, self._layout.published / "blobs")
        place = self._layout.blob(sha256)
        place.parent.mkdir(parents=True, exist_ok=True)
        copy.replace(place)
        sync_directory(place.parent)
        return sha256

    def put_envelope(self, relative: str, data: bytes, *, is_synced: bool = True) -> None:
        """Put an envelope below `envelopes/`. Raises StagingInvalid for a path that leaves it.

        `is_synced` False is for many at once; the caller then ends with one `os.sync`.
        """
        parts = Path(relative).parts
        if not parts or any(part in ("..", "/") or part.startswith(".") for part in parts):
            raise StagingInvalid(f"envelope path {relative!r} is not a plain relative path")
        write_file(self._layout.envelope(relative), data, is_synced=is_synced)

    def stage_manifest(self, manifest: Manifest) -> None:
        """Stage a release, or one that is listed with more patches.

        Raises:
            FamilyUnknown; StagingInvalid: the version or the counter belongs to another release, or a blob is missing.
        """
        listed = {known.version: known for known in self.releases(manifest.family)}
        same = listed.pop(manifest.version, None)
        if same is not None and same.digest_without_patches() != manifest.digest_without_patches():
            raise StagingInvalid(f"{manifest.family} {manifest.version} is listed with other content")
        # more patches to a release that is out are more ways to it, however many releases came after it
        for known in listed.values() if same is None else ():
            if known.counter >= manifest.counter:
                raise StagingInvalid(
                    f"{manifest.family} {manifest.version} has counter {manifest.counter},"
                    f" and {known.version} has {known.counter} already",
                    hint=f"use {self.next_counter(manifest.family)}",
                )
        for name, variant in manifest.variants:
            for patch in variant.patches:
                if not self._layout.blob(patch.blob).exists():
                    raise StagingInvalid(f"{manifest.version} {name}: blob {patch.blob[:16]}… was not put")
        data = manifest.as_bytes()
        parse_manifest(data)
        self._stage_target(release_target(manifest.family, manifest.version), data)

    def stage_rollout(self, rollout: Rollout, *, forged: bool = False) -> None:
        """Stage what a channel runs.

        Args:
            rollout: names a listed release of the family.
            forged: skip the checks, as somebody who stole the rollout keys would; for tests and drills.

        Raises:
            FamilyUnknown; StagingInvalid: no such release, another identity, not made for the channel.
        """
        if not forged:
            _check_rollout(rollout, self.manifest(rollout.family, rollout.version))
        parse_rollout(rollout.as_bytes())
        self._stage_target(rollout_target(rollout.family, rollout.channel), rollout.as_bytes())

    def stage_fleet(self, fleet: Fleet) -> None:
        """Stage the fleet document, if it is another one. Raises StagingInvalid: an epoch goes back."""
        for before in self._cohorts():
            now = fleet.cohort(before.name)
            goes_back = now is not None and now.epoch < before.epoch
            changed = now is not None and now.epoch == before.epoch and now.public_key != before.public_key
            if goes_back or changed:
                raise StagingInvalid(
                    f"cohort {before.name!r}: epoch {before.epoch} is listed, a new key needs epoch {before.epoch + 1}"
                )
        if StagedView(self._layout).target(FLEET_ROLE, FLEET_TARGET) != fleet.as_bytes():
            self._stage_target(FLEET_TARGET, fleet.as_bytes())

    def stage_cohort(self, cohort: Cohort) -> Fleet:
        """Stage the fleet document with one cohort's new epoch and the registry as it is now."""
        registry = Registry(self.registry_path)
        others = tuple(known for known in self._cohorts() if known.name != cohort.name)
        cohorts = tuple(sorted((*others, cohort), key=lambda entry: entry.name))
        fleet = Fleet(registry.digest(), len(registry), cohorts)
        self.stage_fleet(fleet)
        return fleet

    def stage_registry(self) -> Fleet:
        """Stage the fleet document with the registry as it is now."""
        registry = Registry(self.registry_path)
        fleet = replace(self.fleet(), registry_digest=registry.digest(), devices=len(registry))
        self.stage_fleet(fleet)
        return fleet

    def withdraw(self, family: str, version: str) -> None:
        """Stage that a release is no longer listed. Raises FamilyUnknown, StagingInvalid (not listed)."""
        if self.manifest(family, version) is None:
            raise StagingInvalid(f"{family} {version} is not listed")
        with lock_repository(self._layout):
            Staging(self._layout).withdraw(release_target(family, version))

    def add_family(self, family: str, keys: Mapping[str, Sequence[Key]]) -> None:
        """Stage the delegation of a new family; to be signed by targets and by the family's own keys.

        Args:
            family: its name.
            keys: of `release-<family>` and `rollout-<family>`.

        Raises:
            StagingInvalid: it is there; ThresholdInvalid; FamilyUnknown: a role has no keys.
        """
        check_names([family])
        if family in self.families():
            raise StagingInvalid(f"family {family!r} is delegated already")
        with lock_repository(self._layout):
            published, staging = PublishedDocuments(self._layout), Staging(self._layout)
            targets = next_targets(published, staging)
            for role in tuf_documents.family_roles(family):
                if not keys.get(role):
                    raise FamilyUnknown(f"no key is given for role {role!r}")
                tuf_documents.delegate(targets, role, keys[role], classical=tuf_documents.is_classical(published.root))
            staging.put_document("targets", Metadata[Targets](targets))

    # -- signing and publishing ----------------------------------------------------------------------------------------

    def sign(self, signers: Sequence[Signer]) -> SignReport:
        """Make the staged changes into documents and add the signatures of `signers`. Raises NothingStaged."""
        with lock_repository(self._layout):
            published, staging = PublishedDocuments(self._layout), Staging(self._layout)
            if staging.is_empty:
                raise NothingStaged("there is nothing to sign", hint="stage a release, a rollout or keys first")
            now_s = int(time.time())
            staging.prepare(published, now_s)
            report = staging.sign(published, signers, now_s)
            staging.save()
            return report

    def publish(self, *, check_clients: bool = True) -> PublishReport:
        """Make the signed changes what devices see (rules 2 to 4).

        Args:
            rehearse: False only to publish what devices must refuse, in tests and drills.

        Raises:
            NothingStaged, BelowThreshold, PublishConflict, and what a device would raise.
        """
        with lock_repository(self._layout):
            published, staging = PublishedDocuments(self._layout), Staging(self._layout)
            if staging.is_empty:
                raise NothingStaged("there is nothing to publish")
            report = publish(self._layout, published, staging, check_clients=check_clients)
            staging.discard()
            return report

    def refresh(self, signers: Sequence[Signer]) -> PublishReport:
        """Renew snapshot, timestamp and the rollout roles whose content stays; nothing that is staged goes out.

        Raises:
            BelowThreshold, PublishConflict, and what a device would raise.
        """
        with lock_repository(self._layout):
            published = PublishedDocuments(self._layout)
            renewed = stage_renewal(self._layout, published, signers)
            return publish(self._layout, published, renewed, check_clients=True, is_renewal=True)

    def publish_rollout(self, rollout: Rollout, expected: Rollout | None, signers: Sequence[Signer]) -> PublishReport:
        """Publish what a channel runs, at once and alone: what is staged neither goes out nor stands in the way.

        Args:
            rollout: names a release that is published.
            seen: what devices saw on the channel when the change was decided; None for a new channel.
            signers: of the family's rollout role, snapshot and timestamp.

        Raises:
            as `stage_rollout`; BelowThreshold, and what a device would raise; PublishConflict: devices see another
            rollout by now.
        """
        with lock_repository(self._layout):
            published = PublishedDocuments(self._layout)
            if self.published_rollout(rollout.family, rollout.channel) != expected:
                raise PublishConflict(
                    f"the rollout of {rollout.family} {rollout.channel} was changed meanwhile:"
                    f" {last_publisher(self._layout)}",
                    hint="`packager rollout status` shows it: decide again",
                )
            _check_rollout(rollout, self.published_manifest(rollout.family, rollout.version))
            drafted = stage_rollout_change(self._layout, published, rollout, signers)
            return publish(self._layout, published, drafted, check_clients=True)

    @property
    def is_staging_empty(self) -> bool:
        """Does nothing wait to be signed or published?"""
        return Staging(self._layout).is_empty

    def discard(self) -> None:
        """Forget everything staged."""
        with lock_repository(self._layout):
            Staging(self._layout).discard()

    def collect_garbage(self, *, dry_run: bool, grace_s: int | None = None) -> GarbageReport:
        """Remove what no listed release, nor any recent metadata, names. See packager.repository.garbage_collection."""
        with lock_repository(self._layout):
            return collect_garbage(
                self._layout,
                PublishedDocuments(self._layout),
                [manifest for family in self.families() for manifest in self.releases(family)],
                {cohort.name: cohort.epoch for cohort in self._cohorts()},
                dry_run=dry_run,
                grace_s=grace_s,
            )

    def _stage_target(self, name: str, data: bytes) -> None:
        with lock_repository(self._layout):
            Staging(self._layout).put_target(name, data)


def _check_rollout(rollout: Rollout, manifest: Manifest | None) -> None:
    if manifest is None:
        raise StagingInvalid(f"{rollout.family} has no release {rollout.version}")
    agreed = (manifest.counter, manifest.digest_without_patches())
    if agreed != (rollout.counter, rollout.manifest_digest):
        raise StagingInvalid(f"the rollout's counter or digest is not that of release {rollout.version}")
    if rollout.channel not in manifest.channels:
        listed = ", ".join(manifest.channels) or "no channel"
        raise StagingInvalid(f"release {rollout.version} is made for {listed}, not for {rollout.channel!r}")
