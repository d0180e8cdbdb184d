"""Render docs/cli.md: the `--help` of every command of both command lines."""

from collections.abc import Iterator
from typing import Final

import click

WIDTH: Final = 100  # columns of the help texts


def programs() -> dict[str, click.Command]:
    """Return both command lines by program name."""
    from device_agent.commands.root import cli as device_agent
    from packager.commands.root import cli as packager

    return {"packager": packager, "device-agent": device_agent}


def render_page() -> str:
    """Return the page as Markdown."""
    lines = ["# Command lines", "", "Generated from `--help` by `make docs`.", ""]
    for name, root in programs().items():
        for words, command in walk_commands(name, root):
            lines += [
                f"{'#' * min(4, 1 + len(words.split()))} {words}",
                "",
                "```text",
                help_text(words, command),
                "```",
                "",
            ]
    return "\n".join(lines)


def walk_commands(words: str, command: click.Command) -> Iterator[tuple[str, click.Command]]:
    """Yield a command and all commands below it, each with the words that call it.

    Args:
        words: the words that call `command`, for example `packager repo`.
        command: the command to start from.
    """
    yield words, command
    if isinstance(command, click.Group):
        context = click.Context(command, info_name=words)
        for name in command.list_commands(context):
            found = command.get_command(context, name)
            assert found is not None
            yield from walk_commands(f"{words} {name}", found)


def help_text(words: str, command: click.Command) -> str:
    """Return the output of `--help`.

    Args:
        words: the words that call `command`.
        command: the command.
    """
    return command.get_help(_help_context(words, command))


def _help_context(words: str, command: click.Command) -> click.Context:
    # click keeps the help option of the first context, so every caller must name the same option names
    names = ["-h", "--help"]
    return click.Context(
        command, info_name=words, terminal_width=WIDTH, max_content_width=WIDTH, help_option_names=names
    )
