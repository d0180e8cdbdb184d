"""The steps of `device-agent check-config --connect`, from the proxy to the enrollment.

Rules:
- The real fetcher and verifier do the steps; the class of an error says which step failed.
- The verifier works on a copy of the trust state, so that nothing is changed, and a daemon may run.
"""

import itertools
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from bundle.acceptance import VerifiedRelease
from bundle.errors import AccessDenied, AirweightsError
from device_agent.config.config import Config
from device_agent.config.repository import origin_of
from device_agent.errors import (
    ConfigInvalid,
    ConnectionFailed,
    ProxyFailed,
    RepositoryAuthRequired,
    ServerTooSlow,
    TlsFailed,
)
from device_agent.policy.journal_records import PersistentState
from device_agent.policy.proxy_choice import choose_proxy
from device_agent.storage.bundle_store import BundleStore
from device_agent.storage.device_directory import DeviceDirectory, PublicIdentity
from device_agent.workers.worker_pool import WorkerPool

SETTINGS: Final = "settings"
PROXY: Final = "proxy"
CONNECTION: Final = "connection"
TLS: Final = "TLS"
AUTHENTICATION: Final = "authentication"
METADATA: Final = "metadata"
ENROLLMENT: Final = "enrollment"
# the first that applies; all other errors belong to METADATA
STEP_OF_ERROR: Final = (
    (ConfigInvalid, SETTINGS),
    (ProxyFailed, PROXY),
    (ConnectionFailed, CONNECTION),
    (ServerTooSlow, CONNECTION),
    (TlsFailed, TLS),
    (RepositoryAuthRequired, AUTHENTICATION),
    (AccessDenied, AUTHENTICATION),
)


@dataclass(frozen=True, slots=True)
class ConnectionCheck:
    """The result of the steps for one URL.

    Attributes:
        url: URL of the repository or of a mirror.
        passed: the steps that passed, with a detail each.
        failed: the step that failed, or "".
        error: its error, which names the step, or None.
    """

    url: str
    passed: tuple[tuple[str, str], ...]
    failed: str = ""
    error: AirweightsError | None = None

    def as_json(self) -> dict[str, Any]:
        """Return the row in `check-config --connect --json`."""
        return {"url": self.url, "steps": [{"step": step, "detail": detail} for step, detail in self.passed]}

    def as_lines(self) -> list[str]:
        """Return the lines for a person: the URL, and one line for each step."""
        lines = [self.url, *(f"  ok      {step:<15} {detail}".rstrip() for step, detail in self.passed)]
        return [*lines, f"  FAILED  {self.failed}"] if self.failed else lines


def check_connection(config: Config) -> tuple[ConnectionCheck, ...]:
    """Run the steps for `repository_url` and every mirror.

    Args:
        config: configuration of the device.

    Raises:
        NotInitialized: the device directory was not created.
        IdentityInvalid: the public identity cannot be read.
    """
    identity = DeviceDirectory(config.directory).read_public_identity()
    return tuple(_check_source(config, source, identity) for source in (config.repository_url, *config.mirrors))


def _check_source(config: Config, source: str, identity: PublicIdentity) -> ConnectionCheck:
    passed: list[tuple[str, str]] = []
    step, transport = "", _transport_steps(config, source)
    try:
        with tempfile.TemporaryDirectory(prefix="airweights-check-") as folder:
            for family in config.family_configs():
                with _open_workers(family, Path(folder)) as workers:
                    if not step:
                        workers.reach(source)
                        passed += transport
                    step = METADATA
                    release = workers.check_source(source, PersistentState(), ())
                    passed.append((METADATA, _describe(family, release)))
                    step = ENROLLMENT
                    workers.check_enrollment_at(source, release, identity.x_wing_public)
                    passed.append((ENROLLMENT, f"cohort {family.cohort}"))
    except AirweightsError as error:
        failed = step or _step_of(error)
        if not step and failed != SETTINGS:
            passed = list(itertools.takewhile(lambda each: each[0] != failed, transport))
        named = type(error)(f"{source}: step {failed} failed: {error.message}", hint=error.hint)
        return ConnectionCheck(source, tuple(passed), failed, named)
    return ConnectionCheck(source, tuple(passed))


def _open_workers(config: Config, folder: Path) -> WorkerPool:
    device = DeviceDirectory.for_family(config)
    copy = folder / config.family
    shutil.copytree(device.trust_directory, copy, symlinks=True)
    device.trust_directory = copy
    return WorkerPool(config, device, BundleStore(device.family_directory))


def _transport_steps(config: Config, source: str) -> list[tuple[str, str]]:
    """Return the steps before METADATA, with their details."""
    if source.startswith("file:"):
        return []
    steps = [(PROXY, _describe_proxy(config, source)), (CONNECTION, "")]
    if origin_of(source).startswith("https:"):
        steps.append((TLS, ""))
    return [*steps, (AUTHENTICATION, "")]


def _describe_proxy(config: Config, source: str) -> str:
    scheme, _, authority = origin_of(source).partition("://")
    host, _, port = authority.rpartition(":")
    settings = config.repository
    try:
        proxy = choose_proxy(
            scheme,
            host.strip("[]"),
            int(port),
            configured=settings.proxy,
            no_proxy=settings.no_proxy,
            environment=os.environ,
        )
    except ProxyFailed:
        return ""
    return "none" if proxy is None else proxy.url


def _step_of(error: AirweightsError) -> str:
    return next((step for kind, step in STEP_OF_ERROR if isinstance(error, kind)), METADATA)


def _describe(config: Config, release: VerifiedRelease) -> str:
    return f"{config.family}: channel {config.channel} runs {release.manifest.version}"
