"""Every command and option of both command lines has a help text in one form."""

import re
from collections.abc import Iterator

import click
import pytest

from tests.support.docstring_rules import VERBS, old_words
from tools.generate_docs.cli_page import programs, walk_commands

MAX_SHORT_HELP = 60  # columns; longer ones would be cut in a terminal of 80 columns
# programs whose help is not revised yet
UNREVISED_PROGRAMS = frozenset({"packager"})
PROGRAMS = {name: program for name, program in programs().items() if name not in UNREVISED_PROGRAMS}
COMMANDS = [row for name, program in PROGRAMS.items() for row in walk_commands(name, program)]
NAMES = [words for words, _ in COMMANDS]
BELOW_ROOT = [row for row in COMMANDS if " " in row[0]]


def options_of(command: click.Command) -> Iterator[click.Option]:
    return (parameter for parameter in command.params if isinstance(parameter, click.Option))


def texts_of(command: click.Command) -> str:
    """Return everything that the help of a command says."""
    option_texts = [option.help or "" for option in options_of(command)]
    return "\n".join([command.help or "", command.short_help or "", command.epilog or "", *option_texts])


@pytest.mark.parametrize(("words", "command"), BELOW_ROOT, ids=[words for words, _ in BELOW_ROOT])
def test_a_short_help_fits_the_list_of_commands_and_begins_with_a_verb(words: str, command: click.Command) -> None:
    short = command.get_short_help_str(limit=1000)
    assert 0 < len(short) <= MAX_SHORT_HELP, f"{words}: {short!r} has {len(short)} columns"
    assert not short.endswith("...")
    first = re.split(r"[\s,]", short)[0]
    assert first.lower() in VERBS, f"{words}: {first!r} is no known verb"


@pytest.mark.parametrize(("words", "command"), COMMANDS, ids=NAMES)
def test_every_option_has_a_help_text(words: str, command: click.Command) -> None:
    assert [option.name for option in options_of(command) if not option.help] == []


@pytest.mark.parametrize(("words", "command"), COMMANDS, ids=NAMES)
def test_a_help_text_uses_no_replaced_word_and_names_no_file_of_docs(words: str, command: click.Command) -> None:
    assert old_words(f"{words}\n{texts_of(command)}") == []
    assert "docs/" not in texts_of(command)


@pytest.mark.parametrize(("words", "command"), COMMANDS, ids=NAMES)
def test_every_sentence_of_help_ends_with_a_period(words: str, command: click.Command) -> None:
    texts = [command.help, *(option.help for option in options_of(command))]
    paragraphs = [part.strip() for text in texts for part in (text or "").split("\n\n")]
    open_ended = [part for part in paragraphs if part and not part.startswith("\b") and part[-1] not in ".:)]"]
    assert open_ended == []
