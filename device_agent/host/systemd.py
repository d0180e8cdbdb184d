"""Notifications from the daemon to systemd (sd_notify(3)).

Rules:
- `READY=1` is sent when the active bundles are served, `STOPPING=1` when the shutdown begins, `RELOADING=1` and then
  `READY=1` when the configuration is read again, `STATUS=` for people.
- `WATCHDOG=1` is sent twice per watchdog interval, but only while the models respond: systemd restarts an agent whose
  model hangs.
- Without NOTIFY_SOCKET nothing is sent; without WATCHDOG_USEC no thread is started.
"""

import logging
import os
import socket
import threading
from collections.abc import Callable, Mapping
from typing import Final

logger = logging.getLogger(__name__)

MICROSECONDS_PER_S: Final = 1_000_000


class SystemdNotifier:
    """Sender to the socket in NOTIFY_SOCKET.

    Args:
        environment: environment variables of the process.
    """

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        self._address = environment.get("NOTIFY_SOCKET", "")
        is_for_us = environment.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        usec = environment.get("WATCHDOG_USEC", "") if is_for_us else ""
        self._interval_s = int(usec) / MICROSECONDS_PER_S / 2 if usec.isdecimal() and int(usec) else None
        self._stop_event = threading.Event()

    def send(self, *assignments: str) -> None:
        """Send one message of assignments such as "READY=1". A failure is only logged."""
        if not self._address:
            return
        # a leading @ stands for the NUL byte of an abstract socket's name
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
                sender.sendto("\n".join(assignments).encode(), address)
        except OSError as error:
            logger.warning("cannot notify systemd: %s", error)

    def start_watchdog(self, is_responding: Callable[[], bool]) -> None:
        """Start the thread that sends `WATCHDOG=1` as long as `is_responding` returns true."""
        if self._interval_s is not None and self._address:
            threading.Thread(target=self._send_keepalives, args=(is_responding,), name="watchdog", daemon=True).start()

    def stop(self) -> None:
        """Send `STOPPING=1` and end the watchdog messages."""
        self._stop_event.set()
        self.send("STOPPING=1")

    def _send_keepalives(self, is_responding: Callable[[], bool]) -> None:
        while not self._stop_event.wait(self._interval_s):
            if is_responding():
                self.send("WATCHDOG=1")
            else:
                logger.error("the model does not respond, no watchdog message sent")
