"""Measure patches of a large GGUF file: time, and memory beyond the mapped files, of encoding and applying.

    python -m benchmarks.gguf_patch --python VENV/bin/python [--mib 1024] [--json OUT]

VENV has the packages `gguf`, `numpy` and perhaps `hdiffpatch`. A Q4_0 model of normal weights is written, and a
fine-tune of it: every weight moves by about 1 % of their spread. Each step runs in a process of its own. The memory is
the highest RssAnon that a thread sees every 5 ms, minus the one before the step: mapped files are not counted.
`zstd --patch-from` and hdiffpatch are compared if they are installed; their memory is VmHWM, which counts mapped files.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

COLUMNS = 2048
ROWS = (2048, 2048, 2048, 2048, 5632, 5632)  # of the matrices of one block
BLOCK_BYTES = sum(ROWS) * COLUMNS * 18 // 32
SPREAD, CHANGE = 0.02, 2e-4
SAMPLE_S = 0.005
MAKE = """
import sys
import gguf
import numpy as np

out, blocks, tuned = sys.argv[1], int(sys.argv[2]), sys.argv[3] == "tuned"
columns, rows, spread, change = json.loads(sys.argv[4])
writer = gguf.GGUFWriter(out, "llama", use_temp_file=True)
writer.add_block_count(blocks)
for block in range(blocks):
    for number, height in enumerate(rows):
        seed = block * len(rows) + number
        values = np.random.default_rng(seed).standard_normal((height, columns), dtype=np.float32) * np.float32(spread)
        if tuned:
            moves = np.random.default_rng([seed, 1]).standard_normal(values.shape, dtype=np.float32)
            values += moves * np.float32(change)
        kind = gguf.GGMLQuantizationType.Q4_0
        writer.add_tensor(f"blk.{block}.{number}.weight", gguf.quants.quantize(values, kind), raw_dtype=kind)
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()
"""
HDIFF = """
import sys
from pathlib import Path

import hdiffpatch

mode, old, other, out = sys.argv[1:]
if mode == "encode":
    result = hdiffpatch.diff(Path(old).read_bytes(), Path(other).read_bytes(), hdiffpatch.COMPRESSION_ZSTD)
else:
    result = hdiffpatch.apply(Path(old).read_bytes(), Path(other).read_bytes())
Path(out).write_bytes(result)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", help="an interpreter with gguf and numpy")
    parser.add_argument("--mib", type=int, default=1024)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--step", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.step:
        print(json.dumps(run_step(arguments.step[0], *map(Path, arguments.step[1:]))))
        return
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(Path(folder), arguments.python or sys.executable, arguments.mib)
    if arguments.json:
        arguments.json.write_text(json.dumps({"gguf": rows}, indent=1) + "\n")


def measure(folder: Path, python: str, mib: int) -> list[dict[str, object]]:
    """Return one row for each tool."""
    bases = folder / "base", folder / "target"
    for bundle, kind in zip(bases, ("base", "tuned"), strict=True):
        bundle.mkdir()
        shape = json.dumps([COLUMNS, ROWS, SPREAD, CHANGE])
        blocks = max(1, round(mib * 2**20 / BLOCK_BYTES))
        words = [python, "-c", "import json\n" + MAKE, str(bundle / "model.gguf"), str(blocks), kind, shape]
        subprocess.run(words, check=True)
    rows = [measure_own(*bases, folder / "patch")]
    old, new = (bundle / "model.gguf" for bundle in bases)
    patch, out = str(folder / "other"), str(folder / "out")
    hdiff = [python, "-c", HDIFF]
    window = ["--long=31", f"--memory={min(4 * mib, 2048)}MB"]  # zstd takes less than 4 GiB
    tools = {
        "zstd -3 --patch-from": (
            ["zstd", "-3", "-T1", "-qf", "--long=31", f"--patch-from={old}", str(new), "-o", patch],
            ["zstd", "-d", "-qf", *window, f"--patch-from={old}", patch, "-o", out],
        ),
        "hdiffpatch": ([*hdiff, "encode", str(old), str(new), patch], [*hdiff, "apply", str(old), patch, out]),
    }
    for name, (encode, apply) in tools.items():
        try:
            encoded = run_tool(encode)
            size = Path(patch).stat().st_size
            rows.append(report_row(name, new, size, encoded, run_tool(apply)))
        except (OSError, subprocess.CalledProcessError) as error:
            print(f"{name}: {error}", flush=True)
    return rows


def measure_own(base: Path, target: Path, patch: Path) -> dict[str, object]:
    found = []
    for step in ("encode", "apply"):
        words = [sys.executable, "-m", "benchmarks.gguf_patch", "--step", step, str(base), str(target), str(patch)]
        found.append(json.loads(subprocess.run(words, check=True, capture_output=True, text=True).stdout))
    return report_row("airweights", target / "model.gguf", patch.stat().st_size, *found)


def report_row(
    tool: str, target: Path, patch_bytes: int, encode: dict[str, float], apply: dict[str, float]
) -> dict[str, object]:
    total = target.stat().st_size
    print(f"{tool}: {patch_bytes:,} of {total:,} bytes; encode {encode}; apply {apply}", flush=True)
    return {"tool": tool, "target_bytes": total, "patch_bytes": patch_bytes, "encode": encode, "apply": apply}


def run_tool(words: list[str]) -> dict[str, float]:
    """Run a command; return its time, its CPU time and its VmHWM in MiB."""
    code = (
        "import resource, subprocess, sys, time\n"
        "started = time.monotonic()\n"
        "subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL)\n"
        "used = resource.getrusage(resource.RUSAGE_CHILDREN)\n"
        "print(time.monotonic() - started, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024)\n"
    )
    text = subprocess.run([sys.executable, "-c", code, *words], check=True, capture_output=True, text=True).stdout
    wall, cpu, peak = map(float, text.split())
    return {"wall_s": round(wall, 1), "cpu_s": round(cpu, 1), "peak_mib": round(peak, 1)}


def run_step(step: str, base: Path, target: Path, patch: Path) -> dict[str, float]:
    import pcodec  # noqa: F401  # before the measurement

    from benchmarks.patch_memory import DiscardingTarget
    from bundle.patch.apply import apply_patch
    from packager.diff.bundle_folder import DirectoryBase, open_bundle
    from packager.diff.write.make_patch import make_patch

    def encode() -> None:
        with patch.open("wb") as out:
            make_patch(open_bundle(base), open_bundle(target), out)

    def apply() -> None:
        with DirectoryBase(open_bundle(base)) as source, patch.open("rb") as stream:
            apply_patch(stream, source, DiscardingTarget())

    return watch(encode if step == "encode" else apply)


def watch(action: Callable[[], None]) -> dict[str, float]:
    """Run `action`; return its time, its CPU time and the growth of anonymous memory in MiB."""
    before, highest, is_done = anonymous_bytes(), [0], threading.Event()

    def sample() -> None:
        while not is_done.wait(SAMPLE_S):
            highest[0] = max(highest[0], anonymous_bytes())

    thread = threading.Thread(target=sample)
    thread.start()
    started, cpu = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF)
    try:
        action()
    finally:
        is_done.set()
        thread.join()
    used = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "wall_s": round(time.monotonic() - started, 1),
        "cpu_s": round(used.ru_utime + used.ru_stime - cpu.ru_utime - cpu.ru_stime, 1),
        "peak_mib": round((highest[0] - before) / 2**20, 1),
    }


def anonymous_bytes() -> int:
    with Path("/proc/self/status").open() as lines:
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("RssAnon:"))


if __name__ == "__main__":
    main()
