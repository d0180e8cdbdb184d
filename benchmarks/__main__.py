"""Run BENCHMARKS one after the other on public models: `make bench`.

    python -m benchmarks [--only NAME]... [--out DIR]

Results go to `build/bench/NAME.json`, tables to stdout. The tables and plots of docs/benchmarks.md are rewritten.
No figure is checked against a limit: machines differ, so compare figures of one run only. A full run takes hours, most
of them for bsdiff4 and detools on 90 MB; measurements of these tools are cached.
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

SILERO_OLD: Final = "silero-6.0-6.2/base.onnx"
SILERO_NEW: Final = "silero-6.0-6.2/target.onnx"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the selected benchmarks; return 1 if one failed, else 0."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--only", action="append", choices=tuple(BENCHMARKS), help="may be repeated; default: all")
    parser.add_argument("--out", type=Path, default=Path("build/bench"), help="directory of the results")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    from benchmarks import published_pairs

    try:
        pairs = published_pairs.fetch_pairs()
    except RuntimeError as error:
        print(error, file=sys.stderr)
        return 1
    failed = []
    for name, arguments_for in BENCHMARKS.items():
        if options.only and name not in options.only:
            continue
        print(f"\n== {name}", flush=True)
        start = time.monotonic()
        command = [sys.executable, "-m", module_of(name), *arguments_for(pairs, options.out)]
        code = subprocess.run([*command, "--json", str(options.out / f"{name}.json")], check=False).returncode
        print(f"({name}: {time.monotonic() - start:.0f} s, exit code {code})", flush=True)
        failed += [name] if code else []
    _write_patch_tables(options.out)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def module_of(name: str) -> str:
    """Return the module of a benchmark: its name up to the first dash."""
    return f"benchmarks.{name.partition('-')[0]}"


def _write_patch_tables(out: Path) -> None:
    """Print the tables of the patch benchmark and write them into docs/benchmarks.md."""
    patches, memory = out / "patches.json", out / "patch_memory.json"
    if patches.exists():
        arguments = ["--json", str(patches), *(["--memory", str(memory)] if memory.exists() else [])]
        docs = Path(__file__).parents[1] / "docs"
        subprocess.run([sys.executable, "-m", "benchmarks.patch_tables", *arguments, "--docs", str(docs)], check=False)


def _model_arguments(_pairs: Path, out: Path) -> list[str]:
    from benchmarks import published_models

    published_models.write_models(out / "models", list(published_models.MODELS))
    return ["--models", str(out / "models"), "--scheme", "all", "--markdown", str(out / "quantization.md")]


def _swap_arguments(isolation: str, swaps: int) -> Callable[[Path, Path], list[str]]:
    def make_arguments(pairs: Path, _out: Path) -> list[str]:
        models = ["--model", str(pairs / SILERO_OLD), "--model", str(pairs / SILERO_NEW)]
        return [*models, "--swaps", str(swaps), "--rate", "100", "--isolation", isolation]

    return make_arguments


# name → arguments of its module (`module_of`), beside --json
BENCHMARKS: Final[dict[str, Callable[[Path, Path], list[str]]]] = {
    "end_to_end": lambda _pairs, _out: [],
    "patches": lambda pairs, _out: ["--peer-timeout", "1800", "--keep", str(pairs.parent / "peers")],
    "patch_memory": lambda _pairs, _out: ["--gib", "0.25", "--gib", "5"],
    "wire": lambda _pairs, _out: [],
    "lending": lambda _pairs, _out: [],
    "litert_overhead": lambda _pairs, _out: [],
    "residual_entropy": lambda pairs, _out: ["--pairs", str(pairs)],
    "headline": lambda pairs, _out: ["--keep", str(pairs.parent / "peers")],
    "quantization_table": _model_arguments,
    "swap_latency-inproc": _swap_arguments("inproc", 100),
    "swap_latency-worker": _swap_arguments("worker", 20),
    "serving_cost": lambda _pairs, _out: ["--seconds", "5"],
    "endpoint_abuse": lambda _pairs, _out: [],
    "cohort_rotation": lambda _pairs, _out: ["--devices", "10000"],
    "fleet_ingest": lambda _pairs, _out: ["--devices", "2000"],
    "fleet_page": lambda _pairs, _out: [],
}


if __name__ == "__main__":
    sys.exit(main())
