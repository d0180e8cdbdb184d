"""The processes of a worker pool: started at their first call, each in the jail of its task.

Rules:
- A worker is started at its first call and stopped when the processes are closed: none runs between two updates.
- A patcher that was started for another call does not apply patches: it is stopped, and one that does is started.
- A worker that crashed or exceeded its deadline is stopped; the next call starts a new one.
- `interrupt` can be called from any thread; everything else belongs to one thread.
"""

import os
import re
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from device_agent.config.config import Config
from device_agent.config.reports import MQTT_SCHEMES, MQTT_VARIABLE
from device_agent.errors import AgentStopping, UpdateInterrupted, WorkerCrashed, WorkerTimeout
from device_agent.process.channel import Message
from device_agent.process.jail import JailPolicy
from device_agent.process.worker_process import WorkerProcess

# files that the name resolver reads: the configuration of glibc and its modules
NETWORK_FILES: Final = (
    *("/etc/resolv.conf", "/etc/hosts", "/etc/nsswitch.conf", "/etc/host.conf", "/etc/gai.conf", "/etc/services"),
    *("/run/systemd/resolve", "/etc/ld.so.cache", "/lib", "/lib64", "/usr/lib", "/usr/lib64"),
)
# of the environment, for the fetcher alone: a proxy's URL can contain a password; compared in lower case
NETWORK_VARIABLES: Final = frozenset(
    {"ssl_cert_file", "ssl_cert_dir", "http_proxy", "https_proxy", "all_proxy", "no_proxy"}
)
# folders in which the store of a token in software, or the socket of a reader's daemon, can lie
TOKEN_STORES: Final = (
    *("/dev", "/home", "/opt", "/root", "/run", "/srv", "/var/lib", "/var/run"),
    *("/tmp", "/var/tmp"),  # noqa: S108  # nothing is created there
)
BUS_SOCKETS: Final = ("/run/dbus/system_bus_socket", "/var/run/dbus/system_bus_socket")


# calls that need the decoder; `unlock` is one because the content key stays in that process
PATCH_CALLS: Final = frozenset({"unlock", "apply"})


class WorkerProcesses:
    """The running workers of one family's update, by name.

    Args:
        config: configuration of the family.
        trust_directory: the only directory that the verifier may write to.
        on_idle: called repeatedly while a worker runs, to handle messages that cannot wait for it.
    """

    def __init__(self, config: Config, trust_directory: Path, on_idle: Callable[[], None] | None) -> None:
        self._config, self._trust_directory, self._on_idle = config, trust_directory, on_idle
        self._workers: dict[str, WorkerProcess] = {}
        self._applies_patches = False
        self._interrupted = threading.Event()

    def close(self) -> None:
        """Stop all worker processes."""
        while self._workers:
            self._workers.popitem()[1].stop()

    def interrupt(self) -> None:
        """Kill all workers, from any thread: the running call and all later calls raise AgentStopping."""
        self._interrupted.set()
        for process in list(self._workers.values()):
            process.kill()

    def is_running(self, worker: str) -> bool:
        """Return whether a worker was started and has not ended."""
        process = self._workers.get(worker)
        return process is not None and process.is_alive()

    def call(
        self, worker: str, operation: str, request: dict[str, Any], fds: Sequence[int] = (), **options: Any
    ) -> Message:
        """Call an operation of a worker, which is started if it does not run; return its reply.

        Args:
            worker: name of its module in device_agent.workers.
            operation: name of the operation.
            request: fields of the request.
            fds: descriptors that the worker receives duplicates of.
            options: deadline and callbacks, as of WorkerProcess.call.

        Raises:
            AgentStopping: `interrupt` was called.
            WorkerCrashed: the worker ended before it replied.
            WorkerTimeout: the worker exceeded its deadline.
            AirweightsError: the error that the worker replied with.
        """
        process = self._workers.get(worker)
        if self._interrupted.is_set():
            raise AgentStopping(f"the agent is stopping, {operation!r} was not started")
        needs_decoder = worker == "patcher" and operation in PATCH_CALLS
        if process is not None and needs_decoder and not self._applies_patches:
            self._workers.pop(worker).stop()
            process = None
        if process is None:
            environment = _environment_of(worker, self._config)
            process = self._workers[worker] = WorkerProcess.start(
                f"device_agent.workers.{worker}",
                replace(jail_of(worker, self._config, self._trust_directory), applies_patches=needs_decoder),
                environment=environment,
                on_idle=self._on_idle,
            )
            if worker == "patcher":
                self._applies_patches = needs_decoder
            if self._interrupted.is_set():  # while the process started, when `interrupt` did not see it yet
                process.kill()
        try:
            return process.call(operation, request, fds, on_idle=self._on_idle, **options)
        except (WorkerCrashed, WorkerTimeout):
            if self._workers.get(worker) is process:
                self._workers.pop(worker).stop()
            if self._interrupted.is_set():
                raise AgentStopping(f"the agent is stopping, {operation!r} was interrupted") from None
            raise
        except (AgentStopping, UpdateInterrupted):  # of `on_idle`, which ended the worker
            if self._workers.get(worker) is process and not process.is_alive():
                self._workers.pop(worker).stop()
            raise


def jail_of(worker: str, config: Config, trust_directory: Path) -> JailPolicy:
    """Return the jail of a worker: the least that its task needs.

    Args:
        worker: name of its module in device_agent.workers.
        config: configuration of the family; the repository and the key storage decide what is reachable.
        trust_directory: the only directory that the verifier may write to.
    """
    allow = config.allow_unjailed
    if worker == "key_opener":
        return key_opener_jail(config.key_storage, allow_unjailed=allow)
    if worker == "verifier":
        return JailPolicy("verifier", write=(str(trust_directory),), fixed_user=True, allow_unjailed=allow)
    if worker == "patcher":
        return JailPolicy("patcher", lock_memory=True, allow_unjailed=allow)
    if config.repository_url.startswith("file:"):
        from urllib.parse import unquote, urlsplit  # 400 kB in a process that stays

        # read-any: the files of a removable disk can belong to any user
        folder = str(Path(unquote(urlsplit(config.repository_url).path)))
        return JailPolicy("fetcher", read=(folder,), capability="read-any", allow_unjailed=allow)
    return JailPolicy("fetcher", sockets="inet", read=NETWORK_FILES, allow_unjailed=allow)


def key_opener_jail(key_storage: str, *, allow_unjailed: bool) -> JailPolicy:
    """Return the jail of the key opener, which depends on the key storage.

    Args:
        key_storage: setting of the configuration, such as "tpm:device:/dev/tpmrm0".
        allow_unjailed: run without a jail if the kernel offers none.
    """
    if key_storage.startswith("pkcs11:"):
        # its library, its configuration and the store of a token in software can lie anywhere and belong to any user
        return JailPolicy(
            "token_opener",
            sockets="unix",
            read=("/",),
            write=TOKEN_STORES,
            fixed_user=True,
            capability="access-any",
            allow_unjailed=allow_unjailed,
        )
    if key_storage.startswith("tpm:device:"):
        return JailPolicy("key_opener", allow_unjailed=allow_unjailed)  # the device is open before the jail closes
    # every command opens a new connection to a resource manager or simulator
    if "host=" in key_storage or "port=" in key_storage:
        return JailPolicy("key_opener", sockets="inet", read=NETWORK_FILES, allow_unjailed=allow_unjailed)
    if path := re.search(r"path=([^,?]+)", key_storage):
        # access-any: the socket can belong to any user
        return JailPolicy(
            "key_opener", sockets="unix", read=(path[1],), capability="access-any", allow_unjailed=allow_unjailed
        )
    # D-Bus knows the resource manager's clients by their user id
    return JailPolicy("key_opener", sockets="unix", read=BUS_SOCKETS, own_user=False, allow_unjailed=allow_unjailed)


def _environment_of(worker: str, config: Config) -> dict[str, str]:
    if worker == "fetcher":
        found = {name: value for name, value in os.environ.items() if name.lower() in NETWORK_VARIABLES}
        return found | ({MQTT_VARIABLE: "1"} if config.reports.url.startswith(MQTT_SCHEMES) else {})
    if worker == "key_opener":
        # the library of a token reads environment variables of its own, which are not known here
        others = {name: value for name, value in os.environ.items() if name.lower() not in NETWORK_VARIABLES}
        return {**others, "AIRWEIGHTS_KEY_STORAGE": config.key_storage}
    return {}
