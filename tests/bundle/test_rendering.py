"""Strings of others are printed, logged and shown in pages with every character visible, by one module."""

import io
import json
import logging
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bundle import console
from bundle.errors import AirweightsError, Invalid
from bundle.rendering import LineFormatter, escape_html, render_json, render_line
from device_agent.daemon.run import JsonFormatter
from tests.support.hostile_strings import HOSTILE, HOSTILE_STRINGS, raw_signs
from tests.support.imports import calls_of

ROOT = Path(__file__).parents[2]
# what writes to a stream itself: the console, and programs whose output another process of ours parses
MAY_PRINT = {
    "bundle/console.py",
    "device_agent/process/worker.py",
    "device_agent/workers/served_files.py",
    "device_agent/workers/tuf_conformance.py",
    "packager/models/model_runs.py",
    "packager/models/random_inputs.py",
    "packager/models/tflite_model.py",
    "packager/models/trial_run.py",
    # click's own help of a group, without foreign strings
    "device_agent/commands/root.py",
    "packager/commands/root.py",
}
WRITERS = ("print", "click.echo", "click.secho", "sys.stdout.write", "sys.stderr.write")


@given(st.text())
def test_a_line_is_printable_and_keeps_what_was(text: str) -> None:
    shown = render_line(text)
    assert shown.isprintable()
    assert shown.isascii() or not text.isascii()
    if text.isprintable():
        assert shown == text


@given(st.recursive(st.text() | st.integers() | st.none(), lambda v: st.lists(v) | st.dictionaries(st.text(), v)))
def test_json_is_printable_and_parses_to_the_same_value(value: object) -> None:
    for is_unicode in (True, False):
        text = render_json(value, indent=2, is_unicode=is_unicode)
        assert text.replace("\n", "").isprintable()
        assert json.loads(text) == value


@pytest.mark.parametrize("text", HOSTILE_STRINGS)
def test_every_way_out_renders_a_hostile_string(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    console.print_result({"name": text}, as_json=False, text=[f"a {text}", text])
    console.print_result({"name": text}, as_json=False, text=f"one {text}")
    assert capsys.readouterr().out.count("\n") == 3
    console.print_result({"name": text, text: 1}, as_json=True, text="")
    assert json.loads(capsys.readouterr().out) == {"name": text, text: 1}
    for as_json in (False, True):
        console.print_error(Invalid(f"found {text}", hint=text), as_json=as_json)
        assert not raw_signs(capsys.readouterr().err)
    page = escape_html(f"<{text}>'\"")
    assert not raw_signs(page)
    assert not set(page) & set("<>'\"\n")


@pytest.mark.parametrize("text", HOSTILE_STRINGS)
@pytest.mark.parametrize("formatter", [LineFormatter("%(levelname)s %(message)s"), JsonFormatter()])
def test_a_log_has_one_clean_line_per_record(formatter: logging.Formatter, text: str) -> None:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(formatter)
    logger = logging.Logger("test")
    logger.addHandler(handler)
    logger.warning("found %s", text, extra={"file": text})
    try:
        raise AirweightsError(text)
    except AirweightsError:
        logger.exception("it failed")
    assert stream.getvalue().count("\n") == 2
    assert not raw_signs(stream.getvalue())


def test_only_the_console_prints() -> None:
    writers = {
        path.relative_to(ROOT).as_posix()
        for package in ("bundle", "keys", "fleet", "packager", "device_agent", "airweights")
        for path in (ROOT / package).rglob("*.py")
        if any(name in WRITERS for name, _ in calls_of(path))
    }
    assert writers == MAY_PRINT


def test_no_command_joins_lines_itself() -> None:
    """A joined text would be printed as one line with escapes in place of its line breaks."""
    wrong = [
        f"{path.relative_to(ROOT)}: {text}"
        for package in ("keys", "fleet", "packager", "device_agent")
        for path in (ROOT / package).rglob("*.py")
        for name, call in calls_of(path)
        if name.rpartition(".")[2] == "print_result"
        for text in call.values()
        if "\\n" in text
    ]
    assert not wrong


def test_a_label_of_a_progress_bar_is_rendered(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    console.progress_bar(HOSTILE)(10, 10)
    assert not raw_signs(terminal.getvalue().lstrip("\r").rstrip("\n"))
