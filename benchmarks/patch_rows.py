"""Rows of the patch benchmark, their goals, and figures derived from them."""

import re
from typing import Any, Final

from benchmarks.patch_codecs import GENERIC

# (pattern of the pair's name, goals by element type: patch bytes divided by those of the best generic tool)
GOALS: Final = (
    (r"fine-tune|heavy", {"fp32": 0.62, "fp16": 0.62, "bf16": 0.60, "int8": 0.76}),
    (r"lora|adapter", {"fp32": 0.08, "fp16": 0.20, "int8": 0.45}),
    (r"anew|silero|magika-0|ocr", {"fp32": 0.91, "fp16": 0.91}),
    (r"cnn", {"fp32": 0.25, "fp16": 0.13, "int8": 0.25}),
)
APPLY_MB_S: Final = {"fp32": 250, "fp16": 180, "int8": 120}
RENAMED: Final = {"minilm-renamed-fp32": "minilm-fine-tune-fp32", "minilm-renamed-fp16": "minilm-adapter-fp16"}
RENAMED_GOAL: Final = 1.02
ENCODE_GOAL: Final = 50  # bsdiff4's CPU time divided by ours
ENCODE_BYTES: Final = 80_000_000  # minimum size of files with this goal: 90 MB in fp32
MEMORY_MIB: Final = 12  # goal for applying any patch
SLACK_BYTES: Final = 1024
Row = dict[str, Any]


def find_element_type(pair: str) -> str:
    """Return the element type in a pair's name: bf16, fp16, int8 or text (configurations), else fp32."""
    for kind, pattern in {"bf16": "bf16", "fp16": "fp16|half", "int8": "int8|i8", "text": "config"}.items():
        if re.search(pattern, pair):
            return kind
    return "fp32"


def find_goal(pair: str) -> float | None:
    """Return the goal for a pair's ratio, or None if the pair has no goal."""
    if pair in RENAMED:
        return None
    for pattern, goals in GOALS:
        if re.search(pattern, pair):
            return goals.get(find_element_type(pair))
    return None


def find_best_generic(row: Row) -> tuple[str, int] | None:
    """Return the generic codec with the smallest patch, and its bytes."""
    sizes = [(row["sizes"][codec], codec) for codec in GENERIC if row["sizes"][codec] is not None]
    return (min(sizes)[1], min(sizes)[0]) if sizes else None


def compute_ratio(row: Row) -> float | None:
    """Return the bytes of our patch divided by those of the best generic tool."""
    best, ours = find_best_generic(row), row["sizes"]["airweights"]
    return ours / best[1] if best and ours is not None else None


def compute_apply_mb_s(row: Row) -> float:
    """Return the megabytes of target per CPU second of applying our patch."""
    return float(row["target_bytes"] / 1e6 / max(row["apply"]["airweights"]["cpu_s"], 1e-3))
