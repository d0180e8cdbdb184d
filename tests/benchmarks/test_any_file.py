"""The benchmark of any file creates real files, and no patch of a sample is far above the best tool."""

import io
import json
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import onnx
import pytest

from benchmarks.any_file import format_row
from benchmarks.file_changes import CHANGES
from benchmarks.file_kinds import generate_file_pairs


def test_each_kind_is_two_files_and_repeats() -> None:
    once, again = [*generate_file_pairs(1)], [*generate_file_pairs(1)]
    names = [name for name, _, _ in once]
    assert len(set(names)) == len(names) > 60
    assert all(old != new for _, old, new in once)
    # SQLite stamps its own version counters; all else is the same bytes for the same seed
    assert [file for file in once if file[0] != "sqlite"] == [file for file in again if file[0] != "sqlite"]


def test_files_are_what_they_are_called() -> None:
    files = {name: old for name, old, _ in generate_file_pairs(1)}
    onnx.checker.check_model(onnx.load_from_string(files["ONNX of float16"]), full_check=False)
    assert np.load(io.BytesIO(files["npz of float64"]))["w"].dtype == np.float64
    with tarfile.open(fileobj=io.BytesIO(files["tar.xz"])) as archive:
        assert len(archive.getnames()) == 8
    assert files["GGUF of Q4_0"].startswith(b"GGUF")


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_takes_files_of_any_length(change: str) -> None:
    for data in (b"", b"x", b"one\ntwo\n" * 40):
        assert CHANGES[change](data, 7) == CHANGES[change](data, 7)
    counted = "\n".join(map(str, range(9000))).encode()
    assert (CHANGES[change](counted, 7) == counted) == (change == "the same")


def test_the_sweep_applies_every_patch(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    command = [sys.executable, "-m", "benchmarks.any_file", "--json", str(out)]
    for word in ("a few bytes, insertions", "a few bytes, nothing", "a few bytes, without a base"):
        command += ["--only", word]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    rows = json.loads(out.read_text())["files"]
    assert len(rows) == 3
    assert all(row["identical"] and row["excess"] <= 1024 for row in rows)
    assert format_row(rows[0]) in done.stdout
    assert f"{len(rows)} pairs of files, 0 more than 1,024 bytes" in done.stdout
