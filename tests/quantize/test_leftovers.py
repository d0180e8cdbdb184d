"""Weights of an update that stay float move in steps whose bit patterns are cheap to patch."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from packager.quantize.update_aware.fill_template import round_to_steps

FLOATS = st.floats(-(2.0**20), 2.0**20, width=32)


@given(arrays(np.float32, 40, elements=FLOATS), arrays(np.float32, 40, elements=FLOATS))
def test_what_moved_lies_within_a_step_and_what_did_not_stays(old: np.ndarray, new: np.ndarray) -> None:
    new[::2] = old[::2]
    found = round_to_steps(old, new)
    assert found.dtype == np.float32
    assert np.array_equal(found[::2], old[::2])
    change = new.astype(np.float64) - old
    moved = change != 0
    size = float(np.sqrt(np.mean(np.square(change[moved])))) if moved.any() else 0.0
    # half a step, or half an octave where the step is coarser than the number itself
    allowed = size / 2 + 0.5 * np.maximum(np.abs(new), np.abs(found)).astype(np.float64)
    assert (np.abs(found.astype(np.float64) - new) <= allowed + 1e-30).all()


def test_changes_are_whole_steps_of_the_bit_pattern() -> None:
    dice = np.random.default_rng(5)
    old = (1.0 + 0.9 * dice.random(1000)).astype(np.float32)
    new = (old + dice.normal(0, 0.01, 1000)).clip(1.0, 1.99).astype(np.float32)
    change = round_to_steps(old, new).view(np.int32) - old.view(np.int32)
    assert (change % (1 << 15) == 0).all()
    assert 3 <= len(np.unique(change)) <= 12


def test_what_was_zero_comes_in_few_values() -> None:
    old = np.zeros(1000, np.float32)
    new = np.random.default_rng(6).normal(0, 0.01, 1000).astype(np.float32)
    assert len(np.unique(round_to_steps(old, new))) < 60


def test_without_a_change_nothing_moves() -> None:
    old = np.array([0.0, -0.0, 1.5, np.inf], np.float32)
    assert round_to_steps(old, old.copy()).tobytes() == old.tobytes()
