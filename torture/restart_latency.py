"""`python -m torture.restart_latency [--kills N]`: measure how long requests wait when the
model process is killed under load.

One client sends requests without pause. The gap is the longest time between two responses after the kill; gaps are
printed in milliseconds, smallest first, without a standby and with one. Failed requests are counted; expected: none.
"""

import argparse
import itertools
import os
import signal
import tempfile
import threading
import time
from pathlib import Path

from device_agent.daemon.serving_watchdog import MAX_FAST_RESTARTS
from tests.support.endpoint_client import infer
from tests.support.faulty_http_server import serve_folder
from tests.support.publisher import DeviceUnderTest, Publisher

SETTLE_S = 2.0  # a standby is loaded at a low priority
IN_A_ROW = MAX_FAST_RESTARTS - 1  # a process that crashes more often in a row is restarted after a delay


def main() -> None:
    """Measure both cases and print the gaps."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=6)
    kills = parser.parse_args().kills
    with tempfile.TemporaryDirectory() as name:
        publisher = Publisher(Path(name) / "publisher")
        publisher.release("1.0.0", seed=0)
        with serve_folder(publisher.published) as site:
            device = DeviceUnderTest.create(Path(name) / "device", site.url, publisher.root)
            publisher.enroll(device.directory)
            device.start()
            assert device.call("update")["outcome"] == "updated"
            _print("without a standby", device, kills)
            device.stop()
            text = device.config_path.read_text()
            device.config_path.write_text(text.replace("[serve]\n", "[serve]\nstandby = true\n"))
            device.start()
            _print("with a standby", device, kills)
            device.stop()


def _print(name: str, device: DeviceUnderTest, kills: int) -> None:
    gaps, failures = [], 0
    for number in range(kills):
        if number and number % IN_A_ROW == 0:
            device.stop()
            device.start()
        gap_ms, failed = _kill(device)
        gaps.append(gap_ms)
        failures += failed
    print(f"{name}: {sorted(gaps)} ms, {failures} requests failed", flush=True)


def _kill(device: DeviceUnderTest) -> tuple[int, int]:
    """Kill the model process; return the gap in milliseconds and the number of failed requests."""
    time.sleep(SETTLE_S)
    device.call("pause")  # handled in order: earlier work is done when it returns
    ends: list[float] = []
    failures = 0
    stop = threading.Event()

    def ask() -> None:
        nonlocal failures
        while not stop.is_set():
            try:
                infer(device)
                ends.append(time.monotonic())
            except (AssertionError, OSError):
                failures += 1

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        time.sleep(0.3)
        killed = time.monotonic()
        os.kill(device.call("status")["serving"]["pid"], signal.SIGKILL)
        time.sleep(SETTLE_S)
    finally:
        stop.set()
        thread.join()
    gap_s = max((late - early for early, late in itertools.pairwise(ends) if late > killed), default=SETTLE_S)
    return round(gap_s * 1000), failures


if __name__ == "__main__":
    main()
