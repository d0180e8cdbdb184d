"""The commands of docs/getting-started/release-engineer.md work in order, and print the lines that the page shows.

Numbers, digests and fingerprints are masked before the comparison.
"""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
PAGE = REPOSITORY / "docs" / "getting-started" / "release-engineer.md"
LIMIT_S = 240
MARK = "--- command"


@dataclass(frozen=True, slots=True)
class Command:
    """One command, and the lines of output that the page shows."""

    words: str
    shown: tuple[str, ...]


def commands(page: str) -> list[Command]:
    """Every command of every console block."""
    found: list[tuple[list[str], list[str]]] = []
    for block in re.findall(r"^```console\n(.*?)^```$", page, re.MULTILINE | re.DOTALL):
        for line in block.splitlines():
            if line.startswith("$ "):
                found.append(([line[2:]], []))
            elif line == ">" or line.startswith("> "):
                found[-1][0].append(line[2:])
            else:
                found[-1][1].append(line)
    return [Command("\n".join(words), tuple(shown)) for words, shown in found]


def masked(line: str) -> str:
    """Without what differs from run to run: digests, fingerprints, numbers."""
    line = re.sub(r"(?:[0-9a-f]{4} ){9}[0-9a-f]{4}", "#", line)
    line = re.sub(r"\b[0-9a-f]{16,}\b", "#", line)
    line = re.sub(
        r"release \d+\.\d+\.\d+|sounds \d+\.\d+\.\d+|from \d+\.\d+\.\d+", lambda m: m[0].replace(".", "_"), line
    )
    return re.sub(r"(?<![\d_])\d[\d,.]*(?![\d_])", "#", line).strip()


def environment_for(folder: Path) -> Mapping[str, str]:
    """The environment of a reader: no settings of ours, and temporary files in `folder`."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PACKAGER_", "AIRWEIGHTS_"))}
    return kept | {"TMPDIR": str(folder), "PATH": f"{Path(sys.executable).parent}:{kept['PATH']}"}


def function_of_the_page(name: str) -> str:
    """The definition of a shell function."""
    return next(step.words for step in commands(PAGE.read_text()) if step.words.startswith(f"{name}()"))


def test_the_tutorial_works_as_it_is_written(tmp_path: Path) -> None:
    steps = commands(PAGE.read_text())
    assert len(steps) > 25
    script = "\n".join(f"echo '{MARK} {number}'\n{step.words}" for number, step in enumerate(steps))
    child = subprocess.Popen(
        ["bash", "-e", "-u", "-o", "pipefail", "-c", script],
        cwd=REPOSITORY,
        env=environment_for(tmp_path),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = child.communicate(timeout=LIMIT_S)
    finally:
        with suppress(ProcessLookupError):  # its group is all that it started, web server and daemon too
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()
    assert child.returncode == 0, output
    parts = re.split(rf"^{MARK} \d+\n", output, flags=re.MULTILINE)[1:]
    assert len(parts) == len(steps)
    for step, part in zip(steps, parts, strict=True):
        printed = [masked(line) for line in part.splitlines()]
        for line in step.shown:
            assert masked(line) in printed, f"$ {step.words}\nshown: {line}\nprinted:\n{part}"


def test_the_page_has_no_fixed_port() -> None:
    assert re.findall(r":\d{4,5}\b|\b8[15]00\b", PAGE.read_text()) == []


def test_a_server_that_does_not_start_is_reported_with_its_log(tmp_path: Path) -> None:
    free_port, wait_for = function_of_the_page("free_port"), function_of_the_page("wait_for")
    script = f"{free_port}\n{wait_for}\necho 'the reason' > log\nfalse & wait_for $! $(free_port) log"
    done = subprocess.run(
        ["bash", "-u", "-o", "pipefail", "-c", script],
        cwd=tmp_path,
        env=environment_for(tmp_path),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert done.stdout.splitlines() == ["the server did not start; its log:", "the reason"]
