"""Reports of devices, checked: who says it, that it is next, and that nobody else said something in its place.

Rules, in order, for each report:
1. The registry is the one whose digest the fleet document signs; the device is in it and not revoked.
2. The report's signature holds under the device's key.
3. In its log, its number follows the last one that was accepted and it names that one's digest. One that was accepted
   before is known, and nothing new, as often as it comes. Another report of a known number is a fork: the device's
   disk was put back or copied. A number that is missing is a gap, accepted only where that was said.
4. All reports of a file are accepted, or none. What was accepted last of each log is kept below private/reports/.
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

MAX_ACCEPTED_REPORTS: Final = 1024  # reports of one log that are told from a fork; a device keeps 256
MAX_LOGS: Final = 64
ACCEPTED_LINE: Final = re.compile(r"(?P<log>[0-9a-f]{32}) (?P<number>[1-9][0-9]{0,15}) (?P<digest>[0-9a-f]{64})")


@dataclass(frozen=True, slots=True)
class CheckedReports:
    """What a file of reports came to.

    Attributes:
        new: accepted now; known: accepted before.
        gaps: numbers that are missing, as (first, last), where that was allowed.
    """

    new: tuple[SignedReport, ...]
    known: int
    gaps: tuple[tuple[int, int], ...]
    labels: dict[str, str] = field(default_factory=dict)

    def as_json(self) -> dict[str, object]:
        """For `--json`."""
        rows = [
            {"device_id": signed.device_id, "label": self.labels[signed.device_id], **signed.report.as_json()}
            for signed in self.new
        ]
        return {"new": rows, "known": self.known, "gaps": [list(gap) for gap in self.gaps]}


def check_reports(
    repository: Repository, data: bytes, *, allow_gap: bool = False, is_recorded: bool = True
) -> CheckedReports:
    """Check a file of reports, a line each.

    Args:
        repository: whose devices they are.
        data: as `device-agent report export` wrote it.
        allow_gap: accept that reports are missing.
        is_kept: remember what was accepted.

    Raises:
        MalformedRefused, ReportRefused, ReportForked, ReportGap.
    """
    registry = Registry(repository.registry_path)
    if registry.digest() != repository.fleet().registry_digest:
        raise ReportRefused(f"{repository.registry_path} is not the registry that the fleet document signs")
    folder = repository.root / PRIVATE_FOLDER / "reports"
    seen: dict[str, _AcceptedReports] = {}
    new: list[SignedReport] = []
    known, gaps, labels = 0, list[tuple[int, int]](), dict[str, str]()
    devices = {device.device_id: device for device in registry.devices()}
    for line in data.splitlines():
        if not line.strip():
            continue
        signed = parse_report(line)
        device = _find_sender(devices, signed)
        labels[signed.device_id] = device.label
        memory = seen.setdefault(signed.device_id, _AcceptedReports.read(folder / f"{signed.device_id}.json"))
        if memory.is_accepted(signed, device.label):
            known += 1
            continue
        gap = memory.find_gap(signed, device.label)
        if gap.first <= gap.last:
            if not allow_gap:
                missing = f"{gap.first} to {gap.last} are missing"
                raise ReportGap(
                    f"device {device.label!r}: report {signed.report.sequence} came, {missing}",
                    hint="ask the device for all it has; --allow-gap goes on without them",
                )
            gaps.append((gap.first, gap.last))
        memory.accept(signed)
        new.append(signed)
    if is_recorded:
        for device_id, memory in seen.items():
            memory.write(folder / f"{device_id}.json")
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
            f"report {signed.report.sequence} of device {device.label!r}: its signature does not hold"
        ) from error
    return device


@dataclass(frozen=True, slots=True)
class _Gap:
    """Numbers that are missing before a report: first and last; none where `last` is below `first`."""

    first: int
    last: int


class _AcceptedReports:
    """What was accepted of one device: log → number → digest. Kept as text, a line each: log, number, digest."""

    def __init__(self, logs: dict[str, dict[int, str]]) -> None:
        self._logs = logs

    def is_accepted(self, signed: SignedReport, label: str) -> bool:
        """Was this very report accepted before? Raises ReportForked for another one of its number."""
        report, log = signed.report, self._logs.get(signed.report.log, {})
        if report.sequence in log:
            if log[report.sequence] != report.digest():
                raise ReportForked(f"device {label!r}: another report {report.sequence} was accepted before")
            return True
        # one below the last is older than what is remembered, or fills a gap that was allowed: it decides nothing
        return report.sequence < max(log, default=0)

    def find_gap(self, signed: SignedReport, label: str) -> _Gap:
        """What is missing before a report that is not known. Raises ReportForked."""
        report, log = signed.report, self._logs.get(signed.report.log, {})
        last = max(log, default=0)
        if report.sequence == last + 1 and report.previous != log.get(last):
            raise ReportForked(f"device {label!r}: report {report.sequence} follows another than the accepted one")
        return _Gap(last + 1, report.sequence - 1)

    def accept(self, signed: SignedReport) -> None:
        """Remember one. Raises ReportRefused where a device begins logs without end."""
        log = self._logs.setdefault(signed.report.log, {})
        log[signed.report.sequence] = signed.report.digest()
        for number in sorted(log)[:-MAX_ACCEPTED_REPORTS]:
            del log[number]
        if len(self._logs) > MAX_LOGS:
            raise ReportRefused(f"device {signed.device_id[:16]}… began more than {MAX_LOGS} logs")

    @classmethod
    def read(cls, path: Path) -> "_AcceptedReports":
        """Nothing where there is no file. Raises WorkspaceRefused."""
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
        """Durably, as a whole."""
        lines = [
            f"{log} {n} {digest}\n" for log, rows in sorted(self._logs.items()) for n, digest in sorted(rows.items())
        ]
        write_file(path, "".join(lines).encode())


def _damaged_error(path: Path) -> WorkspaceDamaged:
    return WorkspaceDamaged(f"{path} is damaged", hint="restore it from a copy")
