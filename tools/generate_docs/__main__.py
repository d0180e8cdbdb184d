"""Writes the pages of docs/ that follow from the code: exit codes, and the reference of both command lines.

Run `python -m tools.generate_docs` after a change; tests/docs compares.
"""

import importlib
import pkgutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import click

from bundle.errors import KINDS, AirweightsError, subclasses

DOCS: Final = Path(__file__).resolve().parents[2] / "docs"
PACKAGES: Final = ("bundle", "keys", "packager", "device_agent")
WIDTH: Final = 100  # of the help texts

KIND_WORDS: Final = {
    2: "your own input is wrong: mend it and try again",
    3: "somebody's bytes are wrong: never retry the same bytes",
    4: "network, disk or lock: retry with backoff",
    5: "the model fails a gate or a health check: keep the old one",
    70: "this software broke its own rule: please report it",
}


def all_errors() -> list[type[AirweightsError]]:
    """Every error class of every module of every package, kinds left out, by exit code and reason."""
    for name in PACKAGES:
        package = importlib.import_module(name)
        for module in pkgutil.walk_packages(package.__path__, f"{name}."):
            if not module.name.endswith("__main__"):
                importlib.import_module(module.name)
    found = {error for error in subclasses() if error not in KINDS and is_written(error)}
    return sorted(found, key=lambda error: (error.exit_code, error.reason, error.__module__, error.__name__))


def is_written(error: type[AirweightsError]) -> bool:
    """Does it stand in a module of ours? Children's errors cross as classes made at run time, which do not."""
    in_ours = error.__module__.split(".")[0] in PACKAGES
    return in_ours and getattr(sys.modules[error.__module__], error.__name__, None) is error


def exit_codes_page() -> str:
    """docs/exit-codes.md."""
    lines = [
        "# Exit codes and reasons",
        "",
        "Both command lines, `packager` and `device-agent`, end with the exit code of the error's kind.",
        "With `--json` one error object is on stderr (docs/schemas/error.json). A reason keeps its meaning for good.",
        "",
        "| exit | kind |",
        "| --- | --- |",
        "| 0 | done |",
        *[f"| {kind.exit_code} | {kind.reason}: {KIND_WORDS[kind.exit_code]} |" for kind in KINDS],
        "| 130 | interrupted |",
        "| 141 | the reader of the output went away, as `head` does |",
        "",
        "| exit | reason | what it means | where |",
        "| --- | --- | --- | --- |",
    ]
    for error in all_errors():
        first = " ".join((error.__doc__ or "").strip().split("\n\n")[0].split()).replace("|", "\\|")
        lines.append(f"| {error.exit_code} | `{error.reason}` | {first} | {error.__module__.split('.')[0]} |")
    lines += ["", "Written by `make docs`.", ""]
    return "\n".join(lines)


def command_line_page() -> str:
    """docs/cli.md."""
    from device_agent.commands.root import cli as device_agent
    from packager.commands.root import cli as packager

    lines = ["# Command lines", "", "Written from `--help` by `make docs`.", ""]
    for name, root in (("packager", packager), ("device-agent", device_agent)):
        for words, command in walk(name, root):
            context = _context(words, command)
            lines += [
                f"{'#' * min(4, 1 + len(words.split()))} {words}",
                "",
                "```text",
                command.get_help(context),
                "```",
                "",
            ]
    return "\n".join(lines)


def walk(words: str, command: click.Command) -> Iterator[tuple[str, click.Command]]:
    """A command and everything below it, with the words that call it."""
    yield words, command
    if isinstance(command, click.Group):
        context = click.Context(command, info_name=words)
        for name in command.list_commands(context):
            found = command.get_command(context, name)
            assert found is not None
            yield from walk(f"{words} {name}", found)


def _context(words: str, command: click.Command) -> click.Context:
    names = ["-h", "--help"]  # a command keeps the names that it was first used with
    return click.Context(
        command, info_name=words, terminal_width=WIDTH, max_content_width=WIDTH, help_option_names=names
    )


PAGES: Final = {"exit-codes.md": exit_codes_page, "cli.md": command_line_page}

if __name__ == "__main__":
    for page, make in PAGES.items():
        (DOCS / page).write_text(make())
