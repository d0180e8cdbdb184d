"""The release team accepts device reports only from the right device, signed, complete and not replayed."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from bundle.device_report import DeviceReport
from bundle.enrollment import EnrollmentRequest, derive_device_id
from bundle.envelope import derive_public_key, generate_private_key
from packager.repository.creation import create_repository_with_new_keys
from packager.repository.devices import enroll_device, revoke_device
from packager.repository.repository import Repository
from tests.support.device_reports import make_report
from tests.support.json_schemas import check_schema
from tests.support.packager_cli import CommandResult, run_packager


class ReportingDevice:
    """A device of the registry and its chain of reports."""

    def __init__(self, label: str) -> None:
        self.label, self.x_wing, self.private = label, generate_private_key(), Ed25519PrivateKey.generate()
        self.public = self.private.public_key().public_bytes_raw()
        self.device_id = derive_device_id(derive_public_key(self.x_wing), self.public)
        self.log = [self.first()]

    def request(self) -> EnrollmentRequest:
        return EnrollmentRequest(self.label, derive_public_key(self.x_wing), self.public)

    def first(self, log: str = "1" * 32, release: str = "1.0.0") -> DeviceReport:
        return make_report(log=log, release=release)

    def next(self, **changes: object) -> DeviceReport:
        before = self.log[-1]
        report = replace(before, sequence=before.sequence + 1, previous=before.digest(), **changes)  # type: ignore[arg-type]
        self.log.append(report)
        return report

    def line(self, report: DeviceReport, private: Ed25519PrivateKey | None = None, device: str | None = None) -> bytes:
        name = device or self.device_id
        return report.encode(name, (private or self.private).sign(report.signed_bytes(name))) + b"\n"

    def lines(self, start: int = 0) -> bytes:
        return b"".join(self.line(report) for report in self.log[start:])


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return create_repository_with_new_keys(
        tmp_path / "repo", tmp_path / "keys", None, ["kws"], classical=True, insecure_plaintext=True
    )


def enroll(repository: Repository, sender: ReportingDevice) -> ReportingDevice:
    request = sender.request()
    data = request.encode(sender.private)
    enroll_device(repository, data, request.fingerprint, "default", repository.root.parent / "keys", None)
    return sender


@pytest.fixture
def camera(repository: Repository) -> ReportingDevice:
    sender = enroll(repository, ReportingDevice("camera"))
    for release in ("1.1.0", "1.2.0", "1.3.0"):
        sender.next(release=release)
    return sender


def verify(repository: Repository, data: bytes, *words: str) -> CommandResult:
    place = repository.root.parent / "reports.jsonl"
    place.write_bytes(data)
    return run_packager("device", "verify-report", place, "--repo", repository.root, "--json", *words)


def test_reports_are_accepted_once_and_known_from_then_on(repository: Repository, camera: ReportingDevice) -> None:
    result = verify(repository, camera.lines())
    assert result.code == 0, result.stderr
    check_schema("device-verify-report", result.json)
    assert [(row["label"], row["sequence"], row["release"]) for row in result.json["new"]] == [
        ("camera", number, f"1.{number - 1}.0") for number in (1, 2, 3, 4)
    ]
    as_windows_saves_it = b"\xef\xbb\xbf" + camera.lines().replace(b"\n", b"\r\n")
    for data in (camera.lines(), as_windows_saves_it):
        again = verify(repository, data)
        assert (again.json["new"], again.json["known"]) == ([], 4)
    assert verify(repository, camera.lines().decode().encode("utf-16")).error["reason"] == "text-encoding-unsupported"
    camera.next(outcome="refused", reason="golden-mismatch")
    last = verify(repository, camera.lines()).json
    assert [row["reason"] for row in last["new"]] == ["golden-mismatch"]


def test_a_dry_run_remembers_nothing(repository: Repository, camera: ReportingDevice) -> None:
    assert verify(repository, camera.lines(), "--dry-run").code == 0
    assert len(verify(repository, camera.lines()).json["new"]) == 4


def test_a_missing_report_is_a_gap_until_that_is_allowed(repository: Repository, camera: ReportingDevice) -> None:
    assert verify(repository, camera.line(camera.log[0])).code == 0
    result = verify(repository, camera.lines(2))
    assert (result.code, result.error["reason"]) == (3, "report-gap")
    assert "found report 3, but reports 2 to 2 are missing" in result.error["message"]
    allowed = verify(repository, camera.lines(2), "--allow-gap")
    assert (allowed.code, allowed.json["gaps"]) == (0, [[2, 2]])


def test_another_report_of_a_known_number_is_a_fork(repository: Repository, camera: ReportingDevice) -> None:
    assert verify(repository, camera.lines()).code == 0
    other = replace(camera.log[3], release="6.6.6")
    result = verify(repository, camera.line(other))
    assert (result.code, result.error["reason"]) == (3, "report-forked")
    follows_another = replace(camera.log[3], sequence=5, previous="0" * 64)
    assert verify(repository, camera.line(follows_another)).error["reason"] == "report-forked"


def test_a_file_is_accepted_whole_or_not_at_all(repository: Repository, camera: ReportingDevice) -> None:
    damaged = camera.lines()[:-20] + b"\n"
    assert verify(repository, damaged).code == 3
    assert len(verify(repository, camera.lines()).json["new"]) == 4


def test_nobody_reports_for_another(repository: Repository, camera: ReportingDevice) -> None:
    unregistered_device, microphone = ReportingDevice("stranger"), enroll(repository, ReportingDevice("microphone"))
    cases = {
        "unregistered": unregistered_device.lines(),
        "key-of-a-stranger": camera.line(camera.log[0], unregistered_device.private),
        "key-of-another-device": camera.line(camera.log[0], microphone.private),
        "moved-to-another-device": camera.line(camera.log[0]).replace(
            camera.device_id.encode(), microphone.device_id.encode()
        ),
        "changed": camera.line(camera.log[0]).replace(b'"1.0.0"', b'"1.0.1"'),
    }
    for name, data in cases.items():
        result = verify(repository, data)
        assert (result.code, result.error["reason"]) == (3, "report-refused"), name


def test_a_signed_enrollment_request_is_no_report(repository: Repository, camera: ReportingDevice) -> None:
    assert verify(repository, camera.request().encode(camera.private)).error["reason"] == "malformed"


def test_a_revoked_device_is_not_heard(repository: Repository, camera: ReportingDevice) -> None:
    revoke_device(repository, "camera")
    result = verify(repository, camera.lines())
    assert (result.code, result.error["reason"]) == (3, "report-refused")
    assert "revoked" in result.error["message"]


def test_a_registry_that_is_not_the_signed_one_vouches_for_nobody(
    repository: Repository, camera: ReportingDevice
) -> None:
    rows = repository.registry_path.read_text().splitlines()
    assert len(rows) == 1
    row = json.loads(rows[0])
    row["label"] = "camera-2"
    repository.registry_path.write_text(json.dumps(row, sort_keys=True, separators=(",", ":")) + "\n")
    assert (
        "is not the registry whose digest the fleet document signs"
        in verify(repository, camera.lines()).error["message"]
    )


def test_a_device_that_lost_its_journal_begins_another_log(repository: Repository, camera: ReportingDevice) -> None:
    assert verify(repository, camera.lines()).code == 0
    result = verify(repository, camera.line(camera.first("2" * 32, "2.0.0")))
    assert [row["log"] for row in result.json["new"]] == ["2" * 32]
    assert verify(repository, camera.lines()).json["known"] == 4


def test_what_was_seen_is_told_when_it_is_damaged(repository: Repository, camera: ReportingDevice) -> None:
    assert verify(repository, camera.lines()).code == 0
    (place,) = (repository.root / "private" / "reports").iterdir()
    place.write_text(place.read_text()[:-10])
    assert verify(repository, camera.lines()).error["reason"] == "workspace-damaged"
