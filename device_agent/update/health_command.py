"""The owner's command that judges a release of runtime `app` (`apps.FAMILY.health_command`).

Rules:
- The command is the device owner's, from the configuration; nothing of a bundle is run or becomes an argument.
- It runs once in a probation, as the agent's user, in a process group of its own, without the agent's environment. It
  borrows the files as any application does: AIRWEIGHTS_APPS_SOCKET names the socket.
- Exit status 0 is the verdict healthy. Another one, or a signal, is unhealthy; the last line that it printed is the
  reason. If it still runs when the probation ends, it gave no verdict, and its process group is ended.
- At most OUTPUT_BYTES of its output are kept. At most MAX_READS pieces are read at once, so a command that never
  stops printing holds nothing up.
"""

import contextlib
import os
import signal
import subprocess
from pathlib import Path
from typing import Final

from bundle.rendering import render_line
from device_agent.policy.app_verdicts import HEALTH_COMMAND, AppVerdict, AppVerdicts
from device_agent.policy.journal_records import BundleRecord
from device_agent.process.unix_socket import APPS_SOCKET_VARIABLE, FAMILY_VARIABLE

OUTPUT_BYTES: Final = 4096
MAX_READS: Final = 64  # of OUTPUT_BYTES, more than a pipe holds
REASON_CHARACTERS: Final = 200
PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
NO_OUTPUT: Final = "it printed nothing"


class HealthCommand:
    """The running command of one probation.

    Args:
        command: program and arguments.
        bundle: the bundle that serves now.
        apps_socket: path of the socket for applications.
    """

    def __init__(self, command: tuple[str, ...], bundle: BundleRecord, apps_socket: Path) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._output, self._problem = b"", ""
        environment = {
            "PATH": PATH,
            APPS_SOCKET_VARIABLE: str(apps_socket),
            FAMILY_VARIABLE: bundle.family,
            "AIRWEIGHTS_RELEASE": bundle.version,
            "AIRWEIGHTS_BUNDLE": str(bundle.digest),
        }
        self._reader, writer = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self._reader, False)
        try:
            self._process = subprocess.Popen(
                command,
                cwd="/",
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=writer,
                stderr=writer,
                start_new_session=True,
            )
        except OSError as error:
            self._problem = f"{command[0]} cannot be started: {error.strerror or error}"
        finally:
            os.close(writer)

    def poll(self, verdicts: AppVerdicts, generation: int) -> None:
        """Record the command's verdict, once it has ended.

        Args:
            verdicts: verdicts on the generation.
            generation: number of the generation that is in probation.
        """
        self._read()
        if self._process is None:
            verdicts.add(generation, AppVerdict(HEALTH_COMMAND, is_healthy=False, reason=self._problem))
            return
        status = self._process.poll()
        if status is None:
            return
        self._read()
        reason = ""
        if status != 0:
            reason = f"{_describe_status(status)}: {self._last_line()}"
        verdicts.add(generation, AppVerdict(HEALTH_COMMAND, is_healthy=status == 0, reason=reason))

    def close(self) -> None:
        """End the command's process group, if the command still runs."""
        if self._process is not None and self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)  # not reaped yet, so it is this group
            self._process.wait()
        os.close(self._reader)

    def _read(self) -> None:
        with contextlib.suppress(BlockingIOError):
            for _ in range(MAX_READS):
                self._output = (self._output + os.read(self._reader, OUTPUT_BYTES))[-OUTPUT_BYTES:]

    def _last_line(self) -> str:
        lines = self._output.decode(errors="replace").strip().splitlines()
        return render_line(lines[-1])[:REASON_CHARACTERS] if lines else NO_OUTPUT


def _describe_status(status: int) -> str:
    """Return a status of `subprocess` in words; real-time signals have a number only."""
    if status > 0:
        return f"exit status {status}"
    known = {number.value: number.name for number in signal.Signals}
    return f"signal {known.get(-status, -status)}"
