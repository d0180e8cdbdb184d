"""Plots of the patch benchmark: size ratio by pair, speed of applying, and memory by model size."""

from pathlib import Path
from typing import Any, Final

import matplotlib as mpl

from benchmarks.patch_rows import (
    APPLY_MB_S,
    MEMORY_MIB,
    SLACK_BYTES,
    Row,
    compute_apply_mb_s,
    compute_ratio,
    find_best_generic,
    find_element_type,
    find_goal,
)

mpl.use("Agg")
from matplotlib import pyplot as plt

COLORS: Final = {"fp32": "#1c4e80", "fp16": "#3d8ec9", "bf16": "#7a5ea8", "int8": "#d9822b", "text": "#888888"}
GOAL: Final[dict[str, Any]] = {"color": "black", "marker": "|", "s": 160, "linewidths": 2, "zorder": 3, "label": "goal"}
LABEL: Final = {"facecolor": "white", "edgecolor": "none", "alpha": 0.7, "pad": 0.6}
DPI: Final = 110

Bar = tuple[str, float, float | None]
"""(pair, value, goal or None)"""


def draw_plots(folder: Path, rows: list[Row], memory: list[Row]) -> dict[str, str]:
    """Write the plots as PNG; the memory plot only if memory was measured.

    Args:
        folder: directory of the files.
        rows: rows of benchmarks.patches.
        memory: rows of benchmarks.patch_memory; may be empty.

    Returns:
        The caption of each file by its name.
    """
    folder.mkdir(parents=True, exist_ok=True)
    # a ratio between very small patches has no meaning: such pairs are in the table only
    large = [row for row in rows if (best := find_best_generic(row)) and best[1] > 4 * SLACK_BYTES]
    sized = [(row, ratio) for row in large if (ratio := compute_ratio(row)) is not None]
    titles = {
        "patch-sizes.png": "bytes of the patch over those of the best generic tool (smaller is better)",
        "patch-apply.png": "megabytes of target a CPU second, both digests included (larger is better)",
        "patch-memory.png": "memory of applying a patch, MiB above the process after its imports",
    }
    sizes: list[Bar] = [(row["pair"], ratio, find_goal(row["pair"])) for row, ratio in sized]
    speeds: list[Bar] = [
        (row["pair"], compute_apply_mb_s(row), APPLY_MB_S.get(find_element_type(row["pair"]))) for row in rows
    ]
    for name, bars in (("patch-sizes.png", sizes), ("patch-apply.png", speeds)):
        _draw_bars(folder / name, bars, titles[name])
    if memory:
        _draw_memory(folder / "patch-memory.png", rows, memory, titles["patch-memory.png"])
    else:
        del titles["patch-memory.png"]
    return titles


def _draw_bars(path: Path, bars: list[Bar], title: str) -> None:
    figure, axes = plt.subplots(figsize=(9, 1.3 + 0.26 * len(bars)), layout="constrained")
    places = range(len(bars))
    axes.barh(places, [value for _, value, _ in bars], color=[COLORS[find_element_type(name)] for name, _, _ in bars])
    for place, (_, value, _) in enumerate(bars):
        text = f" {value:.2f}" if value < 10 else f" {value:.0f}"
        axes.text(value, place, text, va="center", ha="left", fontsize=8, zorder=4, bbox=LABEL)
    goals = [(goal, place) for place, (_, _, goal) in enumerate(bars) if goal is not None]
    axes.scatter([goal for goal, _ in goals], [place for _, place in goals], **GOAL)
    axes.set_yticks(places, [name for name, _, _ in bars], fontsize=8)
    axes.set_ylim(len(bars) - 0.4, -0.6)
    axes.set_xlim(0, 1.1 * max([value for _, value, _ in bars] + [goal for goal, _ in goals], default=1))
    axes.set_title(title, fontsize=10)
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)
    kinds: list[Any] = [plt.Rectangle((0, 0), 1, 1, color=color) for color in COLORS.values()]
    marks: list[Any] = [axes.collections[-1]] if goals else []
    names = [*COLORS, *["goal"] * len(marks)]
    figure.legend(kinds + marks, names, loc="outside lower center", ncols=len(names), fontsize=8, frameon=False)
    figure.savefig(path, dpi=DPI, metadata={"Software": None})
    plt.close(figure)


def _draw_memory(path: Path, rows: list[Row], memory: list[Row], title: str) -> None:
    figure, axes = plt.subplots(figsize=(9, 4), layout="constrained")
    for kind, color in COLORS.items():
        of_kind = [row for row in rows if find_element_type(row["pair"]) == kind]
        peaks = [row["apply"]["airweights"]["peak_bytes"] / 2**20 for row in of_kind]
        axes.scatter([row["target_bytes"] / 2**20 for row in of_kind], peaks, color=color, label=f"pairs, {kind}", s=22)
    sparse = sorted((row["target_bytes"] / 2**20, row["peak_bytes"] / 2**20) for row in memory)
    axes.plot(*zip(*sparse, strict=True), color="black", marker="s", label="model with external data")
    axes.axhline(MEMORY_MIB, color="black", linestyle="--", linewidth=1, label=f"goal, {MEMORY_MIB} MiB")
    axes.set_xscale("log")
    ticks = {1: "1 MiB", 10: "10 MiB", 100: "100 MiB", 1024: "1 GiB", 5120: "5 GiB"}
    axes.set_xticks(list(ticks), list(ticks.values()))
    axes.minorticks_off()
    peaks = [row["apply"]["airweights"]["peak_bytes"] / 2**20 for row in rows] + [peak for _, peak in sparse]
    axes.set_ylim(0, 1.1 * max([MEMORY_MIB * 1.1, *peaks]))
    axes.set_xlabel("size of the target")
    axes.set_title(title, fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.14), frameon=False)
    figure.savefig(path, dpi=DPI, metadata={"Software": None})
    plt.close(figure)
