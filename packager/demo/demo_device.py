"""The device of the demo: its folder and configuration, and calls of the agent's command line.

Rules:
- Nothing of `device_agent` is imported: the demo sees what an operator sees, commands, exit codes and JSON.
- The daemon is a process of the demo, which stops it by its handle.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from bundle.errors import Unavailable

# settings of a variant: on a busy machine the requests of a probation take longer than its window
PROBATION_TOML: Final = 'health.inconclusive = "extend"\n'
COMMAND_TIMEOUT_S: Final = 300
START_TIMEOUT_S: Final = 180
MAX_NOTIFICATION_BYTES: Final = 4096
STOP_TIMEOUT_S: Final = 30
POLL_INTERVAL_S: Final = 0.05

Report = dict[str, Any]  # one JSON object of the agent's command line (docs/schemas/)


class AgentUnavailable(Unavailable):
    """A command of the agent failed during the demo. Run the demo again with --keep, and read the
    agent's log.
    """

    reason = "agent-unavailable"


@dataclass(frozen=True, slots=True)
class DeviceSettings:
    """The values that the demo writes into the device's configuration."""

    repository_url: str
    family: str
    cohort: str
    variant: str
    probation_window_s: int
    probation_min_requests: int


class DemoDevice:
    """A device with all its files below `folder`.

    Args:
        folder: folder to create.
        settings: values of the configuration.
        environment: further environment variables of the agent.
    """

    def __init__(self, folder: Path, settings: DeviceSettings, environment: Mapping[str, str] | None = None) -> None:
        self._environment = {**os.environ, **(environment or {})}
        self._folder = folder
        self._config = folder / "config.toml"
        self._socket = folder / "serve.sock"
        self._settings = settings
        self._daemon: subprocess.Popen[bytes] | None = None
        self._notifications: socket.socket | None = None

    @property
    def address(self) -> str:
        """The address of the endpoint, in the form that `InferenceClient` takes."""
        return f"unix:{self._socket}"

    @property
    def directory(self) -> Path:
        """The device directory of the agent."""
        return self._folder / "state"

    def init(self, root: Path) -> Report:
        """Run `device-agent init` with the shipped root document, and complete the configuration."""
        settings = self._settings
        self._folder.mkdir(parents=True)
        report = self._run_command(
            "init",
            "--directory", str(self.directory),
            "--root", str(root),
            "--repository-url", settings.repository_url,
            "--family", settings.family,
            "--cohort", settings.cohort,
            "--variant", settings.variant,
            "--listen", self.address,
        )  # fmt: skip
        with self._config.open("a", encoding="utf-8") as config:
            config.write(
                f"automatic = false\n\n[probation]\nwindow_s = {settings.probation_window_s}\n"
                f"min_requests = {settings.probation_min_requests}\n"
            )
        return report

    def enroll(self, request: Path) -> Report:
        """Run `device-agent enroll`, which writes the enrollment request to `request`."""
        return self._run_command("enroll", "--output", str(request))

    def report_to(self, url: str) -> None:
        """Configure the URL of a collector; call it before `start`."""
        with self._config.open("a", encoding="utf-8") as config:
            config.write(f'\n[reports]\nurl = "{url}"\n')

    @property
    def apps_socket(self) -> Path:
        """The path of the socket over which applications borrow files."""
        return self.directory / "apps.sock"

    def allow_judges(self, family: str, judges: Sequence[str]) -> None:
        """Let users judge releases of a family; call it before `start`.

        Args:
            family: name of the family.
            judges: users, as `apps.FAMILY.judges` of the configuration names them.
        """
        with self._config.open("a", encoding="utf-8") as config:
            config.write(f"\n[apps.{family}]\njudges = {json.dumps(list(judges))}\n")

    def run_on_files(self, *words: str) -> str:
        """Run a program with `device-agent files exec`, and return what it prints.

        Raises:
            AgentUnavailable: it failed.
        """
        done = subprocess.run(
            [*self._agent_command(), "files", "exec", "--", *words],
            capture_output=True,
            text=True,
            timeout=COMMAND_TIMEOUT_S,
            check=False,
            env=self._environment,
        )
        if done.returncode:
            raise AgentUnavailable(f"files exec ended with {done.returncode}: {done.stderr.strip()[-500:]}")
        return done.stdout

    def send_reports(self) -> Report:
        """Run `device-agent report send`, and return its object."""
        return self._run_command("report", "send")

    def start(self) -> None:
        """Start `device-agent run`, and wait until it notifies that it serves, as systemd would.

        Raises:
            AgentUnavailable: the daemon ended, or did not notify in START_TIMEOUT_S.
        """
        address = self._folder / "notify.sock"
        address.unlink(missing_ok=True)
        self._notifications = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._notifications.bind(str(address))
        self._notifications.settimeout(POLL_INTERVAL_S)
        log = (self._folder / "agent.log").open("ab")
        with log:
            self._daemon = subprocess.Popen(
                [*self._agent_command(), "run"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**self._environment, "NOTIFY_SOCKET": str(address)},
            )
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline:
            if self._daemon.poll() is not None:
                raise AgentUnavailable(f"the agent ended with {self._daemon.returncode}: {self.log_tail()}")
            with suppress(TimeoutError):
                if b"READY=1" in self._notifications.recv(MAX_NOTIFICATION_BYTES).split(b"\n"):
                    return
        raise AgentUnavailable(f"the agent did not start in {START_TIMEOUT_S} s: {self.log_tail()}")

    def stop(self) -> None:
        """Stop the daemon with SIGTERM and wait for its end; kill it after STOP_TIMEOUT_S."""
        if self._daemon is not None:
            self._daemon.send_signal(signal.SIGTERM)
            try:
                self._daemon.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self._daemon.kill()
                self._daemon.wait()
            self._daemon = None
        if self._notifications is not None:
            self._notifications.close()
            self._notifications = None

    def update(self) -> Report:
        """Run `device-agent update --json` and return its object, whatever the outcome."""
        return self._run_command("update", any_exit=True)

    def log_tail(self) -> str:
        """Return the last line of the daemon's log."""
        lines = (self._folder / "agent.log").read_text("utf-8", "replace").splitlines()
        return lines[-1] if lines else "the log is empty"

    def _agent_command(self) -> list[str]:
        return [sys.executable, "-P", "-m", "device_agent", "--config", str(self._config)]

    def _run_command(self, command: str, *arguments: str, any_exit: bool = False) -> Report:
        done = subprocess.run(
            [*self._agent_command(), command, *arguments, "--json"],
            capture_output=True,
            text=True,
            timeout=COMMAND_TIMEOUT_S,
            check=False,
            env=self._environment,
        )
        if done.returncode and not (any_exit and done.stdout):
            raise AgentUnavailable(f"device-agent {command} ended with {done.returncode}: {done.stderr.strip()[-500:]}")
        try:
            report = json.loads(done.stdout)
        except ValueError as error:
            raise AgentUnavailable(f"device-agent {command} printed {done.stdout[:200]!r}, expected JSON") from error
        if not isinstance(report, dict):
            raise AgentUnavailable(f"device-agent {command} printed {done.stdout[:200]!r}, expected one object")
        return report
