"""A publisher of releases and its devices: a real repository, real keys, real models and the real agent."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from bundle.enrollment import EnrollmentRequest
from bundle.files import BundleDigest
from bundle.manifest import Manifest
from bundle.rollout import Rollout
from device_agent.config.config import Config, ProbationSettings, UpdateSettings
from device_agent.config.first_config import render_config
from device_agent.config.serve import ServeSettings
from device_agent.daemon.control_socket import call_daemon
from device_agent.host.device_facts import device_facts, runtime_version
from device_agent.identity.device_keys import create_enrollment_request
from device_agent.identity.provision import initialize_device
from device_agent.policy.attempt import UpdateResult
from device_agent.storage.bundle_store import BundleStore
from device_agent.storage.device_directory import DeviceDirectory
from device_agent.storage.journal import Journal
from device_agent.update.context import UpdateContext
from device_agent.update.probe_client import ProbeClient
from device_agent.update.recovery import recover_journal
from device_agent.update.update import run_update
from device_agent.workers.worker_pool import WorkerPool
from keys.signers import load_folder_signers
from packager.release.pipeline import run_release
from packager.release.release_file import parse_release_file
from packager.repository.creation import create_repository_with_new_keys
from packager.repository.devices import enroll_device
from packager.repository.repository import Repository
from tests.support import tiny_models
from tests.support.daemon_log import FOREIGN, DaemonLog
from tests.support.run_folders import change_once

START_S = 300.0  # until a daemon must have started
FAMILY = "kws"
COHORT = "default"
RELEASE_SETTINGS = """
channels = ["stable"]
model = "model.onnx"
inputs = "inputs.npz"
golden = 4
[variants.fp32]
[rollout]
percent = 100
"""


class Publisher:
    """A repository, its keys and its models below a folder; `copy` creates an independent publisher."""

    def __init__(self, folder: Path, families: Sequence[str] = (FAMILY,)) -> None:
        self.folder, self.keys = folder, folder / "keys"
        if (folder / "repo").exists():
            self.repository = Repository.open(folder / "repo")
        else:
            folder.mkdir(parents=True, exist_ok=True)
            self.repository = create_repository_with_new_keys(
                folder / "repo", self.keys, None, families=families, cohort=COHORT, insecure_plaintext=True
            )
            samples = np.random.default_rng(1).standard_normal((24, 1, 64)).astype(np.float32)
            np.savez(folder / "inputs.npz", x=samples)
        self.signers = load_folder_signers(self.keys, None)

    @property
    def published(self) -> Path:
        return self.repository.published

    @property
    def root(self) -> Path:
        return self.published / "metadata" / "1.root.json"

    def copy(self, folder: Path) -> "Publisher":
        shutil.copytree(self.folder, folder)
        return Publisher(folder)

    def release(
        self,
        version: str,
        *,
        seed: int = 0,
        extra: str = "",
        head: str = "",
        drill: str = "",
        size: int = 128,
        model: onnx.ModelProto | None = None,
        family: str = FAMILY,
        is_shared: bool = False,
    ) -> Manifest:
        """Create, sign and publish a release, and roll it out to all devices.

        Args:
            version: of the release.
            seed: of the model.
            extra: further lines of release.toml.
            head: further lines above the tables.
            drill: kind of drill; empty for none.
            size: hidden width of the model, a multiple of 128.
            model: used instead of a model by seed and size.
            family: of the release.
            is_shared: whether other tests of the run get the result where their repository has the same content; not
                where the release depends on more than this publisher's folder.
        """
        onnx.save(model or similar_model(seed, size), self.folder / "model.onnx")
        place = self.folder / "release.toml"
        drill_line = f'drill = "{drill}"\n' if drill else ""
        place.write_text(f'family = "{family}"\nversion = "{version}"\n{head}{drill_line}{RELEASE_SETTINGS}{extra}')
        if not is_shared:
            self.publish_release_file()
        elif change_once(self.folder, self.publish_release_file):
            self.repository = Repository.open(self.repository.root)
        return self.manifest(version, family)

    def publish_release_file(self) -> None:
        """Release as the current release.toml says."""
        run_release(parse_release_file(self.folder / "release.toml"), self.repository, self.signers)

    def manifest(self, version: str, family: str = FAMILY) -> Manifest:
        found = self.repository.manifest(family, version)
        assert found is not None
        return found

    def digest(self, version: str) -> BundleDigest:
        """Return the bundle digest of the fp32 variant."""
        variant = self.manifest(version).variant("fp32")
        assert variant is not None
        return variant.digest

    def blobs(self, version: str) -> list[str]:
        """Return the paths of a release's blobs below the published folder."""
        variant = self.manifest(version).variant("fp32")
        assert variant is not None
        return [f"blobs/{patch.blob[:2]}/{patch.blob}" for patch in variant.patches]

    def offer(self, version: str, *, forged: bool = False, family: str = FAMILY, **changes: Any) -> None:
        """Point the channel at a release."""
        manifest = self.manifest(version, family)
        rollout = Rollout(family, "stable", version, manifest.counter, manifest.digest_without_patches())
        self.repository.stage_rollout(replace(rollout, **changes), forged=forged)
        self.publish()

    def withdraw(self, version: str) -> None:
        self.repository.withdraw(FAMILY, version)
        self.publish()

    def publish(self) -> None:
        """Sign and publish without the client check, which would refuse metadata that some tests need."""
        self.repository.sign(self.signers)
        self.repository.publish(check_clients=False)

    def enroll(self, device: DeviceDirectory, request: tuple[EnrollmentRequest, bytes] | None = None) -> None:
        """Enroll a device; `request` is needed only if its keys are not in files."""
        parsed, data = request or create_enrollment_request(device)
        enroll_device(self.repository, data, parsed.fingerprint, COHORT, self.keys, None)
        self.publish()


def similar_model(seed: int, size: int = 128) -> onnx.ModelProto:
    """Return a model; seeds differ in a few weights only, so that a patch is much smaller than the model."""
    model = tiny_models.mlp(0)
    for tensor in model.graph.initializer:
        values = onnx.numpy_helper.to_array(tensor).copy()
        if tensor.name == "w1":
            values = np.tile(values, (1, size // 128))
            values[:, : seed + 1] += 0.001 * seed
        elif tensor.name == "b1":
            values = np.tile(values, (1, size // 128) if values.ndim == 2 else size // 128)
        elif tensor.name == "w2":
            values = np.tile(values, (size // 128, 1)) / (size // 128)
        tensor.CopyFrom(onnx.numpy_helper.from_array(values.astype(np.float32), tensor.name))
    return model


@dataclass
class DeviceUnderTest:
    """A device below a folder.

    Attributes:
        folder: contains the device directory, the configuration file and the socket of the endpoint.
        config: the configuration; `write_config` writes it.
        results: results of `update`, in order.
        daemon: the running daemon, or None.
        daemon_log: the log of that daemon, or None.
        log: the log of the daemon that was stopped last, after its record `started`.
    """

    folder: Path
    config: Config
    results: list[UpdateResult] = field(default_factory=list)
    daemon: "subprocess.Popen[bytes] | None" = None
    daemon_log: DaemonLog | None = None
    log: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def create(cls, folder: Path, url: str, root: Path, **update: Any) -> "DeviceUnderTest":
        folder.mkdir(parents=True, exist_ok=True)
        device = cls.open(folder, url, **update)
        initialize_device(device.directory, root, f"device-{os.urandom(4).hex()}")
        device.write_config()
        return device

    @classmethod
    def open(cls, folder: Path, url: str = "http://127.0.0.1:9", **update: Any) -> "DeviceUnderTest":
        """Return the device below a folder that `create` has filled with the same settings of updates."""
        config = Config(
            directory=folder / "device",
            repository_url=url,
            family=FAMILY,
            cohort=COHORT,
            serve=ServeSettings(listen=f"unix:{folder}/serve.sock"),
            update=replace(UpdateSettings(variant="fp32", automatic=False), **update),
            probation=ProbationSettings(window_s=0, min_requests=0),
        )
        return cls(folder, config)

    def copy(self, folder: Path, url: str) -> "DeviceUnderTest":
        """Copy the device to another folder, with another repository URL."""
        folder.mkdir(parents=True)
        config = replace(
            self.config,
            directory=folder / "device",
            repository_url=url,
            serve=ServeSettings(listen=f"unix:{folder}/serve.sock"),
        )
        shutil.copytree(self.config.directory, config.directory, symlinks=True)
        device = DeviceUnderTest(folder, config)
        device.write_config()
        return device

    @property
    def directory(self) -> DeviceDirectory:
        return DeviceDirectory(self.config.directory)

    @property
    def config_path(self) -> Path:
        return self.folder / "config.toml"

    def write_config(self) -> None:
        probation = self.config.probation
        text = render_config(self.config).replace("poll_interval_s = 3600", "automatic = false")
        text += f"\n[probation]\nwindow_s = {probation.window_s}\nmin_requests = {probation.min_requests}\n"
        self.config_path.write_text(text)

    def journal(self) -> Journal:
        return Journal(self.directory.journal_path)

    def update(self, *, open_workers: Callable[[], WorkerPool] | None = None, **changes: Any) -> UpdateResult:
        """Recover, then run one update in this process with its workers; `changes` are of the configuration."""
        store, journal = BundleStore(self.directory.root), self.journal()
        config = replace(self.config, **changes)
        try:
            recover_journal(journal, runtime_version())
            agent = UpdateContext(
                config=config,
                device=self.directory,
                identity=self.directory.read_public_identity(),
                store=store,
                journal=journal,
                probe_client=ProbeClient(ServeSettings(), allow_unjailed=False),
                read_facts=device_facts,
                open_workers=open_workers or (lambda: WorkerPool(config, self.directory, store)),
            )
            result = run_update(agent, "operator")
        finally:
            journal.close()
        self.results.append(result)
        return result

    # the daemon

    def start(
        self, command: list[str] | None = None, environment: Mapping[str, str] | None = None, *, own_group: bool = False
    ) -> dict[str, Any]:
        """Start the daemon, wait for its log record `started`, and return it.

        With `own_group` it leads a process group, as in a terminal.
        """
        words = command or [sys.executable, "-m", "device_agent", "--config", str(self.config_path), "run"]
        group = 0 if own_group else None
        self.daemon = subprocess.Popen(
            words, stderr=subprocess.PIPE, env={**os.environ, **(environment or {})}, process_group=group
        )
        assert self.daemon.stderr is not None
        self.daemon_log = DaemonLog(self.daemon.stderr)
        started = self.daemon_log.wait_for(lambda record: record.get("event") == "started", START_S)
        if started is None:
            raise AssertionError(f"the daemon ended with {self.daemon.wait(60)}")  # its log is on stderr
        return started

    @property
    def daemon_pid(self) -> int:
        """The process id of the daemon, or 0 if none is running."""
        return 0 if self.daemon is None else self.daemon.pid

    def call(self, command: str, **fields: Any) -> dict[str, Any]:
        return call_daemon(self.directory.control_path, command, 120, **fields)

    def stop(self, number: int = signal.SIGTERM, *, of_group: bool = False) -> int:
        """Stop the daemon by a signal, to its process group if `of_group`; return its exit code and keep its log."""
        if self.daemon is None:
            return 0
        if of_group:
            os.killpg(self.daemon.pid, number)
        else:
            self.daemon.send_signal(number)
        code = self.daemon.wait(120)
        self.log = self._close_log()
        self.daemon = None
        assert not [record for record in self.log if record["level"] == FOREIGN], "lines that are not the daemon's"
        return code

    def close_after_kill(self) -> None:
        """Close the log pipe of a daemon that another process has killed."""
        self._close_log()
        self.daemon = None

    def _close_log(self) -> list[dict[str, Any]]:
        """Read the log to its end; return the records after `started`."""
        assert self.daemon_log is not None
        records = self.daemon_log.close()
        self.daemon_log = None
        return records

    def command(self, *words: str) -> "subprocess.CompletedProcess[str]":
        """Run `device-agent` with these arguments."""
        return subprocess.run(
            [sys.executable, "-m", "device_agent", "--config", str(self.config_path), *words],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
