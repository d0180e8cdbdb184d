"""A device writes one chained report per terminal outcome, and the release team accepts them."""

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from bundle.device_report import parse_report
from device_agent.commands.report_export import export_reports, read_reports
from device_agent.policy import outcome_report
from device_agent.policy.attempt import Outcome
from device_agent.policy.outcome_report import MAX_REPORTS
from device_agent.policy.state_machine import Event
from tests.support.faulty_http_server import serve_folder
from tests.support.json_schemas import check_schema
from tests.support.packager_cli import run_packager
from tests.support.publisher import FAMILY, DeviceUnderTest, Publisher


def test_what_a_device_went_through_is_reported_and_accepted(
    first_publisher: Publisher, first_device: DeviceUnderTest, tmp_path: Path
) -> None:
    publisher = first_publisher.copy(tmp_path / "site")
    publisher.release("1.2.0", seed=2, drill="damaged-weights", is_shared=True)
    with serve_folder(publisher.published) as site:
        device = first_device.copy(tmp_path / "lab", site.url)
        update_result = device.update()
        assert (update_result.outcome, update_result.reason) == (Outcome.UNFIT, "golden-mismatch")
        assert device.update().reason == "bundle-quarantined"
        assert device.update().reason == "bundle-quarantined"  # the same again is no news
    result = device.command("report", "list", "--json")
    assert result.returncode == 0, result.stderr
    check_schema("agent-report-list", json.loads(result.stdout))
    rows = [(row["sequence"], row["outcome"], row["reason"]) for row in json.loads(result.stdout)["reports"]]
    assert rows == [(1, "updated", ""), (2, "unfit", "golden-mismatch"), (3, "refused", "bundle-quarantined")]
    out = tmp_path / "reports.jsonl"
    exported = device.command("report", "export", "-o", str(out), "--json")
    assert exported.returncode == 0, exported.stderr
    check_schema("agent-report-export", json.loads(exported.stdout))
    taken = run_packager("fleet", "ingest", out, "--repo", publisher.repository.root, "--json")
    assert taken.code == 0, taken.stderr
    check_schema("fleet-ingest", taken.json)
    assert (taken.json["new"], taken.json["refused"]) == (3, [])
    assert str(device.folder) not in out.read_text(), "no path of the device leaves it"


def test_only_the_last_reports_are_kept_and_the_numbers_say_so(
    first_device: DeviceUnderTest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert MAX_REPORTS == 256, "what the documentation says"
    kept = 20
    monkeypatch.setattr(outcome_report, "MAX_REPORTS", kept)
    device = first_device.copy(tmp_path / "lab", "http://127.0.0.1:9")
    journal = device.journal()
    try:
        (first,) = journal.reports()
        followed = journal.persistent_state.followed
        for number in range(kept + 3):
            attempt = journal.begin_attempt("operator")
            found = replace(attempt, release="1.1.0", followed=followed)
            journal.end_attempt(found, Event.ABORTED, Outcome.REFUSED, f"reason-{number}")
        stored_reports = journal.reports()
    finally:
        journal.close()
    assert len(stored_reports) == kept
    assert stored_reports[-1].sequence == kept + 4
    assert stored_reports[0].sequence == 5
    for before, after in pairwise(stored_reports):
        assert after.previous == before.digest()
        assert after.log == first.log
    assert [report.sequence for report in read_reports(device.config, after=stored_reports[-2].sequence)] == [
        stored_reports[-1].sequence
    ]


def test_a_check_that_a_mirror_makes_fail_is_no_report(
    first_publisher: Publisher, first_device: DeviceUnderTest, tmp_path: Path
) -> None:
    device = first_device.copy(tmp_path / "lab", "http://127.0.0.1:9")
    assert device.update().outcome is Outcome.UNAVAILABLE
    publisher = first_publisher.copy(tmp_path / "site")
    publisher.release("1.2.0", seed=2, is_shared=True)
    for blob in (publisher.published / "blobs").rglob("*"):
        if blob.is_file():
            blob.write_bytes(blob.read_bytes()[::-1])
    with serve_folder(publisher.published) as site:
        lied_to = first_device.copy(tmp_path / "lied-to", site.url)
        found = lied_to.update()
        assert (found.outcome, found.reason) == (Outcome.REFUSED, "digest-mismatch")
    for one in (device, lied_to):
        assert [report.outcome for report in read_reports(one.config)] == ["updated"]


def test_a_report_names_the_rollout_that_the_device_followed(
    first_publisher: Publisher, first_device: DeviceUnderTest
) -> None:
    (report,) = read_reports(first_device.config)
    repository = first_publisher.repository
    rollout = repository.rollout(FAMILY, "stable")
    assert rollout is not None
    assert report.repository == repository.repository_id
    assert (report.channel, report.rollout, report.from_release) == ("stable", rollout.digest(), None)


def test_a_report_is_there_with_its_outcome_or_not_at_all(first_device: DeviceUnderTest, tmp_path: Path) -> None:
    device = first_device.copy(tmp_path / "lab", "http://127.0.0.1:9")
    (signed,) = (parse_report(line) for line in export_reports(device.config).splitlines())
    history = device.journal().history()
    assert signed.report.outcome == history[0].outcome.value
    assert signed.report.finished_ms == history[0].finished_ms
    assert signed.device_id == device.directory.read_public_identity().device_id
    assert replace(signed.report, reason="x").digest() != signed.report.digest()
