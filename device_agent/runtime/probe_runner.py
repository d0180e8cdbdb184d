"""The verdict on a candidate, which runs in a worker (device_agent.workers.probe).

Rules:
1. `pass`: the candidate loads, has its contract, reproduces the golden outputs, and is neither much slower nor much
   larger than the model that runs on this device. `fail`: it does not. `inconclusive`: the probe says nothing about the
   model, because no worker could start, the system killed it, or the processor was too busy to measure. The caller then
   keeps the running model and does not quarantine the candidate.
2. A crash of the worker counts against the model, because the model's bytes drive native code. So do an unexpected
   exception and a malformed message. Only a SIGKILL from outside (the out-of-memory killer) is inconclusive.
3. The deadline of the health contract covers the whole probe, from the start of the worker. Then the worker is killed.
4. Models of one bundle are probed together: their times and their memory add up.
5. Latency and peak memory may exceed the running model's by the percentages of the health contract, plus a fixed
   allowance for noise. Peak memory is VmHWM minus the resident memory before the model was loaded. The supervisor
   reads it from /proc; the worker's own figures are not trusted.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

from bundle.contract import Contract, Health
from bundle.errors import Refused, Unavailable, Unfit
from device_agent.errors import (
    AgentStopping,
    CandidateMalformed,
    ProbeCrashed,
    ProbeTimeout,
    ProviderMissing,
    TooMuchMemory,
    TooSlow,
    UpdateInterrupted,
    WorkerCrashed,
    WorkerFailed,
    WorkerTimeout,
    is_written,
)
from device_agent.process.channel import JsonObject
from device_agent.process.jail import PROBE_NICENESS, JailPolicy
from device_agent.process.replies import parse_reply
from device_agent.process.worker_process import WorkerProcess
from device_agent.runtime.bundle_fds import BundleFds

MODULE: Final = "device_agent.workers.probe"
LATENCY_ALLOWANCE_US: Final = 500
MEMORY_ALLOWANCE_BYTES: Final = 32 * 1024 * 1024
MIN_CPU_SHARE: Final = 0.5  # processor seconds per elapsed second; with less, other processes slowed the probe
RUNTIME_ADDRESS_SPACE_BYTES: Final = 2 * 1024**3  # reserved by libraries, arenas and thread stacks; mostly not resident
ADDRESS_SPACE_SHARE: Final = 0.9  # of the available memory, so that the running model is not killed for lack of it


@dataclass(frozen=True, slots=True)
class ProbeBaseline:
    """The running model's figures on this device.

    Attributes:
        latency_us: median latency of its golden runs, in microseconds.
        peak_bytes: its peak memory, as in ProbeReport.
    """

    latency_us: int
    peak_bytes: int


@dataclass(frozen=True, slots=True)
class ProbeReport:
    """The result of a probe.

    Attributes:
        verdict: "pass", "fail" or "inconclusive".
        reason: "" if it passed; for "fail" the reason of a class in device_agent.errors or bundle.errors; for
            "inconclusive" that of the obstacle.
        detail: one line for people.
        latency_us: median latency of a run, in microseconds, or None.
        peak_bytes: peak memory that the model added to the process.
        worst_relative_rms_ppm: largest relative RMS error of a golden output, in parts per million, or None.
        samples, runs: number of golden samples, and of all runs.
        load_us: creation of the session, in microseconds.
        reference_ratio_ppm: processor time over that of the reference graph (device_agent.runtime.reference), one
            thread, in parts per million; None if it was not measured.
        elapsed_s: duration of the whole probe.
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
    reference_ratio_ppm: int | None = None
    elapsed_s: float = 0.0

    def as_json(self) -> dict[str, Any]:
        """Return the report for the journal and `status`."""
        return asdict(self)

    def baseline(self) -> ProbeBaseline | None:
        """Return these figures as the baseline for the next candidate; None without a latency."""
        return None if self.latency_us is None else ProbeBaseline(self.latency_us, self.peak_bytes)


def run_probe_process(
    bundle: BundleFds,
    contracts: Contract | Sequence[Contract],
    health: Health,
    baseline: ProbeBaseline | None = None,
    jail: JailPolicy | None = None,
    *,
    threads: int = 0,
    compares_outputs: bool = True,
    asks_requests: bool = False,
    measures_ratio: bool = False,
    on_idle: Callable[[], None] | None = None,
) -> ProbeReport:
    """Probe a candidate in a jailed worker (rules 1 to 5). Nothing that the candidate causes is raised.

    Args:
        bundle: the candidate's files; the caller still owns them.
        contracts: that of each model, in order; or the only one.
        health: of the candidate's variant.
        baseline: the running model's figures; None for a first install, which is compared with nothing.
        jail: policy of the worker; memory, processor time and file size are limited if it does not limit them.
        threads: intra-op threads that the candidate will run with.
        compares_outputs: compare the outputs with the golden ones; False to measure on another model's golden inputs.
        asks_requests: also send the golden inputs through the request parser.
        measures_ratio: also measure the ratio to the reference graph.
        on_idle: called repeatedly meanwhile; an error that it raises ends the probe, and is raised.

    Raises:
        UpdateInterrupted, AgentStopping: `on_idle` raised it.
    """
    started = time.monotonic()
    jail = jail or JailPolicy(nice=PROBE_NICENESS)
    jail = replace(
        jail,
        worker="probe",
        runtime=bundle.runtime,
        provider=bundle.provider,
        expendable=True,
        threads=jail.threads + threads,
        memory_bytes=jail.memory_bytes or _address_space_limit_bytes(),
        cpu_s=jail.cpu_s or 4 * health.probe_deadline_s + 60,
        file_bytes=jail.file_bytes or 0,
    )
    try:
        worker = WorkerProcess.start(MODULE, jail, deadline_s=health.probe_deadline_s, on_idle=on_idle)
    except (UpdateInterrupted, AgentStopping):
        raise
    except (Unavailable, ProviderMissing) as error:
        return _create_report("inconclusive", error.reason, error.message, started)
    with worker:
        tolerance_ppm = health.golden_relative_rms_ppm if compares_outputs else None
        request: JsonObject = {
            "contracts": _as_list(contracts),
            "golden_relative_rms_ppm": tolerance_ppm,
            "threads": threads,
            "asks_requests": asks_requests,
        }
        report = _judge_bundle(worker, bundle, request, health, baseline, started, on_idle)
        if measures_ratio and report.verdict == "pass":
            ratio_ppm = _measure_ratio(worker, bundle, contracts, health, on_idle)
            report = replace(report, reference_ratio_ppm=ratio_ppm)
        return report


def _judge_bundle(
    worker: WorkerProcess,
    bundle: BundleFds,
    request: JsonObject,
    health: Health,
    baseline: ProbeBaseline | None,
    started: float,
    on_idle: Callable[[], None] | None,
) -> ProbeReport:
    before_bytes = worker.memory_bytes("VmRSS")
    stage = "start"

    def on_event(event: JsonObject) -> None:
        nonlocal stage
        stage = str(event.get("stage"))[:40]

    value, fds = bundle.to_message()
    remaining_s = max(health.probe_deadline_s - (time.monotonic() - started), 0.1)
    try:
        found = worker.call(
            "probe",
            {**request, "bundle": value},
            fds,
            deadline_s=remaining_s,
            on_event=on_event,
            on_idle=on_idle,
        ).value
    except WorkerTimeout:
        detail = f"not finished within {health.probe_deadline_s} s, at {stage}"
        return _create_report("fail", ProbeTimeout.reason, detail, started)
    except WorkerFailed as error:
        return _create_report("fail", ProbeCrashed.reason, f"at {stage}: {error.message}", started)
    except WorkerCrashed as error:
        killed = worker.describe_exit().startswith("ended by SIGKILL")
        detail = f"at {stage}: {error.message}"
        if killed:
            return _create_report("inconclusive", "probe-killed", detail, started)
        return _create_report("fail", ProbeCrashed.reason, detail, started)
    except ProviderMissing as error:  # the device lost it, the model is not to blame
        return _create_report("inconclusive", error.reason, error.message, started)
    except Refused as error:
        return _create_report("fail", CandidateMalformed.reason, f"{error.reason}: {error.message}", started)
    except Unfit as error:
        if is_written(type(error)):
            return _create_report("fail", error.reason, error.message, started)
        detail = f"at {stage}: unknown reason {error.reason!r}: {error.message}"
        return _create_report("fail", ProbeCrashed.reason, detail, started)
    peak_bytes = max(worker.memory_bytes("VmHWM") - before_bytes, 0)
    try:
        with parse_reply(MODULE):
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
        return _create_report("fail", ProbeCrashed.reason, error.message, started)


def _measure_ratio(
    worker: WorkerProcess,
    bundle: BundleFds,
    contracts: Contract | Sequence[Contract],
    health: Health,
    on_idle: Callable[[], None] | None,
) -> int | None:
    """Return the ratio to the reference graph, or None if it cannot be measured."""
    value, fds = bundle.to_message()
    request = {"contracts": _as_list(contracts), "bundle": value}
    try:
        reply = worker.call("measure", request, fds, deadline_s=health.probe_deadline_s, on_idle=on_idle)
        with parse_reply(MODULE):
            found = reply.value["ratio"]
            return None if found is None else int(found["ratio_ppm"])
    except (WorkerTimeout, WorkerFailed, WorkerCrashed, Refused, Unfit):
        return None


def _as_list(contracts: Contract | Sequence[Contract]) -> list[JsonObject]:
    return [each.as_json() for each in ((contracts,) if isinstance(contracts, Contract) else contracts)]


def compare_with_baseline(
    report: ProbeReport, health: Health, baseline: ProbeBaseline | None, *, cpu_share: float = 1.0
) -> ProbeReport:
    """Compare the measurements of a candidate that passed so far with the running model's (rule 5).

    Args:
        report: measurements of the candidate.
        health: the health contract of the candidate's variant.
        baseline: the running model's figures; None skips the comparison.
        cpu_share: processor seconds per elapsed second that the probe got.
    """
    if baseline is None:
        return report
    max_bytes = baseline.peak_bytes * health.probe_memory_percent // 100 + MEMORY_ALLOWANCE_BYTES
    if report.peak_bytes > max_bytes:
        detail = (
            f"peak memory {report.peak_bytes} bytes, at most {max_bytes} are allowed (running: {baseline.peak_bytes})"
        )
        return replace(report, verdict="fail", reason=TooMuchMemory.reason, detail=detail)
    max_us = baseline.latency_us * health.probe_latency_percent // 100 + LATENCY_ALLOWANCE_US
    if report.latency_us is not None and report.latency_us > max_us:
        detail = f"median latency {report.latency_us} us, at most {max_us} are allowed (running: {baseline.latency_us})"
        if cpu_share < MIN_CPU_SHARE:
            detail += f"; the probe had {cpu_share:.0%} of a processor"
            return replace(report, verdict="inconclusive", reason="cpu-contention", detail=detail)
        return replace(report, verdict="fail", reason=TooSlow.reason, detail=detail)
    return report


def _create_report(verdict: str, reason: str, detail: str, started: float) -> ProbeReport:
    return ProbeReport(verdict, reason, detail[:1000], elapsed_s=round(time.monotonic() - started, 3))


def _address_space_limit_bytes() -> int | None:
    available = [*_available_in_cgroups(), *_available_in_system()]
    return int(min(available) * ADDRESS_SPACE_SHARE) + RUNTIME_ADDRESS_SPACE_BYTES if available else None


def _available_in_system() -> list[int]:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    except (OSError, ValueError):
        return []


def _available_in_cgroups() -> list[int]:
    """Return the bytes that each control group of this process (cgroup v2) has left, if limited."""
    available = []
    try:
        own = next(line[3:] for line in Path("/proc/self/cgroup").read_text().splitlines() if line.startswith("0::"))
        group = Path(f"/sys/fs/cgroup{own}")
        for folder in (group, *group.parents[: len(Path(own).parts) - 1]):
            limit = (folder / "memory.max").read_text().strip() if (folder / "memory.max").exists() else "max"
            if limit != "max":
                available.append(max(int(limit) - int((folder / "memory.current").read_text()), 0))
    except (OSError, StopIteration, ValueError):
        pass  # no cgroup v2: the system's figure is used alone
    return available
