"""What the commands of `device-agent` share: their common options, and asking the daemon where one runs.

Rules: those of device_agent.commands.root.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from device_agent.config.config import Config, load_config
from device_agent.errors import DaemonUnavailable

as_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
one_of_them = click.option("--family", metavar="NAME", help="Where the device follows several: this one only.")
named = click.option("--family", metavar="NAME", help="Where the device follows several: which one.")


def asked(
    path: Path,
    command: str,
    otherwise: Callable[[Config], dict[str, Any]],
    *,
    timeout_s: float | None = None,
    **fields: Any,
) -> dict[str, Any]:
    """What a running daemon answers, or what `otherwise` does where none runs. Raises what either raises."""
    from device_agent.daemon.control_socket import ask
    from device_agent.storage.device_directory import DeviceDirectory

    config = load_config(path)
    device = DeviceDirectory(config.directory)
    device.check_initialised()
    try:
        return ask(device.control, command, timeout_s, **fields)
    except DaemonUnavailable:
        return otherwise(config)
