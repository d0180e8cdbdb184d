"""Probe candidates, compare them with the running model, and turn a failed report into an error.

Rules:
- A candidate is refused as too slow or too large only against the running model on equal inputs: the golden inputs of
  the candidate, if both have one contract. The running model is then measured anew and the candidate is probed a second
  time, also because the device may only be busier than it was at the first probe.
- The report of the running model's own probe, on its own golden inputs, is used for the first comparison only.
- An inconclusive probe says nothing about the candidate, which is not quarantined.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from bundle.contract import Contract
from bundle.errors import Unfit
from bundle.files import BundleDigest
from bundle.variant import Variant
from device_agent.config.serve import ServeSettings
from device_agent.errors import ProbeInconclusive, TooMuchMemory, TooSlow, unfit_class
from device_agent.process.jail import PROBE_NICENESS, JailPolicy
from device_agent.runtime.bundle_fds import BundleFds
from device_agent.serving.family_serving import Generation
from device_agent.workers.worker_pool import WorkerPool

if TYPE_CHECKING:
    from device_agent.runtime.probe_runner import ProbeBaseline, ProbeReport  # not in memory at rest

RELATIVE_REASONS: Final = (TooSlow.reason, TooMuchMemory.reason)


class ProbeClient:
    """Probes candidates and keeps the measurements by bundle.

    Args:
        serve: threads, plug-ins and device nodes of the model session, as in service.
        allow_unjailed: probe without a jail if the kernel offers none.
        on_idle: called repeatedly during a probe; an error that it raises ends the probe, and is raised.

    Attributes:
        serve: settings of the next probe.
        on_idle: as given.
        last_report: the last report that passed, or None.
    """

    def __init__(
        self, serve: ServeSettings, *, allow_unjailed: bool, on_idle: Callable[[], None] | None = None
    ) -> None:
        self.on_idle = on_idle
        self.serve = serve
        self._allow_unjailed = allow_unjailed
        self._baselines: dict[BundleDigest, ProbeBaseline] = {}
        self.last_report: ProbeReport | None = None

    @property
    def jail(self) -> JailPolicy:
        """The policy of the probe process."""
        return JailPolicy(
            nice=PROBE_NICENESS,
            lock_memory=True,
            allow_unjailed=self._allow_unjailed,
            provider_libraries=self.serve.provider_libraries,
            devices=self.serve.devices,
        )

    def probe(
        self,
        fds: BundleFds,
        variant: Variant,
        running: Generation | None,
        workers: WorkerPool,
        *,
        measures_ratio: bool = False,
    ) -> "ProbeReport":
        """Probe a candidate against the running model.

        Args:
            fds: the candidate's unsealed files; the caller closes them.
            variant: the candidate.
            running: the generation that serves, or None.
            workers: unseals the running bundle if it has to be measured.
            measures_ratio: also measure the ratio to the reference graph.

        Returns:
            The report, whose verdict is "pass".

        Raises:
            Unfit: the candidate failed; the class is the one of the report's reason.
            ProbeInconclusive: the probe could not judge the candidate.
        """
        baseline = None
        if running is not None and running.digest != variant.digest:
            baseline = self._baselines.get(running.digest) or self._measure_running(running, workers, fds, variant)
        report = self._run_probe(fds, variant, baseline, measures_ratio=measures_ratio)
        if running is not None and report.verdict == "fail" and report.reason in RELATIVE_REASONS:
            report = self._run_probe(fds, variant, self._measure_running(running, workers, fds, variant))
        if report.verdict == "inconclusive":
            raise ProbeInconclusive(f"{report.reason}: {report.detail}")
        if report.verdict != "pass":
            raise probe_error(report)
        measured = report.baseline()
        if measured is not None:
            self._baselines[variant.digest] = measured
        self.last_report = report
        return report

    def measure_ratio(self, fds: BundleFds, variant: Variant) -> int | None:
        """Return a bundle's ratio to the reference graph in ppm, or None if its probe does not pass.

        Args:
            fds: the bundle's unsealed files; the caller closes them.
            variant: its variant.
        """
        return self._run_probe(fds, variant, None, measures_ratio=True).reference_ratio_ppm

    def latency_us(self, digest: BundleDigest) -> int | None:
        """Return the median latency of a bundle's golden inputs in microseconds, or None."""
        measured = self._baselines.get(digest)
        return None if measured is None else measured.latency_us

    def _run_probe(
        self,
        fds: BundleFds,
        variant: Variant,
        baseline: "ProbeBaseline | None",
        *,
        compares_outputs: bool = True,
        measures_ratio: bool = False,
    ) -> "ProbeReport":
        from device_agent.runtime.probe_runner import run_probe_process  # not in memory at rest

        return run_probe_process(
            fds,
            _contracts(variant),
            variant.health,
            baseline,
            self.jail,
            threads=self.serve.threads,
            compares_outputs=compares_outputs,
            measures_ratio=measures_ratio,
            on_idle=self.on_idle,
        )

    def _measure_running(
        self, running: Generation, workers: WorkerPool, candidate_fds: BundleFds, candidate: Variant
    ) -> "ProbeBaseline | None":
        fds = workers.patcher.unseal(running.bundle)
        try:
            same_inputs, compares_outputs = fds, True
            if candidate_fds.golden is not None and _interfaces(running.variant) == _interfaces(candidate):
                same_inputs = fds.with_golden_of(candidate_fds)
                compares_outputs = False  # they are the candidate's
            measured = self._run_probe(same_inputs, running.variant, None, compares_outputs=compares_outputs).baseline()
        finally:
            fds.close()
        if measured is not None:
            self._baselines[running.digest] = measured
        return measured


def _contracts(variant: Variant) -> tuple[Contract, ...]:
    return tuple(model.contract for model in variant.models)


def _interfaces(variant: Variant) -> tuple[tuple[str, Contract], ...]:
    return tuple((model.name, model.contract) for model in variant.models)


def probe_error(report: "ProbeReport") -> Unfit:
    """Return the error of a failed probe: the written class with the report's reason.

    Raises:
        Bug: no class has the reason. `run_probe_process` reports reasons of written classes only.
    """
    return unfit_class(report.reason)(report.detail or report.reason)
