"""Measure one demo run: bytes, times, swap latency, memory at rest, and start-up time of the commands.

    python -m benchmarks.end_to_end --json OUT [--model OLD.onnx --model NEW.onnx [--inputs X.npz]]

Figures with several values are medians. Machines differ, so compare figures of one run only.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any, Final

AGENT: Final = (sys.executable, "-P", "-m", "device_agent")
STARTS: Final = 7
REST_S: Final = 5.0
READY_TIMEOUT_S: Final = 60.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print a table, and write the JSON file."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.end_to_end", description=__doc__)
    parser.add_argument("--json", type=Path, required=True, dest="out")
    parser.add_argument("--model", action="append", default=[])
    parser.add_argument("--inputs")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="airweights-bench-") as temporary:
        folder = Path(temporary) / "demo"
        report = run_demo(folder, options.model, options.inputs)
        figures = {
            "demo": report,
            "rest": measure_at_rest(folder / "device" / "config.toml"),
            "startup_s": {
                "packager --help": measure_start_up([sys.executable, "-m", "packager", "--help"]),
                "device-agent status": measure_start_up(
                    [*AGENT, "--config", str(folder / "device" / "config.toml"), "status"]
                ),
            },
        }
    options.out.write_text(json.dumps(figures, indent=2) + "\n")
    print(format_table(figures))
    return 0


def run_demo(folder: Path, models: Sequence[str], inputs: str | None) -> dict[str, Any]:
    """Run the demo once; return its JSON and its duration."""
    words = [word for model in models for word in ("--model", model)] + (["--inputs", inputs] if inputs else [])
    start = time.monotonic()
    command = [sys.executable, "-m", "packager", "demo", "--json", "--keep", str(folder), *words]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    report: dict[str, Any] = json.loads(done.stdout)
    return {**report, "whole_s": round(time.monotonic() - start, 1)}


def measure_at_rest(config: Path) -> list[dict[str, Any]]:
    """Return the resident memory and CPU use of each process of an agent that gets no requests."""
    daemon = subprocess.Popen(
        [*AGENT, "--config", str(config), "run"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + READY_TIMEOUT_S
        while len(_find_processes(daemon.pid)) < 3 and time.monotonic() < deadline:
            time.sleep(0.1)
        time.sleep(REST_S)
        before = {pid: _cpu_s(pid) for pid in _find_processes(daemon.pid)}
        time.sleep(REST_S)
        return [
            {
                "process": _module_name(pid),
                "rss_mib": round(_rss_bytes(pid) / 2**20, 1),
                "cpu_percent": round(100 * (_cpu_s(pid) - spent) / REST_S, 2),
            }
            for pid, spent in before.items()
        ]
    finally:
        daemon.send_signal(signal.SIGTERM)
        daemon.wait(60)


def measure_start_up(command: Sequence[str]) -> float:
    """Return the median run time of a command, in seconds."""
    times = []
    for _ in range(STARTS):
        start = time.monotonic()
        subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
        times.append(time.monotonic() - start)
    return round(median(times), 3)


def format_table(figures: dict[str, Any]) -> str:
    """Return the figures as lines of text."""
    demo = figures["demo"]
    lines = [f"demo: {demo['whole_s']} s, {demo['requests_sent']} requests, {demo['requests_failed']} failed"]
    for release, variants in demo["bytes"].items():
        for variant, sizes in variants.items():
            lines.append(f"{release} {variant}: patch {sizes['patch']:,} of {sizes['full']:,} bytes")
    lines += [f"{step}: {seconds} s" for step, seconds in demo["seconds"].items()]
    lines += [f"{name}: {value}" for name, value in demo["latency"].items()]
    lines += [f"{row['process']}: {row['rss_mib']} MiB, {row['cpu_percent']} % CPU at rest" for row in figures["rest"]]
    lines += [f"{command}: {seconds} s" for command, seconds in figures["startup_s"].items()]
    return "\n".join(lines)


def _find_processes(pid: int) -> list[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children")
    found = [pid]
    if children.exists():
        # children of any thread: the supervisor starts them from more than one
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                found += _find_processes(int(child))
    return found


def _module_name(pid: int) -> str:
    words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    return next((words[i + 1] for i, word in enumerate(words) if word == "-m"), words[0])


def _rss_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    sys.exit(main())
