"""The update benchmark writes its JSON for new models, also if there is nothing to update."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from benchmarks import update_aware_table
from tests.support import tiny_models
from tests.support.model_pairs import fine_tune


def write_inputs(path: Path, count: int, seed: int) -> Path:
    """Write an `.npz` file of samples without a batch axis."""
    ids = np.random.default_rng(seed).integers(0, 50, (count, 12))
    np.savez(path, allow_pickle=False, input_ids=ids, attention_mask=np.ones((count, 12), np.int64))
    return path


def run_benchmark(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, old: onnx.ModelProto, new: onnx.ModelProto, *words: str
) -> dict[str, Any]:
    calibration, held_out = write_inputs(tmp_path / "c.npz", 160, 1), write_inputs(tmp_path / "h.npz", 60, 2)
    out = tmp_path / "out.json"
    files = [
        tiny_models.save(old, tmp_path / "old.onnx"),
        tiny_models.save(new, tmp_path / "new.onnx"),
        calibration,
        held_out,
        out,
    ]
    flags = ("--base", "--new", "--calibration", "--held-out", "--json")
    pairs = [word for flag, file in zip(flags, files, strict=True) for word in (flag, str(file))]
    monkeypatch.setattr(sys, "argv", ["update_aware", *pairs, *words])
    update_aware_table.main()
    found: dict[str, Any] = json.loads(out.read_text())
    return found


def test_update_of_a_fine_tune_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_models.text_encoder(width=96)
    monkeypatch.setattr(update_aware_table, "EXTRA_RATE_FACTORS", (0.25,))
    found = run_benchmark(tmp_path, monkeypatch, model, fine_tune(model, 1, 0.01))
    assert found.keys() >= {"baseline", "unchanged_base", "curve", "chosen", "cpu_s", "peak_bytes"}
    assert found["baseline"].keys() >= {"bsdiff4_bytes", "typed_bytes", "relative_rms"}
    keys = {"rate_weight", "patch_bytes", "bits_per_weight", "relative_rms", "top1_agreement"}
    assert all(point.keys() >= keys for point in found["curve"])
    rate_weights = [point["rate_weight"] for point in found["curve"]]
    assert rate_weights == sorted(rate_weights)
    assert found["chosen"]["method"] == "joint", found["chosen"]
    assert found["chosen"]["patch_bytes"] < 0.5 * found["baseline"]["bsdiff4_bytes"]
    assert found["unchanged_base"]["relative_rms"] > found["chosen"]["relative_rms"]


def test_another_graph_is_no_update_and_costs_no_more_than_the_ordinary_patch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = run_benchmark(
        tmp_path, monkeypatch, tiny_models.text_encoder(layers=2), tiny_models.text_encoder(layers=1), "--no-curve"
    )
    assert found["chosen"]["method"] == "baseline"
    assert "is not in the new model" in found["chosen"]["reason"]
    assert found["chosen"]["patch_bytes"] == found["baseline"]["typed_bytes"]
    assert found["curve"] == []
