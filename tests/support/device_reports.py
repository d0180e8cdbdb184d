"""Reports and vitals with values that fit together."""

from dataclasses import replace
from typing import Any, Final

from bundle.device_report import DeviceReport
from bundle.vital import Vital

REPOSITORY: Final = "d" * 64
ROLLOUT: Final = "e" * 64
NOON_MS: Final = 1_767_268_800_000  # 2026-01-01T12:00:00Z
DAY: Final = NOON_MS // 86_400_000

_REPORT: Final = DeviceReport(
    log="1" * 32,
    sequence=1,
    previous=None,
    outcome="updated",
    reason="",
    state="committing",
    repository=REPOSITORY,
    family="kws",
    channel="stable",
    rollout=ROLLOUT,
    release="1.0.0",
    counter_epoch=0,
    counter=1,
    variant="int8",
    bundle=None,
    from_release=None,
    trigger="poll",
    started_ms=NOON_MS - 9_000,
    finished_ms=NOON_MS,
    agent="0.1.0",
    runtime="1.32.0",
)
_VITAL: Final = Vital(
    log="1" * 32,
    number=1,
    reports=1,
    day=DAY,
    repository=REPOSITORY,
    family="kws",
    channel="stable",
    rollout=ROLLOUT,
    offered="1.0.0",
    state="serving",
    reason="",
    release="1.0.0",
    counter_epoch=0,
    counter=1,
    variant="int8",
    probation="passed",
    served_days=0,
    restarts=0,
    requests=9,
    failed=0,
    free_storage=31,
    cpu="x86_64-avx2",
    agent="0.1.0",
    runtime="1.32.0",
)


def make_report(**changes: Any) -> DeviceReport:
    """Return the first report of a log: an update to 1.0.0, with some fields changed."""
    return replace(_REPORT, **changes)


def make_vital(**changes: Any) -> Vital:
    """Return a vital of a device that serves 1.0.0, with some fields changed."""
    return replace(_VITAL, **changes)
