"""/metrics in the text format of Prometheus; no group below MIN_GROUP devices is in it."""

from collections.abc import Iterator
from typing import Final

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from fleet.queries import FleetTotals, ReleaseCounts
from fleet.web.privacy import without_small_groups

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
PREFIX: Final = "airweights_fleet_"


class FleetCollector(Collector):
    """The metrics of one scrape.

    Args:
        totals: sums over the whole store.
        releases: the counts of all releases; small groups are left out here.
        lines: lines of this process: new, known, refused.
    """

    def __init__(self, totals: FleetTotals, releases: list[ReleaseCounts], lines: dict[str, int]) -> None:
        self._totals, self._releases, self._lines = totals, without_small_groups(releases), lines

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics of this scrape."""
        totals = self._totals
        for name, text, value in (
            ("registered_devices", "Registered devices that are not revoked", totals.registered),
            ("heard_devices", "Registered devices that sent a line", totals.heard),
            ("silent_devices", "Heard devices without a line for 7 days", totals.silent),
            ("suspect_devices", "Devices whose lines contradict each other", totals.suspects),
            ("newest_line_timestamp_seconds", "Receipt of the newest line", totals.newest_s),
        ):
            yield GaugeMetricFamily(PREFIX + name, text, value=value)
        devices = GaugeMetricFamily(
            f"{PREFIX}devices", "Devices by release and state", labels=["family", "channel", "release", "state"]
        )
        failures = GaugeMetricFamily(
            f"{PREFIX}failed_devices", "Failed devices by reason", labels=["family", "channel", "release", "reason"]
        )
        for one in self._releases:
            head = (one.family, one.channel, one.release)
            for state, count in one.values.get("state", {}).items():
                devices.add_metric([*head, state], count)
            for reason, count in one.values.get("failure", {}).items():
                failures.add_metric([*head, reason], count)
        yield devices
        yield failures
        lines = CounterMetricFamily(f"{PREFIX}lines", "Lines since the start of the server", labels=["result"])
        for result, count in self._lines.items():
            lines.add_metric([result], count)
        yield lines
        refused = CounterMetricFamily(f"{PREFIX}refused_lines", "Refused lines in the store", labels=["reason"])
        for reason, count in totals.refused.items():
            refused.add_metric([reason], count)
        yield refused


def render_metrics(totals: FleetTotals, releases: list[ReleaseCounts], lines: dict[str, int]) -> bytes:
    """Return the metrics of one scrape.

    Args:
        totals: sums over the whole store.
        releases: the counts of all releases.
        lines: lines of this process: new, known, refused.
    """
    registry = CollectorRegistry()
    registry.register(FleetCollector(totals, releases, lines))
    return generate_latest(registry)
