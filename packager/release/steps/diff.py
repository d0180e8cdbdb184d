"""Step diff: create the patches of every variant: a full download, and one from each base.

Rules:
- A base is the same variant of an earlier release of the family, if its plain bundle is in the workspace. With a number
  of bases, fire drills do not count, and missing bundles are skipped. With a list of versions, each must be present.
- No two patches of a variant start from the same bundle with the same codec. Releases with equal bundles are one base,
  and a base that equals the new bundle is skipped.
- A patch that is not smaller than the full download is left out.
- If the full download needs an optional decoder, a second one without optional decoders is added, since some devices
  lack them. A device that runs no models may have the base install, without the decoders of typed patches: its releases
  also get a second patch from each base, by bsdiff, unless a file is larger than MAX_SECOND_PATCH_BYTES.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from bundle.files import BundleDirectory, bundle_digest
from bundle.manifest import Manifest
from bundle.requirements import Runtime
from bundle.variant import MAX_PATCHES
from packager.diff.write.make_patches import PatchOrder, make_patches
from packager.diff.write.patch_report import PatchReport
from packager.errors import BaseMissing
from packager.release.byte_shares import golden_warning, shares_of_files, shares_of_patch
from packager.release.draft import AssembledVariant, Draft, PatchBase, PlainPatch
from packager.release.release_plan import ReleasePlan

OPTIONAL_FEATURES: Final = frozenset({"lzma", "pcodec"})  # some platforms lack a wheel of pcodec, some builds lzma
TYPED_FEATURES: Final = frozenset({"edit", "pcodec", "typed"})  # need the extra `typed` on a device
MAX_SECOND_PATCH_BYTES: Final = 8 << 20  # bsdiff of 16 MiB of fine-tuned floats takes 40 s, and saves nothing
UNIVERSAL_CODEC: Final = "zstd"
UNIVERSAL_DELTA_CODEC: Final = "bsdiff4"


def run(draft: Draft) -> None:
    """Create the patches and set `patches` of the assembled variants.

    Raises:
        BaseMissing: a listed base is not in the workspace.
        WorkspaceDamaged: a stored bundle is damaged.
    """
    bases = {variant.name: bases_of(draft, variant) for variant in draft.assembled.values()}
    orders = [
        _order(draft, variant, base, "nothing" if base is None else base.version)
        for variant in draft.assembled.values()
        for base in (None, *bases[variant.name])
    ]
    made = iter(make_patches(orders, draft.executor, draft.reporter.bar))
    reports = {name: [next(made) for _ in range(1 + len(found))] for name, found in bases.items()}
    second_patches = _make_second_patches(draft, reports, bases)
    for variant in list(draft.assembled.values()):
        full, *others = reports[variant.name]
        patches = [PlainPatch(None, _path(draft, variant, "nothing"), full)]
        if (variant.name, None) in second_patches:
            patches.append(second_patches[variant.name, None])
        for base, report in zip(bases[variant.name], others, strict=True):
            second = second_patches.get((variant.name, base.version))
            if report.plain_size < full.plain_size:
                patches.append(PlainPatch(base, _path(draft, variant, base.version), report))
            if second is not None and second.report.plain_size < full.plain_size:
                patches.append(second)
            if report.plain_size >= full.plain_size:
                draft.note(
                    f"variant {variant.name}: the patch from {base.version} is left out, it is not smaller than the "
                    "full download"
                )
        draft.assembled[variant.name] = replace(variant, patches=tuple(patches))
        for patch in patches:
            _warn_of_golden_bytes(draft, variant, patch)


def needs_second_patch(
    runtime: Runtime, report: PatchReport, base: BundleDirectory | None, target: BundleDirectory
) -> bool:
    """Return whether some devices cannot decode a patch, and another codec can make one for them.

    Args:
        runtime: the variant's.
        report: of the patch.
        base: its base; None for a full download.
        target: the bundle that it makes.
    """
    if base is None:
        lacking = OPTIONAL_FEATURES if runtime.is_run_by_agent else OPTIONAL_FEATURES | TYPED_FEATURES
        return bool(lacking & set(report.features))
    largest = max((file.size for side in (base, target) for file in side.files), default=0)
    return (
        not runtime.is_run_by_agent
        and bool(TYPED_FEATURES & set(report.features))
        and largest <= MAX_SECOND_PATCH_BYTES
    )


def _make_second_patches(
    draft: Draft, reports: Mapping[str, Sequence[PatchReport]], bases: Mapping[str, Sequence[PatchBase]]
) -> dict[tuple[str, str | None], PlainPatch]:
    """Return the second patches, by variant and version of the base; None for the full download."""
    orders: dict[tuple[str, str | None], tuple[PatchBase | None, PatchOrder]] = {}
    for variant in draft.assembled.values():
        room = MAX_PATCHES - len(reports[variant.name])
        for base, report in zip((None, *bases[variant.name]), reports[variant.name], strict=True):
            directory = None if base is None else base.directory
            if room and needs_second_patch(variant.runtime, report, directory, variant.bundle):
                room -= 1
                name = "nothing" if base is None else base.version
                codec = UNIVERSAL_CODEC if base is None else UNIVERSAL_DELTA_CODEC
                order = _order(draft, variant, base, f"{name}-plain", codec=codec)
                orders[variant.name, None if base is None else base.version] = base, order
    made = make_patches([order for _, order in orders.values()], draft.executor, draft.reporter.bar)
    rows = zip(orders.items(), made, strict=True)
    return {key: PlainPatch(base, order.path, report) for (key, (base, order)), report in rows}


def bases_of(draft: Draft, variant: AssembledVariant) -> list[PatchBase]:
    """Return the bundles to create patches from, latest release first.

    Args:
        draft: the release in progress.
        variant: the variant to patch to.

    Raises:
        BaseMissing: a listed base is not in the workspace.
        WorkspaceDamaged: a stored bundle is damaged.
    """
    plan = draft.plan
    released = {manifest.version: manifest for manifest in reversed(draft.repository.releases(plan.family))}
    no_drills = [version for version, manifest in released.items() if not is_drill(manifest)]
    chosen = no_drills[: plan.bases] if isinstance(plan.bases, int) else list(plan.bases)
    found: dict[str, PatchBase] = {}
    own = bundle_digest(variant.bundle.files)
    for version in chosen:
        earlier = released[version].variant(variant.name)
        if earlier is None or earlier.digest == own:
            continue
        directory = draft.workspace.open_bundle(plan.family, earlier.digest)
        if directory is not None:
            found.setdefault(earlier.digest, PatchBase(version, earlier.digest, directory))
        elif not isinstance(plan.bases, int):
            raise BaseMissing(
                f"patches.from: the bundle of {plan.family} {version}, variant {variant.name!r}, is not in the "
                "workspace",
                hint=f"restore {draft.workspace.folder} from a copy, or remove the version from the list",
            )
    return list(found.values())


def _warn_of_golden_bytes(draft: Draft, variant: AssembledVariant, patch: PlainPatch) -> None:
    shares = shares_of_patch(patch.report, variant.bundle.files)
    warning = None
    if shares is not None:
        model = shares.model if patch.base is not None else shares_of_files(variant.bundle.files).model
        warning = golden_warning(shares.golden, model, draft.plan.golden_bytes, is_update=patch.base is not None)
    if warning is not None:
        draft.note(f"warning: variant {variant.name}: {warning}")


def is_drill(manifest: Manifest) -> bool:
    """Return whether a release is a fire drill, which devices do not keep."""
    return any("drill" in dict(variant.provenance) for _, variant in manifest.variants)


def check_bases(plan: ReleasePlan, releases: tuple[Manifest, ...]) -> None:
    """Check that the listed bases were released.

    Args:
        plan: contents of the release file.
        releases: the family's releases.

    Raises:
        BaseMissing: a version was never released.
    """
    released = [manifest.version for manifest in releases]
    for version in () if isinstance(plan.bases, int) else plan.bases:
        if version not in released:
            raise BaseMissing(
                f"patches.from: {plan.family} {version} was never released",
                hint=f"choose from the released versions: {', '.join(released) or 'none'}",
            )


def _order(
    draft: Draft, variant: AssembledVariant, base: PatchBase | None, name: str, codec: str = "auto"
) -> PatchOrder:
    label = f"{variant.name} {'full download' if base is None else f'from {base.version}'}"
    directory = None if base is None else base.directory
    return PatchOrder(directory, variant.bundle, _path(draft, variant, name), label, codec)


def _path(draft: Draft, variant: AssembledVariant, name: str) -> Path:
    return draft.variant_folder(variant.name) / f"{name}.patch"
