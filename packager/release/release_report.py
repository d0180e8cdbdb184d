"""The report of a release: one table, the notes of all steps, and details for `--json`.

Rules:
- `report_lines` and the page (packager.release.release_page) show the same table and the same notes.
- Values of steps that did not run are None.
"""

from dataclasses import dataclass
from itertools import zip_longest
from typing import Final

from bundle.contract import PPM
from bundle.files import bundle_digest
from bundle.manifest import Manifest
from packager.models.model_files import model_bytes
from packager.release.byte_shares import ByteShares, shares_of_patch
from packager.release.draft import AssembledVariant, Draft, PlainPatch, QuantizedVariant
from packager.release.release_plan import UNQUANTIZED_SCHEME
from packager.repository.variant_table import (
    MIB,
    MODEL_ROLES,
    VariantRow,
    bytes_of_role,
    format_columns,
    table_cells,
)

MAX_LOAD_GROWTH: Final = 1.25  # of the memory while loading, over the float model's
MIN_GAIN: Final = 0.95  # smaller differences of speed are noise


@dataclass(frozen=True, slots=True)
class ReleaseReport:
    """The result of a release.

    Attributes:
        family, version, counter: the release.
        manifest: the signed manifest, or None if the pipeline ended before the step sign.
        rows: figures of each included variant.
        variants: facts about each included variant, by name (docs/schemas/release.json).
        dropped: reasons of the variants that were left out, by name.
        notes: what a person who signs should know, one sentence each.
        envelopes: number of sealed envelopes.
        seconds: duration of each step that ran, by name, in seconds.
        is_published: whether the release was published.
    """

    family: str
    version: str
    counter: int
    manifest: Manifest | None
    rows: tuple[VariantRow, ...]
    variants: dict[str, dict[str, object]]
    dropped: dict[str, str]
    notes: tuple[str, ...]
    envelopes: int
    seconds: dict[str, float]
    is_published: bool

    @property
    def title(self) -> str:
        """Family, version and state of the release."""
        state = "published" if self.is_published else "not published"
        return f"{self.family} {self.version} (counter {self.counter}): {state}"

    def as_json(self) -> dict[str, object]:
        """Return the object that `--json` prints (docs/schemas/release.json)."""
        return {
            "family": self.family,
            "version": self.version,
            "counter": self.counter,
            "manifest_digest": self.manifest.digest_without_patches() if self.manifest is not None else None,
            "published": self.is_published,
            "variants": self.variants,
            "dropped": self.dropped,
            "notes": list(self.notes),
            "envelopes": self.envelopes,
            "seconds": self.seconds,
        }

    def as_lines(self) -> list[str]:
        """Return lines for a terminal: the table, the bytes of each patch, and the notes."""
        lines = [self.title, *(f"  {line}" for line in format_columns(table_cells(self.rows)))]
        lines += [f"  {line}" for line in self.patch_lines()]
        lines += [f"  note: {note}" for note in self.notes]
        lines += [f"  {name}: left out, {reason}" for name, reason in self.dropped.items()]
        lines.append("  " + ", ".join(f"{name} {seconds:.1f} s" for name, seconds in self.seconds.items()))
        return lines

    def patch_lines(self) -> list[str]:
        """Return one line for each patch: its bytes, its codec, and their split into model and golden vectors."""
        lines = []
        for name, row in self.variants.items():
            patches = row["patches"]
            assert isinstance(patches, list)
            for patch in patches:
                size = patch["size"] if patch["size"] is not None else patch["plain_size"]
                label = f"patch from {patch['from_version']}" if patch["from_version"] else "full download"
                shares = patch["shares"]
                where = "" if shares is None else f": {ByteShares(**shares).as_text()}"
                lines.append(f"{name}, {label}: {size:,} bytes ({patch['codec']}){where}")
        return lines


def make_report(draft: Draft, seconds: dict[str, float]) -> ReleaseReport:
    """Return the report of a release in any state.

    Args:
        draft: the release.
        seconds: duration of each step that ran, by name.
    """
    return ReleaseReport(
        family=draft.plan.family,
        version=draft.plan.version,
        counter=draft.counter,
        manifest=draft.manifest,
        rows=tuple(_table_row(draft, variant) for variant in draft.quantized.values()),
        variants={name: _variant_facts(draft, variant) for name, variant in draft.quantized.items()},
        dropped=drop_reasons(draft),
        notes=tuple(dict.fromkeys((*draft.notes, *advise(draft)))),
        envelopes=draft.envelopes,
        seconds=seconds,
        is_published=draft.publish_report is not None,
    )


def advise(draft: Draft) -> tuple[str, ...]:
    """Return what the figures mean for who signs: variants that no device needs, and memory.

    Args:
        draft: the release, after the step assemble.
    """
    shown = [v for v in draft.quantized.values() if v.model is not None and v.name in draft.assembled]
    rows = {variant.name: _table_row(draft, variant) for variant in shown}
    plain = next((v.name for v in shown if v.plan.scheme == UNQUANTIZED_SCHEME and v.plan.model is None), None)
    notes = []
    for name, row in rows.items():
        if plain not in (None, name) and row.model_bytes >= rows[plain or name].model_bytes:
            notes.append(f"variant {name} is not smaller than {plain}")
        if name == plain:
            continue  # the reference: it stays for devices that the others do not fit
        better = next((other for other in rows if other != name and _is_better(draft, other, name, rows)), None)
        if better is not None:
            notes.append(f"variant {name} is larger and slower than {better}: no device needs it")
        loading, usual = (draft.assembled[n].measured.load_memory_bytes for n in (name, plain or name))
        if loading and usual and loading > MAX_LOAD_GROWTH * usual + MIB:
            notes.append(
                f"variant {name} takes {loading / MIB:,.0f} MiB while it is loaded, {plain} {usual / MIB:,.0f} MiB"
            )
    return tuple(notes)


def _is_better(draft: Draft, name: str, other: str, rows: dict[str, VariantRow]) -> bool:
    """Return whether a variant is smaller and faster than another, wherever the other runs."""
    mine, theirs = rows[name], rows[other]
    if mine.float_ratio is None or theirs.float_ratio is None:
        return False
    needs, allowed = draft.assembled[name].requires, draft.assembled[other].requires
    is_at_home = set(needs.cpu_features) <= set(allowed.cpu_features) and needs.arch in ((), allowed.arch)
    is_faster = mine.float_ratio < MIN_GAIN * theirs.float_ratio
    return is_at_home and is_faster and mine.model_bytes < theirs.model_bytes


def drop_reasons(draft: Draft) -> dict[str, str]:
    """Return the reasons of the variants that were left out, in the order of the release file."""
    reasons = draft.drop_reasons
    return {plan.name: reasons[plan.name] for plan in draft.plan.variants if plan.name in reasons}


def _table_row(draft: Draft, variant: QuantizedVariant) -> VariantRow:
    checks, assembled = draft.checks.get(variant.name), draft.assembled.get(variant.name)
    sizes = _patch_sizes(draft, variant)
    full = [size for patch, size in sizes if patch.base is None]
    patches: dict[str, int] = {}
    for patch, size in sizes:
        if patch.base is not None:
            patches[patch.base.version] = min(size, patches.get(patch.base.version, size))
    model = model_bytes(variant.model) if variant.model is not None else 0
    golden = checks.golden.bytes if checks is not None and checks.golden is not None else 0
    return VariantRow(
        name=variant.name,
        quantization=variant.quantization,
        model_bytes=bytes_of_role(assembled.bundle.files, *MODEL_ROLES) if assembled is not None else model,
        golden_bytes=golden,
        download_bytes=min(full, default=None),
        patches=patches,
        float_ratio=_float_ratio(variant, assembled),
        memory_bytes=assembled.requires.memory_bytes if assembled is not None else 0,
    )


def _patch_sizes(draft: Draft, variant: QuantizedVariant) -> list[tuple[PlainPatch, int]]:
    """Return the patches with their sizes: encrypted, if they are encrypted already."""
    assembled, encrypted = draft.assembled.get(variant.name), draft.encrypted.get(variant.name)
    if assembled is None:
        return []
    entries = encrypted.entries if encrypted is not None else ()
    return [
        (patch, entry.size if entry is not None else patch.report.plain_size)
        for patch, entry in zip_longest(assembled.patches, entries)
    ]


def _float_ratio(variant: QuantizedVariant, assembled: AssembledVariant | None) -> float | None:
    if assembled is not None and assembled.measured.float_ratio_ppm is not None:
        return assembled.measured.float_ratio_ppm / PPM
    if variant.latency is not None:
        return variant.latency.ratio
    return 1.0 if variant.plan.scheme == UNQUANTIZED_SCHEME and variant.plan.model is None and variant.model else None


def _variant_facts(draft: Draft, variant: QuantizedVariant) -> dict[str, object]:
    checks, assembled = draft.checks.get(variant.name), draft.assembled.get(variant.name)
    encrypted = draft.encrypted.get(variant.name)
    patches: list[dict[str, object]] = []
    entries = encrypted.entries if encrypted is not None else ()
    for patch, entry in zip_longest(assembled.patches if assembled is not None else (), entries):
        shares = shares_of_patch(patch.report, assembled.bundle.files) if assembled is not None else None
        patches.append(
            {
                "from": patch.base.digest if patch.base is not None else None,
                "from_version": patch.base.version if patch.base is not None else None,
                "codec": patch.report.codec,
                "shares": shares.as_json() if shares is not None else None,
                "plain_size": patch.report.plain_size,
                "size": entry.size if entry is not None else None,
                "blob": entry.blob if entry is not None else None,
            }
        )
    files = assembled.bundle.files if assembled is not None else ()
    return {
        "bundle": bundle_digest(files) if files else None,
        "plain_size": sum(file.size for file in files),
        "files": len(files),
        "patches": patches,
        "quantization": variant.quantization.as_json(),
        "report": variant.report.as_json() if variant.report is not None else None,
        "update": _update_facts(variant),
        "gate": variant.gate.as_json() if variant.gate is not None else None,
        "golden": checks.golden.as_json() if checks is not None and checks.golden is not None else None,
        "runtime": assembled.runtime.as_json() if assembled is not None else None,
        "requires": assembled.requires.as_json() if assembled is not None else None,
        "measured": assembled.measured.as_json() if assembled is not None else None,
    }


def _update_facts(variant: QuantizedVariant) -> dict[str, object] | None:
    return None if variant.update is None else {"of": variant.update.version, **variant.update.report.as_json()}
