"""Measure the bytes that bring a fine-tuned model to a device, for each way to quantize and to patch.

    python -m benchmarks.headline [--base OLD.onnx --new NEW.onnx --calibration C.npz --held-out H.npz] [--json OUT]
        [--page README.md] [--keep DIR]

Without files, the pair is the MiniLM classifier of benchmarks/fine_tunes.py and its next fine-tune. The rows are the
float file as a full download and as a bsdiff4 patch; the baseline quantization with bsdiff4 and with the typed patch;
and the update-aware quantization with the typed patch. An error is the RMS error of the outputs divided by their
spread, against the new float model, on texts that calibration did not see. bsdiff4 on 90 MB takes minutes; with
`--keep DIR` its result is stored and used again.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

from benchmarks.patch_tables import replace_between_markers
from benchmarks.patches import measure_pair
from benchmarks.published_pairs import CACHE

CODECS: Final = ("zstd_full", "bsdiff4", "airweights")
INTRODUCTION: Final = (
    "A classifier on MiniLM, fine-tuned for 75 further steps; error of the outputs over their spread, on inputs that\n"
    "calibration did not see (`python -m benchmarks.headline`):"
)
FILES: Final = ("base", "new", "calibration", "held_out")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in FILES:
        parser.add_argument(f"--{name.replace('_', '-')}", type=Path)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--page", type=Path, help="also write the table into this page, between its markers")
    parser.add_argument("--keep", type=Path, help="folder for the measurements of bsdiff4, which are used again")
    arguments = parser.parse_args()
    files = {name: getattr(arguments, name) for name in FILES}
    if not all(files.values()):
        if any(files.values()):
            parser.error("--base, --new, --calibration and --held-out go together")
        try:
            files = prepare_files()
        except ImportError as error:
            print(f"headline: skipped, {error}; pip install -e '.[train]', or give the four files", file=sys.stderr)
            return
    found = measure_ways(files, arguments.keep)
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=2) + "\n")
    print(table := format_markdown(found))
    if arguments.page:
        arguments.page.write_text(
            replace_between_markers(arguments.page.read_text(), "headline", f"{INTRODUCTION}\n\n{table}\n")
        )


def prepare_files() -> dict[str, Path]:
    """Return the files of benchmarks/fine_tunes.py, training the models that are missing.

    Raises:
        ImportError: a model is missing and PyTorch is not installed.
    """
    from benchmarks import fine_tunes

    folder = CACHE.parent / "classifier"
    fine_tunes.write_models(folder, ("base", "new"))
    suffixes = {"base": "onnx", "new": "onnx", "calibration": "npz", "held_out": "npz"}
    return {name: folder / f"{name}.{suffix}" for name, suffix in suffixes.items()}


def measure_ways(files: dict[str, Path], keep: Path | None) -> dict[str, Any]:
    """Measure all rows of the table; return them with the results of the two benchmarks that they come from."""
    row = measure_pair("float", files["base"], files["new"], None, keep=keep, codecs=CODECS)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "update.json"
        words = [word for name in FILES for word in (f"--{name.replace('_', '-')}", str(files[name]))]
        subprocess.run(
            [sys.executable, "-m", "benchmarks.update_aware_table", *words, "--no-curve", "--json", str(out)],
            check=True,
        )
        update = json.loads(out.read_text())
    baseline, chosen = update["baseline"], update["chosen"]
    ways = [
        ("fp32, full download", row["target_bytes"], 0.0),
        ("fp32, full download, zstd -19", row["sizes"]["zstd_full"], 0.0),
        ("fp32, bsdiff4", row["sizes"]["bsdiff4"], 0.0),
        ("fp32, typed patch", row["sizes"]["airweights"], 0.0),
        ("int8, full download", update["quantized_bytes"], baseline["relative_rms"]),
        ("int8, bsdiff4", baseline["bsdiff4_bytes"], baseline["relative_rms"]),
        ("int8, typed patch", baseline["typed_bytes"], baseline["relative_rms"]),
        ("int8 quantized for the update, typed patch", chosen["patch_bytes"], chosen["relative_rms"]),
    ]
    return {
        "ways": [{"way": way, "bytes": size, "relative_rms": error} for way, size, error in ways],
        "unchanged_base_relative_rms": update["unchanged_base"]["relative_rms"],
        "float": row,
        "update": update,
    }


def format_markdown(found: dict[str, Any]) -> str:
    """Return the table, one row for each way to ship the update."""
    full = found["ways"][0]["bytes"]
    lines = [
        "| way to ship a fine-tuned model | bytes | share of the fp32 file | error |",
        "| --- | --: | --: | --: |",
    ]
    for way in found["ways"]:
        share = f"1 / {full / way['bytes']:,.0f}" if way["bytes"] * 2 < full else f"{way['bytes'] / full:.2f}"
        lines.append(f"| {way['way']} | {way['bytes']:,} | {share} | {way['relative_rms']:.3f} |")
    lines.append(f"| no update: the old model stays | 0 | | {found['unchanged_base_relative_rms']:.3f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
