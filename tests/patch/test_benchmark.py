"""The patch benchmark runs on any folder of pairs and writes what its documentation says."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.patch_codecs import BUILDERS, CODECS, GENERIC
from benchmarks.patches import measure_pair
from tests.support import model_formats


def test_the_benchmark_measures_a_pair(tmp_path: Path) -> None:
    pair = tmp_path / "pairs" / "small"
    pair.mkdir(parents=True)
    arrays = model_formats.make_weights(1)
    (pair / "base.safetensors").write_bytes(model_formats.to_safetensors(arrays))
    (pair / "target.safetensors").write_bytes(model_formats.to_safetensors(model_formats.fine_tune(arrays, 2)))
    (tmp_path / "pairs" / "not a pair").mkdir()
    out = tmp_path / "out.json"
    command = [sys.executable, "-m", "benchmarks.patches", "--pairs", str(pair.parent), "--json", str(out)]
    subprocess.run([*command, "--markdown", str(tmp_path / "table.md")], check=True, capture_output=True)
    (row,) = json.loads(out.read_text())["pairs"]
    assert row["pair"] == "small"
    assert row["target_bytes"] == (pair / "target.safetensors").stat().st_size
    assert row["identical"] is True
    assert row["sizes"].keys() == row["encode"].keys() == row["apply"].keys() == set(CODECS)
    for codec in ("bsdiff4", "zstd_full", "zstd_patch", "airweights", "airweights_no_predictors"):
        assert row["sizes"][codec] > 0
        assert row["encode"][codec].keys() == row["apply"][codec].keys() == {"cpu_s", "peak_bytes"}
    assert row["sizes"]["airweights"] < row["sizes"]["airweights_no_predictors"] < row["sizes"]["bsdiff4"]
    assert "small" in (tmp_path / "table.md").read_text()


def test_a_folder_without_pairs_is_an_empty_result_and_none_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "pairs" / "no target").mkdir(parents=True)
    (tmp_path / "pairs" / "no target" / "base.onnx").write_bytes(b"x")
    command = [sys.executable, "-m", "benchmarks.patches", "--json", str(tmp_path / "out.json"), "--pairs"]
    done = subprocess.run([*command, str(tmp_path / "pairs")], check=True, capture_output=True, text=True)
    assert json.loads((tmp_path / "out.json").read_text()) == {"pairs": []}
    assert "no target: skipped" in done.stderr
    done = subprocess.run([*command, str(tmp_path / "nowhere")], check=False, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.endswith("nowhere is not a folder\n")


@pytest.mark.parametrize("codec", GENERIC)
def test_a_peer_gives_the_target_back(codec: str, tmp_path: Path) -> None:
    arrays = model_formats.make_weights(1)
    base, target = tmp_path / "base.safetensors", tmp_path / "target.safetensors"
    base.write_bytes(model_formats.to_safetensors(arrays))
    target.write_bytes(model_formats.to_safetensors(model_formats.fine_tune(arrays, 2)))
    patch, out = tmp_path / "patch", tmp_path / "out"
    try:
        encode, apply = BUILDERS[codec](base, target, patch, out)
        encode()
    except ImportError as error:
        pytest.skip(f"{codec} is absent: {error}")
    apply()
    assert out.read_bytes() == target.read_bytes()
    assert 0 < patch.stat().st_size < 1.05 * target.stat().st_size


def test_what_a_peer_needed_is_kept_and_used_again(tmp_path: Path) -> None:
    arrays = model_formats.make_weights(1)
    base, target = tmp_path / "base.safetensors", tmp_path / "target.safetensors"
    base.write_bytes(model_formats.to_safetensors(arrays))
    target.write_bytes(model_formats.to_safetensors(model_formats.fine_tune(arrays, 2)))
    keep, codecs = tmp_path / "keep", ("zstd_full", "airweights")
    once = measure_pair("small", base, target, None, keep=keep, codecs=codecs, jobs=2)
    (kept,) = keep.iterdir()
    kept.write_text(kept.read_text().replace(str(once["sizes"]["zstd_full"]), "7"))
    again = measure_pair("small", base, target, None, keep=keep, codecs=codecs)
    assert (again["sizes"]["zstd_full"], again["sizes"]["airweights"]) == (7, once["sizes"]["airweights"])
    assert again["identical"] is True
    assert again["sizes"]["bsdiff4"] is None
