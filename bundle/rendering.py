"""Render strings that others wrote, for terminals, logs, JSON and HTML.

Names in models, file names, labels, notes and messages of libraries can contain escape sequences, line breaks and
direction marks: printed as they are, they repaint a terminal, forge a line of a log, or show a name as another one.

Rules:
- A character that `str.isprintable` does not accept is written as its escape: `\\x1b`, `\\n`, `\\u202e`. Those are
  control characters, line breaks, format and direction characters, invisible spaces, private and unassigned
  characters, and the lone surrogates by which Python represents undecodable bytes of file names.
- Output passes through this module as the last step, whole lines at a time, so that no command has to remember it.
  bundle.console does so for the commands, `LineFormatter` for logs.
- A line break in a string never starts a line: text for a terminal is a sequence of lines, and each is rendered alone.
- Rendering is for reading. Documents, digests and the values of `--json` keep every character.
"""

import json
import logging


def render_line(text: str) -> str:
    """Return `text` as one line in which every character is visible."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def render_json(value: object, *, indent: int | None = None, is_unicode: bool = True) -> str:
    """Return the JSON text of `value`; it is printable and parses to the same value.

    Args:
        value: what `json.dumps` accepts; other objects are written as strings.
        indent: spaces per level, or None for one line.
        is_unicode: whether the reader's encoding has all characters; otherwise the text is ASCII.
    """
    if is_unicode:
        text = json.dumps(value, indent=indent, ensure_ascii=False, default=str)
        if text.replace("\n", "").isprintable():  # json.dumps escapes line breaks inside of strings
            return text
    return json.dumps(value, indent=indent, ensure_ascii=True, default=str)


def escape_html(text: object) -> str:
    """Return `text` for an HTML page: as an element's content or a quoted attribute's value."""
    import html  # here, so that the daemon's process does not load its table of entities

    return html.escape(render_line(str(text)))


class LineFormatter(logging.Formatter):
    """Log formatter: one rendered line per record, including its traceback."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of one record."""
        return render_line(super().format(record))
