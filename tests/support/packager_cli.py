"""Runs the command line in this process, and looks at what it says."""

import io
import json
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packager.commands.root import main


@dataclass(frozen=True, slots=True)
class CommandResult:
    """What one command said, and how it ended."""

    code: int
    stdout: str
    stderr: str

    @property
    def json(self) -> Any:
        """The one object on stdout."""
        return json.loads(self.stdout)

    @property
    def error(self) -> dict[str, Any]:
        """The one error object on stderr."""
        found: dict[str, Any] = json.loads(self.stderr)["error"]
        return found


def run_packager(*words: object) -> CommandResult:
    """Run `packager` with these words."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = main([str(word) for word in words])
    return CommandResult(code, out.getvalue(), err.getvalue())


def read_all_files(folder: Path) -> dict[str, bytes]:
    """Every file below a folder with its content, hidden ones too: to see that nothing was left behind."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def assert_refused(result: CommandResult, *, code: int, reason: str, words: tuple[str, ...] = ()) -> None:
    """A failure under rules 2 and 3 of bundle.console, told with --json."""
    assert result.stdout == "", result.stdout
    assert "Traceback" not in result.stderr
    assert result.stderr.count("\n") == 1, result.stderr
    assert result.error["reason"] == reason, result.error
    assert result.error["exit_code"] == result.code == code
    for word in words:
        assert word in result.error["message"], result.error["message"]
