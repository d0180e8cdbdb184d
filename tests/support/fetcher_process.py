"""A real fetcher process with given settings of `[repository]`, outside of a worker pool."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from device_agent.config.config import Config, UpdateSettings
from device_agent.config.repository import RepositorySettings
from device_agent.process.jail import JailPolicy
from device_agent.process.worker_process import WorkerProcess
from device_agent.workers.repository_access import RepositoryAccess
from device_agent.workers.worker_processes import NETWORK_FILES


def network_jail() -> JailPolicy:
    """Return the jail of a fetcher with a network."""
    return JailPolicy("fetcher", sockets="inet", read=NETWORK_FILES)


@contextmanager
def start_fetcher(
    repository_url: str = "http://127.0.0.1:1",
    *,
    environment: dict[str, str] | None = None,
    module: str = "device_agent.workers.fetcher",
    unseal_client_key: Callable[[], int] | None = None,
    **settings: Any,
) -> Iterator[WorkerProcess]:
    """Start a fetcher and send it the settings, as a worker pool does."""
    variables = {"PYTHONPATH": str(Path(__file__).parents[2]), **(environment or {})}
    with WorkerProcess.start(module, network_jail(), environment=variables) as child:
        configure_fetcher(child, repository_url, unseal_client_key, **settings)
        yield child


def configure_fetcher(
    child: WorkerProcess, repository_url: str, unseal_client_key: Callable[[], int] | None = None, **settings: Any
) -> RepositoryAccess:
    """Send settings of `[repository]` to a fetcher; `min_rate_bytes_s` is one of `[update]`."""
    config = Config(Path("/nothing"), repository_url, "kws")
    update = UpdateSettings(**{key: settings.pop(key) for key in ("min_rate_bytes_s",) if key in settings})
    config = replace(config, update=update, repository=RepositorySettings(**settings))
    access = RepositoryAccess(config)
    access.send_if_changed(
        lambda request, fds: child.call("configure", request, fds, deadline_s=60).close(), unseal_client_key or _no_key
    )
    return access


def _no_key() -> int:
    raise AssertionError("no client key was sealed")


def get(child: WorkerProcess, url: str, max_bytes: int = 1 << 20) -> bytes:
    """Fetch a document."""
    answer = child.call("get", {"url": url, "max_bytes": max_bytes}, deadline_s=120)
    try:
        return os.pread(answer.fds[0], max_bytes + 1, 0)
    finally:
        answer.close()
