"""Strings that repaint a terminal, forge a line of a log, or look like another string."""

from typing import Final

HOSTILE: Final = (
    '\x1b[31mRED\x1b]0;title\x07\x9b31m\u202egnp\u2066\u200f\n{"level":"forged"}\r\x7f\x85\u2028\ue000<b>&"'
)
HOSTILE_STRINGS: Final = (
    HOSTILE,
    "\x1b[2J",
    "\x1b]8;;http://evil.example\x1b\\click\x1b]8;;\x1b\\",
    "line\nerror: forged",
    "line\r\nhint: forged",
    "back\b\b\b\bword",
    "\udce9\udc80",  # bytes of a file name that are not UTF-8
    "zero\u200bwidth\ufeff\u00ad",
    "\U000e0041\U000f0000",
)


def raw_signs(text: str) -> list[str]:
    """Return the characters of `text` that must not be printed raw; line breaks between lines are allowed."""
    return sorted({char for char in text if not char.isprintable() and char != "\n"})
