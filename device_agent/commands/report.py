"""`device-agent report`: signed reports of the outcomes of update attempts."""

from pathlib import Path
from typing import Final

import click

from bundle import console
from device_agent.commands.daemon_or_offline import FAMILY_OPTION, JSON_OPTION
from device_agent.config.config import load_config


@click.group(short_help="List or export signed reports.")
def report() -> None:
    """List or export this device's reports of update outcomes. The agent itself never sends them anywhere."""


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
