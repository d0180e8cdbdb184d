"""While a worker of an update hangs, control commands are answered, and a pause or a rollback ends the update."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from statistics import median
from typing import Any

from tests.support.daemon_workers import list_worker_pids
from tests.support.endpoint_client import infer
from tests.support.load_clients import wait_until
from tests.support.publisher import DeviceUnderTest, Publisher

ANSWER_S = 2.0
LIMIT_S = 30.0  # of one answer; a worker that hangs at its start is ended after a minute, a later one far later
WORKERS = ("verifier", "fetcher", "patcher", "probe", "model_process")  # in the order of their first use


@contextmanager
def _update_that_hangs(device: DeviceUnderTest, worker: str) -> Iterator[dict[str, Any]]:
    """Start an update and stop the first worker of a name that starts; yield the result, which comes later."""
    before, result = set(list_worker_pids(device)), dict[str, Any]()
    update = threading.Thread(target=lambda: result.update(device.call("update")))
    update.start()
    stopped: list[int] = []

    def stop() -> bool:
        for pid in set(list_worker_pids(device)) - before:
            with suppress(OSError):
                if f"device_agent.workers.{worker}".encode() in Path(f"/proc/{pid}/cmdline").read_bytes():
                    os.kill(pid, signal.SIGSTOP)
                    stopped.append(pid)
        return bool(stopped) or bool(result)

    wait_until(stop)
    assert stopped, (worker, result)
    yield result
    update.join(120)
    assert not update.is_alive()
    assert not Path(f"/proc/{stopped[0]}").exists(), "the worker that hangs was ended"


def _time_start(device: DeviceUnderTest) -> float:
    """Start the daemon, and return how long that took, in seconds: a busy machine answers as much later."""
    started = time.monotonic()
    device.start()
    return time.monotonic() - started


def _time_call(device: DeviceUnderTest, command: str) -> tuple[dict[str, Any], float]:
    started = time.monotonic()
    reply = device.call(command)
    return reply, time.monotonic() - started


def test_commands_are_answered_while_a_worker_hangs(updated: tuple[Publisher, DeviceUnderTest]) -> None:
    publisher, device = updated
    publisher.release("1.2.0", seed=2, is_shared=True)
    start_s, times = _time_start(device), list[float]()
    for worker in WORKERS:
        with _update_that_hangs(device, worker) as result:
            for command in ("status", "history", "quarantine-clear", "pause"):
                reply, took_s = _time_call(device, command)
                times.append(took_s)
                assert took_s < LIMIT_S, (worker, command, took_s)
                assert command != "status" or reply["serving"]["release"] == "1.1.0"
        assert (result["outcome"], result["reason"]) == ("interrupted", "update-interrupted"), (worker, result)
        assert infer(device)["model_version"] == "1.1.0"
        device.call("resume")
    assert median(times) < ANSWER_S + start_s, times
    assert device.call("update")["release"] == "1.2.0"


def test_a_rollback_ends_an_update_that_hangs_or_rejects_its_candidate(
    updated: tuple[Publisher, DeviceUnderTest],
) -> None:
    publisher, device = updated
    publisher.release("1.2.0", seed=2, is_shared=True)
    start_s = _time_start(device)
    with _update_that_hangs(device, "probe") as result:
        back, took_s = _time_call(device, "rollback")
    assert (back["outcome"], back["reason"]) == ("rolled-back", "operator-rollback")
    assert took_s < LIMIT_S + 3 * start_s, "the previous release is loaded meanwhile"
    assert (result["outcome"], result["reason"]) == ("interrupted", "update-interrupted")
    assert infer(device)["model_version"] == "1.0.0"
    with _update_that_hangs(device, "model_process") as result:
        back, took_s = _time_call(device, "rollback")
    assert took_s < LIMIT_S
    assert (back["outcome"], back["reason"], back["release"]) == ("unfit", "operator-rollback", "1.2.0")
    assert result == back
    assert infer(device)["model_version"] == "1.0.0", "the release that was interrupted is not in quarantine"
    assert device.call("update")["reason"] == "bundle-quarantined"
