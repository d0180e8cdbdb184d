"""Measure a chain of updates: whether errors accumulate, and whether patches grow.

    python -m benchmarks.update_chain --base OLD.onnx --new DAY1.onnx --new DAY2.onnx ...
        --calibration C.npz --held-out H.npz --json OUT [--max-over-baseline 1.1]

Each update starts from the quantized model of the update before it. It is compared with the baseline quantization of
the same float model, on inputs that were not used for calibration. Each update is one run of
benchmarks.update_aware_table.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("base", "calibration", "held-out", "json"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--new", type=Path, action="append", required=True, help="float models, first to last")
    parser.add_argument("--max-over-baseline", type=float, default=1.1)
    arguments = parser.parse_args()
    days = []
    with tempfile.TemporaryDirectory() as folder:
        base = arguments.base
        for number, new in enumerate(arguments.new):
            base, found = measure_day(arguments, base, new, Path(folder), number)
            days.append({"model": new.name, **found})
            print(format_day(days[-1]), flush=True)
            arguments.json.write_text(json.dumps({"days": days}, indent=2) + "\n")


def measure_day(
    arguments: argparse.Namespace, base: Path, new: Path, folder: Path, number: int
) -> tuple[Path, dict[str, Any]]:
    """Measure one update; return the path of its quantized model, which is the next base, and its figures."""
    out, updated = folder / "update.json", folder / f"day-{number}.onnx"
    words = [
        *("--base", str(base), "--new", str(new), "--json", str(out), "--keep", str(updated), "--no-curve"),
        *("--calibration", str(arguments.calibration), "--held-out", str(arguments.held_out)),
        *("--max-over-baseline", str(arguments.max_over_baseline)),
    ]
    subprocess.run(
        [sys.executable, "-m", "benchmarks.update_aware_table", *words], check=True, stdout=subprocess.DEVNULL
    )
    found = json.loads(out.read_text())
    figures = {name: found[name] for name in ("baseline", "unchanged_base", "chosen", "cpu_s", "wall_s", "peak_bytes")}
    figures["over_baseline"] = found["chosen"]["relative_rms"] / found["baseline"]["relative_rms"]
    return updated, figures


def format_day(figures: dict[str, Any]) -> str:
    """Return the figures of one update as a line of text."""
    chosen, baseline = figures["chosen"], figures["baseline"]
    return (
        f"{figures['model']}: {chosen['method']}, {chosen['patch_bytes']:,} bytes "
        f"(baseline and bsdiff4 {baseline['bsdiff4_bytes']:,}), {figures['over_baseline']:.3f} of its error, "
        f"{figures['wall_s']:.0f} s"
    )


if __name__ == "__main__":
    main()
