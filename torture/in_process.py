"""An update in one process: the agent's own code, with its children's calls made here instead of in their processes.

So every call of the system that changes something below the device's directory is made by one process, which a tracer
can kill at any of them: the whole agent at that instant. A case costs a fraction of a second. What is left out writes
nothing: jails and models. With `has_children` fetcher, verifier and patcher are the real processes, and outlive a kill
by as long as it takes them to notice.
"""

import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bundle.manifest import Variant
from device_agent.config.config import load_config
from device_agent.errors import StoreDamaged
from device_agent.host.device_facts import device_facts, runtime_version
from device_agent.policy.attempt import UpdateResult
from device_agent.policy.journal_records import BundleRecord
from device_agent.policy.probation import ServingObservation
from device_agent.policy.shadow_judge import ShadowObservation
from device_agent.process.channel import Message
from device_agent.process.worker import Handler
from device_agent.runtime.bundle_fds import BundleFds
from device_agent.runtime.probe_runner import ProbeReport
from device_agent.serving.family_serving import FamilyServing, ModelProcessHandle
from device_agent.storage.bundle_store import BundleStore
from device_agent.storage.device_directory import DeviceDirectory
from device_agent.update.context import UpdateContext, collect_garbage
from device_agent.update.recovery import open_journal, recover_journal
from device_agent.update.update import run_staged, run_update
from device_agent.workers import fetcher, patcher, verifier
from device_agent.workers.worker_pool import WorkerPool

Ask = Callable[[Message], tuple[dict[str, Any], Sequence[int]]]


class _Parent:
    """What a handler sees of its supervisor."""

    def __init__(self, on_ask: Ask | None) -> None:
        self._on_ask = on_ask

    def event(self, value: object) -> None:
        """Progress is of no interest."""

    def request(self, value: dict[str, Any], fds: Sequence[int] = ()) -> Message:
        assert self._on_ask is not None
        answer, answer_fds = self._on_ask(Message(value, tuple(fds)))
        return Message(answer, tuple(answer_fds))


class ErrandsHere(WorkerPool):
    """Calls the handlers of fetcher, verifier and patcher in this process."""

    def __init__(self, *words: Any) -> None:
        super().__init__(*words)
        self._patcher = patcher.Patcher()
        self._handlers: dict[tuple[str, str], Handler] = {
            ("fetcher", "get"): fetcher.handle_get,
            ("fetcher", "blob"): fetcher.fetch_blob,
            ("verifier", "check"): verifier.check_channel,
            ("patcher", "unlock"): self._patcher.load_content_key,
            ("patcher", "apply"): self._patcher.apply_patch,
            ("patcher", "unseal"): patcher.unseal_bundle,
            ("patcher", "describe"): patcher.read_sealed_header,
        }

    def _call(
        self, worker: str, operation: str, request: dict[str, Any], fds: Sequence[int] = (), **options: Any
    ) -> Message:
        # a handler owns what it is sent, as if it had come through a socket
        message = Message(request, tuple(os.dup(fd) for fd in fds))
        result = self._handlers[worker, operation](_Parent(options.get("on_request")), message)  # type: ignore[arg-type]  # its part
        return result if isinstance(result, Message) else Message(result)


class _NoProcess:
    """Where a model would be."""

    def __init__(self, *, is_alive: bool = True) -> None:
        self.pid, self._fd, self._is_alive = 0, os.open("/dev/null", os.O_RDONLY), is_alive

    def is_alive(self) -> bool:
        return self._is_alive

    def fileno(self) -> int:
        return self._fd

    def resident_bytes(self) -> int:
        return 0

    def stop(self) -> None:
        """Nothing runs."""


class _NoRuntime:
    """Publishes nothing; what it sees of a candidate is the case's choice."""

    def __init__(self, seen: ServingObservation) -> None:
        self._seen = seen

    def start(self, fds: BundleFds, bundle: BundleRecord, variant: Variant, generation: int) -> ModelProcessHandle:
        return _NoProcess()

    def publish(self, generation: int, process: ModelProcessHandle) -> int:
        return 0

    def retire(self, generation: int) -> None:
        """Nothing to wait for."""

    def observation(self, generation: int) -> ServingObservation:
        return self._seen

    def set_shadow(self, process: ModelProcessHandle, share_ppm: int, limit_ppm: int) -> None:
        """Nobody hears."""

    def shadow_observation(self) -> ShadowObservation:
        return ShadowObservation()


class NoProber:
    """Every candidate passes."""

    def probe(self, *_: object) -> ProbeReport:
        """See above."""
        return ProbeReport("pass")


class _Serving(FamilyServing):
    """Without threads that watch: a case forks, and threads do not survive that."""

    def _watch(self, generation: int, pidfd: int) -> None:
        os.close(pidfd)


class Alone:
    """The agent of one device directory, in this process.

    Args:
        config_path: of the device.
        fails_live: whether a candidate shows errors under live requests.
        has_children: with real processes for fetcher, verifier and patcher.
    """

    def __init__(self, config_path: Path, *, fails_live: bool = False, has_children: bool = False) -> None:
        self._has_children = has_children
        self.config = load_config(config_path)
        self.device = DeviceDirectory(self.config.directory)
        self.store = BundleStore(self.device.root)
        self.journal = open_journal(self.device, self.store, self._errands)
        seen = ServingObservation(requests=10, errors=10) if fails_live else ServingObservation(requests=10)
        self.serving = _Serving(_NoRuntime(seen), lambda _: None)
        self.agent = UpdateContext(
            config=self.config,
            device=self.device,
            identity=self.device.read_public_identity(),
            store=self.store,
            journal=self.journal,
            probe_client=NoProber(),  # type: ignore[arg-type]  # the one part that would need a model
            read_facts=device_facts,
            open_workers=self._errands,
            serving=self.serving,
        )

    def boot(self) -> str | None:
        """Recover, and serve what is here; its version. Every byte is read and compared, as for a real process."""
        recover_journal(self.journal, runtime_version())
        collect_garbage(self.agent)
        for digest in (self.journal.pointers.active, self.journal.pointers.previous):
            holding = self.journal.bundle(digest)
            if holding is None:
                continue
            try:
                fds = self._errands().unseal(holding)
            except StoreDamaged:
                continue
            self.serving.publish(self.serving.start_generation(holding, fds))
            fds.close()
            break
        run_staged(self.agent)
        current = self.serving.current
        return None if current is None else current.bundle.version

    def update(self) -> UpdateResult:
        """One update."""
        return run_update(self.agent, "operator")

    def served(self) -> str | None:
        """Version of what serves."""
        current = self.serving.current
        return None if current is None else current.bundle.version

    def recover(self) -> None:
        """What the supervisor does after an update that its journal did not survive."""
        if self.serving.previous is not None:
            self.serving.revert()
        recover_journal(self.journal, runtime_version())
        collect_garbage(self.agent)
        active = self.journal.bundle(self.journal.pointers.active)
        if active is not None and self.served() != active.version:
            fds = self._errands().unseal(active)
            self.serving.publish(self.serving.start_generation(active, fds))
            fds.close()
            self.serving.stop_replaced()

    def close(self) -> None:
        """Release the journal."""
        self.journal.close()

    def _errands(self) -> WorkerPool:
        return (WorkerPool if self._has_children else ErrandsHere)(self.config, self.device, self.store)


def copy_device(source: Path, target: Path, url: str | None = None) -> Path:
    """A copy of a device's folder (config.toml and device/); the path of its configuration."""
    shutil.copytree(source, target, symlinks=True)
    config = target / "config.toml"
    text = config.read_text().replace(str(source), str(target))
    if url is not None:
        text = "\n".join(
            f'repository_url = "{url}"' if row.startswith("repository_url") else row for row in text.split("\n")
        )
    config.write_text(text)
    return config
