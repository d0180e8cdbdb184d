"""Output of both command lines: results on stdout, the rest on stderr, one exit code per kind."""

import io
import json
import os
import subprocess
import sys

import pytest

from bundle import console
from bundle.errors import KINDS, AirweightsError, DigestMismatch, Unavailable
from tools.generate_docs.error_page import written_errors


def fail_with(error: BaseException) -> int:
    def main() -> None:
        raise error

    return console.run(main, as_json=False)


def test_an_error_is_one_line_and_a_hint(capsys: pytest.CaptureFixture[str]) -> None:
    code = fail_with(DigestMismatch("found a,\nexpected b", hint="fetch it\nagain"))
    out, err = capsys.readouterr()
    assert (code, out) == (3, "")
    assert err == "error: found a, expected b\nhint: fetch it again\n"


def test_with_json_an_error_is_one_object_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    def main() -> None:
        raise DigestMismatch("found a", hint=None)

    assert console.run(main, as_json=True) == 3
    out, err = capsys.readouterr()
    assert out == ""
    assert json.loads(err) == {
        "error": {"reason": "digest-mismatch", "message": "found a", "hint": None, "exit_code": 3}
    }


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (FileNotFoundError(2, "No such file or directory", "/x"), 4, "error: No such file or directory (/x)\n"),
        (OSError(28, "No space left on device"), 4, "error: No space left on device\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
        (ZeroDivisionError("division by zero"), 70, "error: ZeroDivisionError: division by zero\n"),
    ],
)
def test_foreign_exceptions_get_a_line_and_a_code_and_no_traceback(
    error: BaseException, code: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fail_with(error) == code
    err = capsys.readouterr().err
    assert err.startswith(line)
    assert "Traceback" not in err


def test_a_traceback_is_there_for_who_asks(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRWEIGHTS_TRACEBACK", "1")
    fail_with(ZeroDivisionError("x"))
    assert "Traceback" in capsys.readouterr().err


def test_success_is_zero_and_silent(capsys: pytest.CaptureFixture[str]) -> None:
    assert console.run(lambda: None, as_json=True) == 0
    assert capsys.readouterr() == ("", "")


def test_no_bar_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    bar = console.progress_bar("fetch")
    bar(1, 2)
    bar(2, 2)
    assert capsys.readouterr() == ("", "")


def test_a_bar_on_a_terminal_ends_its_line(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    bar = console.progress_bar("fetch")
    bar(5, 10)
    bar(10, 10)
    assert terminal.getvalue().endswith("fetch [" + "#" * 30 + "] 100 %\n")


def test_a_bar_estimates_the_time_that_is_left_and_erases_it(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal, now = Terminal(), iter([0.0, 30.0, 100.0])
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setattr("bundle.console.time.monotonic", lambda: next(now))
    bar = console.progress_bar("int8")
    bar(1, 4)
    bar(4, 4)
    first, last = terminal.getvalue().split("\r")[1:]
    assert first.endswith(" 25 %, about 1:30 left")
    assert last == "int8 [" + "#" * 30 + "] 100 %" + " " * len(", about 1:30 left") + "\n"


def test_every_error_class_has_a_reason_of_its_own_and_its_kinds_exit_code() -> None:
    seen: dict[str, type[AirweightsError]] = {}
    for error in (*KINDS, *written_errors()):
        kinds = [kind for kind in KINDS if issubclass(error, kind)]
        assert len(kinds) == 1, error
        assert error.exit_code == kinds[0].exit_code, error
        assert error.reason not in seen, (error, seen.get(error.reason))
        seen[error.reason] = error
    assert seen["unavailable"] is Unavailable


@pytest.mark.parametrize(
    "words",
    [
        ("packager", "--help"),
        ("packager", "quantize", "--help"),
        ("device_agent", "--help"),
        ("device_agent", "--config", "/nowhere", "status", "--json"),
    ],
)
@pytest.mark.parametrize("closed", ["stdout", "stderr"])
def test_a_reader_that_goes_away_ends_a_command_without_a_word(words: tuple[str, ...], closed: str) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, closed: writing}
    # the shell that starts a command may have SIGPIPE ignored or not: Python ignores it either way
    done = subprocess.run([sys.executable, "-m", *words], check=False, timeout=60, **streams)  # type: ignore[call-overload]
    os.close(writing)
    fails = "status" in words
    if (closed == "stderr") == fails:
        assert done.returncode == console.READER_LEFT
        assert not done.stdout
        assert not done.stderr
    else:
        assert done.returncode == (2 if fails else 0)


@pytest.mark.parametrize("words", [["packager"], ["packager", "bundle"], ["device_agent"]])
def test_no_words_at_all_show_the_help_as_it_is(words: list[str]) -> None:
    done = subprocess.run([sys.executable, "-m", *words], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 2
    assert done.stdout == ""
    assert "\nCommands:\n" in done.stderr


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_a_terminal_that_lacks_a_character_gets_an_escape(encoding: str) -> None:
    code = "from bundle import console\nimport sys\nrow = {'name': 'Gerät …'}\n"
    code += (
        "console.run(lambda: console.print_result(row, as_json='--json' in sys.argv, text=row['name']), as_json=False)"
    )
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    result = []
    for words in ([], ["--json"]):
        done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, env=environment, check=True)
        assert done.stderr == b""
        result.append(done.stdout)
    assert json.loads(result[1].decode(encoding)) == {"name": "Gerät …"}
    shown = {"ascii": "Ger\\xe4t \\u2026\n", "latin-1": "Gerät \\u2026\n", "utf-8": "Gerät …\n"}[encoding]
    assert result[0].decode(encoding) == shown


@pytest.mark.parametrize("package", ["packager", "device_agent"])
def test_an_interrupt_while_a_command_starts_is_no_traceback(package: str) -> None:
    code = f"""
import sys
class Interrupt:
    def find_spec(self, name, *_):
        if name == "{package}.commands.root":
            raise KeyboardInterrupt
sys.meta_path.insert(0, Interrupt())
from {package}.__main__ import main
main()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (console.INTERRUPTED, "", "")
