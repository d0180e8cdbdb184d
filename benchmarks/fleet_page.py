"""Measure the collector's page: `python -m benchmarks.fleet_page --devices N --releases M --json OUT`.

A SQLite store is filled with rows of made-up devices and sums, as if their lines had been ingested. A real server then
answers requests for the overview, the page of one release, and the metrics, with its HTML.

OUT is one object {devices, releases, pages}; `pages` is path → {cpu_ms, ms, bytes}, the medians of REQUESTS requests.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sqlalchemy import insert, text

from fleet.database import Database
from fleet.device_index import DIGEST_FACT, STAMP_FACT
from fleet.tables import FACT, TALLY
from keys.registry_index import registry_stamp
from tests.support.device_reports import REPOSITORY
from tests.support.fleet_server import FleetServer, serve_site

REQUESTS = 9
STATES = ("updated", "serving", "failed", "waiting", "inconclusive", "rejected")
STRATA = {"variant": 4, "cpu": 6, "cohort": 5, "agent": 4}
FILL_DEVICES = """
INSERT INTO device (device_id, label, cohort, ed25519_public, is_revoked, is_suspect, seen_s)
WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < :devices)
SELECT printf('%064x', i), printf('device-%d', i), printf('cohort-%d', i % 5), zeroblob(32), 0, i % 100000 = 0,
       :now - (i % 1000000) FROM n
"""


def fill(database: Database, registry: Path, devices: int, releases: int) -> str:
    """Fill a store, and return the digest of the registry that it claims to have.

    Args:
        database: an empty SQLite store.
        registry: an empty file.
        devices: number of devices.
        releases: number of releases.
    """
    digest = "0" * 64
    with database.write() as connection:
        connection.execute(text(FILL_DEVICES), {"devices": devices, "now": int(time.time())})
        connection.execute(insert(TALLY), list(_sums(devices // releases, releases)))
        facts = ((DIGEST_FACT, digest), (STAMP_FACT, registry_stamp(registry)))
        connection.execute(insert(FACT), [{"name": name, "value": value} for name, value in facts])
    return digest


def _sums(devices: int, releases: int) -> Iterator[dict[str, Any]]:
    for release in range(releases):
        rows = [("state", state, devices // len(STATES)) for state in STATES]
        rows += [("failure", reason, devices // 100) for reason in ("nan-output", "probation-failed")]
        for kind, count in STRATA.items():
            rows += [(kind, f"{kind}-{n}", devices // count) for n in range(count)]
            rows += [(f"failed-{kind}", f"{kind}-{n}", devices // count // 50) for n in range(count)]
        place = {"family": "kws", "channel": "stable", "release": f"1.{release}.0"}
        for kind, value, number in rows:
            yield {**place, "kind": kind, "value": value, "devices": number}


def measure(devices: int, releases: int) -> dict[str, object]:
    """Return the cost of each page.

    Args:
        devices: number of devices.
        releases: number of releases.
    """
    with tempfile.TemporaryDirectory(prefix="airweights-page-") as folder:
        registry = Path(folder) / "registry.jsonl"
        registry.write_bytes(b"")
        database = Database(f"sqlite:{folder}/fleet.db", REPOSITORY)
        digest = fill(database, registry, devices, releases)
        with serve_site(database, registry, digest) as server:
            paths = ("/", "/release/kws/stable/1.0.0", "/metrics")
            pages = {path: _cost(server, path) for path in paths}
        database.close()
    return {"devices": devices, "releases": releases, "pages": pages}


def _cost(server: FleetServer, path: str) -> dict[str, float]:
    spent, elapsed, size = [], [], 0
    for _ in range(REQUESTS):
        cpu, start = time.process_time(), time.perf_counter()
        reply = server.request(path)
        spent.append((time.process_time() - cpu) * 1000)
        elapsed.append((time.perf_counter() - start) * 1000)
        assert reply.status == 200, (path, reply.status)
        size = len(reply.body)
    return {"cpu_ms": round(statistics.median(spent), 1), "ms": round(statistics.median(elapsed), 1), "bytes": size}


def main() -> None:
    """Measure as the arguments say, and print or write the result."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fleet_page", description="Measure the page.")
    parser.add_argument("--devices", type=int, default=1_000_000)
    parser.add_argument("--releases", type=int, default=50)
    parser.add_argument("--json", type=Path, metavar="OUT")
    arguments = parser.parse_args()
    result = json.dumps(measure(arguments.devices, arguments.releases), indent=2)
    if arguments.json is None:
        print(result)
    else:
        arguments.json.write_text(result + "\n")


if __name__ == "__main__":
    main()
