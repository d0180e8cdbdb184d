"""`python -m torture`: every fault at every point; a table on the terminal, build/torture.json, docs/torture.md.

--limit N    at most N points a row, spread evenly (default: all, within an hour on two cores)
--only WORD  rows whose name has the word
--jobs N     rows at a time (default: 2, or 1 where there is one processor)
--write-docs docs/torture.md from the result
"""

import argparse
import json
import multiprocessing
import os
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, Final

from torture import fault_classes
from torture.case import Site
from torture.fault_classes import LOG_FLUSH, NO_LOG_FLUSH, Row
from torture.fixtures import make_site
from torture.network_faults import faulty_network
from torture.swap_rows import swapped_behind_the_front, swapped_in_process
from torture.trust_cache import damaged_cache
from torture.worker_kills import child_killed

ROOT: Final = Path(__file__).parents[1]
RESULT: Final = ROOT / "build" / "torture.json"
PAGE: Final = ROOT / "docs" / "torture.md"
MIN_KILLS: Final = 500  # a run that injected fewer points proves nothing: of the whole tree, and of one process alone

# name → how to make the row; the limit is of a full run, where all points would take more than a few minutes
ROWS: Final[dict[str, Callable[[Site, int | None], Row]]] = {
    "killed-commit": lambda site, limit: fault_classes.killed(site, limit),
    "killed-rollback": lambda site, limit: fault_classes.killed(site, limit, fails_live=True),
    "alone-killed-commit": lambda site, limit: fault_classes.killed(site, limit, has_children=True),
    "alone-killed-rollback": lambda site, limit: fault_classes.killed(site, limit, fails_live=True, has_children=True),
    "child-killed-commit": lambda site, limit: child_killed(site, limit),
    "child-killed-rollback": lambda site, limit: child_killed(site, limit, fails_live=True),
    "error-once": lambda site, limit: fault_classes.refused_calls(site, limit, for_ever=False),
    "error-for-ever": lambda site, limit: fault_classes.refused_calls(site, limit, for_ever=True),
    "power-cut-flushed": lambda site, limit: fault_classes.power_cut(site, limit, LOG_FLUSH),
    "power-cut": lambda site, limit: fault_classes.power_cut(site, limit, NO_LOG_FLUSH),
    "full-disk": lambda site, limit: fault_classes.full_disk(site, limit),
    "bit-rot": lambda site, limit: fault_classes.bit_rot(site, limit),
    "network": lambda site, limit: faulty_network(site, limit),
    "trust-cache": lambda _site, limit: damaged_cache(limit),
    "swap-worker": lambda _site, limit: swapped_behind_the_front(limit),
    "swap-inproc": lambda _site, limit: swapped_in_process(limit),
    "fuzz-patch": lambda _site, limit: fault_classes.fuzzed_patches(limit),
}


def main() -> int:
    """Run; 1 if any point ended badly."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--only", default="")
    parser.add_argument("--jobs", type=int, default=min(2, len(os.sched_getaffinity(0))))
    parser.add_argument("--write-docs", action="store_true")
    arguments = parser.parse_args()
    done = []
    with tempfile.TemporaryDirectory(dir=_scratch()) as name:
        site = make_site(Path(name) / "made", Path(name) / "scratch")
        # forked, so that a worker need not import and make everything again
        with ProcessPoolExecutor(arguments.jobs, multiprocessing.get_context("fork")) as pool:
            futures = [pool.submit(_run, key, site, arguments.limit) for key in ROWS if arguments.only in key]
            for future in futures:
                done.append(future.result().as_json())
                print(line(done[-1]), flush=True)
                _write(done, arguments.limit, with_page=arguments.write_docs)
    if not arguments.limit and not arguments.only:
        for kind in ("whole process tree", "alone"):
            killed = [row for row in done if f"{kind} killed at a system call" in row["class"] and not row["skipped"]]
            kills = sum(row["points"] for row in killed)
            if killed and kills < MIN_KILLS:
                print(
                    f"only {kills} kills of the {kind}, {MIN_KILLS} are the least that proves anything", file=sys.stderr
                )
                return 1
    return 1 if any(row["bad_end_states"] for row in done) else 0


def _run(key: str, site: Site, limit: int | None) -> Row:
    """One row, in a worker with a scratch folder of its own."""
    own = Site(site.device, site.scratch / key)
    own.scratch.mkdir(parents=True)
    return fault_classes.measured(lambda: ROWS[key](own, limit))


def line(row: dict[str, Any]) -> str:
    """One row of the table on a terminal."""
    if row["skipped"]:
        return f"{row['class']:<78} skipped: {row['skipped']}"
    return f"{row['class']:<78} {row['points']:>6} points {row['bad_end_states']:>4} bad {row['seconds']:>8} s"


def page(done: list[dict[str, Any]], limit: int | None) -> str:
    """docs/torture.md."""
    head = [
        "# What a device was put through",
        "",
        "Written by `python -m torture --write-docs` from its own result. After each point an agent starts again",
        "on what is left: it must serve the old or the new release, whole; its trust memory must be valid; nothing may",
        "be left behind; and a further update must complete.",
        f"At most {limit} points a row, spread evenly over all." if limit else "All points.",
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
    # after each row: an hour's run that is cut off has told what it found
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps({"rows": done}, indent=2, ensure_ascii=False) + "\n")
    if with_page:
        PAGE.write_text(page(done, limit))


def _scratch() -> str | None:
    # copies of a device are made for each point: in memory where there is some
    return "/dev/shm" if Path("/dev/shm").is_dir() else None  # a folder of our own is made in it


if __name__ == "__main__":
    sys.exit(main())
