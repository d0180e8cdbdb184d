"""`device-agent check-config`: check the file, and with --connect the way to the repository."""

from pathlib import Path
from typing import Any

import click

from bundle import console
from device_agent.commands.daemon_or_offline import JSON_OPTION
from device_agent.config.config import load_config


@click.command("check-config", short_help="Check the configuration file.")
@click.option(
    "--connect", is_flag=True, help="Also reach the repository and every mirror, and name the step that fails."
)
@JSON_OPTION
@click.pass_obj
def check_config(path: Path, *, connect: bool, as_json: bool) -> None:
    """Check the configuration file. Nothing is changed.

    With --connect, these steps follow for each URL: proxy, connection, TLS, authentication, metadata, enrollment. The
    error names the step that fails, and the exit status is that of an update with the same error.
    """
    config = load_config(path)
    if config.serve.export is not None:
        from device_agent.apps.export_folder import check_export_filesystem

        check_export_filesystem(config.serve.export)
    result: dict[str, Any] = {
        "config": str(path),
        "ok": True,
        "directory": str(config.directory),
        "family": config.family,
    }
    if config.further_families:
        result["families"] = list(config.families)
    lines = [f"{path} is valid"]
    if connect:
        from device_agent.commands.check_connection import check_connection

        found = check_connection(config)
        result["connections"] = [one.as_json() for one in found]
        lines += [line for one in found for line in one.as_lines()]
        failed = next((one for one in found if one.error is not None), None)
        if failed is not None and failed.error is not None:
            if not as_json:
                console.print_result(result, as_json=False, text=lines)
            raise failed.error
    console.print_result(result, as_json=as_json, text=lines)
