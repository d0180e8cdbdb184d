"""Create the listening socket of the endpoint: a Unix socket, or a TCP port."""

import socket
from pathlib import Path
from typing import Final

from device_agent.errors import AddressUnavailable, ConfigInvalid
from device_agent.process.unix_socket import listen_unix

BACKLOG_CONNECTIONS: Final = 128
SOCKET_MODE: Final = 0o660


def listen_on(listen: str, group: str | None = None) -> tuple[socket.socket, str, Path | None]:
    """Create a listening socket.

    Args:
        listen: "unix:/path" or "tcp:HOST:PORT".
        group: group that may use a Unix socket in addition to its owner (mode 0660), or None.

    Returns:
        The socket, its address as clients write it, and the path of a Unix socket.

    Raises:
        ConfigInvalid: `listen` is malformed.
        AddressUnavailable: the operating system refuses; a Unix socket that another server still uses is refused too.
    """
    kind, _, rest = listen.partition(":")
    try:
        if kind == "unix" and rest.startswith("/"):
            return _listen_unix(Path(rest), group), f"unix:{rest}", Path(rest)
        host, _, port = rest.rpartition(":")
        if kind == "tcp" and host and port.isdecimal() and int(port) < 2**16:
            return _listen_tcp(host.strip("[]"), int(port))
    except (OSError, LookupError) as error:
        raise AddressUnavailable(f"cannot listen on {listen!r}: {error}") from error
    raise ConfigInvalid(f"listen: found {listen!r}, expected unix:/path or tcp:HOST:PORT")


def _listen_unix(path: Path, group: str | None) -> socket.socket:
    listener = listen_unix(path, mode=SOCKET_MODE, backlog=BACKLOG_CONNECTIONS)
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
