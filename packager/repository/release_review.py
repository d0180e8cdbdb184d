"""Describe releases and rollouts for the person who signs them, in words and one table.

Rules:
- Everything is computed from the documents that are signed: the manifest, the rollout, and the ones before them.
- The lines answer: what is released, made from what, how good is it, and what changes for which devices. Digests that a
  person can compare with another source (release, source model, samples) are written in full.
- A field that differs from the earlier release and has no line of its own is named, so that nothing changes silently.
"""

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Final

from bundle.manifest import Manifest
from bundle.rollout import Rollout, Window
from bundle.strict_json import JSON
from bundle.variant import Variant
from packager.repository.variant_table import format_columns, table_cells, variant_row, versions_by_digest

TOOLS: Final = ("packager", "onnx", "onnxruntime", "numpy")
INDENT: Final = "  "
BASIS_POINTS_PER_PERCENT: Final = 100
MIB: Final = 1 << 20
PROVENANCE_TITLES: Final = {"source_sha256": "source model SHA-256", "inputs": "samples"}
FIELDS_WITH_LINES: Final = (  # of a variant: shown in the table, in lines of their own, or different in each release
    "files", "models", "patches", "quantization", "measured", "provenance", "requires", "key_commitment",
)  # fmt: skip


def review_manifest(manifest: Manifest, known: Mapping[str, Manifest]) -> Iterator[str]:
    """Return the lines of a release.

    Args:
        manifest: the release to be signed.
        known: version → manifest of the family's other releases in the request.
    """
    before = max((m for m in known.values() if m.counter < manifest.counter), key=lambda m: m.counter, default=None)
    after = "the first release in the request" if before is None else f"after {before.version}"
    yield f"release {manifest.family} {manifest.version}, counter {manifest.counter}, {after}"
    yield f"{INDENT}release digest {manifest.digest_without_patches()}"
    yield f"{INDENT}for channels {', '.join(manifest.channels) or 'none'}; agent {manifest.min_agent} or newer"
    floor = 0 if before is None else before.min_counter
    if manifest.min_counter != floor:
        yield (
            f"{INDENT}ROLLBACK FLOOR {floor} -> {manifest.min_counter}: devices will refuse all releases with a lower "
            "counter"
        )
    versions = versions_by_digest([*known.values(), manifest])
    rows = [variant_row(name, variant, versions) for name, variant in manifest.variants]
    yield from (f"{INDENT}{line}" for line in format_columns(table_cells(rows)))
    for name, variant in manifest.variants:
        yield f"{INDENT}{name} runs on {_describe_requirements(variant)}"
    yield from (f"{INDENT}{line}" for line in _provenance_lines(manifest))
    if before is not None:
        yield from (f"{INDENT}against {before.version}: {line}" for line in _difference_lines(before, manifest))


def review_rollout(rollout: Rollout, before: Rollout | None) -> Iterator[str]:
    """Return the lines of a rollout.

    Args:
        rollout: the rollout to be signed.
        before: the one that it replaces, or None if there is none, or it is unknown.
    """
    release = rollout.version
    if before is not None:
        same = before.manifest_digest == rollout.manifest_digest
        release = f"{rollout.version} as before" if same else f"{before.version} -> {rollout.version}"
    yield (
        f"channel {rollout.family} {rollout.channel} runs {release}, for {_describe_share(rollout)}"
        + ("" if before is None else f" (before: {_describe_share(before)})")
    )
    yield f"{INDENT}release digest {rollout.manifest_digest}"
    if before is not None and before.halted != rollout.halted:
        yield f"{INDENT}{'HALTED: no device activates it' if rollout.halted else 'RESUMED'}"
    elif rollout.halted:
        yield f"{INDENT}halted: no device activates it"
    if rollout.windows:
        yield f"{INDENT}devices activate it only in {', '.join(map(_describe_window, rollout.windows))}"
    elif before is not None and before.windows:
        yield f"{INDENT}devices activate it at any time; before: {', '.join(map(_describe_window, before.windows))}"
    if before is not None and before.version == rollout.version and before.salt != rollout.salt:
        yield f"{INDENT}other devices belong to the share: the salt changed"
    if rollout.note:
        yield f"{INDENT}note: {rollout.note}"


def _describe_share(rollout: Rollout) -> str:
    cohorts = "all cohorts" if not rollout.cohorts else f"cohorts {', '.join(rollout.cohorts)}"
    return f"{rollout.percent_bp / BASIS_POINTS_PER_PERCENT:g} % of the devices in {cohorts}"


def _describe_window(window: Window) -> str:
    start, end = (datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M") for at in (window.start_s, window.end_s))
    return f"{start} to {end} UTC"


def _describe_requirements(variant: Variant) -> str:
    needs = variant.requires
    parts = [", ".join(needs.arch) or "every architecture"]
    if needs.cpu_features:
        parts.append(f"CPUs with {', '.join(needs.cpu_features)}")
    runtime = variant.runtime
    versions = f" {runtime.min_version} or newer" if runtime.min_version else ""
    versions += f", below {runtime.below_version}" if runtime.below_version else ""
    parts.append(f"runtime {runtime.name}{versions}")
    if needs.memory_bytes:
        parts.append(f"{needs.memory_bytes / MIB:,.0f} MiB of memory")
    return "; ".join(parts)


def _provenance_lines(manifest: Manifest) -> Iterator[str]:
    """Yield each string of the provenance once, with its variants; the tools in one line."""
    owners: dict[tuple[str, str], list[str]] = {}
    for name, variant in manifest.variants:
        facts = list(variant.provenance)
        if variant.quantization.calibration is not None:
            facts.append(("samples SHA-256", variant.quantization.calibration))
        for fact in facts:
            owners.setdefault(fact, []).append(name)
    tools = sorted({f"{tool} {text}" for tool, text in owners if tool in TOOLS})
    for (key, text), names in sorted(owners.items(), key=lambda item: (item[0][0] not in PROVENANCE_TITLES, item[0])):
        if key not in TOOLS:
            whose = "" if len(names) == len(manifest.variants) else f" ({', '.join(names)})"
            yield f"{PROVENANCE_TITLES.get(key, key)}: {text}{whose}"
    if not any(key == "commit" for key, _ in owners):
        yield "commit: not recorded (provenance.commit in the release file)"
    if tools:
        yield f"built with {', '.join(tools)}"


def _difference_lines(before: Manifest, after: Manifest) -> Iterator[str]:
    old, new = dict(before.variants), dict(after.variants)
    for title, names in (("added", new.keys() - old.keys()), ("no longer released", old.keys() - new.keys())):
        if names:
            yield f"variants {title}: {', '.join(sorted(names))}"
    for field in ("channels", "min_agent", "ramp"):
        if getattr(before, field) != getattr(after, field):
            yield f"{field} changed"
    for name in sorted(new.keys() & old.keys()):
        yield from (f"{name}: {line}" for line in _variant_differences(old[name], new[name]))


def _variant_differences(old: Variant, new: Variant) -> Iterator[str]:
    if _describe_requirements(old) != _describe_requirements(new):
        yield f"ran on {_describe_requirements(old)}"
    before, after = {f.path: f for f in old.files}, {f.path: f for f in new.files}
    for title, paths in (
        ("new files", after.keys() - before.keys()),
        ("files removed", before.keys() - after.keys()),
        ("files changed", {path for path in after.keys() & before.keys() if after[path] != before[path]}),
    ):
        if paths:
            yield f"{title}: {', '.join(sorted(paths))}"
    if [m.contract for m in old.models] != [m.contract for m in new.models]:
        yield "INPUTS OR OUTPUTS changed: applications must fit"
    yield from _changed_fields(old.as_json(has_patches=False), new.as_json(has_patches=False))


def _changed_fields(old: dict[str, JSON], new: dict[str, JSON]) -> Iterator[str]:
    for field in sorted(new):
        before, after = old.get(field), new[field]
        if field in FIELDS_WITH_LINES or before == after:
            continue
        if isinstance(before, dict) and isinstance(after, dict):
            names = sorted(name for name in {*before, *after} if before.get(name) != after.get(name))
            changes = ", ".join(f"{name} {before.get(name, 'unset')} -> {after.get(name, 'unset')}" for name in names)
            yield f"{field}: {changes}"
        else:
            yield f"{field}: {before} -> {after}"
