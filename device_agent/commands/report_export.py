"""Read the device's reports from the journals, sign them and write them to a file.

Rules:
- The journal writes a report in the same transaction as the outcome, so that neither exists without the other.
- Each family's journal keeps its last MAX_REPORTS reports (device_agent.policy.outcome_report). A gap in their numbers
  shows that reports were lost.
- The exporting command signs them: it opens the device's key, which the daemon never does.
"""

from pathlib import Path
from typing import Any

from bundle.device_report import DeviceReport
from bundle.strict_json import StrictObject
from bundle.vital import Vital
from device_agent.config.config import Config
from device_agent.config.families import FamilyResults
from device_agent.errors import InvalidUsage
from device_agent.storage.device_directory import DeviceDirectory


def read_reports(config: Config, after: int = 0, family: str | None = None) -> tuple[DeviceReport, ...]:
    """Read the reports of one family or of all, oldest first, one family after the other.

    The daemon may be running.

    Args:
        config: the device's configuration.
        after: skip reports up to this number. Numbers count per family.
        family: name of a family, or None for all.

    Raises:
        JournalUnreadable: a journal cannot be opened.
        InvalidUsage: the device does not follow `family`; or `after` is not 0, and several families but no `family`
            are given.
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
    """Return the signed reports as lines of JSON, each with a newline; empty if there are none.

    Args:
        config: the device's configuration.
        after: skip reports up to this number.
        family: name of a family, or None for all.

    Raises:
        AirweightsError: as `read_reports`, and as `device_agent.identity.device_keys.open_signing_key`.
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


def write_export(data: bytes, output: Path) -> None:
    """Write exported reports to a file, completely or not at all.

    Args:
        data: result of `export_reports`.
        output: the file; its folder must exist.

    Raises:
        InvalidUsage: the folder of `output` does not exist.
    """
    from device_agent.storage.bundle_store import write_durably

    if not output.parent.is_dir():
        raise InvalidUsage(f"{output}: folder {output.parent} does not exist")
    write_durably(output, data, 0o644)


def report_row(report: DeviceReport) -> dict[str, Any]:
    """Return the row of `report list --json` for one report."""
    return {**report.as_json(), "digest": report.digest()}


def unsent_lines(config: Config, family: str | None = None) -> list[bytes]:
    """Return the signed lines that the collector does not have yet, as they would be sent.

    The daemon may be running.

    Args:
        config: the device's configuration.
        family: name of a family, or None for all.

    Raises:
        AirweightsError: as `read_reports`, and as `device_agent.identity.device_keys.open_signing_key`.
    """
    from device_agent.config.families import check_family
    from device_agent.identity.device_keys import open_signing_key
    from device_agent.storage.journal import open_for_reading

    check_family(config.families, family)
    device = DeviceDirectory(config.directory)
    device_id = device.read_public_identity().device_id
    found: list[DeviceReport | Vital] = []
    for one in config.family_configs():
        if family in (None, one.family):
            with open_for_reading(DeviceDirectory.for_family(one)) as journal:
                _, reports, vital = journal.unsent_lines()
                found += [*reports, *(() if vital is None else (vital,))]
    if not found:
        return []
    private = open_signing_key(device, config.key_storage)
    return [one.encode(device_id, private.sign(one.signed_bytes(device_id))) for one in found]


def parse_sent(reply: dict[str, Any], families: tuple[str, ...]) -> FamilyResults[int]:
    """Parse the daemon's reply to the request `report-send`: the number of sent lines of each family.

    Args:
        reply: the daemon's reply.
        families: names of the families that the command is for.
    """

    def parse(fields: StrictObject) -> int:
        lines = fields.integer("lines")
        fields.reject_unknown()
        return lines

    return FamilyResults.parse(reply, families, parse)
