"""The agent in one process: its own code, with the handlers of its workers called directly.

One process then makes every system call that changes a file in the device directory, and a tracer can kill the whole
agent at any of them. A case takes a fraction of a second. Left out are jails and models, which write nothing. With
`has_real_workers`, fetcher, verifier and patcher are real processes, which end soon after the supervisor is killed.
"""

import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bundle.variant import Variant
from device_agent.config.config import Config, load_config
from device_agent.config.repository import RepositorySettings
from device_agent.errors import StoreDamaged
from device_agent.host.device_facts import device_facts, runtime_version
from device_agent.policy.attempt import UpdateResult
from device_agent.policy.journal_records import BundleRecord
from device_agent.policy.serving_counts import BadResponse, BadResponseCount, RepeatObservation, ServingObservation
from device_agent.policy.shadow_judge import ShadowObservation
from device_agent.process.channel import Message
from device_agent.process.worker import Handler
from device_agent.runtime.bundle_fds import BundleFds
from device_agent.runtime.probe_runner import ProbeReport
from device_agent.serving.family_serving import FamilyServing
from device_agent.serving.serving_backend import ModelProcessHandle
from device_agent.storage.bundle_store import BundleStore
from device_agent.storage.device_directory import DeviceDirectory
from device_agent.update.context import UpdateContext, collect_garbage
from device_agent.update.recovery import open_journal, recover_journal
from device_agent.update.update import run_staged, run_update
from device_agent.workers import fetcher, patcher, verifier
from device_agent.workers.worker_pool import WorkerPool
from device_agent.workers.worker_processes import WorkerProcesses

RequestHandler = Callable[[Message], tuple[dict[str, Any], Sequence[int]]]


class _Supervisor:
    """The supervisor as a handler sees it."""

    def __init__(self, on_ask: RequestHandler | None) -> None:
        self._on_ask = on_ask

    def send_event(self, value: object) -> None:
        """Ignore progress."""

    def request(self, value: dict[str, Any], fds: Sequence[int] = ()) -> Message:
        assert self._on_ask is not None
        answer, answer_fds = self._on_ask(Message(value, tuple(fds)))
        return Message(answer, tuple(answer_fds))


class _InProcess(WorkerProcesses):
    """Calls the handlers of fetcher, verifier and patcher in this process."""

    def __init__(self, config: Config, trust_directory: Path) -> None:
        super().__init__(config, trust_directory, None)
        self._patcher = patcher.Patcher()
        self._handlers: dict[tuple[str, str], Handler] = {
            ("fetcher", "configure"): fetcher.configure,
            ("fetcher", "get"): fetcher.handle_get,
            ("fetcher", "envelope"): fetcher.handle_envelope,
            ("fetcher", "blob"): fetcher.fetch_blob,
            ("verifier", "check"): verifier.check_channel,
            ("patcher", "unlock"): self._patcher.load_content_key,
            ("patcher", "apply"): self._patcher.apply_patch,
            ("patcher", "unseal"): patcher.unseal_bundle,
            ("patcher", "describe"): patcher.read_sealed_header,
        }

    def is_running(self, worker: str) -> bool:
        """Return True: the handlers are in this process."""
        return True

    def call(
        self, worker: str, operation: str, request: dict[str, Any], fds: Sequence[int] = (), **options: Any
    ) -> Message:
        """Call the handler of an operation."""
        # a handler owns the descriptors that it receives, as through a socket
        message = Message(request, tuple(os.dup(fd) for fd in fds))
        result = self._handlers[worker, operation](_Supervisor(options.get("on_request")), message)  # type: ignore[arg-type]  # the part that handlers use
        return result if isinstance(result, Message) else Message(result)


class InProcessWorkerPool(WorkerPool):
    """A pool whose workers are functions of this process."""

    def __init__(self, config: Config, device: DeviceDirectory, store: BundleStore) -> None:
        super().__init__(config, device, store, processes=_InProcess(config, device.trust_directory))


class _FakeProcess:
    """A model process that runs no model."""

    def __init__(self, *, is_alive: bool = True) -> None:
        self.pid, self.provider, self._fd, self._is_alive = 0, "CPU", os.open("/dev/null", os.O_RDONLY), is_alive

    def is_alive(self) -> bool:
        return self._is_alive

    def fileno(self) -> int:
        return self._fd

    def resident_bytes(self) -> int:
        return 0

    def check_golden(self, golden_fd: int, tolerance_ppm: int, model: int = 0) -> None:
        """Pass: no model runs."""

    def stop(self) -> None:
        """Do nothing: no process runs."""

    def kill(self) -> None:
        """Do nothing: no process runs."""


class _FakeBackend:
    """A backend without processes; the case chooses what it observes of a candidate."""

    def __init__(self, seen: ServingObservation) -> None:
        self._seen = seen

    def start(self, fds: BundleFds, bundle: BundleRecord, variant: Variant, generation: int) -> ModelProcessHandle:
        return _FakeProcess()

    def publish(self, generation: int, process: ModelProcessHandle) -> int:
        return 0

    def retire(self, generation: int) -> None:
        """Return at once: no request is open."""

    def observation(self, generation: int) -> ServingObservation:
        return self._seen

    def set_shadow(self, process: ModelProcessHandle, share_ppm: int, limit_ppm: int) -> None:
        """Ignore the share: no request is mirrored."""

    def shadow_observation(self) -> ShadowObservation:
        return ShadowObservation()

    def set_repeats(self, generation: int | None, slow_us: int | None, latency_percent: int) -> None:
        """Ignore the generation: no request is repeated."""

    def set_repeat_process(self, process: ModelProcessHandle | None) -> None:
        """Ignore the process: no request is repeated."""

    def expect_stop(self) -> None:
        """Expect nothing: no process runs."""

    def repeat_observation(self) -> RepeatObservation:
        return self._seen.repeats


class PassingProbe:
    """A probe that every candidate passes."""

    def probe(self, *_: object, **_options: object) -> ProbeReport:
        """Pass the candidate."""
        return ProbeReport("pass")

    def latency_us(self, _digest: str) -> None:
        """Return None: nothing was measured."""


class _ServingWithoutThreads(FamilyServing):
    """Serving state without watching threads, which would not survive a fork."""

    def _watch_process(self, generation: int, pidfd: int) -> None:
        os.close(pidfd)


class InProcessAgent:
    """The agent of one device directory, in this process.

    Args:
        config_path: path of the device's configuration.
        fails_live: whether a candidate fails with live requests.
        has_real_workers: start real processes for fetcher, verifier and patcher.
        repository: replaces `[repository]` of the configuration.
    """

    def __init__(
        self,
        config_path: Path,
        *,
        fails_live: bool = False,
        has_real_workers: bool = False,
        repository: RepositorySettings | None = None,
    ) -> None:
        self._has_real_workers = has_real_workers
        self.config = load_config(config_path)
        if repository is not None:
            self.config = replace(self.config, repository=repository)
        self.device = DeviceDirectory(self.config.directory)
        self.store = BundleStore(self.device.root)
        self.journal = open_journal(self.device, self.store, self._open_workers)
        confirmed = RepeatObservation({BadResponse.ERROR: BadResponseCount(10, 10, 10, 10)})
        seen = ServingObservation(requests=10)
        if fails_live:
            seen = ServingObservation(requests=10, errors=10, repeats=confirmed)
        self.serving = _ServingWithoutThreads(_FakeBackend(seen), lambda _: None)
        self.context = UpdateContext(
            config=self.config,
            device=self.device,
            identity=self.device.read_public_identity(),
            store=self.store,
            journal=self.journal,
            probe_client=PassingProbe(),  # type: ignore[arg-type]  # the only part that needs a model
            read_facts=device_facts,
            open_workers=self._open_workers,
            serving=self.serving,
        )

    def start(self) -> str | None:
        """Recover and serve the active bundle; return its version. Every byte is read and verified."""
        recover_journal(self.journal, runtime_version())
        collect_garbage(self.context)
        for digest in (self.journal.pointers.active, self.journal.pointers.previous):
            bundle = self.journal.bundle(digest)
            if bundle is None:
                continue
            try:
                fds = self._open_workers().patcher.unseal(bundle)
            except StoreDamaged:
                continue
            self.serving.publish(self.serving.start_generation(bundle, fds))
            fds.close()
            break
        run_staged(self.context)
        current = self.serving.current
        return None if current is None else current.bundle.version

    def update(self) -> UpdateResult:
        """Run one update."""
        return run_update(self.context, "operator")

    def serving_version(self) -> str | None:
        """Return the version that serves, or None."""
        current = self.serving.current
        return None if current is None else current.bundle.version

    def recover(self) -> None:
        """Recover as the supervisor does after an update whose journal failed."""
        if self.serving.previous is not None:
            self.serving.revert()
        recover_journal(self.journal, runtime_version())
        collect_garbage(self.context)
        active = self.journal.bundle(self.journal.pointers.active)
        if active is not None and self.serving_version() != active.version:
            fds = self._open_workers().patcher.unseal(active)
            self.serving.publish(self.serving.start_generation(active, fds))
            fds.close()
            self.serving.stop_replaced()

    def close(self) -> None:
        """Close the journal."""
        self.journal.close()

    def _open_workers(self) -> WorkerPool:
        return (WorkerPool if self._has_real_workers else InProcessWorkerPool)(self.config, self.device, self.store)


def copy_device(source: Path, target: Path, url: str | None = None) -> Path:
    """Copy a device's folder (config.toml and device/); return the path of its configuration."""
    shutil.copytree(source, target, symlinks=True)
    config = target / "config.toml"
    text = config.read_text().replace(str(source), str(target))
    if url is not None:
        text = "\n".join(
            f'repository_url = "{url}"' if row.startswith("repository_url") else row for row in text.split("\n")
        )
    config.write_text(text)
    return config
