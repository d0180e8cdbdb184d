"""The control socket: how the command line asks a running daemon.

Rules:
1. `control.sock` in the device directory, mode 0600: who may connect is who owns the device.
2. One connection, one request {"command": ...}, one answer {"ok": {...}} or {"error": {...}}
   (device_agent.process.channel).
3. A request that changes something waits for the daemon's main thread; `status` and `history` do not.
"""

import logging
import os
import socket
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from bundle.errors import AirweightsError, Bug
from device_agent.errors import DaemonNotRunning, error_from_dict
from device_agent.process.channel import ChannelClosed, receive_message, send_message

logger = logging.getLogger(__name__)

BACKLOG_CONNECTIONS: Final = 8
REQUEST_TIMEOUT_S: Final = 5.0  # for the request to arrive; the answer takes as long as it takes
# that wait for the main thread
QUEUED_COMMANDS: Final = (
    "update",
    "rollback",
    "pause",
    "resume",
    "quarantine-clear",
    "plan",
    "adapter-attach",
    "adapter-detach",
    "stop",
)
MAX_SOCKET_PATH_BYTES: Final = 107  # sun_path

RequestHandler = Callable[[Mapping[str, Any]], Mapping[str, Any]]


@dataclass(slots=True)
class DaemonMessage:
    """What reaches the main thread: a command with somebody who waits, or a generation that died; for one family, or,
    where none is named, for all."""

    command: str
    family: str | None = None
    fields: Mapping[str, Any] = field(default_factory=dict)
    generation: int = 0
    answered: threading.Event = field(default_factory=threading.Event)
    answer: dict[str, Any] | None = None
    error: AirweightsError | None = None


class ControlServer:
    """Listens in a thread of its own; each connection is answered in another.

    Args:
        path: of the socket; what a dead daemon left there is replaced.
        answer: called with the request, from any thread; what it raises of AirweightsError is sent.
    """

    def __init__(self, path: Path, handle_request: RequestHandler) -> None:
        self._path, self._handle_request = path, handle_request
        path.unlink(missing_ok=True)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        with _ShortSocketPath(path) as name:
            mask = os.umask(0o177)
            try:
                self._socket.bind(name)
            finally:
                os.umask(mask)
        self._socket.listen(BACKLOG_CONNECTIONS)
        threading.Thread(target=self._accept_connections, name="control", daemon=True).start()

    def close(self) -> None:
        """Stop listening."""
        self._path.unlink(missing_ok=True)
        self._socket.close()

    def _accept_connections(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            threading.Thread(
                target=self._serve_connection, args=(connection,), name="control-client", daemon=True
            ).start()

    def _serve_connection(self, connection: socket.socket) -> None:
        with connection:
            try:
                connection.settimeout(REQUEST_TIMEOUT_S)
                request = receive_message(connection)
                request.close()
                connection.settimeout(None)
                send_message(connection, self._reply(request.value))
            except (ChannelClosed, OSError) as error:
                logger.info("control client went away: %s", error)

    def _reply(self, request: Mapping[str, Any]) -> Mapping[str, Any]:
        try:
            return {"ok": self._handle_request(request)}
        except AirweightsError as error:
            return {"error": error.as_dict()}
        except Exception as error:
            logger.exception("control request %r", request.get("command"))
            return {"error": Bug(f"{type(error).__name__}: {error}").as_dict()}


def call_daemon(path: Path, command: str, timeout_s: float | None = None, **fields: Any) -> dict[str, Any]:
    """Ask the daemon.

    Args:
        path: of the socket.
        timeout_s: None waits as long as it takes.

    Raises:
        DaemonUnavailable: nobody answers.
        AirweightsError: the daemon's answer.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        try:
            with _ShortSocketPath(path) as name:
                connection.connect(name)
            connection.settimeout(timeout_s)
            send_message(connection, {"command": command, **fields})
            reply = receive_message(connection)
        except (ChannelClosed, OSError) as error:
            raise DaemonNotRunning(
                f"no daemon answers on {path}: {error}", hint="`device-agent run` starts one"
            ) from error
    reply.close()
    if isinstance(reply.value.get("ok"), dict):
        return dict(reply.value["ok"])
    raise error_from_dict(reply.value.get("error"))


class _ShortSocketPath:
    """A name for a socket whose path may be longer than a Unix socket's address takes."""

    def __init__(self, path: Path) -> None:
        self._path, self._fd = path, -1

    def __enter__(self) -> str:
        if len(os.fsencode(self._path)) <= MAX_SOCKET_PATH_BYTES:
            return str(self._path)
        self._fd = os.open(self._path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        return f"/proc/self/fd/{self._fd}/{self._path.name}"

    def __exit__(self, *_: object) -> None:
        if self._fd >= 0:
            os.close(self._fd)
