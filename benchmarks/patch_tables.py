"""Write the tables and plots of the patch benchmark from its JSON file.

    python -m benchmarks.patch_tables --json patches.json [--memory patch_memory.json] [--docs docs]

The command prints the figures with their goals. With `--docs`, it writes the tables between the markers of
DOCS/benchmarks.md and, if matplotlib is installed, the plots to DOCS/plots.
"""

import argparse
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.patch_rows import (
    APPLY_MB_S,
    ENCODE_BYTES,
    ENCODE_GOAL,
    MEMORY_MIB,
    RENAMED,
    RENAMED_GOAL,
    SLACK_BYTES,
    Row,
    compute_apply_mb_s,
    compute_ratio,
    find_best_generic,
    find_element_type,
    find_goal,
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--memory", type=Path)
    parser.add_argument("--docs", type=Path)
    arguments = parser.parse_args()
    rows: list[Row] = json.loads(arguments.json.read_text())["pairs"]
    for row in rows:
        if not row["apply"]["airweights"]:
            sys.exit(f"{row['pair']}: our own patch failed; a report needs it")
    memory: list[Row] = json.loads(arguments.memory.read_text())["memory"] if arguments.memory else []
    tables = {"sizes": format_sizes(rows), "costs": format_costs(rows), "verdicts": format_goals(rows, memory)}
    print("\n".join(tables.values()))
    if arguments.docs is None:
        return
    try:
        from benchmarks import patch_plots
    except ImportError as error:
        print(f"plots: skipped, {error}", file=sys.stderr)
    else:
        drawn = patch_plots.draw_plots(arguments.docs / "plots", rows, memory)
        tables["plots"] = "\n".join(f"![{title}](plots/{name})\n" for name, title in drawn.items())
    page = arguments.docs / "benchmarks.md"
    text = page.read_text()
    for name, table in tables.items():
        text = replace_between_markers(text, name, table)
    page.write_text(text)


def replace_between_markers(text: str, name: str, table: str) -> str:
    """Replace the text between the comments `NAME, made by ...` and `end of NAME` of a page by `table`.

    Raises:
        ValueError: the page has no such comments.
    """
    found = re.sub(
        rf"(<!-- {name},[^>]*-->\n).*?(<!-- end of {name} -->)", lambda m: f"{m[1]}{table}{m[2]}", text, flags=re.DOTALL
    )
    if f"<!-- end of {name} -->" not in text:
        raise ValueError(f"the page has no markers for the table {name!r}")
    return found


def format_sizes(rows: list[Row]) -> str:
    """Return the table of sizes, which are the same on every machine with the same library versions."""
    out = [
        "| pair | target | best generic tool | patch | ratio | goal | without fitted parameters |",
        "| --- | --: | --: | --: | --: | --: | --: |",
    ]
    for row in rows:
        best, ratio, goal, sizes = find_best_generic(row), compute_ratio(row), find_goal(row["pair"]), row["sizes"]
        cells = [
            row["pair"],
            f"{row['target_bytes']:,}",
            f"{best[1]:,} ({best[0]})" if best else "",
            f"{sizes['airweights']:,}" if sizes["airweights"] else "failed",
            f"{ratio:.3f}" if ratio is not None else "",
            f"{goal:.2f}" if goal is not None else "",
            f"{sizes['airweights_no_predictors']:,}" if sizes["airweights_no_predictors"] else "",
        ]
        out.append("| " + " | ".join(cells) + " |")
    return "\n".join(out) + "\n"


def format_costs(rows: list[Row]) -> str:
    """Return the table of CPU seconds and memory, which depend on the machine."""
    out = [
        "| pair | encode, CPU s | bsdiff4 | encode, MiB | apply, MB a CPU s | goal | apply, MiB |",
        "| --- | --: | --: | --: | --: | --: | --: |",
    ]
    for row in rows:
        encode, apply, peer = row["encode"]["airweights"], row["apply"]["airweights"], row["encode"]["bsdiff4"]
        cells = [
            row["pair"],
            f"{encode['cpu_s']:.2f}",
            f"{peer['cpu_s']:.1f}" if peer else "",
            f"{encode['peak_bytes'] / 2**20:.0f}",
            f"{compute_apply_mb_s(row):.0f}",
            f"{APPLY_MB_S.get(find_element_type(row['pair']), '')}",
            f"{apply['peak_bytes'] / 2**20:.1f}",
        ]
        out.append("| " + " | ".join(cells) + " |")
    return "\n".join(out) + "\n"


def format_goals(rows: list[Row], memory: list[Row]) -> str:
    """Return a table with one row per goal: how many pairs meet it, and which ones do not."""
    sizes = {row["pair"]: row["sizes"]["airweights"] for row in rows}
    tests = [(r["pair"], find_goal(r["pair"]), compute_ratio(r)) for r in rows]
    renamed = [(p, RENAMED_GOAL, sizes[p] / sizes[q]) for p, q in RENAMED.items() if p in sizes and q in sizes]
    excess = [
        (r["pair"], SLACK_BYTES, r["sizes"]["airweights"] - best[1]) for r in rows if (best := find_best_generic(r))
    ]
    speed = [
        (r["pair"], 1.0, goal / compute_apply_mb_s(r))
        for r in rows
        if (goal := APPLY_MB_S.get(find_element_type(r["pair"])))
    ]
    encode = [
        (r["pair"], 1 / ENCODE_GOAL, r["encode"]["airweights"]["cpu_s"] / r["encode"]["bsdiff4"]["cpu_s"])
        for r in rows
        if r["encode"]["bsdiff4"] and r["target_bytes"] > ENCODE_BYTES and find_element_type(r["pair"]) == "fp32"
    ]
    peaks = [(f"{m['target_bytes'] / 2**30:.2f} GiB", MEMORY_MIB, m["peak_bytes"] / 2**20) for m in memory]
    peaks += [(r["pair"], MEMORY_MIB, r["apply"]["airweights"]["peak_bytes"] / 2**20) for r in rows]
    lines: dict[str, Sequence[tuple[str, float, float]]] = {
        "patch over the best generic tool, by kind": [
            (p, g, v) for p, g, v in tests if g is not None and v is not None
        ],
        f"renamed and reordered, over the un-renamed patch: {RENAMED_GOAL}": renamed,
        "bytes above the best generic tool: 1,024": excess,
        f"encode of 90 MB: 1/{ENCODE_GOAL} of bsdiff4's CPU": encode,
        "apply: 250 / 180 / 120 MB a CPU second (fp32 / fp16 / int8), goal over figure": speed,
        f"memory of apply: {MEMORY_MIB} MiB": peaks,
        "target back, byte for byte": [(r["pair"], 0, float(not r["identical"])) for r in rows],
    }
    out = ["| goal | met | not met (figure; goal) |", "| --- | --: | --- |"]
    for goal_name, cases in lines.items():
        missed = [f"{pair} ({value:.3g}; {goal:.3g})" for pair, goal, value in cases if value > goal]
        out.append(f"| {goal_name} | {len(cases) - len(missed)} of {len(cases)} | {', '.join(missed)} |")
    return "\n".join(out) + "\n"


if __name__ == "__main__":
    main()
