"""Bytes compressed with a prefix decompress exactly, and are as small as by `zstd --patch-from`."""

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from bundle.patch.sections import unpack_zstd
from packager.diff.encode.encode_untyped import ZSTD_LEVEL
from packager.diff.encode.zstd_prefix import compress_with_prefix
from tests.support.memory_bundles import apply_to_memory, make_patch_between


def _rows_in_another_order() -> tuple[bytes, bytes]:
    rng = np.random.default_rng(0)
    old = rng.normal(0, 3, (20_000, 10)).astype(np.int8)
    return old.tobytes(), old[rng.permutation(len(old))].tobytes()


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=300), st.binary(max_size=300), st.sampled_from([1, 19, ZSTD_LEVEL]))
def test_the_prefix_as_dictionary_gives_the_data_back(prefix: bytes, data: bytes, level: int) -> None:
    for whole in (data, prefix + data, data + prefix[::-1] + prefix):
        assert unpack_zstd(compress_with_prefix(prefix, whole, level), len(whole), "here", prefix) == whole


def test_a_prefix_is_searched_better_than_a_dictionary() -> None:
    base, target = _rows_in_another_order()
    dictionary = zstandard.ZstdCompressionDict(base, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
    loaded = zstandard.ZstdCompressor(level=ZSTD_LEVEL, dict_data=dictionary).compress(target)
    assert len(compress_with_prefix(base, target, ZSTD_LEVEL)) < 0.97 * len(loaded)


@pytest.mark.skipif(shutil.which("zstd") is None, reason="the program zstd is not there")
def test_a_small_file_is_never_much_larger_than_by_the_program_zstd(tmp_path: Path) -> None:
    base, target = _rows_in_another_order()
    old, new, packed = tmp_path / "old", tmp_path / "new", tmp_path / "packed"
    old.write_bytes(base)
    new.write_bytes(target)
    subprocess.run(["zstd", "-q", "-19", f"--patch-from={old}", new, "-o", packed], check=True, timeout=60)
    patch, _ = make_patch_between(tmp_path / "auto", {"m": base}, {"m": target})
    assert apply_to_memory(patch, {"m": base}) == {"m": target}
    assert len(patch) <= packed.stat().st_size + 1024
