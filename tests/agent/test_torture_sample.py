"""A sample of `make torture`, spread evenly over its points: each fault, a few times."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from torture.__main__ import ROWS
from torture.case import Site
from torture.fixtures import make_site

FEW = 5  # of a row that has no number of its own here
SAMPLE = {
    "killed-commit": 16,
    "killed-rollback": 10,
    "alone-killed-commit": 4,
    "alone-killed-rollback": 2,
    "child-killed-commit": 6,
    "child-killed-rollback": 2,
    "error-once": 14,
    "error-for-ever": 10,
    "power-cut-flushed": 6,
    "power-cut": 4,
    "full-disk": 6,
    "bit-rot": 12,
    "network": 24,
    "fuzz-patch": 300,
}


@pytest.fixture(scope="module")
def torture_site() -> Iterator[Site]:
    shared_memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shared_memory if shared_memory.is_dir() else None) as name:
        yield make_site(Path(name) / "made", Path(name) / "scratch")


@pytest.mark.parametrize("name", ROWS)
def test_no_point_of_the_sample_ends_badly(name: str, torture_site: Site) -> None:
    row = ROWS[name](torture_site, SAMPLE.get(name, FEW))
    if row.skipped:
        pytest.skip(row.skipped)
    assert row.bad == []
    assert row.points > 0
