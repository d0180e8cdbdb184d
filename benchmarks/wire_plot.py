"""Plot of the wire benchmark: bytes of a whole update, by pair and way."""

from collections.abc import Mapping
from pathlib import Path
from typing import Final

import matplotlib as mpl

mpl.use("Agg")
from matplotlib import pyplot as plt

COLORS: Final = ("#1c4e80", "#3d8ec9", "#7a5ea8", "#d9822b", "#888888")
DPI: Final = 110


def draw_updates(path: Path, updates: Mapping[str, Mapping[str, int]]) -> None:
    """Write the plot as PNG.

    Args:
        path: file to write.
        updates: bytes in both directions, by pair and way.
    """
    ways = list(dict.fromkeys(way for found in updates.values() for way in found))
    height = 0.8 / len(ways)
    figure, axes = plt.subplots(figsize=(9, 1.2 + 0.2 * len(ways) * len(updates)), layout="constrained")
    for number, way in enumerate(ways):
        bars = [(place + number * height, found[way]) for place, found in enumerate(updates.values()) if way in found]
        places, sizes = zip(*bars, strict=True)
        axes.barh(places, sizes, height, color=COLORS[number % len(COLORS)], label=way)
        for place, size in bars:
            axes.text(size, place, f" {size:,}", va="center", fontsize=7)
    axes.set_xscale("log")
    axes.margins(x=0.15)
    axes.set_yticks([place + height * (len(ways) - 1) / 2 for place in range(len(updates))], list(updates), fontsize=8)
    axes.invert_yaxis()
    axes.set_title("bytes of a whole update, both directions (smaller is better)", fontsize=10)
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)
    figure.legend(loc="outside lower center", ncols=len(ways), fontsize=8, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=DPI, metadata={"Software": None})
    plt.close(figure)
