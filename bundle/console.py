"""How the command lines speak.

Rules:
1. The result goes to stdout, everything else (progress, hints, logs) to stderr.
2. `--json`: exactly one object on stdout; on failure nothing on stdout and one error object on stderr.
3. A user's mistake is one line `error: …` and, where there is a hint, one line `hint: …`. No traceback. Only a `Bug`
   shows where it happened, and only with AIRWEIGHTS_TRACEBACK=1.
4. The exit code is the error class's (bundle.errors); 130 after an interrupt. A reader that goes away early, as
   `head` does, ends the command without a word and with 141, as it ends any Unix tool.
5. A progress bar only where stderr is a terminal.
"""

import io
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from typing import Final, TextIO

from bundle.errors import AirweightsError, Bug, OsFailure

INTERRUPTED: Final = 130
READER_LEFT: Final = 141  # 128 + SIGPIPE: what a shell reports of a tool that the signal ended
BAR_CHARACTERS: Final = 30
REDRAW_S: Final = 0.1

Progress = Callable[[int, int], None]


def print_result(result: Mapping[str, object], *, as_json: bool, text: str) -> None:
    """Rule 1: `result` as one JSON object, or `text` for a person."""
    print(json.dumps(result, indent=2, ensure_ascii=not _is_unicode(sys.stdout)) if as_json else text)


def print_error(error: AirweightsError, *, as_json: bool, stream: TextIO | None = None) -> None:
    """Rules 2 and 3."""
    stream = sys.stderr if stream is None else stream
    if as_json:
        print(json.dumps({"error": error.as_dict()}, ensure_ascii=not _is_unicode(stream)), file=stream)
        return
    print("error:", " ".join(str(error.message).split()), file=stream)
    if error.hint:
        print("hint:", " ".join(error.hint.split()), file=stream)


def run(main: Callable[[], None], *, as_json: bool) -> int:
    """Call `main` and turn what it raises into an exit code (rules 2 to 4)."""
    stdout = sys.stdout
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # a character that the locale has not is no reason to fail after the work is done
            stream.reconfigure(errors="backslashreplace")
    try:
        code = _run(main, as_json=as_json)
        sys.stdout.flush()  # here, and not at the interpreter's exit, where nobody can answer for it
        return code
    except BrokenPipeError:
        return _reader_left()
    except SystemExit:
        # click turns a broken pipe into an exit of its own, and puts a stream in place that forgives
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
        place = f" ({error.filename})" if error.filename else ""
        print_error(OsFailure(f"{error.strerror or error}{place}"), as_json=as_json)
        return OsFailure.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:  # noqa: BLE001  # the last line of defense: a bug is reported in the same form as all else
        _show_traceback()
        bug = Bug(f"{type(error).__name__}: {error}", hint="this is a bug; AIRWEIGHTS_TRACEBACK=1 shows where")
        print_error(bug, as_json=as_json)
        return Bug.exit_code
    return 0


def _is_unicode(stream: TextIO) -> bool:
    return (getattr(stream, "encoding", None) or "utf-8").lower().replace("-", "") in ("utf8", "utf8sig")


def _reader_left() -> int:
    # whatever is still in the buffers goes nowhere: the interpreter must not complain about it at exit
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.__stdout__, sys.__stderr__):
        if stream is not None:
            try:
                stream.flush()
            except BrokenPipeError:
                os.dup2(nowhere, stream.fileno())
    os.close(nowhere)
    return READER_LEFT


def progress_bar(label: str) -> Progress:
    """A function of (done, total) that draws a bar on a terminal (rule 5) and does nothing elsewhere."""
    if not sys.stderr.isatty():
        return lambda _done, _total: None
    drawn = 0.0

    def draw(done: int, total: int) -> None:
        nonlocal drawn
        now = time.monotonic()
        if done < total and now - drawn < REDRAW_S:
            return
        drawn = now
        filled = BAR_CHARACTERS * done // max(total, 1)
        end = "\n" if done >= total else ""
        bar = "#" * filled + "." * (BAR_CHARACTERS - filled)
        print(f"\r{label} [{bar}] {100 * done // max(total, 1):3d} %", end=end, file=sys.stderr, flush=True)

    return draw


def _show_traceback() -> None:
    if os.environ.get("AIRWEIGHTS_TRACEBACK") == "1":
        traceback.print_exc()
