"""Counters of the updates since the supervisor's start, in the Prometheus text format.

The front appends them to its own metrics. Names follow the Prometheus conventions: base units, and `_total` for what
only grows. Durations of phases are summaries without quantiles: a device updates too rarely for a distribution.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Final

from device_agent.policy.attempt import DOWNTIME, Outcome, UpdateResult
from device_agent.policy.download_bytes import DownloadKind

if TYPE_CHECKING:
    from device_agent.runtime.probe_runner import ProbeReport  # not in memory at rest

METRIC_PREFIX: Final = "airweights_"
SWAP_RESULTS: Final = {Outcome.UPDATED: "committed", Outcome.ROLLED_BACK: "rolled-back"}

Sample = tuple[str, str, float]  # suffix of the name, labels, value
Metric = tuple[str, str, str, Iterable[Sample]]  # name without the prefix, type, help text, samples


class UpdateMetrics:
    """Update counters of one family.

    Args:
        family: name of the family, the value of the label `family`.
    """

    def __init__(self, family: str) -> None:
        self._family = family
        self._updates_by_outcome: Counter[str] = Counter()
        self._swaps_by_result: Counter[str] = Counter(dict.fromkeys((*SWAP_RESULTS.values(), "failed"), 0))
        self._rollbacks_by_reason: Counter[str] = Counter()
        self._phases_ms: Counter[str] = Counter()
        self._phase_counts: Counter[str] = Counter()
        self._download_bytes_by_kind: Counter[str] = Counter(dict.fromkeys(map(str, DownloadKind), 0))
        self._downtime_ms = 0
        self._last_switch_us: int | None = None
        self._fidelity_ppm: int | None = None

    def record(self, result: UpdateResult) -> None:
        """Count a finished attempt."""
        attempt = result.attempt
        self._updates_by_outcome[result.outcome.value] += 1
        if attempt.swap_us is not None or "swap" in attempt.phases_ms:
            self._swaps_by_result[SWAP_RESULTS.get(result.outcome, "failed")] += 1
        if result.outcome is Outcome.ROLLED_BACK:
            self._rollbacks_by_reason[result.reason] += 1
        for kind in DownloadKind:
            self._download_bytes_by_kind[kind.value] += getattr(attempt.downloaded, kind.value)
        for name, elapsed_ms in attempt.phases_ms.items():
            if name == DOWNTIME:
                self._downtime_ms += elapsed_ms
            else:
                self._phase_counts[name] += 1
                self._phases_ms[name] += elapsed_ms
        if attempt.swap_us is not None:
            self._last_switch_us = attempt.swap_us

    def record_probe(self, report: "ProbeReport | None") -> None:
        """Store the fidelity of the last candidate whose probe passed; None is ignored."""
        if report is not None and report.worst_relative_rms_ppm is not None:
            self._fidelity_ppm = report.worst_relative_rms_ppm

    def metrics(self) -> Iterator[Metric]:
        """Yield all metrics of the family."""
        yield (
            "updates_total",
            "counter",
            "Update attempts, by outcome.",
            self._samples_by_label("outcome", self._updates_by_outcome),
        )
        yield (
            "swaps_total",
            "counter",
            "Attempted swaps, by result.",
            self._samples_by_label("result", self._swaps_by_result),
        )
        yield (
            "rollbacks_total",
            "counter",
            "Rollbacks, by reason.",
            self._samples_by_label("reason", self._rollbacks_by_reason),
        )
        yield (
            "update_phase_duration_seconds",
            "summary",
            "Duration of each update phase.",
            [
                sample
                for name in self._phase_counts
                for sample in (
                    ("_sum", self._labels(phase=name), self._phases_ms[name] / 1000),
                    ("_count", self._labels(phase=name), self._phase_counts[name]),
                )
            ],
        )
        yield (
            "download_bytes_total",
            "counter",
            "Bytes received from the repository, by kind.",
            self._samples_by_label("kind", self._download_bytes_by_kind),
        )
        yield (
            "swap_downtime_seconds_total",
            "counter",
            "Time without a model, because two did not fit into memory.",
            [("", self._labels(), self._downtime_ms / 1000)],
        )
        if self._last_switch_us is not None:
            yield (
                "last_switch_duration_seconds",
                "gauge",
                "Duration of the most recent switch.",
                [("", self._labels(), self._last_switch_us / 1e6)],
            )
        if self._fidelity_ppm is not None:
            yield (
                "probe_worst_relative_rms_ratio",
                "gauge",
                "Largest relative RMS error of the last candidate's golden outputs.",
                [("", self._labels(), self._fidelity_ppm / 1e6)],
            )

    def _samples_by_label(self, label: str, counter: Counter[str]) -> list[Sample]:
        return [("", self._labels(**{label: value}), count) for value, count in counter.items()]

    def _labels(self, **further: str) -> str:
        labels = {"family": self._family, **further}
        return "{" + ",".join(f'{name}="{value}"' for name, value in labels.items()) + "}"


def render_update_metrics(families_metrics: Iterable[UpdateMetrics]) -> str:
    """Return the metrics of all families as text; each metric has one HELP and one TYPE line."""
    found: dict[str, tuple[str, str, list[Sample]]] = {}
    for metrics in families_metrics:
        for name, kind, text, samples in metrics.metrics():
            found.setdefault(name, (kind, text, []))[2].extend(samples)
    lines: list[str] = []
    for name, (kind, text, rows) in found.items():
        lines += [f"# HELP {METRIC_PREFIX}{name} {text}", f"# TYPE {METRIC_PREFIX}{name} {kind}"]
        lines += [f"{METRIC_PREFIX}{name}{suffix}{labels} {value:.10g}" for suffix, labels, value in rows]
    return "\n".join(lines) + "\n"
