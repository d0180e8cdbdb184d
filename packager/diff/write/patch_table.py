"""The report of a patch as a table for a terminal."""

from typing import Final

from packager.diff.write.patch_html import bits_per_element
from packager.diff.write.patch_report import PatchReport, PatchRow

DEFAULT_ROWS_SHOWN: Final = 40
NAME_WIDTH: Final = 40


def format_table(report: PatchReport, max_rows: int = DEFAULT_ROWS_SHOWN) -> list[str]:
    """Format the rows that take the most bytes of the patch, largest first, and the rest as one line.

    Args:
        report: figures of the patch.
        max_rows: rows shown in full.
    """
    rows = sorted(report.rows, key=lambda row: (-row.patch_bytes, row.path, row.name))
    lines = [f"{'tensor':{NAME_WIDTH}} {'type':5} {'before':>14} {'after':>12} {'bits':>6}  predictor, coder"]
    lines += [_format_row(row) for row in rows[:max_rows]]
    rest = rows[max_rows:]
    if rest:
        name = f"{len(rest)} more"
        before, after = sum(row.target_bytes for row in rest), sum(row.patch_bytes for row in rest)
        lines.append(f"{name:{NAME_WIDTH}} {'':5} {before:14,} {after:12,}")
    return lines


def _format_row(row: PatchRow) -> str:
    name = row.name or row.path
    if len(name) > NAME_WIDTH:
        name = "…" + name[1 - NAME_WIDTH :]
    bits = bits_per_element(row)
    shown = "" if bits is None else f"{bits:.2f}"
    return (
        f"{name:{NAME_WIDTH}} {row.dtype:5} {row.target_bytes:14,} {row.patch_bytes:12,} {shown:>6}  "
        f"{row.predictor}; {row.coder}"
    )
