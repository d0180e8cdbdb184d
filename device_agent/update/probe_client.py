"""Tries a candidate against the model that runs here, and turns the report into an error or nothing.

Rules:
1. The running model's numbers are those of its own probe. A candidate that looks too slow or too fat against them is
   tried again beside a fresh measurement of the running model: the device may simply be busier than it was then.
2. `inconclusive` says nothing about the candidate: nothing is marked.
"""

from typing import Final

from bundle.errors import Unfit
from bundle.files import BundleDigest
from bundle.manifest import Variant
from device_agent.errors import ProbeInconclusive
from device_agent.process.jail import JailPolicy
from device_agent.runtime.handles import BundleFds, ProbeBaseline, ProbeReport, run_probe_process
from device_agent.runtime.probe_runner import PROBE_NICENESS
from device_agent.serving.family_serving import Generation
from device_agent.workers.worker_pool import WorkerPool

RELATIVE_REASONS: Final = ("too-slow", "too-fat")


class ProbeClient:
    """Keeps the numbers of what was probed, by bundle.

    Attributes:
        last: the last report that passed.

    Args:
        threads: of a model process.
        allow_unjailed: go on where the kernel offers no jail.
    """

    def __init__(self, threads: int, *, allow_unjailed: bool) -> None:
        self._threads = threads
        self._jail = JailPolicy(nice=PROBE_NICENESS, lock_memory=True, allow_unjailed=allow_unjailed)
        self._baselines: dict[BundleDigest, ProbeBaseline] = {}
        self.last_report: ProbeReport | None = None

    def probe(self, fds: BundleFds, variant: Variant, running: Generation | None, workers: WorkerPool) -> ProbeReport:
        """Rules 1 and 2.

        Args:
            fds: the candidate's plain files.
            running: what serves now, or None.
            errands: to unseal what runs.

        Raises:
            Unfit: with the probe's own reason; ProbeInconclusiveUnfit.
        """
        baseline = None
        if running is not None and running.digest != variant.digest:
            baseline = self._baselines.get(running.digest) or self._measure_running(running, workers)
        report = self._run_probe(fds, variant, baseline)
        if running is not None and report.verdict == "fail" and report.reason in RELATIVE_REASONS:
            report = self._run_probe(fds, variant, self._measure_running(running, workers))
        if report.verdict == "inconclusive":
            raise ProbeInconclusive(f"{report.reason}: {report.detail}")
        if report.verdict != "pass":
            raise probe_error(report)
        measured = report.baseline()
        if measured is not None:
            self._baselines[variant.digest] = measured
        self.last_report = report
        return report

    def _run_probe(self, fds: BundleFds, variant: Variant, baseline: ProbeBaseline | None) -> ProbeReport:
        return run_probe_process(fds, variant.contract, variant.health, baseline, self._jail, threads=self._threads)

    def _measure_running(self, running: Generation, workers: WorkerPool) -> ProbeBaseline | None:
        fds = workers.unseal(running.bundle)
        try:
            measured = self._run_probe(fds, running.variant, None).baseline()
        finally:
            fds.close()
        if measured is not None:
            self._baselines[running.digest] = measured
        return measured


def probe_error(report: ProbeReport) -> Unfit:
    """The error for a failed probe: its `reason` is the report's own."""
    # made on the spot, since the probe's reasons are an open set: a refused bundle keeps the reason that refused it
    return _of_reason(report.reason)(report.detail or report.reason)


_CLASSES: Final[dict[str, type[Unfit]]] = {}


def _of_reason(reason: str) -> type[Unfit]:
    if reason not in _CLASSES:
        _CLASSES[reason] = type("ProbeFailedUnfit", (Unfit,), {"reason": reason})
    return _CLASSES[reason]
