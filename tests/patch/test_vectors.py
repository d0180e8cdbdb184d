"""Every patch vector is applied, or refused for its one defect."""

import json
import resource
from pathlib import Path

import pytest

from bundle.errors import PatchRefused
from tests.support.memory_bundles import MemoryBase, apply_to_memory
from tests.vectors.patch import generate

FOLDER = Path(generate.__file__).parent
EXPECTED: dict[str, str | None] = json.loads((FOLDER / "expected.json").read_text())


def _files(name: str) -> dict[str, bytes]:
    root = FOLDER / name
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", EXPECTED)
def test_vector(name: str) -> None:
    patch = (FOLDER / f"{name}.patch").read_bytes()
    reason = EXPECTED[name]
    if reason is None:
        assert apply_to_memory(patch, _files("base")) == _files("target")
        return
    with pytest.raises(PatchRefused) as caught:
        apply_to_memory(patch, _files("base"))
    assert caught.value.reason == reason


def test_the_vectors_are_those_of_the_generator() -> None:
    assert {path.stem for path in FOLDER.glob("*.patch")} == set(EXPECTED) == set(generate.VECTORS)
    assert {name: reason for name, (reason, _) in generate.VECTORS.items()} == EXPECTED
    assert MemoryBase(generate.BASE).files == MemoryBase(_files("base")).files


def test_a_bzip2_bomb_costs_no_memory() -> None:
    patch = (FOLDER / "delta-bzip2-bomb.patch").read_bytes()
    assert len(patch) < 1000
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(PatchRefused, match="bzip2 stream is damaged or not 26 bytes long"):
        apply_to_memory(patch, _files("base"))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 16 << 10
