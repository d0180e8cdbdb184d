"""Measure how long the rotation of a cohort key takes: `python -m benchmarks.cohort_rotation --devices N --json OUT`.

The figures cover sealing the cohort's private key to N devices and writing the shards of envelopes to a temporary
folder. The work runs in as many processes as there are CPUs, with one sync at the end, and calls the same functions as
`packager device rotate-cohort`. Creating the devices' keys is not included: every device creates its own.

OUT is one object {devices, seconds, cpu_s, bytes, peak_bytes, per_device_us}: wall-clock time; CPU time of all
processes; bytes of all envelopes; peak resident bytes of the largest process; wall-clock time per device.

`--plan M` also measures a tenth of N and adds `plan`: the same object for M devices, extrapolated linearly from both.
It estimates the time for a million devices without creating a million keys.
"""

import argparse
import json
import os
import resource
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from bundle.envelope import derive_public_key, generate_private_key
from bundle.envelope_shard import encode_shard
from bundle.fleet import Cohort
from keys.cohorts import seal_epoch
from packager.repository.cohort_shards import MEAN_RECORDS
from packager.repository.layout import write_file

REPOSITORY = "0" * 64
BATCH = 500
TENTH = 10

Row = dict[str, int | float]


def measure(devices: int, workers: int) -> Row:
    """Rotate the key of a cohort of `devices` devices in `workers` processes, and return the costs."""
    public = _make_public_keys(devices, workers)
    private = generate_private_key()
    cohort = Cohort("benchmark", 1, derive_public_key(private))
    written = 0
    with tempfile.TemporaryDirectory(prefix="airweights-epochs-") as folder:
        shard: dict[str, bytes] = {}

        def put(name: str, envelope: bytes) -> None:
            nonlocal written
            written += len(envelope)
            shard[name] = envelope
            if len(shard) == MEAN_RECORDS:
                write_shard(name)

        def write_shard(name: str) -> None:
            write_file(Path(folder) / name, encode_shard(shard), is_synced=False)
            shard.clear()

        cpu, start = _cpu_s(), time.perf_counter()
        made = seal_epoch(private, cohort, REPOSITORY, public, put, workers=workers)
        if shard:
            write_shard("last")
        os.sync()
        seconds, spent = time.perf_counter() - start, _cpu_s() - cpu
    assert made == devices
    return {
        "devices": devices,
        "seconds": round(seconds, 3),
        "cpu_s": round(spent, 3),
        "bytes": written,
        "peak_bytes": _peak_bytes(),
        "per_device_us": round(1e6 * seconds / devices, 1),
    }


def extrapolate(small: Row, large: Row, devices: int) -> Row:
    """Return the costs for `devices` devices, extrapolated linearly from two measurements."""
    difference = large["devices"] - small["devices"]

    def extrapolate_field(field: str) -> float:
        slope = (large[field] - small[field]) / difference
        return max(0.0, large[field] + slope * (devices - large["devices"]))

    seconds = extrapolate_field("seconds")
    return {
        "devices": devices,
        "seconds": round(seconds, 1),
        "cpu_s": round(extrapolate_field("cpu_s"), 1),
        "bytes": round(extrapolate_field("bytes")),
        "peak_bytes": round(extrapolate_field("peak_bytes")),
        "per_device_us": round(1e6 * seconds / devices, 1),
    }


def _make_public_keys(devices: int, workers: int) -> list[bytes]:
    counts = [min(BATCH, devices - start) for start in range(0, devices, BATCH)]
    with ProcessPoolExecutor(workers) as pool:
        return [key for batch in pool.map(_make_key_batch, counts) for key in batch]


def _make_key_batch(count: int) -> list[bytes]:
    return [derive_public_key(generate_private_key()) for _ in range(count)]


def _cpu_s() -> float:
    own, children = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


def _peak_bytes() -> int:
    who = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return 1024 * max(resource.getrusage(entry).ru_maxrss for entry in who)


def main() -> None:
    """Measure as the arguments say, and print or write the result."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.cohort_rotation", description="Measure the rotation of a cohort key."
    )
    parser.add_argument("--devices", type=int, default=10_000)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--plan", type=int, metavar="M", help="also extrapolate to M devices")
    parser.add_argument("--json", type=Path, metavar="OUT")
    options = parser.parse_args()
    if options.devices < 1 or options.workers < 1:
        parser.error("--devices and --workers must be at least 1")
    if options.plan is not None and (options.devices < 2 * TENTH or options.plan < options.devices):
        parser.error(f"--plan needs at least {2 * TENTH} --devices, and more devices than these")
    small = measure(options.devices // TENTH, options.workers) if options.plan is not None else None
    large = measure(options.devices, options.workers)
    rows = large if small is None else {**large, "plan": extrapolate(small, large, options.plan)}
    result = json.dumps(rows, indent=2)
    if options.json is None:
        print(result)
    else:
        options.json.write_text(result + "\n")


if __name__ == "__main__":
    main()
