"""Read the configuration again on SIGHUP, between two updates.

Rules:
- What a reload can change is in device_agent.config.reload. The log and systemd's status name what needs a restart.
- A file that cannot be read or is invalid changes nothing.
"""

import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from bundle.errors import AirweightsError
from device_agent.config.config import Config
from device_agent.host.systemd import SystemdNotifier

if TYPE_CHECKING:
    from device_agent.config.reload import ConfigChange

logger = logging.getLogger(__name__)


def reload_config(
    running: Config,
    read_config: Callable[[], Config],
    apply: Callable[[Config], None],
    notifier: SystemdNotifier,
    status: str,
) -> "ConfigChange | None":
    """Read the configuration, apply it, and return the change, or None if nothing was applied.

    Args:
        running: the configuration that the daemon uses.
        read_config: reads the file.
        apply: called with the configuration to use from now on.
        notifier: reports to systemd that the daemon reloads, and that it has done so.
        status: systemd's status line, to which what was not applied is added.
    """
    from device_agent.config.reload import merge_configs  # not in memory at rest

    notifier.send("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")
    applied: ConfigChange | None = None
    try:
        change = merge_configs(running, read_config())
        apply(change.config)
        applied = change
    except AirweightsError as error:
        status += "; the configuration was not reloaded"
        logger.error("the configuration was not reloaded: %s", error.message, extra={"error": error.as_dict()})
    else:
        fields = {"event": "reloaded", "applied": change.applied, "needs_restart": change.needs_restart}
        logger.info("configuration reloaded", extra=fields)
        if change.needs_restart:
            status += f"; restart to change {', '.join(change.needs_restart)}"
            logger.warning("restart the daemon to change %s", ", ".join(change.needs_restart))
    notifier.send("READY=1", f"STATUS={status}")
    return applied
