"""Decide whether a candidate fits into memory with the running model. No I/O.

Strategies:
    side-by-side: both fit. The candidate is loaded while the running model serves; no request waits.
    stop-first: only one fits. The running model is stopped first; the outage is measured and reported.
    refuse: the candidate does not fit even alone. The running model stays.

A candidate needs what its probe measured (`ProbeReport.peak_bytes`), plus a model process without a model, plus a
reserve. Stopping the running model frees its resident memory.
"""

from dataclasses import dataclass
from typing import Final

BARE_PROCESS_BYTES: Final = 48 * 1024 * 1024  # interpreter, numpy and onnxruntime without a model: measured 46 MiB
RESERVE_BYTES: Final = 32 * 1024 * 1024  # for the front's requests and the system


@dataclass(frozen=True, slots=True)
class Admission:
    """Decision on how a candidate is loaded.

    Attributes:
        strategy: "side-by-side", "stop-first" or "refuse".
        needed_bytes: memory that the candidate needs.
        available_bytes: memory that is available while the running model is loaded.
    """

    strategy: str
    needed_bytes: int
    available_bytes: int

    @property
    def detail(self) -> str:
        """One line for the log and the journal."""
        return f"needs {self.needed_bytes} bytes, {self.available_bytes} are available with the running model loaded"


def decide_admission(available_bytes: int, candidate_peak_bytes: int, running_resident_bytes: int = 0) -> Admission:
    """Choose the strategy for a candidate.

    Args:
        available_bytes: available memory of the system or control group
            (device_agent.host.device_facts.available_memory_bytes).
        candidate_peak_bytes: peak memory of the candidate's model, as probed.
        running_resident_bytes: resident memory of the running model's process; 0 if none runs.
    """
    needed = candidate_peak_bytes + BARE_PROCESS_BYTES + RESERVE_BYTES
    if needed <= available_bytes:
        return Admission("side-by-side", needed, available_bytes)
    strategy = "stop-first" if needed <= available_bytes + running_resident_bytes else "refuse"
    return Admission(strategy, needed, available_bytes)
