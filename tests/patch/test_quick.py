"""Quick estimates decide correctly whether generic codecs are tried."""

from pathlib import Path

import numpy as np
import pytest

from packager.diff.bundle_folder import file_path
from packager.diff.encode.size_estimate import EXHAUSTIVE_MAX_BYTES, estimate_sizes, shares_byte_runs
from tests.support.memory_bundles import write_bundle

NOISE = np.random.default_rng(17).bytes(3 * EXHAUSTIVE_MAX_BYTES)
OTHER = np.random.default_rng(18).bytes(3 * EXHAUSTIVE_MAX_BYTES)


@pytest.mark.parametrize(
    ("base", "target", "is_found"),
    [
        (NOISE, OTHER, False),
        (NOISE, NOISE[EXHAUSTIVE_MAX_BYTES:] + NOISE[:EXHAUSTIVE_MAX_BYTES], True),
        (NOISE, OTHER[:EXHAUSTIVE_MAX_BYTES] + NOISE[: EXHAUSTIVE_MAX_BYTES // 8] + OTHER[EXHAUSTIVE_MAX_BYTES:], True),
        (NOISE[:5000], OTHER[:5000], True),  # so small that trying costs nothing
        (b"", OTHER, False),
    ],
    ids=["noise", "moved", "a part", "small", "from an empty file"],
)
def test_a_dictionary_is_tried_where_runs_of_the_base_are_found(
    tmp_path: Path, base: bytes, target: bytes, is_found: bool
) -> None:
    sides = [write_bundle(tmp_path / name, {"m": data}) for name, data in (("base", base), ("target", target))]
    assert shares_byte_runs(sides[0], sides[1]) == is_found


def test_a_long_file_that_hardly_changed_is_seen_as_such(tmp_path: Path) -> None:
    data = np.random.default_rng(19).bytes(20 << 20)
    edited = bytearray(data)
    edited[:: 1 << 20] = bytes(len(edited[:: 1 << 20]))
    sides = [write_bundle(tmp_path / name, {"m": bytes(each)}) for name, each in (("base", data), ("target", edited))]
    place, alike = (file_path(side, side.files[0]) for side in reversed(sides))
    assert sum(estimate_sizes(place, alike)) < 0.01 * len(data)
