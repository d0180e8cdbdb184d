"""`python -m torture`: inject every fault at every point.

Prints a table and writes build/torture.json.

--limit N     At most N points per row, spread evenly (default: all, within an hour on two cores).
--only WORD   Only rows whose name contains the word.
--jobs N      Rows that run at a time (default: 2, or 1 on one processor).
--write-docs  Also write docs/torture.md.
"""

import argparse
import json
import multiprocessing
import os
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Final

from torture import fault_classes
from torture.case import Site
from torture.fault_classes import LOG_FLUSH, NO_LOG_FLUSH, Row
from torture.fixtures import make_site
from torture.fuzz.run import ALL_TARGETS, fuzz
from torture.network_faults import network_row
from torture.swap_rows import front_swap_row, in_process_swap_row
from torture.trust_cache import damaged_cache_row
from torture.worker_kills import worker_killed_row

FUZZ_RUNS: Final = 20_000  # cases per target
ROOT: Final = Path(__file__).parents[1]
RESULT: Final = ROOT / "build" / "torture.json"
PAGE: Final = ROOT / "docs" / "torture.md"
MIN_KILLS: Final = (
    500  # kills of the process tree, and of the supervisor alone, below which a full run proves too little
)


def _fuzzed_row(name: str, _site: Site, limit: int | None) -> Row:
    row = Row(f"changed bytes: {name}")
    try:
        row.points = sum(fuzz(name, limit or FUZZ_RUNS).values())
    except AssertionError as error:
        row.points, row.bad = 1, [str(error)]
    return row


# name → the function that makes the row, given the site and the most points to try
ROWS: Final[dict[str, Callable[[Site, int | None], Row]]] = {
    "killed-commit": lambda site, limit: fault_classes.killed_row(site, limit),
    "killed-rollback": lambda site, limit: fault_classes.killed_row(site, limit, fails_live=True),
    "supervisor-killed-commit": lambda site, limit: fault_classes.killed_row(site, limit, has_real_workers=True),
    "supervisor-killed-rollback": lambda site, limit: fault_classes.killed_row(
        site, limit, fails_live=True, has_real_workers=True
    ),
    "worker-killed-commit": lambda site, limit: worker_killed_row(site, limit),
    "worker-killed-rollback": lambda site, limit: worker_killed_row(site, limit, fails_live=True),
    "error-once": lambda site, limit: fault_classes.failing_calls_row(site, limit, is_permanent=False),
    "error-permanent": lambda site, limit: fault_classes.failing_calls_row(site, limit, is_permanent=True),
    "power-cut-flushed": lambda site, limit: fault_classes.power_cut_row(site, limit, LOG_FLUSH),
    "power-cut": lambda site, limit: fault_classes.power_cut_row(site, limit, NO_LOG_FLUSH),
    "full-disk": lambda site, limit: fault_classes.full_disk_row(site, limit),
    "bit-rot": lambda site, limit: fault_classes.bit_rot_row(site, limit),
    "network": lambda site, limit: network_row(site, limit),
    "trust-cache": lambda _site, limit: damaged_cache_row(limit),
    "swap-worker": lambda _site, limit: front_swap_row(limit),
    "swap-inproc": lambda _site, limit: in_process_swap_row(limit),
    **{f"fuzz-{name}": partial(_fuzzed_row, name) for name in ALL_TARGETS},
}


def main() -> int:
    """Run the rows; return 1 if any point ended in a bad state."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--only", default="")
    parser.add_argument("--jobs", type=int, default=min(2, len(os.sched_getaffinity(0))))
    parser.add_argument("--write-docs", action="store_true")
    arguments = parser.parse_args()
    done = []
    with tempfile.TemporaryDirectory(dir=_scratch()) as name:
        site = make_site(Path(name) / "made", Path(name) / "scratch")
        # fork: the workers need neither the imports nor the site again
        with ProcessPoolExecutor(arguments.jobs, multiprocessing.get_context("fork")) as pool:
            futures = [pool.submit(_run, key, site, arguments.limit) for key in ROWS if arguments.only in key]
            for future in futures:
                done.append(future.result().as_json())
                print(line(done[-1]), flush=True)
                _write(done, arguments.limit, with_page=arguments.write_docs)
    if not arguments.limit and not arguments.only:
        for kind in ("process tree", "supervisor alone"):
            killed = [row for row in done if f"{kind} killed at a system call" in row["class"] and not row["skipped"]]
            kills = sum(row["points"] for row in killed)
            if killed and kills < MIN_KILLS:
                print(f"only {kills} kills of the {kind}, at least {MIN_KILLS} are needed", file=sys.stderr)
                return 1
    return 1 if any(row["bad_end_states"] for row in done) else 0


def _run(key: str, site: Site, limit: int | None) -> Row:
    """Run one row in a worker process, with its own scratch folder."""
    own = Site(site.device, site.scratch / key)
    own.scratch.mkdir(parents=True)
    return fault_classes.timed(lambda: ROWS[key](own, limit))


def line(row: dict[str, Any]) -> str:
    """Format one row for the terminal."""
    if row["skipped"]:
        return f"{row['class']:<78} skipped: {row['skipped']}"
    return f"{row['class']:<78} {row['points']:>6} points {row['bad_end_states']:>4} bad {row['seconds']:>8} s"


def page(done: list[dict[str, Any]], limit: int | None) -> str:
    """Render docs/torture.md."""
    head = [
        "# Fault injection",
        "",
        "Generated by `python -m torture --write-docs`. Each point injects one fault into an update. Then an agent",
        "starts on the files that remain: it must serve the old or the new release with every byte intact, its trust",
        "state must be valid, no temporary file may remain, and the next update must complete.",
        f"At most {limit} points per row, spread evenly." if limit else "All points were tried.",
        "",
        "| fault | points | bad end states | seconds |",
        "| --- | ---: | ---: | ---: |",
    ]
    body = [
        f"| {row['class']} | {row['points'] or 'skipped: ' + row['skipped']} | {row['bad_end_states']} "
        f"| {row['seconds']} |"
        for row in done
    ]
    return "\n".join([*head, *body, ""])


def _write(done: list[dict[str, Any]], limit: int | None, *, with_page: bool) -> None:
    # after each row, so that an interrupted run keeps its results
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps({"rows": done}, indent=2, ensure_ascii=False) + "\n")
    if with_page:
        PAGE.write_text(page(done, limit))


def _scratch() -> str | None:
    # each point copies a device: in memory, if there is a memory file system
    return "/dev/shm" if Path("/dev/shm").is_dir() else None


if __name__ == "__main__":
    sys.exit(main())
