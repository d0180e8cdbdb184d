"""Run `packager` in this process, and check its output."""

import io
import json
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packager.commands.root import main


@dataclass(frozen=True, slots=True)
class CommandResult:
    """Exit code and output of a command."""

    code: int
    stdout: str
    stderr: str

    @property
    def json(self) -> Any:
        """The JSON object on stdout."""
        return json.loads(self.stdout)

    @property
    def error(self) -> dict[str, Any]:
        """The JSON error object on stderr."""
        found: dict[str, Any] = json.loads(self.stderr)["error"]
        return found


def run_packager(*words: object) -> CommandResult:
    """Run `packager` with these arguments."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = main([str(word) for word in words])
    return CommandResult(code, out.getvalue(), err.getvalue())


def read_all_files(folder: Path) -> dict[str, bytes]:
    """Return the content of every file below a folder by relative path, hidden files included."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def assert_refused(result: CommandResult, *, code: int, reason: str, words: tuple[str, ...] = ()) -> None:
    """Assert that a command with --json failed: nothing on stdout, one line with the error object on stderr.

    Args:
        result: of the command.
        code: expected exit code.
        reason: expected reason of the error.
        words: strings that the message must contain.
    """
    assert result.stdout == "", result.stdout
    assert "Traceback" not in result.stderr
    assert result.stderr.count("\n") == 1, result.stderr
    assert result.error["reason"] == reason, result.error
    assert result.error["exit_code"] == result.code == code
    for word in words:
        assert word in result.error["message"], result.error["message"]
