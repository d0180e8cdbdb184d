"""Run a program on borrowed files, and act when another release serves.

Rules:
- The program inherits the descriptors of the files, and nothing else that the agent opened.
- "restart": the program gets SIGTERM, SIGKILL after STOP_SECONDS, and starts again on the new files. "signal": it gets
  SIGHUP, and borrows the new files itself.
- The program can handle SIGHUP even if the agent's command was started by nohup, which ignores it for all below.
- The exit code is the program's; 128 plus the number of the signal that ended it.
"""

import os
import signal
import subprocess
import threading
from collections.abc import Callable, Sequence
from typing import Final

from device_agent.apps.client import AppClient, BorrowedBundle
from device_agent.errors import ProgramMissing

STOP_SECONDS: Final = 10.0


def run_program(
    client: AppClient, family: str, arguments_of: Callable[[BorrowedBundle], Sequence[str]], on_swap: str
) -> int:
    """Run a program until it ends by itself, and return its exit code.

    Args:
        client: a connection to the daemon; it is used for the files.
        family: name of the family.
        arguments_of: returns the program's arguments for borrowed files.
        on_swap: "restart" or "signal".

    Raises:
        ProgramMissing: the program cannot be started.
        DaemonNotRunning: the daemon has ended.
    """
    if on_swap == "signal" and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        # unlike an ignored signal, one that is handled has its default action in the program
        signal.signal(signal.SIGHUP, lambda *_: None)
    swapped = threading.Event()
    threading.Thread(target=_watch, args=(client.path, family, swapped), name="watch", daemon=True).start()
    while True:
        swapped.clear()
        with client.open(family) as bundle:
            program = _start(arguments_of(bundle), bundle)
        while (code := program.poll()) is None:
            if not swapped.wait(0.1):
                continue
            if on_swap == "restart":
                _stop(program)
                break
            swapped.clear()
            program.send_signal(signal.SIGHUP)
        if code is not None:
            return code if code >= 0 else 128 - code


def _watch(path: "os.PathLike[str]", family: str, swapped: threading.Event) -> None:
    with AppClient(os.fspath(path)) as client:
        first = True
        for release in client.watch(family):
            if release is not None and not first:
                swapped.set()
            first = False


def _start(arguments: Sequence[str], bundle: BorrowedBundle) -> "subprocess.Popen[bytes]":
    try:
        return subprocess.Popen(arguments, pass_fds=tuple(bundle.fds.values()))  # the user's own command
    except OSError as error:
        raise ProgramMissing(f"cannot run {arguments[0]!r}: {error.strerror}") from error


def _stop(program: "subprocess.Popen[bytes]") -> None:
    program.terminate()
    try:
        program.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        program.kill()
        program.wait()
