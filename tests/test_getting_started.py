"""The commands of the pages for a first setup work in order, and print the lines that the pages show.

Numbers, digests and fingerprints are masked before the comparison.
"""

import re
import subprocess
from pathlib import Path

import pytest

from tests.support.console_page import REPOSITORY, parse_commands, reader_environment, run_page

GETTING_STARTED = REPOSITORY / "docs" / "getting-started"
PAGES = sorted(GETTING_STARTED.glob("*.md"))
RELEASE_PAGE = GETTING_STARTED / "release-engineer.md"


def function_of_the_page(name: str) -> str:
    """Return the definition of a shell function."""
    return next(
        command.text for command in parse_commands(RELEASE_PAGE.read_text()) if command.text.startswith(f"{name}()")
    )


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_commands_of_the_page_work_as_written(page: Path, tmp_path: Path) -> None:
    assert len(parse_commands(page.read_text())) > 25
    run_page(page, tmp_path)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_page_has_no_fixed_port(page: Path) -> None:
    assert re.findall(r":\d{4,5}\b|\b8[15]00\b", page.read_text()) == []


def test_a_server_that_does_not_start_is_reported_with_its_log(tmp_path: Path) -> None:
    free_port, wait_for = function_of_the_page("free_port"), function_of_the_page("wait_for")
    script = f"{free_port}\n{wait_for}\necho 'the reason' > log\nfalse & wait_for $! $(free_port) log"
    done = subprocess.run(
        ["bash", "-u", "-o", "pipefail", "-c", script],
        cwd=tmp_path,
        env=reader_environment(tmp_path),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert done.stdout.splitlines() == ["the server did not start; its log:", "the reason"]
