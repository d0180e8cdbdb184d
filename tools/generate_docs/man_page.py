"""Render the manual pages and the shell completions that packages install (packaging/man, packaging/completions)."""

from collections.abc import Callable
from functools import partial
from typing import Final

import click
from click.shell_completion import BashComplete, FishComplete, ShellComplete, ZshComplete

from tools.generate_docs.cli_page import help_text, programs, walk_commands

SHELLS: Final[dict[str, type[ShellComplete]]] = {"bash": BashComplete, "zsh": ZshComplete, "fish": FishComplete}
SEE_ALSO: Final = {"device-agent": "packager", "packager": "device-agent"}


def render_manual(program: str) -> str:
    """Return the manual page of a program in roff (man(7)): its help, and that of each command."""
    command = programs()[program]
    summary = (command.help or "").strip().splitlines()[0].rstrip(".")
    lines = [
        f'.TH "{program.upper()}" "1" "" "airweights" "User Commands"',
        ".SH NAME",
        f"{_escape(program)} \\- {_escape(summary[:1].lower() + summary[1:])}",
        ".SH SYNOPSIS",
        f".B {_escape(program)}",
        "[OPTIONS] COMMAND [ARGUMENTS]",
    ]
    for words, one in walk_commands(program, command):
        lines += [f'.SH "{_escape(words.upper())}"', ".nf", *_escape(help_text(words, one)).splitlines(), ".fi"]
    lines += [".SH SEE ALSO", f".BR {_escape(SEE_ALSO[program])} (1)"]
    return "\n".join(lines) + "\n"


def render_completion(program: str, shell: str) -> str:
    """Return the completion script of a program.

    Args:
        program: "device-agent" or "packager".
        shell: one of SHELLS.
    """
    variable = f"_{program.replace('-', '_').upper()}_COMPLETE"
    return SHELLS[shell](click.Command(program), {}, program, variable).source().strip() + "\n"


def pages() -> dict[str, Callable[[], str]]:
    """Return the renderers by path, relative to docs/."""
    found: dict[str, Callable[[], str]] = {}
    for program in SEE_ALSO:
        found[f"../packaging/man/{program}.1"] = partial(render_manual, program)
        for shell in SHELLS:
            path = f"../packaging/completions/{program}.{shell}"
            found[path] = partial(render_completion, program, shell)
    return found


def _escape(text: str) -> str:
    escaped = text.replace("\\", "\\e").replace("-", "\\-")
    return "\n".join("\\&" + line if line.startswith((".", "'")) else line for line in escaped.split("\n"))
