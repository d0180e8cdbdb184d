"""The tutorial's commands, run in order as a stranger would; what it shows is what they print, but for numbers."""

import os
import re
import signal
import socket
import subprocess
import sys
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


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [place.getsockname()[1] for place in sockets]
    for place in sockets:
        place.close()
    return ports


def test_the_tutorial_works_as_it_is_written(tmp_path: Path) -> None:
    steps = commands(PAGE.read_text())
    assert len(steps) > 25
    script = "\n".join(f"echo '{MARK} {number}'\n{step.words}" for number, step in enumerate(steps))
    for port, free in zip(("8100", "8500"), free_ports(2), strict=True):
        assert port in script
        script = script.replace(port, str(free))
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("PACKAGER_", "AIRWEIGHTS_"))
    }
    environment |= {"TMPDIR": str(tmp_path), "PATH": f"{Path(sys.executable).parent}:{environment['PATH']}"}
    child = subprocess.Popen(
        ["bash", "-e", "-u", "-o", "pipefail", "-c", script],
        cwd=REPOSITORY,
        env=environment,
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
        said = [masked(line) for line in part.splitlines()]
        for line in step.shown:
            assert masked(line) in said, f"$ {step.words}\nshown: {line}\nsaid:\n{part}"
