"""Measure how fast a device lends files to applications, and what it takes.

    python -m benchmarks.lending [--mb N] [--realtime] [--json OUT]

A release without a model that the agent runs, of N MB (default 50), is installed on a device of its own with a running
daemon. Measured are the time to borrow it when the agent has to unseal it (cold) and when another client holds it
(resident), the time from a change to the event at a watching client, the latency of requests to list files at 100 a
second while an update is installed, and resident memory: of a C client beside the mapped files (with gcc), and of the
supervisor.
"""

import argparse
import json
import os
import random
import shutil
import statistics
import subprocess
import tempfile
import threading
import time
from pathlib import Path

import airweights
from bundle.files import BundleDigest
from device_agent.apps.access import FamilyAccess
from device_agent.apps.app_socket import AppFamily, AppServer
from device_agent.apps.client import AppClient
from device_agent.apps.lender import FileLender
from device_agent.policy.journal_records import BundleRecord
from tests.support.app_lab import app_lab, release, socket_path
from tests.support.publisher import FAMILY, DeviceUnderTest, Publisher

ROUNDS = 5
NOTICES = 50
INTERVAL_S = 0.01


def main() -> None:
    """Print the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mb", type=int, default=50)
    parser.add_argument("--realtime", action="store_true", help="run the device and its clients before other work")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as text, app_lab(Path(text)) as (publisher, device):
        large = publisher.folder / "large.bin"
        large.write_bytes(random.Random(1).randbytes(1000) * (1000 * options.mb))
        # no patches: the time to make them is not measured here
        files = '[patches]\nfrom = 0\n[[files]]\npath = "large.bin"\nrole = "other"\n'
        release(publisher, "1.1.0", "one\n", extra=files)
        if options.realtime:
            os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
        device.start()
        device.call("update")
        found = {"mb": options.mb, **measure_borrowing(device), **measure_swap(publisher, device, files)}
        found |= measure_notice(Path(text))
        found["supervisor_rss_mib"] = round(resident_bytes(device.daemon_pid, "VmRSS") / 2**20, 1)
        found["c_client_mib"] = measure_c_client(device, Path(text))
        print(json.dumps(found, indent=1))
        if options.json:
            options.json.write_text(json.dumps(found, indent=1) + "\n")


def measure_borrowing(device: DeviceUnderTest) -> dict[str, float]:
    """Return the median seconds to borrow all files, cold and resident."""
    cold, resident = [], []
    for _ in range(ROUNDS):
        with AppClient(socket_path(device)) as client:
            started = time.perf_counter()
            with client.open(FAMILY):
                cold.append(time.perf_counter() - started)
                started = time.perf_counter()
                with client.open(FAMILY):
                    resident.append(time.perf_counter() - started)
        time.sleep(0.3)  # the agent notices the end of a connection a moment later
    return {"cold_s": round(statistics.median(cold), 4), "resident_s": round(statistics.median(resident), 5)}


def measure_swap(publisher: Publisher, device: DeviceUnderTest, files: str) -> dict[str, float]:
    """Return the latency of requests to list files, in milliseconds, while an update is installed."""
    release(publisher, "1.2.0", "two\n", extra=files)
    latencies: list[float] = []
    is_done = threading.Event()

    def load() -> None:
        with AppClient(socket_path(device)) as client:
            while not is_done.wait(INTERVAL_S):
                started = time.perf_counter()
                client.list(FAMILY)
                latencies.append(time.perf_counter() - started)

    thread = threading.Thread(target=load)
    thread.start()
    device.call("update")
    is_done.set()
    thread.join()
    ordered = sorted(latencies)
    return {
        "requests": len(ordered),
        "request_p50_ms": round(1000 * ordered[len(ordered) // 2], 2),
        "request_p99_ms": round(1000 * ordered[len(ordered) * 99 // 100], 2),
        "request_max_ms": round(1000 * ordered[-1], 2),
    }


def measure_notice(folder: Path) -> dict[str, float]:
    """Return the milliseconds from a change of the serving release to the event at a watching client."""
    record = BundleRecord(BundleDigest("a" * 64), FAMILY, "1.0.0", 1, 0, "all", "{}")
    numbers = [1]
    family = AppFamily(FAMILY, FamilyAccess(), FileLender(lambda _bundle, _paths: {}), lambda: (record, numbers[0]))
    server = AppServer(folder / "notice.sock", lambda: {FAMILY: family})
    taken = []
    with AppClient(folder / "notice.sock") as client:
        events = client.watch(FAMILY)
        next(events)
        for _ in range(NOTICES):
            time.sleep(0.005)
            started = time.perf_counter()
            numbers[0] += 1
            family.changed()
            next(events)
            taken.append(time.perf_counter() - started)
    server.close()
    return {
        "notice_p50_ms": round(1000 * statistics.median(taken), 3),
        "notice_max_ms": round(1000 * max(taken), 3),
    }


def measure_c_client(device: DeviceUnderTest, folder: Path) -> float | None:
    """Return the resident memory of the C example beside the mapped files, in MiB; None without gcc."""
    if not shutil.which("gcc"):
        return None
    library = Path(airweights.__path__[0]) / "c"
    example = Path(__file__).parents[1] / "examples" / "words.c"
    program = folder / "words"
    words = ["gcc", "-O2", f"-I{library}", str(example), str(library / "airweights.c"), "-o", str(program)]
    subprocess.run(words, check=True)
    command = [str(program), str(socket_path(device)), FAMILY]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        running.stdout.readline()
        running.stdout.readline()
        found = sum(resident_bytes(running.pid, field) for field in ("RssAnon", "RssFile"))
        running.kill()
    return round(found / 2**20, 2)


def resident_bytes(pid: int, field: str) -> int:
    """Return one field of a process's memory, in bytes."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


if __name__ == "__main__":
    main()
