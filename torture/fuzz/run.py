"""`fuzz`: run one target for a fixed count, within limits of time and memory."""

import hashlib
import random
import time
from collections import Counter
from pathlib import Path
from typing import Final

from torture.fuzz.patch import PATCHES
from torture.fuzz.targets import TARGETS, Target

FAILURES: Final = Path(__file__).parents[2] / "build" / "fuzz"
MAX_CASE_S: Final = 2.0  # of processor time; a case takes 0.02 to 2 ms
ALL_TARGETS: Final[dict[str, Target]] = {**TARGETS, "patch": PATCHES}


def fuzz(name: str, runs: int, seed: int = 0) -> Counter[str]:
    """Count how often each result came out of `runs` cases.

    Args:
        name: a key of ALL_TARGETS.
        runs: number of cases, spread evenly over the seeds of the target.
        seed: of the changes.

    Raises:
        AssertionError: a case failed (rule 2 of the package); its bytes are in `FAILURES`.
    """
    target = ALL_TARGETS[name]
    seeds = target.seeds()
    assert seeds, f"no corpus in {target.folder}"
    dice = random.Random(f"{name} {seed}")
    outcome: Counter[str] = Counter()
    for data in seeds:
        _run_case(name, target, data)
    before = peak_bytes()
    for run in range(runs):
        outcome[_run_case(name, target, target.change(seeds[run % len(seeds)], dice))] += 1
    grown = peak_bytes() - before
    assert grown < target.max_growth_bytes, f"{name}: memory grew by {grown} bytes"
    return outcome


def _run_case(name: str, target: Target, data: bytes) -> str:
    started = time.process_time()
    try:
        result = target.read(data)
    except BaseException as error:
        raise AssertionError(f"{name}: {type(error).__name__}: {error}; the case is {_keep(name, data)}") from error
    taken = time.process_time() - started
    if taken > MAX_CASE_S:
        raise AssertionError(f"{name}: a case took {taken:.1f} s; it is {_keep(name, data)}")
    return result


def peak_bytes() -> int:
    """Return the highest resident memory of this process so far, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM"))


def _keep(name: str, data: bytes) -> Path:
    path = FAILURES / name / hashlib.sha256(data).hexdigest()[:16]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path
