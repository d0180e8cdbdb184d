"""Run a module with a model in a subprocess: a model that crashes ends only the subprocess.

It imports nothing but the standard library and the errors, since packager.models.trial_run measures what is imported.
"""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from packager.errors import ModelCrashes, ModelDoesNotRun

MAX_MESSAGE_CHARACTERS: Final = 300


def run_child(
    module: str, arguments: Sequence[str], *, model: Path, task: str, timeout_s: float, hint: str | None = None
) -> bytes:
    """Run `python -m MODULE ARGUMENTS...`, and return what it printed to stdout.

    Args:
        module: the module to run.
        arguments: its arguments.
        model: an ONNX file, for messages.
        task: what the subprocess does, for messages.
        timeout_s: maximum duration, in seconds.
        hint: hint of ModelDoesNotRun.

    Raises:
        ModelDoesNotRun: the subprocess ended with an exit code; the message is the last line of its stderr.
        ModelCrashes: it ended with a signal, or took too long.
    """
    command = [sys.executable, "-m", module, *arguments]
    try:
        done = subprocess.run(command, capture_output=True, timeout=timeout_s, check=False)
    except subprocess.TimeoutExpired as error:
        raise ModelCrashes(f"{model}: {task} took longer than {timeout_s:.0f} s") from error
    if done.returncode < 0:
        raise ModelCrashes(f"{model}: {task} crashed its process (signal {-done.returncode})")
    if done.returncode:
        lines = done.stderr.decode(errors="replace").strip().splitlines() or ["no message"]
        where = "" if str(model) in lines[-1] else f"{model}: {task}: "
        raise ModelDoesNotRun(f"{where}{shorten_middle(lines[-1])}", hint=hint)
    return done.stdout


def shorten_middle(text: str) -> str:
    """Return a message of at most about MAX_MESSAGE_CHARACTERS; of a longer one, the middle is left out."""
    if len(text) <= MAX_MESSAGE_CHARACTERS:
        return text
    half = MAX_MESSAGE_CHARACTERS // 2
    return f"{text[:half]} … {text[-half:]}"
