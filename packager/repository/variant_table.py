"""The table of variants that people read before they sign: sizes, errors, latency and memory.

Rules:
- A row is computed from the manifest's entry alone, so that a signer's machine shows what is signed; the release
  command fills the same rows before there is a manifest.
- Sizes are those of the table's columns: the model with its external data, the golden vectors, the smallest full
  download, and the smallest patch from each base, encrypted if they are encrypted already.
- A figure that was not measured is `-`, never 0.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from bundle.contract import PPM
from bundle.files import BundleFile
from bundle.manifest import Manifest
from bundle.variant import Quantization, Variant

MODEL_ROLES: Final = ("model", "external-data")
DIGITS_OF_DIGEST: Final = 12  # of a base that is not known by its version
MAX_BASE_COLUMNS: Final = 2
MIB: Final = 1 << 20
NOT_MEASURED: Final = "-"


@dataclass(frozen=True, slots=True)
class VariantRow:
    """The figures of one variant.

    Attributes:
        name: name of the variant.
        quantization: method, gate and errors.
        model_bytes: the model and its external data, uncompressed.
        golden_bytes: the golden vectors, uncompressed.
        download_bytes: the smallest full download, or None before there is one.
        patches: name of each base → bytes of the smallest patch from it.
        float_ratio: processor time over that of the float model, or None if it was not measured.
        memory_bytes: peak memory of a process that runs the model; 0 if it was not measured.
    """

    name: str
    quantization: Quantization
    model_bytes: int
    golden_bytes: int
    download_bytes: int | None
    patches: Mapping[str, int]
    float_ratio: float | None
    memory_bytes: int


def variant_row(name: str, variant: Variant, versions: Mapping[str, str]) -> VariantRow:
    """Return the row of a manifest's entry.

    Args:
        name: name of the variant.
        variant: its entry.
        versions: bundle digest → version of the release that has it, as far as known.
    """
    full = [patch.size for patch in variant.patches if patch.base is None]
    patches: dict[str, int] = {}
    for patch in variant.patches:
        if patch.base is not None:
            base = versions.get(patch.base, patch.base[:DIGITS_OF_DIGEST])
            patches[base] = min(patch.size, patches.get(base, patch.size))
    ratio = variant.measured.float_ratio_ppm
    return VariantRow(
        name=name,
        quantization=variant.quantization,
        model_bytes=bytes_of_role(variant.files, *MODEL_ROLES),
        golden_bytes=bytes_of_role(variant.files, "golden"),
        download_bytes=min(full, default=None),
        patches=patches,
        float_ratio=None if ratio is None else ratio / PPM,
        memory_bytes=variant.requires.memory_bytes,
    )


def versions_by_digest(manifests: Sequence[Manifest]) -> dict[str, str]:
    """Return the version of each bundle digest; of the earliest release if several have it."""
    found: dict[str, str] = {}
    for manifest in sorted(manifests, key=lambda m: m.counter):
        for _, variant in manifest.variants:
            found.setdefault(variant.digest, manifest.version)
    return found


def bytes_of_role(files: Sequence[BundleFile], *roles: str) -> int:
    """Return the uncompressed bytes of the files of some roles.

    Args:
        files: files of a bundle.
        roles: the roles to count.
    """
    return sum(file.size for file in files if file.role in roles)


def table_cells(rows: Sequence[VariantRow]) -> list[tuple[str, ...]]:
    """Return the table as cells, its head first; up to MAX_BASE_COLUMNS bases have a column."""
    bases = tuple(dict.fromkeys(base for row in rows for base in row.patches))[:MAX_BASE_COLUMNS]
    head = (
        "variant", "method", "model", "golden", "full download", *(f"from {base}" for base in bases),
        "error", "top-1", "gate", "latency", "memory",
    )  # fmt: skip
    return [head, *(_row_cells(row, bases) for row in rows)]


def format_columns(cells: Sequence[Sequence[str]]) -> list[str]:
    """Return lines with aligned columns, the first two to the left and the others to the right."""
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    lines = []
    for row in cells:
        shown = [cell.ljust(width) for cell, width in zip(row[:2], widths, strict=False)]
        shown += [cell.rjust(width) for cell, width in zip(row[2:], widths[2:], strict=True)]
        lines.append("  ".join(shown).rstrip())
    return lines


def _row_cells(row: VariantRow, bases: Sequence[str]) -> tuple[str, ...]:
    gate = row.quantization
    return (
        row.name,
        "float" if gate.scheme == "none" else gate.scheme,
        _format_bytes(row.model_bytes),
        _format_bytes(row.golden_bytes),
        NOT_MEASURED if row.download_bytes is None else _format_bytes(row.download_bytes),
        *(_format_patch(row.patches.get(base), row.download_bytes) for base in bases),
        NOT_MEASURED if gate.relative_rms_ppm is None else f"{gate.relative_rms_ppm / PPM:.4f}",
        NOT_MEASURED if gate.top1_agreement_ppm is None else f"{gate.top1_agreement_ppm / PPM:.4f}",
        NOT_MEASURED if gate.verdict == "none" else gate.verdict,
        NOT_MEASURED if row.float_ratio is None else f"{row.float_ratio:.2f} x",
        f"{row.memory_bytes / MIB:,.0f} MiB" if row.memory_bytes else NOT_MEASURED,
    )


def _format_patch(size: int | None, full: int | None) -> str:
    if size is None:
        return NOT_MEASURED
    return _format_bytes(size) + (f" ({size / full:.1%})" if full else "")


def _format_bytes(size: int) -> str:
    return f"{size:,}"
