"""Command lines of every command, made from its own parameters."""

from collections.abc import Iterator
from typing import Final

import click

ENDLESS: Final = {"demo", "run"}  # commands that would start without a file to read


def commands_of(root: click.Command) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Yield every command below a group with its words."""
    if not isinstance(root, click.Group):
        yield (), root
        return
    for name in root.list_commands(click.Context(root)):
        found = root.get_command(click.Context(root), name)
        assert found is not None
        yield from (((name, *words), command) for words, command in commands_of(found))


def command_lines(root: click.Command, values: list[str]) -> Iterator[list[str]]:
    """Yield a command line for every parameter of every command and every value, and one that has it everywhere."""
    for words, command in commands_of(root):
        if set(words) & ENDLESS:
            continue
        for value in values:
            arguments = [value for one in command.params if isinstance(one, click.Argument) and one.required]
            required = [
                word
                for one in command.params
                if isinstance(one, click.Option) and one.required
                for word in (one.opts[0], value)
            ]
            yield [*words, *arguments, *required]
            for one in command.params:
                if isinstance(one, click.Option) and not one.is_flag and not one.required:
                    yield [*words, *arguments, *required, one.opts[0], value]
            yield [*words, value, *arguments, *required]
            yield [*words, f"--{value}"]
