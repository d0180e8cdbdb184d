"""Output, errors and exit codes of both command lines.

Rules:
- The result goes to stdout; progress, hints and logs go to stderr.
- With `--json`, stdout gets exactly one object. After an error, stdout is empty and stderr gets one error object.
- Without `--json`, an error is one line `error: …`, followed by one line `hint: …` if it has a hint. A traceback is
  printed only if AIRWEIGHTS_TRACEBACK=1 is set.
- The exit code is the error's (bundle.errors), or 130 after an interrupt. If the reader of the output closes it early,
  as `head` does, the command ends silently with 141, as other Unix tools do.
- A progress bar is drawn only if stderr is a terminal. After a second, it estimates the time that is left.
- Everything that is printed is rendered (bundle.rendering): foreign strings cannot control the terminal.
"""

import io
import os
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Final, TextIO

from bundle.errors import AirweightsError, Bug, MemoryExhausted, OsFailure
from bundle.rendering import render_json, render_line

INTERRUPTED: Final = 130
READER_LEFT: Final = 141  # 128 + SIGPIPE, as shells report it
BAR_CHARACTERS: Final = 30
REDRAW_S: Final = 0.1
MIN_ESTIMATE_S: Final = 1.0  # before that, an estimate would jump

Progress = Callable[[int, int], None]
"""Report progress: the amount that is done and the total, in the same unit."""


def print_result(result: Mapping[str, object], *, as_json: bool, text: str | Sequence[str]) -> None:
    """Print a result to stdout.

    Args:
        result: the object to print with `as_json`.
        as_json: whether to print JSON.
        text: what to print if `as_json` is false: one line, or a sequence of lines. A line break inside of a line is
            printed as an escape.
    """
    if as_json:
        print(render_json(result, indent=2, is_unicode=_is_unicode(sys.stdout)))
    else:
        print_lines(text, stream=sys.stdout)


def print_lines(text: str | Sequence[str], *, stream: TextIO | None = None) -> None:
    """Print one line, or a sequence of lines, and flush the stream.

    Args:
        text: the line or lines; a line break inside of a line is printed as an escape.
        stream: where to print; stderr by default.
    """
    stream = sys.stderr if stream is None else stream
    for line in (text,) if isinstance(text, str) else text:
        print(render_line(line), file=stream)
    stream.flush()


def print_error(error: AirweightsError, *, as_json: bool, stream: TextIO | None = None) -> None:
    """Print an error to stderr, as a JSON object or as a line with a hint.

    Args:
        error: the error to print.
        as_json: whether to print JSON.
        stream: where to print; stderr by default.
    """
    stream = sys.stderr if stream is None else stream
    if as_json:
        print(render_json({"error": error.as_dict()}, is_unicode=_is_unicode(stream)), file=stream)
        return
    for name, text in (("error", str(error.message)), ("hint", error.hint)):
        if text:
            print(f"{name}:", render_line(" ".join(text.split())), file=stream)


def run(main: Callable[[], None], *, as_json: bool) -> int:
    """Call `main`, print its error if it raises one, and return the exit code.

    Args:
        main: the command.
        as_json: whether errors are printed as JSON.
    """
    stdout = sys.stdout
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # print an escape for a character that the locale lacks, rather than fail after the work is done
            stream.reconfigure(errors="backslashreplace")
    try:
        code = _run(main, as_json=as_json)
        sys.stdout.flush()  # flush here: at the interpreter's exit a broken pipe could no longer be handled
        return code
    except BrokenPipeError:
        return _reader_left()
    except SystemExit:
        # after a broken pipe, click replaces the stream and exits with a code of its own
        if sys.stdout is not stdout:
            return _reader_left()
        raise


def _run(main: Callable[[], None], *, as_json: bool) -> int:
    try:
        main()
    except AirweightsError as error:
        _show_traceback()
        print_error(error, as_json=as_json)
        return error.exit_code
    except BrokenPipeError:
        raise
    except OSError as error:
        _show_traceback()
        path = f" ({error.filename})" if error.filename else ""
        print_error(OsFailure(f"{error.strerror or error}{path}"), as_json=as_json)
        return OsFailure.exit_code
    except MemoryError as error:
        _show_traceback()
        print_error(MemoryExhausted(str(error) or "no memory is left"), as_json=as_json)
        return MemoryExhausted.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:  # noqa: BLE001  # bugs are reported in the same form as other errors
        _show_traceback()
        bug = Bug(
            f"{type(error).__name__}: {error}",
            hint="report this bug, with the traceback that AIRWEIGHTS_TRACEBACK=1 prints",
        )
        print_error(bug, as_json=as_json)
        return Bug.exit_code
    return 0


def _is_unicode(stream: TextIO) -> bool:
    return (getattr(stream, "encoding", None) or "utf-8").lower().replace("-", "") in ("utf8", "utf8sig")


def _reader_left() -> int:
    # send the rest of the buffers to /dev/null, or else the interpreter prints an error at exit
    null = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.__stdout__, sys.__stderr__):
        if stream is not None:
            try:
                stream.flush()
            except BrokenPipeError:
                os.dup2(null, stream.fileno())
    os.close(null)
    return READER_LEFT


def progress_bar(label: str) -> Progress:
    """Return a function that draws a progress bar on stderr, or does nothing if stderr is not a terminal."""
    if not sys.stderr.isatty():
        return lambda _done, _total: None
    started = time.monotonic()
    drawn, shown, width = 0.0, render_line(label), 0

    def draw(done: int, total: int) -> None:
        nonlocal drawn, width
        now = time.monotonic()
        if done < total and now - drawn < REDRAW_S:
            return
        drawn = now
        filled = BAR_CHARACTERS * done // max(total, 1)
        end = "\n" if done >= total else ""
        bar = "#" * filled + "." * (BAR_CHARACTERS - filled)
        left = _format_time_left(now - started, done, total)
        left, width = left.ljust(width), len(left)  # blanks overwrite the last estimate
        print(f"\r{shown} [{bar}] {100 * done // max(total, 1):3d} %{left}", end=end, file=sys.stderr, flush=True)

    return draw


def _format_time_left(passed_s: float, done: int, total: int) -> str:
    if done >= total or done <= 0 or passed_s < MIN_ESTIMATE_S:
        return ""
    minutes, seconds = divmod(round(passed_s * (total - done) / done), 60)
    return f", about {minutes}:{seconds:02d} left"


def _show_traceback() -> None:
    if os.environ.get("AIRWEIGHTS_TRACEBACK") == "1":
        traceback.print_exc()
