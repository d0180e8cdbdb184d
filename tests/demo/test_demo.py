"""The demo works on models that it has not seen, and its parts work on the published model."""

import json
import subprocess
import sys
from pathlib import Path

import jsonschema
import numpy as np
import onnxruntime
import pytest

from packager.demo.demo_models import load_own_models, write_npz
from packager.demo.file_type_model import FileTypeConfig, repository_files, token_samples
from packager.demo.plaintext_scan import find_plaintext_files
from packager.demo.published_model import MAGIKA, cache_directory, fetch_published
from packager.errors import ModelUnreadable
from tests.support import tiny_models

SCHEMA = Path(__file__).resolve().parents[2] / "docs" / "schemas" / "demo.json"
REASONS = {
    "damaged weights": "golden-mismatch",
    "tampered blob": "digest-mismatch",
    "tampered manifest": "digest-mismatch",
    "replayed old metadata": "rollback-refused",
    "older release (rollback attack)": "rollback-refused",
}


def demo(*arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-P", "-m", "packager", "demo", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)


@pytest.mark.slow
def test_the_whole_story_holds_for_models_of_ones_own(tmp_path: Path) -> None:
    old, new = (tiny_models.save(tiny_models.mlp(seed), tmp_path / f"{seed}.onnx") for seed in (1, 2))
    size = onnxruntime.InferenceSession(str(old)).get_inputs()[0].shape[-1]
    write_npz(tmp_path / "x.npz", {"x": np.random.default_rng(0).standard_normal((32, 1, size)).astype(np.float32)})
    done = demo("--json", "--model", str(old), "--model", str(new), "--inputs", str(tmp_path / "x.npz"))
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads(done.stdout)
    jsonschema.validate(report, json.loads(SCHEMA.read_text("utf-8")))
    assert report["ok"]
    assert all(check["passed"] for check in report["checks"])
    assert report["requests_sent"] > 50
    assert report["requests_failed"] == 0
    assert {row["attempt"]: row["reason"] for row in report["refusals"]} == REASONS
    assert [row["reason"] for row in report["rollbacks"]] == ["probation-failed"]
    assert set(report["bytes"]) == {"1.0.0", "1.1.0", "1.2.0", "1.3.0", "1.4.0"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "a.onnx"], "error: found --model 1 times, expected twice"),
        (["--inputs", "x.npz"], "error: found --inputs without --model"),
        (["--model", "gone.onnx", "--model", "gone.onnx"], "error: gone.onnx: no such file"),
    ],
)
def test_wrong_words_are_one_line_and_exit_2(arguments: list[str], message: str) -> None:
    done = demo(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(message)
    assert "Traceback" not in done.stderr


def test_live_inputs_are_never_those_that_the_release_was_built_with(tmp_path: Path) -> None:
    model = tiny_models.save(tiny_models.mlp(1), tmp_path / "m.onnx")
    size = onnxruntime.InferenceSession(str(model)).get_inputs()[0].shape[-1]
    rows = np.repeat(np.random.default_rng(0).standard_normal((4, 1, size)).astype(np.float32), 3, axis=0)
    write_npz(tmp_path / "x.npz", {"x": rows})
    subject = load_own_models(tmp_path, model, model, tmp_path / "x.npz")
    with np.load(subject.build_inputs) as built, np.load(subject.live_inputs) as live:
        release_rows = {row.tobytes() for row in built["x"]}
        assert len(live["x"])
        assert not any(row.tobytes() in release_rows for row in live["x"])


def test_a_damaged_model_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"garbage")
    with pytest.raises(ModelUnreadable):
        load_own_models(tmp_path, tmp_path / "m.onnx", tmp_path / "m.onnx", None)


def test_a_planted_plain_model_is_found(tmp_path: Path) -> None:
    model = np.random.default_rng(0).integers(0, 256, 100_000, np.uint8).tobytes()
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "harmless").write_bytes(bytes(100_000))
    assert list(find_plaintext_files(tmp_path, model)) == []
    (tmp_path / "deep" / "leak").write_bytes(b"x" * 17 + model[50_000:52_000])
    assert [path.name for path in find_plaintext_files(tmp_path, model)] == ["leak"]


@pytest.mark.published_model
def test_the_published_model_knows_the_files_of_this_repository() -> None:
    files = fetch_published(MAGIKA, cache_directory())
    kinds = FileTypeConfig.read(files["config.json"])
    session = onnxruntime.InferenceSession(str(files["model.onnx"]))
    asked = repository_files()
    labels = {}
    for path, tokens in zip(asked, token_samples(kinds, asked)["bytes"], strict=True):
        labels[path.name] = kinds.top_label(session.run(None, {"bytes": tokens})[0][0])[0]
    assert labels["pyproject.toml"] == "toml"
    assert labels["Makefile"] == "makefile"
    assert labels["README.md"] == "markdown"
