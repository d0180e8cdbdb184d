"""Common options of the commands, and the choice between the running daemon and working offline."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

import click

from bundle.errors import Malformed
from device_agent.config.config import Config, load_config
from device_agent.errors import DaemonNotRunning, DeviceLocked

T = TypeVar("T")

DAEMON_START_S: Final = 60.0  # a daemon listens before it loads models
DAEMON_POLL_S: Final = 0.1

JSON_OPTION = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
FAMILY_OPTION = click.option("--family", metavar="NAME", help="Only this family, if the device follows several.")
REQUIRED_FAMILY_OPTION = click.option(
    "--family", metavar="NAME", help="The family; required if the device follows several."
)


def daemon_or_offline(
    path: Path,
    command: str,
    run_offline: Callable[[Config], T],
    parse: Callable[[dict[str, Any], tuple[str, ...]], T],
    *,
    timeout_s: float | None = None,
    **fields: Any,
) -> T:
    """Return the running daemon's reply to a request; if no daemon runs, call `run_offline`.

    A daemon that starts or ends, and has the lock of the device directory, is waited for.

    Args:
        path: path of the configuration file.
        command: name of the request (device_agent.daemon.request_handler).
        run_offline: does the same on the device directory.
        parse: parses the reply, given it and the names of the families that the command is for.
        timeout_s: seconds to wait for the reply; None waits until the daemon has finished.
        fields: fields of the request; `family` is None or missing if the command is for all families.

    Raises:
        ConfigInvalid, NotInitialized: the configuration is invalid, or the device directory was not created.
        Malformed: the reply cannot be parsed.
        AirweightsError: the daemon's or `run_offline`'s error.
    """
    from device_agent.daemon.control_socket import call_daemon
    from device_agent.storage.device_directory import DeviceDirectory

    config = load_config(path)
    device = DeviceDirectory(config.directory)
    device.check_initialized()
    deadline_s = time.monotonic() + DAEMON_START_S
    while True:
        try:
            reply = call_daemon(device.control_path, command, timeout_s, **fields)
            break
        except DaemonNotRunning:
            try:
                return run_offline(config)
            except DeviceLocked as error:
                if not error.is_daemon or time.monotonic() > deadline_s:
                    raise
        time.sleep(DAEMON_POLL_S)
    family = fields.get("family")
    try:
        return parse(reply, config.families if family is None else (family,))
    except Malformed as error:
        raise Malformed(
            f"reply of the daemon to {command!r}: {error.message}",
            hint="restart the daemon: it may run another version of the agent",
        ) from error


def plain_json(reply: dict[str, Any], families: tuple[str, ...]) -> dict[str, Any]:
    """Return the reply unchanged, for commands without a typed result.

    Args:
        reply: the daemon's reply.
        families: names of the families; not needed.
    """
    del families
    return reply
