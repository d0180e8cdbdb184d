"""airweights as one way to bring a model to a device: a repository, and a device agent."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Final

FAMILY: Final = "model"
READY_S: Final = 120.0
PROBATION_S: Final = 1


class Airweights:
    """A repository with one family, and one device; every command is the one that a user runs.

    A release is taken by `device-agent update` without a daemon, and then activated by a daemon that starts and stops.
    All that both receive counts.
    """

    def __init__(self, folder: Path, scheme: str | None, inputs: Path | None, *, is_classical: bool) -> None:
        """Create keys and the repository.

        Args:
            folder: a new directory.
            scheme: quantization scheme; None releases the float model unchanged.
            inputs: the `.npz` file of inputs; None for random ones.
            is_classical: sign with Ed25519 only.
        """
        folder.mkdir(parents=True)
        self._folder, self._scheme, self._inputs = folder, scheme, inputs
        self.site = folder / "repo" / "published"
        self.releases: list[dict[str, Any]] = []  # what `packager release --json` printed
        flags = ["--classical"] if is_classical else []
        words = ["--keys", "keys", "--family", FAMILY, "--insecure-plaintext", *flags]
        self._run("packager", "repo", "init", "repo", *words)

    def enroll(self, url: str) -> None:
        """Create the device, which will ask the server at `url`, and enroll it."""
        root = str(self.site / "metadata" / "1.root.json")
        words = ["--root", root, "--repository-url", url, "--family", FAMILY, "--directory", "device"]
        self._run("device_agent", "init", *words, "--listen", f"unix:{self._folder}/infer.sock", "--label", "wire")
        text = self._run("device_agent", "enroll", "--output", "request.json")
        fingerprint = text.partition("fingerprint: ")[2].strip()
        self._run(
            "packager", "device", "enroll", "request.json", "--repo", "repo", "--keys", "keys",
            "--fingerprint", fingerprint,
        )  # fmt: skip

    def publish(self, model: Path, version: str) -> None:
        """Release the model to the device's channel."""
        name = self._scheme or "fp32"
        lines = [
            f'family = "{FAMILY}"',
            f'version = "{version}"',
            'channels = ["stable"]',
            f"model = {json.dumps(str(model))}",
            *([f"inputs = {json.dumps(str(self._inputs))}"] if self._inputs else []),
            f"[variants.{name}]",
            *([f'scheme = "{self._scheme}"'] if self._scheme else []),
            f"health.probation_window_s = {PROBATION_S}",
            "health.probation_min_requests = 0",
            "[rollout]",
            "percent = 100",
        ]
        (self._folder / "release.toml").write_text("\n".join(lines) + "\n")
        out = self._run("packager", "release", "release.toml", "--repo", "repo", "--keys", "keys", "--json")
        self.releases.append(json.loads(out))

    def install(self, version: str) -> dict[str, Any]:
        """Update to a version and activate it; return what `update --json` printed.

        Raises:
            RuntimeError: the release is not active after READY_S.
        """
        result: dict[str, Any] = json.loads(self._run("device_agent", "update", "--json"))
        command = [sys.executable, "-P", "-m", "device_agent", "run"]
        with (self._folder / "agent.log").open("ab") as log:
            daemon = subprocess.Popen(
                command, cwd=self._folder, env=self._environment(), stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        try:
            deadline = time.monotonic() + READY_S
            while not self._is_committed(version):
                if time.monotonic() > deadline or daemon.poll() is not None:
                    raise RuntimeError(f"{version} is not active: {(self._folder / 'agent.log').read_text()[-1000:]}")
                time.sleep(0.2)
        finally:
            daemon.send_signal(signal.SIGTERM)
            daemon.wait(60)
        return result

    def poll(self, count: int) -> None:
        """Run `device-agent update` `count` times; nothing may be new."""
        for _ in range(count):
            outcome = json.loads(self._run("device_agent", "update", "--json"))["outcome"]
            if outcome != "nothing-new":
                raise RuntimeError(f"an idle poll ended as {outcome}")

    def read_model(self) -> bytes:
        """Return the model file of the active release, as the device has it."""
        return subprocess.run(
            [sys.executable, "-P", "-m", "device_agent", "files", "cat", "model"],
            cwd=self._folder, env=self._environment(), check=True, capture_output=True,
        ).stdout  # fmt: skip

    def _is_committed(self, version: str) -> bool:
        status = json.loads(self._run("device_agent", "status", "--json"))
        active = status["active"] or {}
        return active.get("release") == version and status["state"] == "idle" and not status["probation"]

    def _run(self, module: str, *words: str) -> str:
        command = [sys.executable, "-P", "-m", module, *words]
        done = subprocess.run(
            command, cwd=self._folder, env=self._environment(), capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise RuntimeError(f"{module} {words[0]}: exit code {done.returncode}: {done.stderr[-1000:]}")
        return done.stdout

    def _environment(self) -> dict[str, str]:
        return {**os.environ, "AIRWEIGHTS_CONFIG": str(self._folder / "device.toml")}
