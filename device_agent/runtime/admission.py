"""Whether a candidate fits beside the running model, before anything is loaded. Pure.

Rules:
1. Both fit: the candidate loads beside (`beside`), and nobody notices the swap.
2. Only one fits: the running model is stopped first (`stop-first`): an outage, to be measured and reported as such.
3. The candidate does not fit even alone: `refuse`; the running model goes on.
A candidate's need is what its probe took (`ProbeReport.peak_bytes`) plus a bare model process; the running model's is
what would come free if it were stopped.
"""

from dataclasses import dataclass
from typing import Final

BARE_PROCESS_BYTES: Final = 48 * 1024 * 1024  # interpreter, numpy and onnxruntime, without a model; measured: 46 MiB
RESERVE_BYTES: Final = 32 * 1024 * 1024  # for the front's requests and the system


@dataclass(frozen=True, slots=True)
class Admission:
    """Attributes:
    way: "beside", "stop-first" or "refuse".
    needed_bytes: by the candidate.
    available_bytes: now, with the running model resident.
    """

    strategy: str
    needed_bytes: int
    available_bytes: int

    @property
    def detail(self) -> str:
        """One line for the log and the journal."""
        return f"needs {self.needed_bytes} bytes, {self.available_bytes} are available beside the running model"


def decide_admission(available_bytes: int, candidate_peak_bytes: int, running_resident_bytes: int = 0) -> Admission:
    """Rules 1 to 3.

    Args:
        available_bytes: of the system or the control group (device_agent.host.device_facts.available_memory_bytes).
        candidate_peak_bytes: as probed.
        running_resident_bytes: of the running model's process; 0 without one.
    """
    needed = candidate_peak_bytes + BARE_PROCESS_BYTES + RESERVE_BYTES
    if needed <= available_bytes:
        return Admission("side-by-side", needed, available_bytes)
    way = "stop-first" if needed <= available_bytes + running_resident_bytes else "refuse"
    return Admission(way, needed, available_bytes)
