"""The load process's requests during the demo, and their evaluation."""

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Final

from bundle.errors import Bug

STOP_TIMEOUT_S: Final = 60


class DemoLoadFailed(Bug):
    """The load process of the demo failed. Report it, with the output of the demo."""

    reason = "demo-load-failed"


@dataclass(frozen=True, slots=True)
class LoadRequest:
    """One request of the load process.

    Attributes:
        due_s: scheduled time, monotonic clock, in seconds.
        latency_s: time from `due_s` to the response, in seconds.
        is_answered: the response has outputs.
        is_finite: no output is NaN or infinite.
        version: release that responded.
    """

    due_s: float
    latency_s: float
    is_answered: bool
    is_finite: bool
    version: str


@dataclass(frozen=True, slots=True)
class Latency:
    """Latency of some requests, in milliseconds."""

    count: int
    median_ms: float
    worst_ms: float

    @classmethod
    def from_requests(cls, requests: Sequence[LoadRequest]) -> "Latency":
        """Return the latency of the answered requests, or zeros if there are none."""
        times = [request.latency_s * 1000 for request in requests if request.is_answered]
        return cls(len(times), round(median(times), 2), round(max(times), 2)) if times else cls(0, 0.0, 0.0)


class Traffic:
    """A running load process; it starts on construction.

    Args:
        address: endpoint of the device.
        family: name of the model.
        inputs: `.npz` with the samples to send.
        rate: requests per second.
    """

    def __init__(self, address: str, family: str, inputs: Path, rate: float) -> None:
        command = [sys.executable, "-P", "-m", "packager.demo.load_generator", address, family, str(inputs), str(rate)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def stop(self) -> tuple[LoadRequest, ...]:
        """Stop the process and return its requests.

        Raises:
            DemoLoadFailed: the process does not stop, or failed.
        """
        try:
            out, _ = self._process.communicate(timeout=STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired as error:
            self._process.kill()
            self._process.communicate()
            raise DemoLoadFailed("the load process did not end") from error
        if self._process.returncode:
            raise DemoLoadFailed(f"the load process ended with {self._process.returncode}")
        return tuple(LoadRequest(*row) for row in json.loads(out)["requests"])

    def kill(self) -> None:
        """Kill the process and discard its requests."""
        self._process.kill()
        self._process.communicate()


def split_requests(requests: Sequence[LoadRequest], start_s: float, end_s: float) -> tuple[Latency, Latency, Latency]:
    """Return the latency before, during and after an interval.

    Args:
        requests: all requests.
        start_s: start of the interval, monotonic clock, in seconds.
        end_s: end of the interval, monotonic clock, in seconds.
    """
    before = [request for request in requests if request.due_s + request.latency_s < start_s]
    after = [request for request in requests if request.due_s > end_s]
    during = [r for r in requests if r.due_s <= end_s and r.due_s + r.latency_s >= start_s]
    return Latency.from_requests(before), Latency.from_requests(during), Latency.from_requests(after)


def monotonic_s() -> float:
    """Return the time of the clock of `LoadRequest.due_s`, in seconds."""
    return time.monotonic()
