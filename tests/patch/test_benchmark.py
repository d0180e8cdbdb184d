"""The patch benchmark runs on any folder of pairs and writes what its documentation says."""

import json
import subprocess
import sys
from pathlib import Path

from benchmarks.patch_codecs import CODECS
from tests.patch import models


def test_the_benchmark_measures_a_pair(tmp_path: Path) -> None:
    pair = tmp_path / "pairs" / "small"
    pair.mkdir(parents=True)
    arrays = models.weights(1)
    (pair / "base.safetensors").write_bytes(models.safetensors(arrays))
    (pair / "target.safetensors").write_bytes(models.safetensors(models.tuned(arrays, 2)))
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
