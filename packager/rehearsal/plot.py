"""The damaged devices over time, one panel for each truth, as SVG without scripts."""

from collections.abc import Sequence
from html import escape
from math import log10
from typing import Final

from packager.rehearsal.rehearse import Run
from packager.rehearsal.rules import RULES

WIDTH: Final = 360
HEIGHT: Final = 200
MARGIN: Final = 36
COLUMNS: Final = 2
COLORS: Final = dict(zip(RULES, ("#1764ab", "#b2182b", "#7b5aa6", "#b8860b"), strict=True))


def draw(runs: Sequence[Run], days: int) -> str:
    """Return the SVG of the first run of each truth and rule.

    Args:
        runs: the runs.
        days: length of a run.
    """
    truths = list(dict.fromkeys(run.truth for run in runs))
    rows = -(-len(truths) // COLUMNS)
    width, height = COLUMNS * WIDTH, rows * HEIGHT + MARGIN
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}"',
        ' font-family="sans-serif" font-size="11">',
        '<title>Damaged devices over time</title><rect width="100%" height="100%" fill="white"/>',
    ]
    for index, rule in enumerate(dict.fromkeys(run.rule for run in runs)):
        x = 10 + index * 150
        out.append(f'<line x1="{x}" y1="16" x2="{x + 20}" y2="16" stroke="{COLORS[rule]}" stroke-width="2"/>')
        out.append(f'<text x="{x + 26}" y="20">{escape(rule)}</text>')
    for index, truth in enumerate(truths):
        panel = _panel([run for run in runs if run.truth == truth], truth, days)
        x, y = index % COLUMNS * WIDTH, MARGIN + index // COLUMNS * HEIGHT
        out.append(f'<g transform="translate({x},{y})">{panel}</g>')
    return "\n".join([*out, "</svg>"]) + "\n"


def _panel(runs: Sequence[Run], truth: str, days: int) -> str:
    end, top = days * 1440, max(10, *(hit for run in runs for _, _, hit in run.steps))
    inner_width, inner_height = WIDTH - 2 * MARGIN, HEIGHT - 2 * MARGIN
    scale = log10(top + 1)

    def place(minute: int, hit: int) -> str:
        x = MARGIN + inner_width * minute / end
        return f"{x:.1f},{MARGIN + inner_height * (1 - log10(hit + 1) / scale):.1f}"

    out = [
        f'<text x="{MARGIN}" y="{MARGIN - 10}" font-weight="bold">{escape(truth)}</text>',
        f'<path d="M{MARGIN},{MARGIN}v{inner_height}h{inner_width}" fill="none" stroke="#888"/>',
        f'<text x="{MARGIN - 4}" y="{MARGIN + 8}" text-anchor="end">{top}</text>',
        f'<text x="{MARGIN - 4}" y="{MARGIN + inner_height}" text-anchor="end">0</text>',
        f'<text x="{MARGIN + inner_width}" y="{HEIGHT - MARGIN + 14}" text-anchor="end">{days} days</text>',
    ]
    seen = set()
    for run in runs:
        if run.rule in seen:
            continue
        seen.add(run.rule)
        points = " ".join(place(minute, hit) for minute, _, hit in sorted(run.steps))
        out.append(f'<polyline points="{points}" fill="none" stroke="{COLORS[run.rule]}" stroke-width="1.5"/>')
        last = place(run.steps[-1][0], run.hit).split(",")
        if run.end == "halted":
            out.append(f'<circle cx="{last[0]}" cy="{last[1]}" r="3" fill="{COLORS[run.rule]}"/>')
    return "".join(out)
