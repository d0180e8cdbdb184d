"""Run the shell blocks of a docs page."""

import re
import shlex
import subprocess
from pathlib import Path

from packager.commands.root import main
from tools.generate_docs.__main__ import DOCS


def read_block(page: str, marker: str) -> str:
    """Return the shell block after a marker comment."""
    found = re.search(rf"<!-- {re.escape(marker)} -->\n```sh\n(.*?)```", (DOCS / page).read_text(), re.DOTALL)
    assert found is not None, f"{page} has no block {marker!r}"
    return found[1]


def split_commands(script: str) -> list[str]:
    """Return one command per line, without comments, continued lines joined."""
    joined = script.replace("\\\n", " ")
    return [line.strip() for line in joined.splitlines() if line.strip() and not line.startswith("#")]


def run_block(page: str, marker: str) -> None:
    """Run each line of a block in the current folder: `packager ...` in this process, all others by bash."""
    for line in split_commands(read_block(page, marker)):
        if line.startswith("packager "):
            assert main(shlex.split(line)[1:]) == 0, line
        else:
            subprocess.run(["bash", "-euc", line], check=True, cwd=Path.cwd())
