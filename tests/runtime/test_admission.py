"""Memory admission: side by side if both models fit, an outage if only one does, refusal if none does."""

import pytest

from device_agent.runtime.admission import BARE_PROCESS_BYTES, RESERVE_BYTES, decide_admission

FIXED = BARE_PROCESS_BYTES + RESERVE_BYTES


@pytest.mark.parametrize(
    ("available", "way"),
    [(FIXED + 100, "side-by-side"), (FIXED + 99, "stop-first"), (FIXED + 40, "stop-first"), (FIXED + 39, "refuse")],
)
def test_a_candidate_of_100_bytes_beside_a_model_of_60(available: int, way: str) -> None:
    admission = decide_admission(available, 100, 60)
    assert admission.strategy == way
    assert admission.detail == f"needs {FIXED + 100} bytes, {available} are available with the running model loaded"


def test_a_first_install_is_beside_nothing() -> None:
    assert decide_admission(FIXED + 100, 100).strategy == "side-by-side"
    assert decide_admission(FIXED + 99, 100).strategy == "refuse"
