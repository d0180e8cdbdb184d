"""Applying a patch gives the target, bit for bit."""

import io
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bundle.errors import Invalid
from bundle.files import bundle_digest
from bundle.patch.apply import apply_patch
from packager.diff.write.make_patch import make_patch
from tests.support.memory_bundles import (
    Files,
    MemoryBase,
    MemoryTarget,
    apply_to_memory,
    make_file_table,
    make_patch_between,
    write_bundle,
)

NOISE = np.random.default_rng(1).bytes(300_000)
OLD: Files = {"a.txt": b"hello " * 1000, "model/m.bin": NOISE, "same.bin": NOISE[:5000], "z": b"gone"}
NEW: Files = {
    "b.txt": b"hello " * 900 + b"world",
    "empty": b"",
    "model/m.bin": NOISE[:1000] + b"inserted" + NOISE[1000:200_000] + NOISE[:777],
    "same2.bin": NOISE[:5000],
}


@pytest.mark.parametrize("codec", ["auto", "typed", "planes", "bsdiff4", "zstd"])
def test_files_may_be_added_removed_renamed_and_changed(tmp_path: Path, codec: str) -> None:
    patch, report = make_patch_between(tmp_path, OLD, NEW, codec)
    assert apply_to_memory(patch, OLD) == NEW
    assert report.plain_size == len(patch)
    assert report.target_bytes == sum(map(len, NEW.values()))


@pytest.mark.parametrize("codec", ["auto", "planes"])
def test_bytes_that_were_edited_in_place_cost_about_their_entropy(tmp_path: Path, codec: str) -> None:
    rng = np.random.default_rng(2)
    old = np.frombuffer(NOISE[:100_000], np.uint8)
    new = np.where(rng.random(len(old)) < 0.2, rng.integers(0, 256, len(old)), old).astype(np.uint8)
    base, target = {"f": old.tobytes()}, {"f": new.tobytes()}
    patch, report = make_patch_between(tmp_path, base, target, codec)
    assert apply_to_memory(patch, base) == target
    assert ("pcodec" in report.features) == (codec == "auto")
    entropy_bytes = (0.722 + 0.2 * 8) / 8 * len(new)  # which bytes, and what they became
    assert len(patch) < 1.03 * entropy_bytes if codec == "auto" else len(patch) < 1.25 * entropy_bytes


def test_from_nothing_needs_no_base(tmp_path: Path) -> None:
    patch, _ = make_patch_between(tmp_path, None, NEW)
    assert apply_to_memory(patch, None) == NEW
    assert apply_to_memory(patch, OLD) == NEW


def test_a_bundle_of_empty_files_is_a_bundle(tmp_path: Path) -> None:
    empty = {"a": b"", "b/c": b""}
    assert apply_to_memory(make_patch_between(tmp_path / "1", None, empty)[0], None) == empty
    assert apply_to_memory(make_patch_between(tmp_path / "2", OLD, empty)[0], OLD) == empty


def test_the_table_that_comes_back_has_the_digest_of_the_bundle(tmp_path: Path) -> None:
    target = write_bundle(tmp_path, NEW)
    out = io.BytesIO()
    make_patch(None, target, out)
    found = apply_patch(io.BytesIO(out.getvalue()), None, MemoryTarget())
    assert bundle_digest(found) == bundle_digest(target.files) == bundle_digest(make_file_table(NEW))


def test_the_same_inputs_give_the_same_bytes(tmp_path: Path) -> None:
    assert make_patch_between(tmp_path / "1", OLD, NEW) == make_patch_between(tmp_path / "2", OLD, NEW)


def test_a_codec_that_is_not_one_is_an_invalid_request(tmp_path: Path) -> None:
    with pytest.raises(Invalid, match="codec 'brotli' is not one of"):
        make_patch_between(tmp_path / "1", OLD, NEW, "brotli")
    with pytest.raises(Invalid, match="needs a base"):
        make_patch_between(tmp_path / "2", None, NEW, "bsdiff4")


CONTENT = st.one_of(
    st.binary(max_size=300),
    st.builds(lambda unit, n: unit * n, st.binary(min_size=1, max_size=20), st.integers(0, 200)),
    st.builds(lambda a, b: NOISE[a : a + b], st.integers(0, 2000), st.integers(0, 5000)),
)
PATHS = st.sampled_from(["a", "b.bin", "c/d", "c/e", "model.onnx"])
BUNDLES = st.dictionaries(PATHS, CONTENT, min_size=1, max_size=4)


@settings(max_examples=60, deadline=None)
@given(BUNDLES, BUNDLES)
def test_any_bundle_is_made_from_any_other(old: Files, new: Files) -> None:
    with tempfile.TemporaryDirectory() as folder:
        patch, _ = make_patch_between(Path(folder), old, new)
        assert apply_to_memory(patch, old) == new


def test_a_reader_in_any_chunks_gives_the_same(tmp_path: Path) -> None:
    patch, _ = make_patch_between(tmp_path, OLD, NEW)
    buffered = io.BufferedReader(io.BytesIO(patch), buffer_size=7)
    target = MemoryTarget()
    apply_patch(buffered, MemoryBase(OLD), target)
    assert target.files == NEW
