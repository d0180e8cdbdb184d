"""Real agents of two CPU classes: a release that fails live on one class is halted by itself, and no request fails."""

from dataclasses import asdict
from pathlib import Path

from packager.demo.fleet_demo import FleetDemo
from tests.support.json_schemas import check_schema

DEVICES = 7  # four of the failing class, three of the other; the command has twelve
OF_FAILING_CLASS = 4


def test_a_release_that_fails_on_one_class_is_halted_by_itself(tmp_path: Path) -> None:
    report = FleetDemo(tmp_path / "demo", lambda _line: None, DEVICES).play(tmp_path / "fleet.html")
    assert report.has_passed, report.checks
    assert report.halted_after_s is not None
    assert 3 <= report.failing_devices < OF_FAILING_CLASS
    assert "<html" in (tmp_path / "fleet.html").read_text("utf-8")
    check_schema("demo-fleet", {"ok": report.has_passed, **asdict(report)})
