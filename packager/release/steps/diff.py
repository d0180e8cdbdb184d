"""Step 5: patches: from nothing, and from each base, for every variant.

Rules:
1. A base is the same variant of an earlier release of the family whose plain bundle is still in the workspace. Asked
   for by number, fire drills do not count, and those that are no longer here are left out; asked for by version, each
   must be here.
2. No two patches of a variant start from the same bundle: releases with equal bundles are one base, and a base that is
   the new bundle itself is none.
3. A patch that is not smaller than the one from nothing is left out: a device that has its base loses nothing.
4. A device may lack an optional decoder: where the patch from nothing needs one, there is a second one that does not.
"""

from typing import Final

from bundle.files import bundle_digest
from bundle.manifest import Manifest
from packager.diff.write.make_patch import make_patch
from packager.errors import BaseMissing
from packager.release.draft import Draft, PatchBase, PlainPatch, VariantDraft
from packager.release.release_file import ReleasePlan

OPTIONAL_FEATURES: Final = frozenset({"lzma", "pcodec"})  # some platforms lack a wheel of pcodec, some builds lzma
UNIVERSAL_CODEC: Final = "zstd"


def run(draft: Draft) -> None:
    """Set `patches`. Raises BaseMissing, WorkspaceRefused."""
    for variant in draft.included_variants:
        assert variant.bundle is not None
        variant.patches = [write_patch(draft, variant, None, "nothing")]
        if OPTIONAL_FEATURES & set(variant.patches[0].report.features):
            variant.patches.append(write_patch(draft, variant, None, "nothing-plain", codec=UNIVERSAL_CODEC))
        for base in bases_of(draft, variant):
            patch = write_patch(draft, variant, base, base.version)
            if patch.report.plain_size < variant.patches[0].report.plain_size:
                variant.patches.append(patch)
            else:
                draft.reporter.note(
                    f"variant {variant.name}: the patch from {base.version} saves nothing and is left out"
                )


def bases_of(draft: Draft, variant: VariantDraft) -> list[PatchBase]:
    """The bundles to start from (rules 1 and 2), latest release first. Raises BaseMissing, WorkspaceRefused."""
    assert variant.bundle is not None
    plan = draft.plan
    released = {manifest.version: manifest for manifest in reversed(draft.repository.releases(plan.family))}
    kept = [version for version, manifest in released.items() if not is_drill(manifest)]
    wanted = kept[: plan.bases] if isinstance(plan.bases, int) else list(plan.bases)
    found: dict[str, PatchBase] = {}
    own = bundle_digest(variant.bundle.files)
    for version in wanted:
        earlier = released[version].variant(variant.name)
        if earlier is None or earlier.digest == own:
            continue
        directory = draft.workspace.open_bundle(plan.family, earlier.digest)
        if directory is not None:
            found.setdefault(earlier.digest, PatchBase(version, earlier.digest, directory))
        elif not isinstance(plan.bases, int):
            raise BaseMissing(
                f"patches.from: the bundle of {plan.family} {version}, variant {variant.name!r}, is no longer here",
                hint=f"restore {draft.workspace.folder} from a copy, or leave the version out",
            )
    return list(found.values())


def is_drill(manifest: Manifest) -> bool:
    """Is it a fire drill, which no device kept?"""
    return any("drill" in dict(variant.provenance) for _, variant in manifest.variants)


def check_bases(plan: ReleasePlan, releases: tuple[Manifest, ...]) -> None:
    """Raises BaseMissing: a version that was never released."""
    released = [manifest.version for manifest in releases]
    for version in () if isinstance(plan.bases, int) else plan.bases:
        if version not in released:
            raise BaseMissing(
                f"patches.from: {plan.family} {version} was not released",
                hint=f"released are: {', '.join(released) or 'none'}",
            )


def write_patch(
    draft: Draft, variant: VariantDraft, base: PatchBase | None, name: str, *, codec: str = "auto"
) -> PlainPatch:
    """One patch, written into the variant's folder."""
    assert variant.bundle is not None
    path = variant.folder / f"{name}.patch"
    bar = draft.reporter.bar(f"{variant.name} from {base.version if base is not None else 'nothing'}")
    with path.open("wb") as out:
        directory = base.directory if base is not None else None
        report = make_patch(directory, variant.bundle, out, codec=codec, executor=draft.executor, progress=bar)
    return PlainPatch(base, path, report)
