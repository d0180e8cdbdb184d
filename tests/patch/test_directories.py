"""A patch is applied to a folder completely or not at all."""

from pathlib import Path

import numpy as np
import pytest

from bundle.errors import Invalid, PatchCorrupt, WrongBase
from packager.diff.bundle_folder import SINGLE_FILE_PATH, apply_to_directory, open_bundle
from packager.diff.write.make_patch import make_patch
from tests.support.memory_bundles import write_bundle

NOISE = np.random.default_rng(2).bytes(3000)
OLD = {"a": NOISE, "d/b": b"two" * 500}
NEW = {"a": NOISE[:2000] + NOISE, "d/c": b"three" * 500}


def _patch(place: Path, base: Path | None, target: Path) -> Path:
    with place.open("wb") as out:
        make_patch(None if base is None else open_bundle(base), open_bundle(target), out)
    return place


def test_a_folder_becomes_the_new_folder(tmp_path: Path) -> None:
    write_bundle(tmp_path / "old", OLD)
    write_bundle(tmp_path / "new", NEW)
    patch = _patch(tmp_path / "p", tmp_path / "old", tmp_path / "new")
    table = apply_to_directory(tmp_path / "old", patch, tmp_path / "out")
    assert table == open_bundle(tmp_path / "out").files
    assert {file.path: (tmp_path / "out" / file.path).read_bytes() for file in table} == NEW


def test_a_single_file_becomes_a_single_file_whatever_it_is_called(tmp_path: Path) -> None:
    (tmp_path / "v1.onnx").write_bytes(OLD["a"])
    (tmp_path / "v2.onnx").write_bytes(NEW["a"])
    patch = _patch(tmp_path / "p", tmp_path / "v1.onnx", tmp_path / "v2.onnx")
    (tmp_path / "moved").write_bytes(OLD["a"])
    table = apply_to_directory(tmp_path / "moved", patch, tmp_path / "out")
    assert [file.path for file in table] == [SINGLE_FILE_PATH]
    assert (tmp_path / "out").read_bytes() == NEW["a"]


def test_a_failure_leaves_nothing(tmp_path: Path) -> None:
    write_bundle(tmp_path / "old", OLD)
    write_bundle(tmp_path / "new", NEW)
    patch = _patch(tmp_path / "p", tmp_path / "old", tmp_path / "new")
    data = bytearray(patch.read_bytes())
    data[-30] ^= 1
    patch.write_bytes(data)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(PatchCorrupt):
        apply_to_directory(tmp_path / "old", patch, tmp_path / "out")
    assert sorted(tmp_path.iterdir()) == before


def test_another_base_is_refused_by_name(tmp_path: Path) -> None:
    write_bundle(tmp_path / "old", OLD)
    write_bundle(tmp_path / "new", NEW)
    patch = _patch(tmp_path / "p", tmp_path / "old", tmp_path / "new")
    (tmp_path / "old" / "a").write_bytes(b"another")
    with pytest.raises(WrongBase, match=r"it expects 'a' [0-9a-f]{16}…, which the given base does not have"):
        apply_to_directory(tmp_path / "old", patch, tmp_path / "out")
    with pytest.raises(WrongBase, match="no base was given"):
        apply_to_directory(None, patch, tmp_path / "out")


def test_what_exists_is_not_overwritten(tmp_path: Path) -> None:
    write_bundle(tmp_path / "new", NEW)
    patch = _patch(tmp_path / "p", None, tmp_path / "new")
    with pytest.raises(Invalid, match="exists already"):
        apply_to_directory(None, patch, tmp_path / "new")
    with pytest.raises(Invalid, match="is not a file"):
        apply_to_directory(None, tmp_path / "absent", tmp_path / "out")
