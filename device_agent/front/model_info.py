"""What the front tells of its models besides their metadata: the statistics and repository-index extensions.

Source: Triton's "Statistics Extension" and "Model Repository Extension". A generation that was replaced but is still
loaded is READY too: its version can be asked for.
"""

from collections.abc import Iterable
from typing import Any

from device_agent.front.generations import Slot, Window


def statistics(slots: Iterable[Slot], version: str | None) -> dict[str, Any]:
    """`model_stats`, a row a version that was ever loaded here. Times in nanoseconds, as the extension has them."""
    rows = [
        {
            "name": slot.family,
            "version": found,
            "inference_count": window.busy.count,
            "execution_count": window.busy.count,
            "inference_stats": {
                "success": {"count": window.busy.count, "ns": 1000 * window.busy.total_us},
                "fail": {"count": window.errors + window.client_errors, "ns": 0},
                "queue": {"count": window.busy.count, "ns": 1000 * _queue_us(window)},
                "compute_infer": {"count": window.busy.count, "ns": 1000 * window.busy.total_us},
            },
        }
        for slot in slots
        for found, window in slot.lifetimes().items()
        if version is None or found == version
    ]
    return {"model_stats": rows}


def index(slots: Iterable[Slot]) -> list[dict[str, str]]:
    """The repository index: a row a loaded version, and one for a family that has none."""
    rows = []
    for slot in slots:
        loaded = [g for g in slot.generations.values() if not g.is_retired]
        for generation in loaded:
            state = "READY" if generation.sender is not None else "UNAVAILABLE"
            reason = "" if generation.sender is not None else "its process ended and is being restarted"
            rows.append({"name": slot.family, "version": generation.version, "state": state, "reason": reason})
        if not loaded:
            rows.append({"name": slot.family, "version": "", "state": "UNAVAILABLE", "reason": "not installed yet"})
    return rows


def _queue_us(window: Window) -> int:
    return max(window.total.total_us - window.busy.total_us, 0)
