"""Probe candidates, compare them with the running model, and turn a failed report into an error.

Rules:
- The baseline of a candidate is the report of the running model's own probe. If the candidate looks too slow or needs
  too much memory against it, the running model is measured again and the candidate is probed a second time, because
  the device may only be busier than it was at the first probe.
- An inconclusive probe says nothing about the candidate, which is not quarantined.
"""

from typing import Final

from bundle.errors import Unfit
from bundle.files import BundleDigest
from bundle.variant import Variant
from device_agent.errors import ProbeInconclusive, TooMuchMemory, TooSlow, unfit_class
from device_agent.process.jail import JailPolicy
from device_agent.runtime.handles import BundleFds, ProbeBaseline, ProbeReport, run_probe_process
from device_agent.runtime.probe_runner import PROBE_NICENESS
from device_agent.serving.family_serving import Generation
from device_agent.workers.worker_pool import WorkerPool

RELATIVE_REASONS: Final = (TooSlow.reason, TooMuchMemory.reason)


class ProbeClient:
    """Probes candidates and keeps the measurements by bundle.

    Args:
        threads: number of threads of the model session, as in service.
        allow_unjailed: probe without a jail if the kernel offers none.

    Attributes:
        last_report: the last report that passed, or None.
    """

    def __init__(self, threads: int, *, allow_unjailed: bool) -> None:
        self._threads = threads
        self._jail = JailPolicy(nice=PROBE_NICENESS, lock_memory=True, allow_unjailed=allow_unjailed)
        self._baselines: dict[BundleDigest, ProbeBaseline] = {}
        self.last_report: ProbeReport | None = None

    def probe(self, fds: BundleFds, variant: Variant, running: Generation | None, workers: WorkerPool) -> ProbeReport:
        """Probe a candidate against the running model.

        Args:
            fds: the candidate's unsealed files; the caller closes them.
            variant: the candidate.
            running: the generation that serves, or None.
            workers: unseals the running bundle if it has to be measured.

        Returns:
            The report, whose verdict is "pass".

        Raises:
            Unfit: the candidate failed; the class is the one of the report's reason.
            ProbeInconclusive: the probe could not judge the candidate.
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
        return run_probe_process(
            fds, variant.require_model().contract, variant.health, baseline, self._jail, threads=self._threads
        )

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
    """Return the error of a failed probe: the written class with the report's reason.

    Raises:
        Bug: no class has the reason. `run_probe_process` reports reasons of written classes only.
    """
    return unfit_class(report.reason)(report.detail or report.reason)
