"""Applications in Python and C, and an unchanged program: release, install, patch, verdict, plaintext search."""

from dataclasses import asdict
from pathlib import Path

import pytest

from packager.demo.app_programs import c_command
from packager.demo.apps_demo import AppsDemo
from tests.support.json_schemas import check_schema


def test_applications_follow_releases_and_reject_a_bad_one(tmp_path: Path) -> None:
    report = AppsDemo(tmp_path, lambda _line: None).play()
    assert report.has_passed, report.checks
    assert report.verdict.endswith("judges it unhealthy: no words")
    check_schema("demo-apps", {"ok": report.has_passed, **asdict(report)})


def test_without_a_compiler_there_is_no_c_application(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert c_command(tmp_path) is None
