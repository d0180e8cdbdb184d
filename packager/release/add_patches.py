"""Add patches to a published release, from further bases.

Rules:
- The digest of a release does not cover its patches (docs/format.md), so adding one changes nothing that a device
  verified.
- The content key is the release's own, from the workspace, and must match the manifest's commitment. Each blob has its
  own salt.
- A patch that exists, or is not smaller than the full download, is skipped.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from bundle.envelope import check_commitment
from bundle.files import BundleDirectory
from bundle.frames import BLOB_LABEL, FrameContext
from bundle.manifest import Manifest
from bundle.variant import MAX_PATCHES, PatchEntry, Variant
from packager.diff.write.make_patches import PatchOrder, make_patches
from packager.errors import BaseMissing, TooManyPatches, VariantUnknown
from packager.release.draft import PatchBase, PlainPatch, Reporter, SilentReporter
from packager.release.steps.diff import UNIVERSAL_DELTA_CODEC, needs_second_patch
from packager.release.steps.encrypt import blob_path, encrypt_patch
from packager.repository.repository import Repository
from packager.repository.workspace import Workspace

if TYPE_CHECKING:
    from concurrent.futures import Executor


@dataclass(frozen=True, slots=True)
class AddedPatch:
    """A patch that was added to a release.

    Attributes:
        variant: name of the variant.
        version: version of the base.
        entry: its entry of the manifest.
    """

    variant: str
    version: str
    entry: PatchEntry

    def as_json(self) -> dict[str, object]:
        """Return the object that `--json` prints."""
        return {"variant": self.variant, "from_version": self.version, **self.entry.as_json()}


def add_patches(
    repository: Repository,
    family: str,
    version: str,
    bases: Sequence[str],
    *,
    last_releases: int = 0,
    variants: Sequence[str] = (),
    reporter: Reporter | None = None,
    executor: "Executor | None" = None,
) -> tuple[AddedPatch, ...]:
    """Create patches to a release, put their blobs, and stage the changed manifest.

    Args:
        repository: repository of the release.
        family: family of the release.
        version: release to patch to.
        bases: versions to patch from.
        last_releases: also patch from this many releases before `version`.
        variants: variants to patch; empty takes all.
        reporter: receives the progress; None reports nothing.
        executor: runs parts of the diffs; None runs them in this process.

    Returns:
        The new patches. If there are none, nothing is staged.

    Raises:
        BaseMissing: a version was never released, or its plain bundle or content key is not in the workspace.
        VariantUnknown: the release has no such variant.
        TooManyPatches: the manifest would list too many patches.
        KeyCommitmentMismatch: the stored content key is not the one of the release.
        WorkspaceDamaged: a stored bundle or key is damaged.
        FamilyUnknown: the repository delegates no such family.
    """
    manifest = _find_release(repository, family, version)
    earlier = sorted((m for m in repository.releases(family) if m.counter < manifest.counter), key=lambda m: -m.counter)
    starts = [*(_find_release(repository, family, base) for base in bases), *earlier[:last_releases]]
    workspace = Workspace(repository.root)
    reporter = reporter if reporter is not None else SilentReporter()
    added: list[AddedPatch] = []
    with workspace.build_folder() as folder:
        for name in _select_variants(manifest, variants):
            variant = manifest.variant(name)
            assert variant is not None
            patcher = _VariantPatcher(workspace, manifest, name, variant, folder, reporter, executor)
            found = patcher.create_patches(starts)
            if not found:
                continue
            entries = variant.patches + tuple(patch.entry for patch, _ in found)
            if len(entries) > MAX_PATCHES:
                raise TooManyPatches(
                    f"{family} {version} {name}: found {len(entries)} patches, expected at most {MAX_PATCHES}"
                )
            for _, blob in found:
                repository.put_blob(blob)
            manifest = manifest.with_patches(name, entries)
            added += [patch for patch, _ in found]
    if added:
        repository.stage_manifest(manifest)
    return tuple(added)


@dataclass(frozen=True, slots=True)
class _VariantPatcher:
    """Creates the patches of one variant."""

    workspace: Workspace
    manifest: Manifest
    name: str
    variant: Variant
    folder: Path
    reporter: Reporter
    executor: "Executor | None"

    def create_patches(self, bases: Sequence[Manifest]) -> list[tuple[AddedPatch, Path]]:
        """Return the new patches, each with the path of its blob."""
        known = {patch.base for patch in self.variant.patches} | {self.variant.digest}
        limit = min((patch.plain_size for patch in self.variant.patches if patch.base is None), default=None)
        starts: list[PatchBase] = []
        for base in bases:
            earlier = base.variant(self.name)
            if earlier is None or earlier.digest in known:
                continue
            known.add(earlier.digest)
            starts.append(PatchBase(base.version, earlier.digest, self._open_bundle(base, earlier)))
        out: list[tuple[AddedPatch, Path]] = []
        for patch in self._make_patches(starts):
            assert patch.base is not None
            if limit is not None and patch.report.plain_size >= limit:
                self.reporter.note(
                    f"variant {self.name}: the patch from {patch.base.version} is left out, it is not smaller than the "
                    "full download"
                )
                continue
            out.append((AddedPatch(self.name, patch.base.version, self._encrypt(patch)), blob_path(patch)))
        return out

    def _open_bundle(self, manifest: Manifest, variant: Variant) -> BundleDirectory:
        found = self.workspace.open_bundle(manifest.family, variant.digest)
        if found is None:
            raise BaseMissing(
                f"the bundle of {manifest.family} {manifest.version}, variant {self.name!r}, is not in the workspace",
                hint=f"restore {self.workspace.folder} from a copy",
            )
        return found

    def _make_patches(self, bases: Sequence[PatchBase]) -> list[PlainPatch]:
        if not bases:
            return []
        target = self._open_bundle(self.manifest, self.variant)
        orders = [
            PatchOrder(
                base.directory,
                target,
                self.folder / f"{self.name}-{base.version}.patch",
                f"{self.name} from {base.version}",
            )
            for base in bases
        ]
        made = list(zip(bases, orders, make_patches(orders, self.executor, self.reporter.bar), strict=True))
        second_orders = [
            (
                base,
                replace(
                    order, path=order.path.with_name(f"{order.path.stem}-plain.patch"), codec=UNIVERSAL_DELTA_CODEC
                ),
            )
            for base, order, report in made
            if needs_second_patch(self.variant.runtime, report, base.directory, target)
        ][: max(0, MAX_PATCHES - len(self.variant.patches) - len(made))]
        reports = make_patches([order for _, order in second_orders], self.executor, self.reporter.bar)
        made += [(base, order, report) for (base, order), report in zip(second_orders, reports, strict=True)]
        return [PlainPatch(base, order.path, report) for base, order, report in made]

    def _encrypt(self, patch: PlainPatch) -> PatchEntry:
        stored = self.workspace.find_variant(self.manifest.family, self.manifest.counter, self.name)
        if stored is None:
            raise BaseMissing(
                f"the content key of {self.manifest.family} {self.manifest.version}, variant {self.name!r}, is not in "
                "the workspace",
                hint=f"restore {self.workspace.folder} from a copy",
            )
        check_commitment(stored.content_key, self.variant.key_commitment)
        context = FrameContext(BLOB_LABEL, self.manifest.family, self.manifest.counter, self.name)
        return encrypt_patch(patch, blob_path(patch), stored.content_key, context)


def _select_variants(manifest: Manifest, variants: Sequence[str]) -> tuple[str, ...]:
    known = tuple(name for name, _ in manifest.variants)
    for name in variants:
        if name not in known:
            raise VariantUnknown(
                f"{manifest.family} {manifest.version} has no variant {name!r}, it has {', '.join(known)}"
            )
    return tuple(variants) or known


def _find_release(repository: Repository, family: str, version: str) -> Manifest:
    found = repository.manifest(family, version)
    if found is None:
        released = ", ".join(manifest.version for manifest in repository.releases(family)) or "none"
        raise BaseMissing(
            f"{family} {version} was never released", hint=f"choose from the released versions: {released}"
        )
    return found


__all__ = ["AddedPatch", "add_patches"]
