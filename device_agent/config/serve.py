"""The table `[serve]` of the configuration: the endpoint and the model processes."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bundle.providers import CPU
from device_agent.config.table import Table
from device_agent.errors import ConfigInvalid

SYSTEMD_SOCKET: Final = "systemd"  # a value of `listen`
LISTEN_PATTERN: Final = re.compile(r"systemd|unix:/[^\0]{1,100}|tcp:(?:127\.0\.0\.1|localhost|\[::1\]):[0-9]{1,5}")
HOST_PATTERN: Final = re.compile(r"[a-z0-9]([a-z0-9._-]{0,251}[a-z0-9])?|\[[0-9a-f:.]{2,45}\]")
ORIGIN_PATTERN: Final = re.compile(r"[a-z][a-z0-9+.-]{0,31}://([a-z0-9._-]{1,253}|\[[0-9a-f:.]{2,45}\])(:[0-9]{1,5})?")
GROUP_PATTERN: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")
MODE_PATTERN: Final = re.compile(r"0?[0-7]{3}")
MAX_ALLOWED_NAMES: Final = 64
MAX_PORT: Final = 65535
LISTEN_EXPECTED: Final = "unix:/path, systemd, or tcp:127.0.0.1:PORT (only this machine can reach the endpoint)"
HOST_EXPECTED: Final = "a host name in lower case without port, such as kws.local"
ORIGIN_EXPECTED: Final = "an origin in lower case without path, such as https://panel.example.com"
PROVIDER_PATTERN: Final = re.compile(r"[A-Za-z][A-Za-z0-9]{0,63}")
PROVIDER_EXPECTED: Final = "the name of an execution provider, such as OpenVINO"
LIBRARY_PATTERN: Final = re.compile(r"/[^\0]{1,4000}")
LIBRARY_EXPECTED: Final = "the absolute path of a library"
DEVICE_PATTERN: Final = re.compile(r"/dev/(?!.*\.\.)[A-Za-z0-9][A-Za-z0-9_./:-]{0,200}")
DEVICE_EXPECTED: Final = "the path of a device node below /dev, such as /dev/dri/renderD128"
MAX_PROVIDERS: Final = 8
MAX_DEVICES: Final = 16
GROUP_EXPECTED: Final = "the name of a group"
MODE_EXPECTED: Final = 'the permissions of the socket, such as "0660"'


@dataclass(frozen=True, slots=True)
class ServeSettings:
    """Settings of the table `[serve]`: the endpoint and the model processes.

    Attributes:
        listen: "unix:/path" or "tcp:127.0.0.1:PORT"; port 0 chooses a free port. "systemd": the socket that systemd
            passes (socket activation).
        group: group that a Unix socket belongs to, or None for the daemon's.
        mode: permissions of a Unix socket.
        threads: threads of one model process; 0 lets ONNX Runtime choose.
        standby: keep a second loaded process of the active bundle, which takes over at once if the first one crashes.
            It needs the model's memory a second time.
        memory_bytes: limit of the memory of all model processes together, or None for the system's available memory.
            If two models do not fit during a swap, the running one is stopped first.
        allowed_hosts: names that a request's Host may have besides localhost, 127.0.0.1 and [::1].
        allowed_origins: origins of web pages that may send requests.
        max_body_bytes: largest request body; a model with fixed shapes allows only what its inputs can need.
        max_connections: connections that may have a request at the same time; idle ones give way.
        apps_socket: path of the socket for applications; None: `apps.sock` in the device directory.
        export: folder in memory for the files of serving releases (device_agent.apps.export_folder), or None.
        request_memory_bytes: memory that requests may use in a model process, beyond what the model and its golden
            inputs need.
        providers: execution providers that models may run on, the preferred one first (bundle.providers).
        provider_libraries: plug-ins of providers, (name of the provider, path).
        devices: device nodes that model processes on another provider than the CPU can open and control.
    """

    listen: str = "tcp:127.0.0.1:0"
    group: str | None = None
    mode: str = "0660"
    threads: int = 0
    standby: bool = False
    memory_bytes: int | None = None
    allowed_hosts: tuple[str, ...] = ()
    allowed_origins: tuple[str, ...] = ()
    max_body_bytes: int = 64 * 1024 * 1024
    max_connections: int = 1024
    request_memory_bytes: int = 1024 * 1024 * 1024
    apps_socket: Path | None = None
    export: Path | None = None
    providers: tuple[str, ...] = (CPU,)
    provider_libraries: tuple[tuple[str, str], ...] = ()
    devices: tuple[str, ...] = ()


def parse_serve(table: Table, where: str, folder: Path) -> ServeSettings:
    """Parse the table `[serve]`.

    Args:
        table: the table, empty if it is missing.
        where: name of the file, for error messages.
        folder: folder that relative paths start at.

    Raises:
        ConfigInvalid: a key is unknown, or a value is out of range.
    """
    default = ServeSettings()
    listen = _parse_listen(table, where)
    for key in ("group", "mode"):
        if table.has(key) and not listen.startswith("unix:"):
            raise ConfigInvalid(f"{where}: serve.{key} is for a Unix socket, but serve.listen is {listen!r}")
    return ServeSettings(
        listen=listen,
        group=table.text("group", None, GROUP_PATTERN, GROUP_EXPECTED) if table.has("group") else None,
        mode=table.text("mode", default.mode, MODE_PATTERN, MODE_EXPECTED),
        threads=table.integer("threads", default.threads, 0, 1024),
        standby=table.flag("standby", default.standby),
        memory_bytes=table.optional_integer("memory_bytes", 2**20, 2**50),
        allowed_hosts=table.texts("allowed_hosts", HOST_PATTERN, MAX_ALLOWED_NAMES, HOST_EXPECTED),
        allowed_origins=_parse_origins(table),
        max_body_bytes=table.integer("max_body_bytes", default.max_body_bytes, 1024, 2**31),
        max_connections=table.integer("max_connections", default.max_connections, 16, 2**16),
        request_memory_bytes=table.integer("request_memory_bytes", default.request_memory_bytes, 2**24, 2**50),
        apps_socket=table.path("apps_socket", folder) if table.has("apps_socket") else None,
        export=table.path("export", folder) if table.has("export") else None,
        providers=_parse_providers(table),
        provider_libraries=_parse_libraries(table),
        devices=table.texts("devices", DEVICE_PATTERN, MAX_DEVICES, DEVICE_EXPECTED),
    )


def _parse_providers(table: Table) -> tuple[str, ...]:
    names = table.texts("providers", PROVIDER_PATTERN, MAX_PROVIDERS, PROVIDER_EXPECTED)
    if table.has("providers") and not names:
        raise table.invalid("providers", "is empty, expected at least one execution provider, such as CPU")
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise table.invalid("providers", f"has {twice!r} twice, expected each execution provider once")
    return names or (CPU,)


def _parse_libraries(table: Table) -> tuple[tuple[str, str], ...]:
    found = []
    for name, path in table.items("provider_libraries", MAX_PROVIDERS):
        if not PROVIDER_PATTERN.fullmatch(name) or name == CPU:
            raise table.invalid("provider_libraries", f"has the key {name!r}, expected {PROVIDER_EXPECTED}")
        if not isinstance(path, str) or not LIBRARY_PATTERN.fullmatch(path):
            raise table.invalid("provider_libraries", f"has {path!r} for {name}, expected {LIBRARY_EXPECTED}")
        found.append((name, path))
    return tuple(found)


def _parse_origins(table: Table) -> tuple[str, ...]:
    origins = table.texts("allowed_origins", ORIGIN_PATTERN, MAX_ALLOWED_NAMES, ORIGIN_EXPECTED)
    for origin in origins:
        port = re.search(r":([0-9]+)$", origin)
        if port is not None and int(port[1]) > MAX_PORT:
            raise table.invalid("allowed_origins", f"has {origin!r}, expected a port of at most {MAX_PORT}")
    return origins


def _parse_listen(table: Table, where: str) -> str:
    address = table.text("listen", "tcp:127.0.0.1:0", LISTEN_PATTERN, LISTEN_EXPECTED)
    if address.startswith("tcp:") and int(address.rpartition(":")[2]) > MAX_PORT:
        raise ConfigInvalid(f"{where}: serve.listen is {address!r}, expected a port of at most {MAX_PORT}")
    return address
