"""Render the report of a release as one HTML page.

It has the table, the notes, every patch, and the figures of each output.

The page is one file without scripts, fonts or images from elsewhere. Every name is rendered (bundle.rendering).
"""

from collections.abc import Sequence
from typing import Final

from bundle.rendering import escape_html
from packager.release.release_report import ReleaseReport
from packager.repository.variant_table import table_cells

STYLE: Final = """
:root { color-scheme: light dark; font: 15px/1.5 system-ui, sans-serif; }
body { max-width: 80rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; margin: .5rem 0 2rem; }
th, td { text-align: right; padding: .25rem .6rem; border-bottom: 1px solid #8884; font-variant-numeric: tabular-nums; }
th:first-child, td:first-child, th:nth-child(2), td:nth-child(2) { text-align: left; overflow-wrap: anywhere; }
"""


def render_release_page(report: ReleaseReport) -> str:
    """Return the page of a release."""
    head, *rows = table_cells(report.rows)
    parts = [
        "<!doctype html><html lang=en><head><meta charset=utf-8>",
        '<meta name=viewport content="width=device-width, initial-scale=1">',
        f"<title>{escape_html(report.title)}</title><style>{STYLE}</style></head><body>",
        f"<h1>{escape_html(report.title)}</h1>",
        _draw_table(head, rows),
        "<p>Sizes are bytes. Error: relative RMS of the worst output. Speed: processor time over the float model's, "
        "with one thread, on the build machine.</p>",
        "<h2>Notes</h2>",
        _draw_list((*report.notes, *(f"{name}: left out, {reason}" for name, reason in report.dropped.items()))),
        "<h2>Patches</h2>",
        _draw_list(report.patch_lines()),
        "<h2>Outputs</h2>",
        _draw_table(
            ("variant", "output", "relative RMS error", "top-1 agreement", "cosine, 1st percentile"),
            _output_rows(report),
        ),
        "<h2>Built from</h2>",
        _draw_table(("variant", "name", "value"), _provenance_rows(report)),
    ]
    return "\n".join([*parts, "</body></html>\n"])


def _output_rows(report: ReleaseReport) -> list[tuple[str, ...]]:
    rows = []
    for name, facts in report.variants.items():
        gate = facts["gate"]
        for output in gate["outputs"] if isinstance(gate, dict) else ():
            figures = (output["relative_rms"], output["top1_agreement"], output["cosine_p1"])
            rows.append((name, output["name"], *("-" if value is None else f"{value:.4f}" for value in figures)))
    return rows


def _provenance_rows(report: ReleaseReport) -> list[tuple[str, ...]]:
    variants = report.manifest.variants if report.manifest is not None else ()
    return [(name, key, value) for name, variant in variants for key, value in variant.provenance]


def _draw_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    top = "".join(f"<th>{escape_html(name)}</th>" for name in head)
    body = "".join("<tr>" + "".join(f"<td>{escape_html(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"


def _draw_list(lines: Sequence[str]) -> str:
    return "<ul>" + "".join(f"<li>{escape_html(line)}</li>" for line in lines or ("none",)) + "</ul>"
