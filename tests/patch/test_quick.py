"""What is asked before generic codecs are tried: is anything of the base found again?"""

from pathlib import Path

import numpy as np
import pytest

from packager.diff.quick import ALWAYS_BYTES, is_found_again
from tests.patch.bundles import written

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
