"""Drawings of the page as SVG text: the server draws, no script runs.

Colors are classes of the style sheet. Every drawing has its numbers as text beside it, and a title for screen readers.
"""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Final

WIDTH: Final = 600
HEIGHT: Final = 120
BAR_HEIGHT: Final = 18


def stacked_bar(parts: Mapping[str, int], title: str) -> str:
    """Return a bar that shows the shares of its parts.

    Args:
        parts: class name → number; drawn in this order.
        title: text for screen readers.
    """
    total = sum(parts.values()) or 1
    x, rows = 0.0, []
    for name, count in parts.items():
        width = WIDTH * count / total
        if count:
            rows.append(
                f'<rect class="{escape(name)}" x="{x:.1f}" y="0" width="{max(width, 1):.1f}" height="{BAR_HEIGHT}"/>'
            )
        x += width
    return _svg(title, BAR_HEIGHT, rows)


def daily_bars(days: Sequence[int], series: Mapping[str, Mapping[int, int]], title: str) -> str:
    """Return bars of each day, the series stacked.

    Args:
        days: days since 1970-01-01, rising.
        series: class name → day → number.
        title: text for screen readers.
    """
    highest = max((sum(values.get(day, 0) for values in series.values()) for day in days), default=0) or 1
    step, rows = WIDTH / max(len(days), 1), []
    for number, day in enumerate(days):
        y = float(HEIGHT)
        for name, values in series.items():
            height = HEIGHT * values.get(day, 0) / highest
            y -= height
            if height:
                rows.append(
                    f'<rect class="{escape(name)}" x="{number * step:.1f}" y="{y:.1f}"'
                    f' width="{max(step - 2, 1):.1f}" height="{height:.1f}"/>'
                )
    return _svg(title, HEIGHT, rows)


def _svg(title: str, height: int, rows: Sequence[str]) -> str:
    return (
        f'<svg viewBox="0 0 {WIDTH} {height}" role="img" preserveAspectRatio="none">'
        f"<title>{escape(title)}</title>{''.join(rows)}</svg>"
    )
