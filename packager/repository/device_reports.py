"""Verify device reports: their sender, their signature, and their order in the device's log.

A device numbers the reports of a log from 1, and each report names the digest of the one before it. The checks, in
order, for each report of a file:

1. The registry is the one whose digest the fleet document signs; the device is registered and not revoked.
2. The report's signature is valid under the device's key.
3. A report that was accepted before is known: it is counted, and changes nothing.
4. Another report with the number of an accepted one is a fork: the device's disk was restored from a copy, or cloned.
   The same holds for a report that follows the last accepted number, but names another digest.
5. Missing numbers are a gap, accepted only with `allow_gap`.

All reports of a file are accepted, or none. The numbers and digests of the newest accepted reports are stored below
private/reports/, one file per device.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from bundle.device_report import SignedReport, parse_report
from keys.registry import Device, Registry
from packager.errors import ReportForked, ReportGap, ReportRefused, WorkspaceDamaged
from packager.repository.layout import write_file
from packager.repository.repository import Repository
from packager.repository.workspace import PRIVATE_FOLDER

MAX_ACCEPTED_REPORTS: Final = 1024  # stored per log; a device stores 256, so that each one it can send is covered
MAX_LOGS: Final = 64  # per device: a new log begins when a device loses its journal, which is rare
ACCEPTED_LINE: Final = re.compile(r"(?P<log>[0-9a-f]{32}) (?P<number>[1-9][0-9]{0,15}) (?P<digest>[0-9a-f]{64})")


@dataclass(frozen=True, slots=True)
class CheckedReports:
    """The result of checking a file of reports.

    Attributes:
        new: the reports that were accepted now.
        known: number of reports that were accepted before.
        gaps: (first, last) missing number of each allowed gap.
        labels: device id → label, for each sender.
    """

    new: tuple[SignedReport, ...]
    known: int
    gaps: tuple[tuple[int, int], ...]
    labels: dict[str, str] = field(default_factory=dict)

    def as_json(self) -> dict[str, object]:
        """Return the JSON object for `--json`."""
        rows = [
            {"device_id": signed.device_id, "label": self.labels[signed.device_id], **signed.report.as_json()}
            for signed in self.new
        ]
        return {"new": rows, "known": self.known, "gaps": [list(gap) for gap in self.gaps]}


def check_reports(
    repository: Repository, data: bytes, *, allow_gap: bool = False, is_recorded: bool = True
) -> CheckedReports:
    """Check a file of reports, one per line, and record the accepted ones.

    Args:
        repository: the repository whose registry lists the devices.
        data: the file, as `device-agent report export` writes it.
        allow_gap: accept reports after missing ones.
        is_recorded: store the numbers and digests of accepted reports.

    Raises:
        Malformed, TooLarge: a line is not a report.
        ReportRefused: the registry is not the signed one, the device is unknown or revoked, or a signature is invalid.
        ReportForked: another report with the same number was accepted before.
        ReportGap: reports are missing, and `allow_gap` is not set.
        WorkspaceDamaged: a file below private/reports/ is damaged.
    """
    registry = Registry(repository.registry_path)
    if registry.digest() != repository.fleet().registry_digest:
        raise ReportRefused(
            f"{repository.registry_path} is not the registry whose digest the fleet document signs",
            hint="restore the registry, or sign and publish the staged fleet document first",
        )
    folder = repository.root / PRIVATE_FOLDER / "reports"
    accepted_by_device: dict[str, _AcceptedReports] = {}
    new: list[SignedReport] = []
    known, gaps, labels = 0, list[tuple[int, int]](), dict[str, str]()
    devices = {device.device_id: device for device in registry.devices()}
    for line in data.splitlines():
        if not line.strip():
            continue
        signed = parse_report(line)
        device = _find_sender(devices, signed)
        labels[signed.device_id] = device.label
        accepted = accepted_by_device.setdefault(
            signed.device_id, _AcceptedReports.read(folder / f"{signed.device_id}.json")
        )
        if accepted.is_accepted(signed, device.label):
            known += 1
            continue
        gap = accepted.find_gap(signed, device.label)
        if gap.first <= gap.last:
            if not allow_gap:
                raise ReportGap(
                    f"device {device.label!r}: found report {signed.report.sequence}, but reports {gap.first} to"
                    f" {gap.last} are missing",
                    hint="export all reports of the device, or accept the gap with --allow-gap",
                )
            gaps.append((gap.first, gap.last))
        accepted.accept(signed)
        new.append(signed)
    if is_recorded:
        for device_id, accepted in accepted_by_device.items():
            accepted.write(folder / f"{device_id}.json")
    return CheckedReports(tuple(new), known, tuple(gaps), labels)


def _find_sender(devices: dict[str, Device], signed: SignedReport) -> Device:
    device = devices.get(signed.device_id)
    if device is None:
        raise ReportRefused(f"report of device {signed.device_id[:16]}…, which is not registered")
    if device.is_revoked:
        raise ReportRefused(f"report of device {device.label!r}, which is revoked")
    public = Ed25519PublicKey.from_public_bytes(device.ed25519_public)
    try:
        public.verify(signed.signature, signed.report.signed_bytes(signed.device_id))
    except InvalidSignature as error:
        raise ReportRefused(
            f"report {signed.report.sequence} of device {device.label!r}: the signature is invalid"
        ) from error
    return device


@dataclass(frozen=True, slots=True)
class _Gap:
    """The missing numbers before a report; there are none if `last` is below `first`."""

    first: int
    last: int


class _AcceptedReports:
    """The accepted reports of one device: log → number → digest; in the file one "log number digest" per line."""

    def __init__(self, logs: dict[str, dict[int, str]]) -> None:
        self._logs = logs

    def is_accepted(self, signed: SignedReport, label: str) -> bool:
        """Return whether a report was accepted before; raise ReportForked if another one with its number was."""
        report, log = signed.report, self._logs.get(signed.report.log, {})
        if report.sequence in log:
            if log[report.sequence] != report.digest():
                raise ReportForked(
                    f"device {label!r}: another report with number {report.sequence} was accepted before",
                    hint="find out whether the device's disk was restored or cloned",
                )
            return True
        # a lower number is older than the stored ones, or fills an allowed gap: it changes nothing
        return report.sequence < max(log, default=0)

    def find_gap(self, signed: SignedReport, label: str) -> _Gap:
        """Find the gap before a new report; raise ReportForked if it does not follow the last one."""
        report, log = signed.report, self._logs.get(signed.report.log, {})
        last = max(log, default=0)
        if report.sequence == last + 1 and report.previous != log.get(last):
            raise ReportForked(
                f"device {label!r}: report {report.sequence} follows another report {last} than the accepted one",
                hint="find out whether the device's disk was restored or cloned",
            )
        return _Gap(last + 1, report.sequence - 1)

    def accept(self, signed: SignedReport) -> None:
        """Add a report; raise ReportRefused if the device has more than MAX_LOGS logs."""
        log = self._logs.setdefault(signed.report.log, {})
        log[signed.report.sequence] = signed.report.digest()
        for number in sorted(log)[:-MAX_ACCEPTED_REPORTS]:
            del log[number]
        if len(self._logs) > MAX_LOGS:
            raise ReportRefused(f"device {signed.device_id[:16]}… has more than {MAX_LOGS} report logs")

    @classmethod
    def read(cls, path: Path) -> "_AcceptedReports":
        """Read the file of a device; a missing file means no accepted reports."""
        try:
            text = path.read_text(encoding="ascii")
        except FileNotFoundError:
            return cls({})
        except UnicodeDecodeError as error:
            raise _damaged_error(path) from error
        logs: dict[str, dict[int, str]] = {}
        for line in text.splitlines():
            found = ACCEPTED_LINE.fullmatch(line)
            if found is None:
                raise _damaged_error(path)
            logs.setdefault(found["log"], {})[int(found["number"])] = found["digest"]
        return cls(logs)

    def write(self, path: Path) -> None:
        """Write the file of the device atomically, synced."""
        lines = [
            f"{log} {n} {digest}\n" for log, rows in sorted(self._logs.items()) for n, digest in sorted(rows.items())
        ]
        write_file(path, "".join(lines).encode())


def _damaged_error(path: Path) -> WorkspaceDamaged:
    return WorkspaceDamaged(f"{path} is damaged", hint="restore the file from a backup")
