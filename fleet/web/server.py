"""Run the server until it is stopped."""

import ipaddress
import socket
from pathlib import Path
from typing import Final

import uvicorn

from bundle.errors import InvalidUsage
from bundle.local_files import check_regular_file, decode_text, read_local_file
from fleet.database import Database
from fleet.device_index import fill_devices
from fleet.errors import LoginRequired
from fleet.site import ReadSite
from fleet.web.app import create_app
from fleet.web.login import MIN_TOKEN_CHARACTERS, Login
from fleet.web.state import ServerState

BACKLOG: Final = 1024
MAX_CONNECTIONS: Final = 1_000
KEEP_ALIVE_S: Final = 20
MAX_TOKEN_BYTES: Final = 4096


def read_token(path: Path) -> str:
    """Return the token in the first line of a file.

    Raises:
        InvalidUsage: the file is not UTF-8, or the token is shorter than MIN_TOKEN_CHARACTERS.
        FileNotRegular: the file is a FIFO, a device or a socket.
        TooLarge: the file is longer than MAX_TOKEN_BYTES.
        OSError: the file cannot be read.
    """
    try:
        token = decode_text(read_local_file(path, MAX_TOKEN_BYTES), where=str(path)).split("\n")[0].strip()
    except UnicodeDecodeError as error:
        raise InvalidUsage(f"{path}: expected a token in UTF-8") from error
    if len(token) < MIN_TOKEN_CHARACTERS:
        raise InvalidUsage(
            f"{path}: found a token of {len(token)} characters, expected at least {MIN_TOKEN_CHARACTERS}",
            hint="create one with `openssl rand -hex 32`",
        )
    return token


def open_server(
    database: Database, read_site: ReadSite, host: str, *, token: str | None = None, trusted_header: str | None = None
) -> ServerState:
    """Return the state of a server that may listen on a host.

    Args:
        database: the store.
        read_site: reads the facts of the repository.
        host: address to listen on.
        token: token of the operators, or None.
        trusted_header: a header that only the reverse proxy can set, or None.

    Raises:
        LoginRequired: the host is not loopback, and there is no login.
        RegistryUnsigned, RegistryDamaged: the registry cannot be used.
    """
    is_loopback = host == "localhost" or _is_loopback(host)
    if not is_loopback and token is None and trusted_header is None:
        raise LoginRequired(
            f"the server would show the fleet to everybody who reaches {host}",
            hint="add --token-file, or --trust-header behind a reverse proxy, or listen on 127.0.0.1",
        )
    site = read_site()
    fill_devices(database, site.registry, site.registry_digest)
    return ServerState(database, read_site, Login(token, trusted_header, is_loopback), site)


def listen(host: str, port: int) -> socket.socket:
    """Return a listening socket.

    Args:
        host: address or name.
        port: port; 0 for a free one.

    Raises:
        InvalidUsage: no host can have this name.
        OSError: the address is in use or not allowed.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        socket.getaddrinfo(host, port, family, socket.SOCK_STREAM)
    except (UnicodeError, socket.gaierror) as error:
        raise InvalidUsage(f"--listen: {host!r} is not the name of a host") from error
    return socket.create_server((host, port), family=family, backlog=BACKLOG)


def create_server(state: ServerState, certificate: Path | None = None, key: Path | None = None) -> uvicorn.Server:
    """Return a server, whose method `run` takes the listening sockets and serves until SIGINT or SIGTERM.

    Args:
        state: the state of the server.
        certificate: the TLS certificate with its chain, or None for plain HTTP.
        key: its private key.

    Raises:
        FileNotRegular: one of the two is a FIFO, a device or a socket.
        OSError: one of the two cannot be read.
    """
    for path in (certificate, key):
        if path is not None:
            check_regular_file(path)
    config = uvicorn.Config(
        create_app(state),
        log_level="warning",
        access_log=False,
        server_header=False,
        limit_concurrency=MAX_CONNECTIONS,
        timeout_keep_alive=KEEP_ALIVE_S,
        ssl_certfile=None if certificate is None else str(certificate),
        ssl_keyfile=None if key is None else str(key),
    )
    return uvicorn.Server(config)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return False
