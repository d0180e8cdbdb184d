"""The statistics and repository-index extensions of the Open Inference Protocol.

Source: Triton's "Statistics Extension" and "Model Repository Extension". A generation that was replaced but is still
loaded is READY, because a request can name its version.
"""

from collections.abc import Iterable
from typing import Any

from device_agent.front.front_generation import CounterWindow
from device_agent.front.generations import FamilyQueue


def model_statistics(queues: Iterable[FamilyQueue], version: str | None) -> dict[str, Any]:
    """Return `model_stats`: a row for each version that was ever loaded here, with times in nanoseconds.

    Args:
        queues: the families.
        version: only this version; None for all.
    """
    rows = [
        {
            "name": queue.family,
            "version": found,
            "inference_count": window.busy_us.count,
            "execution_count": window.busy_us.count,
            "inference_stats": {
                "success": {"count": window.busy_us.count, "ns": 1000 * window.busy_us.total_us},
                "fail": {"count": window.errors + window.client_errors, "ns": 0},
                "queue": {"count": window.busy_us.count, "ns": 1000 * _mean_queue_us(window)},
                "compute_infer": {"count": window.busy_us.count, "ns": 1000 * window.busy_us.total_us},
            },
        }
        for queue in queues
        for found, window in queue.lifetimes().items()
        if version is None or found == version
    ]
    return {"model_stats": rows}


def repository_index(queues: Iterable[FamilyQueue]) -> list[dict[str, str]]:
    """Return the repository index: a row for each loaded version, and one for a family without any."""
    rows = []
    for queue in queues:
        loaded = [g for g in queue.generations.values() if not g.is_retired]
        for generation in loaded:
            state = "READY" if generation.sender is not None else "UNAVAILABLE"
            reason = "" if generation.sender is not None else "its process ended and is being restarted"
            for model in generation.models:
                rows.append({"name": model.name, "version": generation.version, "state": state, "reason": reason})
        if not loaded:
            rows.append({"name": queue.family, "version": "", "state": "UNAVAILABLE", "reason": "not installed yet"})
    return rows


def _mean_queue_us(window: CounterWindow) -> int:
    return max(window.total_us.total_us - window.busy_us.total_us, 0)
