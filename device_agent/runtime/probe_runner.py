"""The verdict on a candidate, from a child that tries it (device_agent.workers.probe) and the running model's own
numbers.

Rules:
1. `pass`: it loads, keeps its contract, answers the golden questions, and is neither much slower nor much fatter than
   the model that runs here. `fail`: it does not. `inconclusive`: nothing was learned about the model (no child, no
   memory for it, a processor too busy to time anything): the caller keeps the old one and marks nothing.
2. A crash is the model's: it is native code that a model's bytes drive; so is an exception that nobody foresaw, and an
   answer without form. Only a SIGKILL from elsewhere (the system's out-of-memory killer) says nothing about it.
3. The deadline is the health contract's, over everything from the start of the child; past it the child is killed.
4. Latency and memory are compared with the baseline's as the health contract's percentages, plus a fixed allowance
   below which a difference is noise. Memory is the peak (VmHWM) over what the process had before it saw the model;
   the supervisor reads it, not the child.
"""

import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

from bundle.contract import Contract, Health
from bundle.errors import Refused, Unavailable, Unfit
from device_agent.errors import WorkerCrashed, WorkerFailed, WorkerTimeout
from device_agent.process.channel import JsonObject
from device_agent.process.jail import JailPolicy
from device_agent.process.worker_process import WorkerProcess, parse_reply
from device_agent.runtime.bundle_fds import BundleFds

MODULE: Final = "device_agent.workers.probe"
PROBE_NICENESS: Final = 10
LATENCY_ALLOWANCE_US: Final = 500
MEMORY_ALLOWANCE_BYTES: Final = 32 * 1024 * 1024
MIN_CPU_SHARE: Final = 0.5  # processor seconds a second of wall clock: below it the time was somebody else's
RUNTIME_ADDRESS_SPACE_BYTES: Final = 2 * 1024**3  # libraries, arenas and thread stacks: reserved, mostly not resident
ADDRESS_SPACE_SHARE: Final = 0.9  # of what the system has left: the running model must not be the one that is killed


@dataclass(frozen=True, slots=True)
class ProbeBaseline:
    """The running model's numbers on this device.

    Attributes:
        latency_us: median of its golden runs, microseconds.
        peak_bytes: as ProbeReport's.
    """

    latency_us: int
    peak_bytes: int


@dataclass(frozen=True, slots=True)
class ProbeReport:
    """What was found.

    Attributes:
        verdict: "pass", "fail" or "inconclusive".
        reason: "" for a pass, else stable: model-does-not-load, contract-mismatch, golden-mismatch, nan,
            inference-failed, leaks-memory, probe-crashed, probe-timeout, too-slow, too-fat, the reason of a Refused
            bundle; and for inconclusive: probe-killed, busy, or why no child could be started.
        detail: one line for a person.
        latency_us: median of a run, or None.
        peak_bytes: memory that the model took at its highest.
        worst_relative_rms_ppm: the golden answer that was furthest off, or None.
        samples, runs: golden vectors asked, and runs in all.
        load_us: session creation.
        elapsed_s: the whole probe.
    """

    verdict: str
    reason: str = ""
    detail: str = ""
    latency_us: int | None = None
    peak_bytes: int = 0
    worst_relative_rms_ppm: int | None = None
    samples: int = 0
    runs: int = 0
    load_us: int = 0
    elapsed_s: float = 0.0

    def as_json(self) -> dict[str, Any]:
        """For the journal and `status`."""
        return asdict(self)

    def baseline(self) -> ProbeBaseline | None:
        """These numbers as the next candidate's baseline."""
        return None if self.latency_us is None else ProbeBaseline(self.latency_us, self.peak_bytes)


def run_probe_process(
    bundle: BundleFds,
    contract: Contract,
    health: Health,
    baseline: ProbeBaseline | None = None,
    jail: JailPolicy | None = None,
    *,
    threads: int = 0,
) -> ProbeReport:
    """Try a candidate in a jailed child (rules 1 to 4). It raises nothing that the candidate caused.

    Args:
        bundle: still the caller's.
        contract, health: of the candidate's variant.
        baseline: None for a first install: nothing is compared with it.
        jail: of the child; a memory limit is set where it has none.
        threads: as the candidate will be run with.
    """
    started = time.monotonic()
    jail = jail or JailPolicy(nice=PROBE_NICENESS)
    jail = replace(
        jail,
        expendable=True,
        memory_bytes=jail.memory_bytes or _address_space_limit_bytes(),
        cpu_s=jail.cpu_s or 4 * health.probe_deadline_s + 60,
        file_bytes=jail.file_bytes or 0,
    )
    try:
        worker = WorkerProcess.start(MODULE, jail, deadline_s=health.probe_deadline_s)
    except Unavailable as error:
        return _create_report("inconclusive", error.reason, error.message, started)
    with worker:
        return _judge_bundle(worker, bundle, contract, health, baseline, threads, started)


def _judge_bundle(
    worker: WorkerProcess,
    bundle: BundleFds,
    contract: Contract,
    health: Health,
    baseline: ProbeBaseline | None,
    threads: int,
    started: float,
) -> ProbeReport:
    before_bytes = worker.memory_bytes("VmRSS")
    stage = "start"

    def on_event(event: JsonObject) -> None:
        nonlocal stage
        stage = str(event.get("stage"))[:40]

    value, fds = bundle.to_message()
    request = {
        "bundle": value,
        "contract": contract.as_json(),
        "golden_relative_rms_ppm": health.golden_relative_rms_ppm,
        "threads": threads,
    }
    left = max(health.probe_deadline_s - (time.monotonic() - started), 0.1)
    try:
        found = worker.call("probe", request, fds, deadline_s=left, on_event=on_event).value
    except WorkerTimeout:
        detail = f"no end within {health.probe_deadline_s} s, at {stage}"
        return _create_report("fail", "probe-timeout", detail, started)
    except WorkerFailed as error:
        return _create_report("fail", "probe-crashed", f"at {stage}: {error.message}", started)
    except WorkerCrashed as error:
        killed = worker.describe_exit().startswith("ended by SIGKILL")
        detail = f"at {stage}: {error.message}"
        if killed:
            return _create_report("inconclusive", "probe-killed", detail, started)
        return _create_report("fail", "probe-crashed", detail, started)
    except (Unfit, Refused) as error:
        return _create_report("fail", error.reason, error.message, started)
    peak_bytes = max(worker.memory_bytes("VmHWM") - before_bytes, 0)
    try:
        with parse_reply(MODULE):
            if "failed" in found:
                return _create_report("fail", str(found["failed"]), str(found["detail"]), started)
            report = ProbeReport(
                "pass",
                latency_us=None if found["latency_us"] is None else int(found["latency_us"]),
                peak_bytes=peak_bytes,
                worst_relative_rms_ppm=int(found["worst_relative_rms_ppm"]) if found["samples"] else None,
                samples=int(found["samples"]),
                runs=int(found["runs"]),
                load_us=int(found["load_us"]),
                elapsed_s=round(time.monotonic() - started, 3),
            )
            return compare_with_baseline(report, health, baseline, cpu_share=float(found["cpu_share"]))
    except WorkerFailed as error:
        return _create_report("fail", "probe-crashed", error.message, started)


def compare_with_baseline(
    report: ProbeReport, health: Health, baseline: ProbeBaseline | None, *, cpu_share: float = 1.0
) -> ProbeReport:
    """Rule 4 for a report that has passed so far."""
    if baseline is None:
        return report
    fattest = baseline.peak_bytes * health.probe_memory_percent // 100 + MEMORY_ALLOWANCE_BYTES
    if report.peak_bytes > fattest:
        detail = (
            f"peak memory {report.peak_bytes} bytes, at most {fattest} are allowed (running: {baseline.peak_bytes})"
        )
        return replace(report, verdict="fail", reason="too-fat", detail=detail)
    slowest = baseline.latency_us * health.probe_latency_percent // 100 + LATENCY_ALLOWANCE_US
    if report.latency_us is not None and report.latency_us > slowest:
        detail = (
            f"median latency {report.latency_us} us, at most {slowest} are allowed (running: {baseline.latency_us})"
        )
        if cpu_share < MIN_CPU_SHARE:
            detail += f"; the probe had {cpu_share:.0%} of a processor"
            return replace(report, verdict="inconclusive", reason="cpu-contention", detail=detail)
        return replace(report, verdict="fail", reason="too-slow", detail=detail)
    return report


def _create_report(verdict: str, reason: str, detail: str, started: float) -> ProbeReport:
    return ProbeReport(verdict, reason, detail[:1000], elapsed_s=round(time.monotonic() - started, 3))


def _address_space_limit_bytes() -> int | None:
    left = [*_available_in_cgroups(), *_available_in_system()]
    return int(min(left) * ADDRESS_SPACE_SHARE) + RUNTIME_ADDRESS_SPACE_BYTES if left else None


def _available_in_system() -> list[int]:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    except (OSError, ValueError):
        return []


def _available_in_cgroups() -> list[int]:
    """What each control group above this process (cgroup v2) has left, bytes; none where there is no limit."""
    left = []
    try:
        own = next(line[3:] for line in Path("/proc/self/cgroup").read_text().splitlines() if line.startswith("0::"))
        group = Path(f"/sys/fs/cgroup{own}")
        for folder in (group, *group.parents[: len(Path(own).parts) - 1]):
            limit = (folder / "memory.max").read_text().strip() if (folder / "memory.max").exists() else "max"
            if limit != "max":
                left.append(max(int(limit) - int((folder / "memory.current").read_text()), 0))
    except (OSError, StopIteration, ValueError):
        pass  # no cgroup v2 here: the system's number has to do
    return left
