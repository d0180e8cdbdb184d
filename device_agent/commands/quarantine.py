"""`device-agent quarantine`: the bundles that failed on this device."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bundle import console
from device_agent.commands.daemon_or_offline import FAMILY_OPTION, JSON_OPTION, daemon_or_offline, plain_json
from device_agent.config.config import Config, load_config

if TYPE_CHECKING:
    from device_agent.policy.journal_records import QuarantineRecord


@click.group(short_help="List or clear quarantined bundles.")
def quarantine() -> None:
    """List or clear the bundles that failed on this device.

    An update does not try a quarantined bundle again.
    """


@quarantine.command("list", short_help="List quarantined bundles and reasons.")
@FAMILY_OPTION
@JSON_OPTION
@click.pass_obj
def list_command(path: Path, family: str | None, *, as_json: bool) -> None:
    """List the quarantined bundles, with the reason and the time of each failure."""
    from device_agent.commands.result_text import quarantine_lines
    from device_agent.config.families import check_family, per_family
    from device_agent.policy.status_report import quarantine_json

    config = load_config(path)
    check_family(config.families, family)
    by_family = {one.family: one for one in config.family_configs() if family in (None, one.family)}
    found = per_family(by_family, lambda name: _read_quarantine(by_family[name]))
    console.print_result(found.as_json(quarantine_json), as_json=as_json, text=found.as_lines(quarantine_lines))


@quarantine.command("clear", short_help="Let the next update try bundles again.")
@click.option("--bundle", metavar="DIGEST", help="Clear only the bundle with this digest.  [default: all]")
@FAMILY_OPTION
@JSON_OPTION
@click.pass_obj
def clear_command(path: Path, bundle: str | None, family: str | None, *, as_json: bool) -> None:
    """Remove bundles from quarantine, so that the next update may try them again."""

    def offline(config: Config) -> dict[str, Any]:
        from device_agent.commands.offline import clear_quarantine_offline

        return clear_quarantine_offline(config, family, bundle)

    found = daemon_or_offline(
        path,
        "quarantine-clear",
        offline,
        plain_json,
        bundle=bundle,
        family=family,
    )
    console.print_result(found, as_json=as_json, text=f"{found['cleared']} removed from quarantine")


def _read_quarantine(config: Config) -> "tuple[QuarantineRecord, ...]":
    from device_agent.storage.device_directory import DeviceDirectory
    from device_agent.storage.journal import open_for_reading

    with open_for_reading(DeviceDirectory.for_family(config)) as journal:
        return journal.quarantine_records()
