"""What is asked before generic codecs are tried: is anything of the base found again?"""

from pathlib import Path

import numpy as np
import pytest

from packager.diff.bundle_folder import path_of
from packager.diff.encode.size_estimate import ALWAYS_BYTES, is_found_again, quick_sizes
from tests.support.memory_bundles import written

NOISE = np.random.default_rng(17).bytes(3 * ALWAYS_BYTES)
OTHER = np.random.default_rng(18).bytes(3 * ALWAYS_BYTES)


@pytest.mark.parametrize(
    ("base", "target", "is_found"),
    [
        (NOISE, OTHER, False),
        (NOISE, NOISE[ALWAYS_BYTES:] + NOISE[:ALWAYS_BYTES], True),
        (NOISE, OTHER[:ALWAYS_BYTES] + NOISE[: ALWAYS_BYTES // 8] + OTHER[ALWAYS_BYTES:], True),
        (NOISE[:5000], OTHER[:5000], True),  # so small that trying costs nothing
        (b"", OTHER, False),
    ],
    ids=["noise", "moved", "a part", "small", "from an empty file"],
)
def test_a_dictionary_is_tried_where_runs_of_the_base_are_found(
    tmp_path: Path, base: bytes, target: bytes, is_found: bool
) -> None:
    sides = [written(tmp_path / name, {"m": data}) for name, data in (("base", base), ("target", target))]
    assert is_found_again(sides[0], sides[1]) == is_found


def test_a_long_file_that_hardly_changed_is_seen_as_such(tmp_path: Path) -> None:
    data = np.random.default_rng(19).bytes(20 << 20)
    edited = bytearray(data)
    edited[:: 1 << 20] = bytes(len(edited[:: 1 << 20]))
    sides = [written(tmp_path / name, {"m": bytes(each)}) for name, each in (("base", data), ("target", edited))]
    place, alike = (path_of(side, side.files[0]) for side in reversed(sides))
    assert sum(quick_sizes(place, alike)) < 0.01 * len(data)
