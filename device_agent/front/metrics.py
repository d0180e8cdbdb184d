"""The front's metrics in Prometheus' text format (version 0.0.4).

Values are in base units, and names of counters end with `_total`. The labels are `family` and `version`. Counters of
unloaded versions stay for a while (generations.MAX_PAST_VERSIONS), so that a rate over a swap adds up.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from bundle.version import VERSION
from device_agent.front.connections import ConnectionTable
from device_agent.front.front_generation import CounterWindow
from device_agent.front.generations import FamilyQueue
from device_agent.host.meters import EnergyMeter, ProcessMeter
from device_agent.runtime.latency import LatencyHistogram

CONTENT_TYPE: Final = (b"content-type", b"text/plain; version=0.0.4; charset=utf-8")
# Prometheus' default buckets, and two below them for small models
BUCKET_BOUNDS_S: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)

Sample = tuple[str, str, float]  # suffix of the name, labels, value


@dataclass(eq=False, slots=True)
class ProcessMeters:
    """Meters that are read for each `/metrics` request.

    Their files were opened before the jail closed, or came from the supervisor.

    Attributes:
        energy: energy meters of the machine.
        processes: meters of the processes, by the labels that name them.
    """

    energy: tuple[EnergyMeter, ...] = ()
    processes: dict[str, ProcessMeter] = field(default_factory=dict)

    def set_meter(self, labels: str, meter: ProcessMeter) -> None:
        """Set the meter of a process; close an earlier one with the same labels.

        Args:
            labels: the process's labels, as in the text format.
            meter: the meter; this object closes it later.
        """
        self.delete_meter(labels)
        self.processes[labels] = meter

    def delete_meter(self, labels: str) -> None:
        """Close and forget the meter of a process, if there is one."""
        before = self.processes.pop(labels, None)
        if before is not None:
            before.close()


def render_metrics(
    queues: Mapping[str, FamilyQueue], connections: ConnectionTable, meters: ProcessMeters, further: bytes
) -> bytes:
    """Return the body of `/metrics`.

    Args:
        queues: the families.
        connections: the open connections.
        meters: meters of the processes and the machine.
        further: the supervisor's part, in the same format.
    """
    lines: list[str] = []
    for name, kind, text, samples in (*_family_metrics(queues, connections), *_resource_metrics(meters)):
        lines += [f"# HELP airweights_{name} {text}", f"# TYPE airweights_{name} {kind}"]
        lines += [f"airweights_{name}{suffix}{labels} {value:.10g}" for suffix, labels, value in samples]
    return ("\n".join(lines) + "\n").encode() + further


def _family_metrics(
    queues: Mapping[str, FamilyQueue], connections: ConnectionTable
) -> Iterator[tuple[str, str, str, Iterable[Sample]]]:
    counted = [
        (slot, f'family="{slot.family}",version="{version}"', window)
        for slot in queues.values()
        for version, window in slot.lifetimes().items()
    ]
    yield "build_info", "gauge", "Version of the agent.", [("", f'{{version="{VERSION}"}}', 1)]
    yield (
        "requests_total",
        "counter",
        "Inference requests with a response, by class of status.",
        _samples_by_code(counted),
    )
    yield (
        "nan_responses_total",
        "counter",
        "Responses with NaN or infinity produced by the model.",
        [("", f"{{{labels}}}", window.nan_responses) for _, labels, window in counted],
    )
    yield (
        "model_process_crashes_total",
        "counter",
        "Crashes of a serving model process.",
        [("", f"{{{labels}}}", window.crashes) for _, labels, window in counted],
    )
    yield (
        "request_duration_seconds",
        "histogram",
        "Time from a request's arrival to its response.",
        _histogram_samples((labels, window.total_us) for _, labels, window in counted),
    )
    yield (
        "inference_duration_seconds",
        "histogram",
        "Time in the model process, successful requests only.",
        _histogram_samples((labels, window.busy_us) for _, labels, window in counted),
    )
    yield (
        "requests_rejected_total",
        "counter",
        "Requests rejected with 503 because a limit was reached.",
        [("", f'{{family="{slot.family}"}}', slot.rejected_requests) for slot in queues.values()],
    )
    yield (
        "requests_in_flight",
        "gauge",
        "Requests that a model process is computing.",
        [
            ("", f'{{family="{slot.family}"}}', sum(len(g.leases) for g in slot.generations.values()))
            for slot in queues.values()
        ],
    )
    yield (
        "requests_waiting",
        "gauge",
        "Requests that wait for a model process.",
        [("", f'{{family="{slot.family}"}}', len(slot.waiting_requests)) for slot in queues.values()],
    )
    yield (
        "generation_switches_total",
        "counter",
        "Changes of the serving generation, rollbacks included.",
        [("", f'{{family="{slot.family}"}}', slot.switches) for slot in queues.values()],
    )
    yield (
        "model_info",
        "gauge",
        "Version of the serving release.",
        [
            ("", f'{{family="{slot.family}",version="{slot.current.version}"}}', 1)
            for slot in queues.values()
            if slot.current
        ],
    )
    yield (
        "model_ready",
        "gauge",
        "1 while a model process can respond, else 0.",
        [("", f'{{family="{slot.family}"}}', slot.is_ready) for slot in queues.values()],
    )
    yield "open_connections", "gauge", "Open connections to the endpoint.", [("", "", len(connections))]
    yield (
        "connections_evicted_total",
        "counter",
        "Connections that gave way to others.",
        [("", "", connections.evictions)],
    )


def _resource_metrics(meters: ProcessMeters) -> Iterator[tuple[str, str, str, Iterable[Sample]]]:
    processes = meters.processes.items()
    yield (
        "cpu_seconds_total",
        "counter",
        "CPU time of a process.",
        [("", f"{{{labels}}}", meter.cpu_s()) for labels, meter in processes],
    )
    yield (
        "resident_bytes",
        "gauge",
        "Resident memory of a process.",
        [("", f"{{{labels}}}", meter.resident_bytes()) for labels, meter in processes],
    )
    joules = [(meter.zone, meter.read_joules()) for meter in meters.energy]
    yield (
        "energy_joules_total",
        "counter",
        "Energy used by the machine, by zone.",
        [("", f'{{zone="{zone}"}}', found) for zone, found in joules if found is not None],
    )


def _samples_by_code(counted: Iterable[tuple[FamilyQueue, str, CounterWindow]]) -> Iterator[Sample]:
    for _, labels, window in counted:
        good = window.requests - window.client_errors - window.errors
        for code, count in (("2xx", good), ("4xx", window.client_errors), ("5xx", window.errors)):
            yield "", f'{{{labels},code="{code}"}}', count


def _histogram_samples(histograms: Iterable[tuple[str, LatencyHistogram]]) -> Iterator[Sample]:
    for labels, histogram in histograms:
        for bound_s in BUCKET_BOUNDS_S:
            yield "_bucket", f'{{{labels},le="{bound_s:g}"}}', histogram.count_below(bound_s * 1e6)
        yield "_bucket", f'{{{labels},le="+Inf"}}', histogram.count
        yield "_sum", f"{{{labels}}}", histogram.total_us / 1e6
        yield "_count", f"{{{labels}}}", histogram.count
