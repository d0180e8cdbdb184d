"""`/metrics` follows Prometheus' text format and its conventions for names."""

import re
from collections.abc import Iterator

import pytest

from device_agent.daemon.update_metrics import UpdateMetrics, render_update_metrics
from device_agent.policy.attempt import DOWNTIME, Attempt, Outcome, UpdateResult
from device_agent.policy.download_bytes import DownloadBytes
from device_agent.runtime.probe_runner import ProbeReport
from tests.support.load_clients import connect, post
from tests.support.memfd_bundles import create_memfd_bundle, make_scale_model, start_front
from tests.support.prometheus_text import SUFFIXES, Metric, parse_metrics

UNITS = ("_seconds", "_bytes", "_joules", "_ratio", "_info")


def check_conventions(found: dict[str, Metric]) -> None:
    """Check names, kinds and units."""
    for name, metric in found.items():
        assert re.fullmatch(r"airweights_[a-z][a-z0-9_]*", name)
        assert metric.help_text.endswith("."), f"{name} has no sentence"
        assert name.endswith("_total") == (metric.kind == "counter"), name
        assert not re.search(r"_(ms|us|milliseconds|mib|kb|percent|ppm)(_|$)", name), f"{name} is in no base unit"
        if metric.kind in ("histogram", "summary"):
            assert name.endswith(UNITS)
        for suffix, labels in metric.samples:
            assert suffix in SUFFIXES[metric.kind], (name, suffix)
            assert not {"le", "quantile"} & {key for key, _ in labels} or suffix == "_bucket"


def buckets_of(metric: Metric) -> Iterator[tuple[list[float], float]]:
    """Return the cumulative counts of each series of a histogram, and its _count."""
    series: dict[tuple[tuple[str, str], ...], list[tuple[float, float]]] = {}
    for (suffix, labels), value in metric.samples.items():
        if suffix == "_bucket":
            rest = tuple(pair for pair in labels if pair[0] != "le")
            series.setdefault(rest, []).append((float(dict(labels)["le"]), value))
    for labels, rows in series.items():
        yield [value for _, value in sorted(rows)], metric.samples["_count", labels]


@pytest.fixture
def tally() -> UpdateMetrics:
    """Return metrics of one update, one rollback, and one failure before a swap."""
    tally = UpdateMetrics("toy")
    phases = {"check": 10, "probe": 1500, "swap": 20, "probation": 30_000}
    good = Attempt(
        1, "poll", 0, downloaded=DownloadBytes(patch=7), patch_bytes=7, full_bytes=90, phases_ms=phases, swap_us=80
    )
    bad = Attempt(
        2,
        "poll",
        0,
        downloaded=DownloadBytes(metadata=5, full=90),
        patch_bytes=90,
        full_bytes=90,
        phases_ms={"swap": 5, DOWNTIME: 250},
    )
    tally.record(UpdateResult(good, Outcome.UPDATED, "", "", 1))
    tally.record(UpdateResult(bad, Outcome.ROLLED_BACK, "probation-failed", "NaN", 1))
    tally.record(UpdateResult(Attempt(3, "poll", 0), Outcome.UNAVAILABLE, "download-failed", "", 1))
    tally.record_probe(ProbeReport("pass", worst_relative_rms_ppm=120))
    return tally


def test_the_supervisors_counters_add_up(tally: UpdateMetrics) -> None:
    found = parse_metrics(render_update_metrics([tally]))
    check_conventions(found)

    def value(name: str, suffix: str = "", **labels: str) -> float:
        return found[f"airweights_{name}"].samples[suffix, (("family", "toy"), *labels.items())]

    assert value("updates_total", outcome="updated") == 1
    assert [value("swaps_total", result=result) for result in ("committed", "rolled-back", "failed")] == [1, 1, 0]
    assert value("rollbacks_total", reason="probation-failed") == 1
    assert (value("download_bytes_total", kind="patch"), value("download_bytes_total", kind="full")) == (7, 90)
    assert value("update_phase_duration_seconds", "_sum", phase="swap") == pytest.approx(0.025)
    assert value("update_phase_duration_seconds", "_count", phase="swap") == 2
    assert value("swap_downtime_seconds_total") == 0.25
    assert value("last_switch_duration_seconds") == pytest.approx(8e-5)
    assert value("probe_worst_relative_rms_ratio") == pytest.approx(1.2e-4)


def test_several_families_share_the_heading_of_a_metric(tally: UpdateMetrics) -> None:
    text = render_update_metrics([tally, UpdateMetrics("other")])
    found = parse_metrics(text)
    check_conventions(found)
    heads = [line.split()[2] for line in text.splitlines() if line.startswith("# TYPE ")]
    assert len(heads) == len(set(heads))
    samples = found["airweights_swaps_total"].samples
    results = ("committed", "rolled-back", "failed")
    assert [samples["", (("family", "toy"), ("result", result))] for result in results] == [1, 1, 0]
    assert [samples["", (("family", "other"), ("result", result))] for result in results] == [0, 0, 0]


def test_all_metrics_together_are_in_the_format_and_keep_the_conventions(tally: UpdateMetrics) -> None:
    with create_memfd_bundle(make_scale_model(2.0)) as bundle, start_front() as served:
        process = bundle.start_process(1)
        served.publish("toy", process)
        served.push_metrics(render_update_metrics([tally]))
        assert post(served.address)[0] == 200
        assert post(served.address, b"{")[0] == 400
        connection = connect(served.address)
        connection.request("GET", "/metrics")
        found = parse_metrics(connection.getresponse().read().decode())
        connection.close()
        check_conventions(found)
        for name in ("request_duration_seconds", "inference_duration_seconds"):
            for cumulative, count in buckets_of(found[f"airweights_{name}"]):
                assert cumulative == sorted(cumulative)
                assert cumulative[-1] == count
        processes = {dict(labels)["process"] for _, labels in found["airweights_resident_bytes"].samples}
        assert processes == {"supervisor", "front", "model"}
        assert all(value > 10e6 for value in found["airweights_resident_bytes"].samples.values())
        assert all(value > 0 for value in found["airweights_cpu_seconds_total"].samples.values())
        process.stop()
