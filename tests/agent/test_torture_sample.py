"""A sample of `make torture`: each class of faults at a few evenly spread points (fuzzing: tests/torture)."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from torture.__main__ import ROWS
from torture.case import Site
from torture.fixtures import make_site

DEFAULT_POINTS = 2  # of a row without a number below
SAMPLE = {
    "killed-commit": 3,
    "killed-rollback": 2,
    "supervisor-killed-commit": 2,
    "supervisor-killed-rollback": 2,
    "worker-killed-commit": 2,
    "worker-killed-rollback": 2,
    "error-once": 3,
    "error-permanent": 2,
    "power-cut-flushed": 2,
    "power-cut": 2,
    "full-disk": 2,
    "bit-rot": 4,
    "network": 4,
}


@pytest.fixture(scope="module")
def torture_site() -> Iterator[Site]:
    shared_memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shared_memory if shared_memory.is_dir() else None) as name:
        yield make_site(Path(name) / "made", Path(name) / "scratch")


@pytest.mark.parametrize("name", [name for name in ROWS if not name.startswith("fuzz-")])
def test_no_point_of_the_sample_ends_badly(name: str, torture_site: Site) -> None:
    row = ROWS[name](torture_site, SAMPLE.get(name, DEFAULT_POINTS))
    if row.skipped:
        pytest.skip(row.skipped)
    assert row.bad == []
    assert row.points > 0
