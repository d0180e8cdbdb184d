"""The device's reports: kept in the journal, signed when they are handed out. Nothing here sends anything.

Rules:
1. A report is written in the same transaction as the outcome: there is none without the other.
2. The journal of each family keeps a log of its last MAX_REPORTS; who collects them sees by their numbers whether some
   are gone.
3. They are signed by the command that exports them, where the device's key is opened; the daemon never holds it.
"""

from pathlib import Path
from typing import Any

from bundle.device_report import DeviceReport
from device_agent.config.config import Config
from device_agent.errors import InvalidUsage
from device_agent.storage.device_directory import DeviceDirectory


def read_reports(config: Config, after: int = 0, family: str | None = None) -> tuple[DeviceReport, ...]:
    """Those with a number above `after`, oldest first, one family after the other; also while the daemon runs.

    Raises:
        JournalUnavailable.
        UsageInvalid: there is no such family, or `after` is for one of several logs and none is named.
    """
    from device_agent.config.families import check_family, require_one_family
    from device_agent.storage.journal import open_for_reading

    check_family(config.families, family)
    if after:
        family = require_one_family(config.families, family)
    found: list[DeviceReport] = []
    for one in config.family_configs():
        if family in (None, one.family):
            with open_for_reading(DeviceDirectory.for_family(one)) as journal:
                found += [report for report in journal.reports() if report.sequence > after]
    return tuple(found)


def export_reports(config: Config, after: int = 0, family: str | None = None) -> bytes:
    """The signed reports, a line each. Raises as `device_agent.identity.device_keys.signing_key`, and as
    `read_reports`.
    """
    from device_agent.identity.device_keys import open_signing_key

    device = DeviceDirectory(config.directory)
    device_id = device.read_public_identity().device_id
    reports = read_reports(config, after, family)
    if not reports:
        return b""
    private = open_signing_key(device, config.key_storage)
    lines = (report.encode(device_id, private.sign(report.signed_bytes(device_id))) for report in reports)
    return b"".join(line + b"\n" for line in lines)


def write_export(data: bytes, out: Path) -> None:
    """A file with them, whole or not at all. Raises UsageInvalid."""
    from device_agent.storage.bundle_store import write_durably

    if not out.parent.is_dir():
        raise InvalidUsage(f"{out}: there is no folder {out.parent}")
    write_durably(out, data, 0o644)


def report_row(report: DeviceReport) -> dict[str, Any]:
    """What `report list --json` prints of one."""
    return {**report.as_json(), "digest": report.digest()}
