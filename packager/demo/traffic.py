"""Requests in the background of the story, and what they tell: failures, and latency around a swap."""

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
    """The load process did not end as it should."""

    reason = "demo-load-failed"


@dataclass(frozen=True, slots=True)
class LoadRequest:
    """One request of the load.

    Attributes:
        due_s: when it was due, monotonic clock.
        latency_s: from then to its answer.
        ok: it was answered with outputs.
        finite: no NaN or infinity in them.
        version: the release that answered.
    """

    due_s: float
    latency_s: float
    is_answered: bool
    is_finite: bool
    version: str


@dataclass(frozen=True, slots=True)
class Latency:
    """Milliseconds over some requests."""

    count: int
    median_ms: float
    worst_ms: float

    @classmethod
    def from_requests(cls, requests: Sequence[LoadRequest]) -> "Latency":
        """Of the answered ones; zeros where there are none."""
        times = [request.latency_s * 1000 for request in requests if request.is_answered]
        return cls(len(times), round(median(times), 2), round(max(times), 2)) if times else cls(0, 0.0, 0.0)


class Traffic:
    """A load process: starts on construction, ends with `stop`."""

    def __init__(self, address: str, family: str, inputs: Path, rate: float) -> None:
        command = [sys.executable, "-P", "-m", "packager.demo.load_generator", address, family, str(inputs), str(rate)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def stop(self) -> tuple[LoadRequest, ...]:
        """End it and take its record. Raises TrafficBug."""
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
        """End it without a record; nothing happens where it has ended."""
        self._process.kill()
        self._process.communicate()


def split_requests(requests: Sequence[LoadRequest], start_s: float, end_s: float) -> tuple[Latency, Latency, Latency]:
    """Before, during and after a stretch of the monotonic clock."""
    before = [request for request in requests if request.due_s + request.latency_s < start_s]
    after = [request for request in requests if request.due_s > end_s]
    during = [r for r in requests if r.due_s <= end_s and r.due_s + r.latency_s >= start_s]
    return Latency.from_requests(before), Latency.from_requests(during), Latency.from_requests(after)


def monotonic_s() -> float:
    """The clock of `Request.due_s`."""
    return time.monotonic()
