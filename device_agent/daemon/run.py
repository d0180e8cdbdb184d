"""The daemon's program, `python -m device_agent.daemon CONFIG`, which `device-agent run` executes.

It is separate from the command line, whose modules would otherwise stay in the daemon's memory.
"""

import logging
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from bundle.errors import AirweightsError, Bug
from bundle.rendering import render_json
from device_agent.config.config import load_config
from device_agent.daemon.messages import DaemonMessage, Reload, Stop
from device_agent.daemon.supervisor import Supervisor
from device_agent.daemon.worker_pools import WorkerPools
from device_agent.process.jail import close_memory
from device_agent.storage.device_directory import DAEMON, DeviceDirectory

STOP_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)
_STANDARD_LOG_FIELDS: Final = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}


class JsonFormatter(logging.Formatter):
    """Log formatter: one JSON object per line, with time, level, logger, message and the event's fields."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the JSON line of one record."""
        fields = {key: value for key, value in record.__dict__.items() if key not in _STANDARD_LOG_FIELDS}
        line = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{record.msecs:03.0f}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **fields,
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return render_json(line)


def run_daemon(path: Path, announce: Callable[[str, str], None]) -> None:
    """Run the daemon until SIGTERM or SIGINT. SIGHUP makes it read its configuration again.

    A signal that arrives while the daemon starts is handled when it has started.

    Args:
        path: path of the configuration file.
        announce: called with (event, address); see `Supervisor`.

    Raises:
        ConfigInvalid: the configuration cannot be read or used.
        NotInitialized: the device directory was not created.
        DeviceLocked: another process uses the device directory.
        AirweightsError: as `Supervisor` and `Supervisor.run`.
    """
    messages: queue.SimpleQueue[DaemonMessage] = queue.SimpleQueue()
    worker_pools = WorkerPools()

    _handle_signals(messages, worker_pools)
    config = load_config(path)
    device = DeviceDirectory(config.directory)
    device.check_initialized()
    with device.acquire_lock(DAEMON):
        Supervisor(config, device, announce, messages, worker_pools, lambda: load_config(path)).run()


def _handle_signals(messages: "queue.SimpleQueue[DaemonMessage]", worker_pools: WorkerPools) -> None:
    """Turn signals into messages, in a thread of its own.

    A Python handler runs in the main thread, and a signal that arrives just before that thread waits for the next
    message does not wake it. So the interpreter writes the signal's number to a pipe at once, whatever threads do.
    """
    reader, writer = os.pipe2(os.O_CLOEXEC)
    os.set_blocking(writer, False)

    def read() -> None:
        while numbers := os.read(reader, 64):
            for number in numbers:
                if number == signal.SIGHUP:
                    messages.put(Reload())
                elif number in STOP_SIGNALS:
                    messages.put(Stop())
                    worker_pools.interrupt()

    threading.Thread(target=read, name="signals", daemon=True).start()
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    for known in (*STOP_SIGNALS, signal.SIGHUP):
        signal.signal(known, lambda *_: None)


def main(arguments: list[str]) -> int:
    """Run the daemon and return its exit code.

    Args:
        arguments: the path of the configuration file.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    logger = logging.getLogger("device_agent")
    close_memory()
    try:
        run_daemon(Path(arguments[0]), lambda event, address: _announce(logger, event, address))
    except AirweightsError as error:
        if sys.stderr.isatty():
            from bundle import console  # not in memory at rest

            console.print_error(error, as_json=False)
        else:
            logger.critical(error.message, extra={"error": error.as_dict()})
        return error.exit_code
    except Exception as error:  # a bug is logged in the same form as any other error
        logger.critical("%s: %s", type(error).__name__, error, exc_info=True)
        return Bug.exit_code
    return 0


def _announce(logger: logging.Logger, event: str, address: str) -> None:
    logger.info("%s at %s", event, address, extra={"event": event, "address": address})
