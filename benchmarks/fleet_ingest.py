"""Measure how many lines a collector takes: `python -m benchmarks.fleet_ingest --devices N [--store URL] --json OUT`.

Each device sends three reports and a vital. The lines are judged, verified and stored in batches of 500, a transaction
each, as `packager fleet serve` does; then all of them are sent again. Keys and signatures are made before.

OUT is one object {devices, lines, new, again}; `new` and `again` are {cpu_s, seconds, lines_per_cpu_s}.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

from fleet.database import Database
from fleet.device_index import fill_devices
from fleet.ingest import ingest
from fleet.line import MAX_BATCH_LINES
from tests.support.device_reports import REPOSITORY
from tests.support.fleet_devices import SigningDevice, write_registry

REPORTS = 3


def measure(devices: int, store: str | None) -> dict[str, object]:
    """Ingest the lines of some devices twice, and return the costs.

    Args:
        devices: number of devices.
        store: URL of the store, or None for a SQLite file in a temporary folder.
    """
    senders = [SigningDevice(f"device-{number}") for number in range(devices)]
    lines = [one.report(release=f"1.{n}.0", counter=n + 1) for n in range(REPORTS) for one in senders]
    lines += [one.vital(release=f"1.{REPORTS - 1}.0", counter=REPORTS) for one in senders]
    with tempfile.TemporaryDirectory(prefix="airweights-fleet-") as folder:
        registry = Path(folder) / "registry.jsonl"
        digest = write_registry(registry, [one.registered() for one in senders])
        database = Database(store or f"sqlite:{folder}/fleet.db", REPOSITORY)
        fill_devices(database, registry, digest)
        rows = {name: _ingest_all(database, lines, name == "new") for name in ("new", "again")}
        database.close()
    return {"devices": devices, "lines": len(lines), **rows}


def _ingest_all(database: Database, lines: list[bytes], are_new: bool) -> dict[str, float]:
    cpu, start, taken = time.process_time(), time.perf_counter(), 0
    for first in range(0, len(lines), MAX_BATCH_LINES):
        result = ingest(database, lines[first : first + MAX_BATCH_LINES])
        taken += result.new if are_new else result.known
    spent, seconds = time.process_time() - cpu, time.perf_counter() - start
    assert taken == len(lines)
    return {"cpu_s": round(spent, 3), "seconds": round(seconds, 3), "lines_per_cpu_s": round(len(lines) / spent)}


def main() -> None:
    """Measure as the arguments say, and print or write the result."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fleet_ingest", description="Measure a collector.")
    parser.add_argument("--devices", type=int, default=2_000)
    parser.add_argument("--store", help="URL of an empty store; default: a SQLite file")
    parser.add_argument("--json", type=Path, metavar="OUT")
    options = parser.parse_args()
    if options.devices < 1:
        parser.error("--devices must be at least 1")
    result = json.dumps(measure(options.devices, options.store), indent=2)
    if options.json is None:
        print(result)
    else:
        options.json.write_text(result + "\n")


if __name__ == "__main__":
    main()
