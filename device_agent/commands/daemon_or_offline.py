"""Common options of the commands, and the choice between the running daemon and working offline."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from device_agent.config.config import Config, load_config
from device_agent.errors import DaemonNotRunning

JSON_OPTION = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
FAMILY_OPTION = click.option("--family", metavar="NAME", help="Only this family, if the device follows several.")
REQUIRED_FAMILY_OPTION = click.option(
    "--family", metavar="NAME", help="The family; required if the device follows several."
)


def daemon_or_offline(
    path: Path,
    command: str,
    run_offline: Callable[[Config], dict[str, Any]],
    *,
    timeout_s: float | None = None,
    **fields: Any,
) -> dict[str, Any]:
    """Return the running daemon's answer to a request; if no daemon runs, call `run_offline`.

    Args:
        path: path of the configuration file.
        command: name of the request (device_agent.daemon.control_socket).
        run_offline: does the same on the device directory.
        timeout_s: seconds to wait for the answer; None waits until the daemon has finished.
        fields: fields of the request.

    Raises:
        ConfigInvalid, NotInitialized: the configuration is invalid, or the device directory was not created.
        AirweightsError: the daemon's or `run_offline`'s error.
    """
    from device_agent.daemon.control_socket import call_daemon
    from device_agent.storage.device_directory import DeviceDirectory

    config = load_config(path)
    device = DeviceDirectory(config.directory)
    device.check_initialized()
    try:
        return call_daemon(device.control_path, command, timeout_s, **fields)
    except DaemonNotRunning:
        return run_offline(config)
