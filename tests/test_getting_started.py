"""The commands of the pages for a first setup, run in order as a reader would; the pages show what they print."""

from pathlib import Path

import pytest

from tests.support.console_page import REPOSITORY, parse_commands, run_page

GETTING_STARTED = REPOSITORY / "docs" / "getting-started"


@pytest.mark.parametrize("name", ["device-engineer.md"])
def test_the_commands_of_the_page_work_as_written(name: str, tmp_path: Path) -> None:
    page = GETTING_STARTED / name
    assert len(parse_commands(page.read_text())) > 25
    run_page(page, tmp_path, ports=("8100", "8500"))
