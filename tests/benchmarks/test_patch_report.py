"""The tables of the patch benchmark contain what was measured, and are written into a page."""

from typing import Any

import pytest

from benchmarks.patch_codecs import CODECS
from benchmarks.patch_rows import find_element_type, find_goal
from benchmarks.patch_tables import format_costs, format_goals, format_sizes, replace_between_markers


def make_row(pair: str, ours: int, peer: int) -> dict[str, Any]:
    cost = {"cpu_s": 0.5, "peak_bytes": 4 << 20}
    sizes = {**dict.fromkeys(CODECS), "bsdiff4": peer, "airweights": ours}
    costs_of = {codec: cost if sizes[codec] else None for codec in CODECS}
    return {
        "pair": pair,
        "target_bytes": 10**8,
        "sizes": sizes,
        "encode": costs_of,
        "apply": costs_of,
        "identical": True,
    }


@pytest.mark.parametrize(
    ("pair", "kind", "goal"),
    [
        ("minilm-fine-tune-bf16-safetensors", "bf16", 0.60),
        ("minilm-lora-int8-channel", "int8", 0.45),
        ("cnn-anew-fp16", "fp16", 0.91),
        ("cnn-fp16", "fp16", 0.13),
        ("silero-half-6.0-6.2", "fp16", 0.91),
        ("minilm-renamed-fp32", "fp32", None),
        ("another", "fp32", None),
    ],
)
def test_a_pair_has_the_goal_of_its_kind(pair: str, kind: str, goal: float | None) -> None:
    assert find_element_type(pair) == kind
    assert find_goal(pair) == goal


def test_a_missed_goal_is_named() -> None:
    rows = [
        make_row("minilm-fine-tune-fp32", 70, 100),
        make_row("minilm-renamed-fp32", 71, 100),
        make_row("other", 2000, 900),
    ]
    assert "| minilm-fine-tune-fp32 | 100,000,000 | 100 (bsdiff4) | 70 | 0.700 | 0.62 |" in format_sizes(rows)
    assert "| minilm-fine-tune-fp32 | 0.50 | 0.5 | 4 | 200 | 250 | 4.0 |" in format_costs(rows)
    table = format_goals(rows, [{"target_bytes": 5 << 30, "peak_bytes": 13 << 20}])
    for expected in (
        "minilm-fine-tune-fp32 (0.7; 0.62)",
        "| 1 of 1 |",
        "other (1.1e+03; 1.02e+03)",
        "5.00 GiB (13; 12)",
    ):
        assert expected in table


def test_a_table_takes_its_place_and_nothing_else() -> None:
    page = "before\n<!-- sizes, made by x -->\nold\n<!-- end of sizes -->\nafter\n"
    made = replace_between_markers(page, "sizes", "| new |\n")
    assert made == "before\n<!-- sizes, made by x -->\n| new |\n<!-- end of sizes -->\nafter\n"
    assert replace_between_markers(made, "sizes", "| new |\n") == made
    with pytest.raises(ValueError, match="'costs'"):
        replace_between_markers(page, "costs", "")
