"""What the commands of `device-agent` share: their common options, and asking the daemon where one runs.

Rules: those of device_agent.commands.root.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from device_agent.config.config import Config, load_config
from device_agent.errors import DaemonNotRunning

JSON_OPTION = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
FAMILY_OPTION = click.option("--family", metavar="NAME", help="Where the device follows several: this one only.")
REQUIRED_FAMILY_OPTION = click.option("--family", metavar="NAME", help="Where the device follows several: which one.")


def daemon_or_offline(
    path: Path,
    command: str,
    run_offline: Callable[[Config], dict[str, Any]],
    *,
    timeout_s: float | None = None,
    **fields: Any,
) -> dict[str, Any]:
    """What a running daemon answers, or what `otherwise` does where none runs. Raises what either raises."""
    from device_agent.daemon.control_socket import call_daemon
    from device_agent.storage.device_directory import DeviceDirectory

    config = load_config(path)
    device = DeviceDirectory(config.directory)
    device.check_initialized()
    try:
        return call_daemon(device.control_path, command, timeout_s, **fields)
    except DaemonNotRunning:
        return run_offline(config)
