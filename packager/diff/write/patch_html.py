"""The report of a patch as one HTML file: where the bytes went, tensor by tensor.

Rules:
1. The file has no external script, font or picture, so it can be mailed and opened offline.
2. All names from a model are rendered (bundle.rendering).
"""

from pathlib import Path
from typing import Final

from bundle.patch.elements import ELEMENT_TYPE_BY_NAME
from bundle.rendering import escape_html
from packager.diff.write.patch_report import PatchReport, PatchRow

WIDTH_PX: Final = 1000  # width of the chart, in CSS pixels
BAR_HEIGHT_PX: Final = 16
BAR_WIDTH_SHARE: Final = 0.55  # of the chart's width, for the longest bar; the rest is for its label
MAX_LABEL_CHARACTERS: Final = 54
MAX_BARS: Final = 200
COLORS: Final = {
    "copy": "#9aa5b1",
    "low rank": "#2a9d8f",
    "gain": "#457b9d",
    "base": "#8ab17d",
    "none": "#e76f51",
}
OTHER_COLOR: Final = "#e9c46a"

_STYLE: Final = """
body{font:14px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:70rem;padding:0 1rem;color:#1f2933;background:#fff}
h1{font-size:1.3rem}h2{font-size:1.05rem;margin-top:2rem}
table{border-collapse:collapse;width:100%}td,th{padding:.2rem .6rem;border-bottom:1px solid #e4e7eb;text-align:left}
td.n,th.n{text-align:right;font-variant-numeric:tabular-nums}.key span{display:inline-block;margin-right:1.2rem}
.key i{display:inline-block;width:.8rem;height:.8rem;margin-right:.3rem;border-radius:2px}
.wide{overflow-x:auto}svg{width:100%;min-width:44rem;height:auto}td.name{overflow-wrap:anywhere;min-width:6rem}
"""


def write_html(report: PatchReport, path: Path) -> None:
    """Write the report of a patch to a file, replacing it if it exists.

    Args:
        report: figures of the patch.
        path: the HTML file to write.
    """
    path.write_text(render_html(report), encoding="utf-8")


def render_html(report: PatchReport) -> str:
    """Return the report as an HTML page."""
    share = report.plain_size / report.target_bytes if report.target_bytes else 0.0
    rows = sorted(report.rows, key=lambda row: (-row.patch_bytes, row.path, row.name))
    facts = [
        ("patch", f"{report.plain_size:,} bytes, {share:.1%} of the target"),
        ("target", f"{report.target_bytes:,} bytes"),
        ("codec", report.codec),
        ("decoder features", ", ".join(report.features) or "none"),
        ("memory to apply", f"at most {report.peak_memory_bytes:,} bytes"),
    ]
    listed = "".join(f"<tr><th>{escape_html(name)}</th><td>{escape_html(value)}</td></tr>" for name, value in facts)
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width"><title>Patch report</title>'
        f"<style>{_STYLE}</style><h1>Where the bytes of a patch went</h1><table>{listed}</table>"
        f"<h2>Bytes in the patch, by tensor</h2><p class=key>{_legend()}</p><div class=wide>{_bar_chart(rows)}</div>"
        f"<h2>All tensors</h2><div class=wide>{_html_table(rows)}</div></html>\n"
    )


def bits_per_element(row: PatchRow) -> float | None:
    """Return the patch's bits per element of a tensor; None for untyped bytes."""
    if row.dtype not in ELEMENT_TYPE_BY_NAME or not row.target_bytes:
        return None
    return 8 * row.patch_bytes * ELEMENT_TYPE_BY_NAME[row.dtype].size / row.target_bytes


def _legend() -> str:
    entries = [*COLORS.items(), ("other", OTHER_COLOR)]
    return "".join(f'<span><i style="background:{color}"></i>{escape_html(name)}</span>' for name, color in entries)


def _bar_chart(rows: list[PatchRow]) -> str:
    shown = rows[:MAX_BARS]
    largest = max((row.patch_bytes for row in shown), default=1) or 1
    parts = [
        f'<svg viewBox="0 0 {WIDTH_PX} {BAR_HEIGHT_PX * max(1, len(shown))}" role="img" aria-label="bytes by tensor">'
    ]
    for i, row in enumerate(shown):
        width = max(1.0, row.patch_bytes / largest * WIDTH_PX * BAR_WIDTH_SHARE)
        y = i * BAR_HEIGHT_PX
        label = escape_html(
            row.name if len(row.name) <= MAX_LABEL_CHARACTERS else "…" + row.name[1 - MAX_LABEL_CHARACTERS :]
        )
        title = escape_html(f"{row.path} {row.name}: {row.target_bytes:,} → {row.patch_bytes:,} bytes, {row.predictor}")
        parts.append(
            f'<rect x="0" y="{y + 1}" width="{width:.1f}" height="{BAR_HEIGHT_PX - 3}" rx="2" '
            f'fill="{_bar_color(row.predictor)}"><title>{title}</title></rect>'
            f'<text x="{width + 6:.1f}" y="{y + BAR_HEIGHT_PX - 5}" font-size="11" fill="#52606d">'
            f"{row.patch_bytes:,} {label}</text>"
        )
    return "".join(parts) + "</svg>"


def _bar_color(predictor: str) -> str:
    return next((color for name, color in COLORS.items() if name in predictor), OTHER_COLOR)


def _html_table(rows: list[PatchRow]) -> str:
    names = ("file", "tensor", "type", "shape", "before", "after", "bits", "predictor", "coder")
    kinds = {
        "before": " class=n",
        "after": " class=n",
        "bits": " class=n",
        "file": " class=name",
        "tensor": " class=name",
    }
    head = "".join(f"<th{kinds.get(name, '')}>{name}</th>" for name in names)
    body = []
    for row in rows:
        bits = bits_per_element(row)
        cells = [
            escape_html(row.path),
            escape_html(row.name),
            escape_html(row.dtype),
            "×".join(map(str, row.shape)),
            f"{row.target_bytes:,}",
            f"{row.patch_bytes:,}",
            "" if bits is None else f"{bits:.2f}",
            escape_html(row.predictor),
            escape_html(row.coder),
        ]
        body.append("".join(f"<td{kinds.get(name, '')}>{cell}</td>" for name, cell in zip(names, cells, strict=True)))
    return f"<table><tr>{head}</tr>" + "".join(f"<tr>{cells}</tr>" for cells in body) + "</table>"
