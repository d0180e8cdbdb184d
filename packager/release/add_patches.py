"""Patches for a release that is out: more ways to the same bundle, from bases that turned out to be common.

Rules:
1. A release's identity does not cover its patches (bundle.manifest, rule 3): nothing that a device verified changes.
2. The content key is the release's own, from the workspace, and must be the one that the manifest commits to; each blob
   has a salt of its own.
3. A patch that is there already, or saves nothing over the one from nothing, is not made again.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bundle.envelope import check_commitment
from bundle.files import BundleDirectory
from bundle.frames import BLOB_LABEL, FrameContext
from bundle.manifest import MAX_PATCHES, Manifest, PatchEntry, Variant
from packager.diff.write.make_patch import make_patch
from packager.errors import BaseMissing, TooManyPatches, VariantUnknown
from packager.release.draft import PatchBase, PlainPatch, Reporter, SilentReporter
from packager.release.steps.encrypt import blob_path, encrypt_patch
from packager.repository.repository import Repository
from packager.repository.workspace import Workspace

if TYPE_CHECKING:
    from concurrent.futures import Executor


@dataclass(frozen=True, slots=True)
class AddedPatch:
    """One new patch: of which variant, from which version, and its entry."""

    variant: str
    version: str
    entry: PatchEntry

    def as_json(self) -> dict[str, object]:
        """For `--json`."""
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
    """Make patches to `version` from the versions of `bases`, put their blobs, and stage the manifest with them.

    Args:
        last: and from as many releases that came right before it.
        variants: only these; none is every variant that the base has too.

    Returns:
        What is new, which may be nothing (rule 3); then nothing is staged.

    Raises:
        BaseMissing: a version was not released, or a plain bundle or content key is no longer in the workspace.
        UnknownVariant, TooManyPatches, KeyCommitmentRefused, WorkspaceRefused, and FamilyUnknown of the repository.
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
            fresh = _VariantPatcher(workspace, manifest, name, variant, folder, reporter, executor)
            found = fresh.make_patches(starts)
            if not found:
                continue
            entries = variant.patches + tuple(patch.entry for patch, _ in found)
            if len(entries) > MAX_PATCHES:
                raise TooManyPatches(
                    f"{family} {version} {name}: {len(entries)} patches, at most {MAX_PATCHES} are allowed"
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
    """Makes the patches of one variant."""

    workspace: Workspace
    manifest: Manifest
    name: str
    variant: Variant
    folder: Path
    reporter: Reporter
    executor: "Executor | None"

    def make_patches(self, bases: Sequence[Manifest]) -> list[tuple[AddedPatch, Path]]:
        """New entries with their blobs."""
        known = {patch.base for patch in self.variant.patches} | {self.variant.digest}
        limit = min((patch.plain_size for patch in self.variant.patches if patch.base is None), default=None)
        out: list[tuple[AddedPatch, Path]] = []
        for base in bases:
            earlier = base.variant(self.name)
            if earlier is None or earlier.digest in known:
                continue
            known.add(earlier.digest)
            start = PatchBase(base.version, earlier.digest, self._open_bundle(base, earlier))
            patch = self._make_patch(start)
            if limit is not None and patch.report.plain_size >= limit:
                self.reporter.note(f"variant {self.name}: the patch from {base.version} saves nothing and is left out")
                continue
            out.append((AddedPatch(self.name, base.version, self._encrypt(patch)), blob_path(patch)))
        return out

    def _open_bundle(self, manifest: Manifest, variant: Variant) -> BundleDirectory:
        found = self.workspace.open_bundle(manifest.family, variant.digest)
        if found is None:
            raise BaseMissing(
                f"the bundle of {manifest.family} {manifest.version}, variant {self.name!r}, is no longer here",
                hint=f"restore {self.workspace.folder} from a copy",
            )
        return found

    def _make_patch(self, base: PatchBase) -> PlainPatch:
        target = self._open_bundle(self.manifest, self.variant)
        bar = self.reporter.bar(f"{self.name} from {base.version}")
        path = self.folder / f"{self.name}-{base.version}.patch"
        with path.open("xb") as out:
            report = make_patch(base.directory, target, out, executor=self.executor, progress=bar)
        return PlainPatch(base, path, report)

    def _encrypt(self, patch: PlainPatch) -> PatchEntry:
        kept = self.workspace.find_variant(self.manifest.family, self.manifest.counter, self.name)
        if kept is None:
            raise BaseMissing(
                f"the key of {self.manifest.family} {self.manifest.version}, variant {self.name!r}, is no longer here",
                hint=f"restore {self.workspace.folder} from a copy",
            )
        check_commitment(kept.content_key, self.variant.key_commitment)
        context = FrameContext(BLOB_LABEL, self.manifest.family, self.manifest.counter, self.name)
        return encrypt_patch(patch, blob_path(patch), kept.content_key, context)


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
        raise BaseMissing(f"{family} {version} was not released", hint=f"released are: {released}")
    return found


__all__ = ["AddedPatch", "add_patches"]
