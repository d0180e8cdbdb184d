"""Runs the `console` blocks of a docs page in order, in one shell, and compares the output with what the page shows."""

import os
import re
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

REPOSITORY: Final = Path(__file__).resolve().parents[2]
LIMIT_S: Final = 240
MARK: Final = "### command"


@dataclass(frozen=True, slots=True)
class Command:
    """One command, and the lines of output that the page shows."""

    text: str
    shown_lines: tuple[str, ...]


def parse_commands(page: str) -> list[Command]:
    """Return every command of every `console` block: lines with `$ `, continued by lines with `> `."""
    found: list[tuple[list[str], list[str]]] = []
    for block in re.findall(r"^```console\n(.*?)^```$", page, re.MULTILINE | re.DOTALL):
        for line in block.splitlines():
            if line.startswith("$ "):
                found.append(([line[2:]], []))
            elif line == ">" or line.startswith("> "):
                found[-1][0].append(line[2:])
            else:
                found[-1][1].append(line)
    return [Command("\n".join(lines), tuple(shown)) for lines, shown in found]


def mask(line: str) -> str:
    """Replace what differs from run to run: digests, fingerprints and numbers that are no version."""
    line = re.sub(r"(?:[0-9a-f]{4} ){9}[0-9a-f]{4}", "#", line)
    line = re.sub(r"\b[0-9a-f]{16,}\b", "#", line)
    line = re.sub(
        r"release \d+\.\d+\.\d+|sounds \d+\.\d+\.\d+|from \d+\.\d+\.\d+|^\d+\.\d+\.\d+$",
        lambda match: match[0].replace(".", "_"),
        line,
    )
    return re.sub(r"(?<![\d_])\d[\d,.]*(?![\d_])", "#", line).strip()


def reader_environment(folder: Path) -> dict[str, str]:
    """Return the environment of a reader: no settings of this project, and temporary files in `folder`."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PACKAGER_", "AIRWEIGHTS_"))}
    return kept | {"TMPDIR": str(folder), "PATH": f"{Path(sys.executable).parent}:{kept['PATH']}"}


def run_page(page: Path, folder: Path) -> None:
    """Run a page's commands, and assert that every line that it shows is printed.

    Args:
        page: the page.
        folder: for temporary files.
    """
    commands = parse_commands(page.read_text())
    script = "\n".join(f"printf '\\n{MARK} {number}\\n'\n{command.text}" for number, command in enumerate(commands))
    printed_path = folder / "printed.txt"
    with printed_path.open("wb") as printed_file:
        process = subprocess.Popen(
            ["bash", "-e", "-u", "-o", "pipefail", "-c", script],
            cwd=REPOSITORY,
            env=reader_environment(folder),
            stdin=subprocess.DEVNULL,
            stdout=printed_file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        process.wait(LIMIT_S)
    except subprocess.TimeoutExpired:
        agent_logs = [path.read_text() for path in folder.rglob("agent.log")]
        pytest.fail(
            f"not finished in {LIMIT_S} s; printed:\n{printed_path.read_text()}\nagent logs:\n" + "\n".join(agent_logs)
        )
    finally:
        with suppress(ProcessLookupError):  # its process group contains the web server and the daemon
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    output = printed_path.read_text()
    assert process.returncode == 0, output
    parts = re.split(rf"^{MARK} \d+\n", output, flags=re.MULTILINE)[1:]
    assert len(parts) == len(commands)
    missing = []
    for command, part in zip(commands, parts, strict=True):
        printed = {mask(line) for line in part.splitlines()}
        missing += [
            f"$ {command.text}\nshown: {line}\nprinted:\n{part}"
            for line in command.shown_lines
            if mask(line) not in printed
        ]
    assert not missing, "\n".join(missing)
