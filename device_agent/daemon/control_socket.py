"""The control socket, over which the command line sends requests to a running daemon.

Rules:
- The socket is `control.sock` in the device directory, of mode 0600: only the owner of the device can connect.
- A worker of this daemon can have the owner's user id. Its requests are refused: the kernel says which process
  connected. A process that has ended since then is refused too, because it could have been a worker.
- A connection transports one request {"command": NAME, ...} and one reply {"ok": {...}} or {"error": {...}}
  (device_agent.process.channel).
"""

import logging
import os
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from bundle.errors import AirweightsError, Bug
from device_agent.errors import AddressUnavailable, ControlPeerRefused, DaemonNotRunning, error_from_dict
from device_agent.process.channel import ChannelClosed, receive_message, send_message
from device_agent.process.unix_socket import ShortSocketPath, UnixListener, peer_credentials
from device_agent.process.worker_process import is_worker

logger = logging.getLogger(__name__)

REQUEST_TIMEOUT_S: Final = 5.0  # for the arrival of the request; the reply has no limit

RequestHandler = Callable[[Mapping[str, Any]], Mapping[str, Any]]


class ControlServer:
    """Server of the control socket: one thread accepts, and each connection has a thread of its own.

    Args:
        path: path of the socket; a socket that a crashed daemon left is replaced.
        handle_request: returns the reply to a request; called in the connections' threads. An AirweightsError that it
            raises is sent as the reply.

    Raises:
        AddressUnavailable: the socket cannot be created.
    """

    def __init__(self, path: Path, handle_request: RequestHandler) -> None:
        self._handle_request = handle_request
        try:
            self._listener = UnixListener(path, 0o600, self._serve_connection, name="control")
        except OSError as error:
            raise AddressUnavailable(f"cannot listen on the control socket {path}: {error}") from error

    def close(self) -> None:
        """Remove the socket and stop listening."""
        self._listener.close()

    def _serve_connection(self, connection: socket.socket) -> None:
        with connection:
            try:
                connection.settimeout(REQUEST_TIMEOUT_S)
                request = receive_message(connection)
                request.close()
                try:
                    check_peer(connection)
                except ControlPeerRefused as error:
                    logger.warning("%s", error.message)
                    send_message(connection, {"error": error.as_dict()})
                    return
                connection.settimeout(None)
                send_message(connection, self._reply(request.value))
            except (ChannelClosed, OSError) as error:
                logger.info("the control client disconnected: %s", error)

    def _reply(self, request: Mapping[str, Any]) -> Mapping[str, Any]:
        try:
            return {"ok": self._handle_request(request)}
        except AirweightsError as error:
            return {"error": error.as_dict()}
        except Exception as error:
            logger.exception("control request %r failed", request.get("command"))
            return {"error": Bug(f"{type(error).__name__}: {error}").as_dict()}


def check_peer(connection: socket.socket) -> None:
    """Check that the other end of a Unix socket may control this daemon.

    Raises:
        ControlPeerRefused: it belongs to another user, is a worker of this process, or has ended.
    """
    pid, uid, _ = peer_credentials(connection)
    if uid not in (0, os.geteuid()):
        raise ControlPeerRefused(f"control socket: process {pid} belongs to user {uid}")
    # 0: it lives outside of this process's PID namespace, so it is no worker
    if pid and (is_worker(pid) or not Path(f"/proc/{pid}").exists()):
        raise ControlPeerRefused(f"control socket: process {pid} is a worker, or has ended")


def call_daemon(path: Path, command: str, timeout_s: float | None = None, **fields: Any) -> dict[str, Any]:
    """Send a request to the daemon and return its reply.

    Args:
        path: path of the socket.
        command: name of the request (device_agent.daemon.request_handler).
        timeout_s: seconds to wait for the reply; None waits without a limit.
        fields: further fields of the request.

    Raises:
        DaemonNotRunning: the socket does not exist, or the daemon does not reply.
        AirweightsError: the error that the daemon replied with.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        try:
            with ShortSocketPath(path) as name:
                connection.connect(name)
            connection.settimeout(timeout_s)
            send_message(connection, {"command": command, **fields})
            reply = receive_message(connection)
        except (ChannelClosed, OSError) as error:
            raise DaemonNotRunning(
                f"no daemon responds on {path}: {error}", hint="start one with `device-agent run`"
            ) from error
    reply.close()
    if isinstance(reply.value.get("ok"), dict):
        return dict(reply.value["ok"])
    raise error_from_dict(reply.value.get("error"))
