"""`device-agent report`: signed reports of the outcomes of update attempts."""

from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from bundle import console
from device_agent.commands.daemon_or_offline import FAMILY_OPTION, JSON_OPTION
from device_agent.config.config import load_config

if TYPE_CHECKING:
    from device_agent.config.config import Config
    from device_agent.config.families import FamilyResults


@click.group(short_help="List, show, export or send signed reports.")
def report() -> None:
    """List, show, export or send this device's reports of update outcomes, and its vitals.

    The agent sends them only if `reports.url` is configured.
    """


AFTER_OPTION: Final = click.option("--after", type=click.IntRange(0), default=0, help="Skip reports up to this number.")


@report.command("list", short_help="List the stored reports, oldest first.")
@AFTER_OPTION
@FAMILY_OPTION
@JSON_OPTION
@click.pass_obj
def list_command(path: Path, after: int, family: str | None, *, as_json: bool) -> None:
    """List the stored reports, oldest first."""
    from device_agent.commands.report_export import read_reports, report_row

    config = load_config(path)
    found = read_reports(config, after, family)
    lines = [f"{r.sequence} {r.outcome} {r.release or ''} {r.variant or ''} {r.reason}".rstrip() for r in found]
    if config.further_families:
        lines = [f"{r.family or ''} {line}".lstrip() for r, line in zip(found, lines, strict=True)]
    text = lines or "no report yet"
    console.print_result({"reports": [report_row(row) for row in found]}, as_json=as_json, text=text)


@report.command("export", short_help="Sign the reports and write them to a file.")
@AFTER_OPTION
@FAMILY_OPTION
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    required=True,
    help="Write the reports to this file.",
)
@JSON_OPTION
@click.pass_obj
def export_command(path: Path, after: int, family: str | None, output: Path, *, as_json: bool) -> None:
    """Sign the reports with the device's key and write them to a file, one per line.

    `packager fleet ingest` takes the file.
    """
    from device_agent.commands.report_export import export_reports, write_export

    data = export_reports(load_config(path), after, family)
    write_export(data, output)
    result = {"output": str(output), "reports": data.count(b"\n")}
    console.print_result(result, as_json=as_json, text=f"{output}: {result['reports']} reports")


@report.command("show", short_help="Print what would be sent, byte for byte.")
@FAMILY_OPTION
@JSON_OPTION
@click.pass_obj
def show_command(path: Path, family: str | None, *, as_json: bool) -> None:
    """Print the lines that would be sent next, byte for byte; nothing is sent.

    Also the newest vital, which the daemon makes once in `reports.vital_interval_s`.
    """
    from device_agent.commands.report_export import unsent_lines

    config = load_config(path)
    lines = [line.decode() for line in unsent_lines(config, family)]
    result = {"url": config.reports.url or None, "lines": lines}
    console.print_result(result, as_json=as_json, text=lines or "nothing to send")


@report.command("send", short_help="Send reports and a vital now.")
@FAMILY_OPTION
@JSON_OPTION
@click.pass_obj
def send_command(path: Path, family: str | None, *, as_json: bool) -> None:
    """Make a vital, and send it with the reports that the collector does not have.

    Exit status: 0 sent, 2 `reports.url` is not configured, 4 the collector is unavailable.
    """
    from device_agent.commands.daemon_or_offline import daemon_or_offline
    from device_agent.commands.report_export import parse_sent
    from device_agent.errors import ConfigInvalid

    if not load_config(path).reports.url:
        raise ConfigInvalid(f"{path}: reports.url is missing", hint="set the URL of the collector")

    def offline(config: "Config") -> "FamilyResults[int]":
        from device_agent.commands.offline import send_reports_offline

        return send_reports_offline(config, family)

    found = daemon_or_offline(path, "report-send", offline, parse_sent, family=family)
    text = found.as_lines(lambda lines: [f"{lines} lines sent"])
    console.print_result(found.as_json(lambda lines: {"lines": lines}), as_json=as_json, text=text)
