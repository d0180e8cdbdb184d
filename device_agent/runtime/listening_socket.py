"""Create the listening socket of the endpoint: a Unix socket, a TCP port, or that of a socket unit."""

import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from device_agent.errors import AddressUnavailable, ConfigInvalid
from device_agent.process.unix_socket import listen_unix

BACKLOG_CONNECTIONS: Final = 128
SOCKET_MODE: Final = 0o660
FIRST_ACTIVATED_FD: Final = 3  # SD_LISTEN_FDS_START


def listen_on(listen: str, group: str | None = None, mode: int = SOCKET_MODE) -> tuple[socket.socket, str, Path | None]:
    """Create a listening socket.

    Args:
        listen: "unix:/path", "tcp:HOST:PORT", or "systemd" for the socket of a socket unit (sd_listen_fds(3)).
        group: group that a Unix socket belongs to, or None for that of this process.
        mode: permissions of a Unix socket.

    Returns:
        The socket, its address as clients write it, and the path of a Unix socket that was created.

    Raises:
        ConfigInvalid: `listen` is malformed, or systemd passes no socket or another kind of socket.
        AddressUnavailable: the operating system refuses; a Unix socket that another server still uses is refused too.
    """
    if listen == "systemd":
        return _activated_socket(os.environ)
    kind, _, rest = listen.partition(":")
    try:
        if kind == "unix" and rest.startswith("/"):
            return _listen_unix(Path(rest), group, mode), f"unix:{rest}", Path(rest)
        host, _, port = rest.rpartition(":")
        if kind == "tcp" and host and port.isdecimal() and int(port) < 2**16:
            return _listen_tcp(host.strip("[]"), int(port))
    except (OSError, LookupError) as error:
        raise AddressUnavailable(f"cannot listen on {listen!r}: {error}") from error
    raise ConfigInvalid(f"listen: found {listen!r}, expected unix:/path, tcp:HOST:PORT or systemd")


def _activated_socket(environment: Mapping[str, str]) -> tuple[socket.socket, str, None]:
    """Return a duplicate of the socket that systemd passed: it stays open for the next front."""
    passed = environment.get("LISTEN_FDS", "0") if environment.get("LISTEN_PID") == str(os.getpid()) else "0"
    if passed != "1":
        raise ConfigInvalid(
            f"serve.listen is 'systemd', but systemd passes {passed} sockets, expected 1",
            hint="start the agent by airweights-agent.socket, or name an address",
        )
    listener = socket.socket(fileno=os.dup(FIRST_ACTIVATED_FD))
    try:
        os.set_inheritable(listener.fileno(), False)
        name = listener.getsockname()
        is_listening = bool(listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
    except OSError as error:
        listener.close()
        raise ConfigInvalid(f"the socket that systemd passes cannot be used: {error}") from error
    if is_listening and listener.family == socket.AF_UNIX:
        return listener, f"unix:{os.fsdecode(name)}", None
    if is_listening and listener.family in (socket.AF_INET, socket.AF_INET6):
        host, port = name[:2]
        if host == "::1" or host.startswith("127."):
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return listener, f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}", None
    listener.close()
    raise ConfigInvalid(
        f"the socket that systemd passes has the address {name!r}, expected a stream socket at a path or at 127.0.0.1",
        hint="set ListenStream= in airweights-agent.socket; only this machine may reach the endpoint",
    )


def _listen_unix(path: Path, group: str | None, mode: int) -> socket.socket:
    listener = listen_unix(path, mode=mode, backlog=BACKLOG_CONNECTIONS)
    try:
        if group is not None:
            import shutil

            shutil.chown(path, group=group)
    except BaseException:
        listener.close()
        raise
    return listener


def _listen_tcp(host: str, port: int) -> tuple[socket.socket, str, None]:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.create_server((host, port), family=family, backlog=BACKLOG_CONNECTIONS)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    shown = f"[{host}]" if family == socket.AF_INET6 else host
    return listener, f"http://{shown}:{listener.getsockname()[1]}", None
