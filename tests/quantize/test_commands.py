"""`packager quantize`, `compare` and `lint` work for people and for scripts."""

import json
from pathlib import Path

import onnx
import pytest

from packager.quantize.lint import lint
from tests.support import tiny_models
from tests.support.packager_cli import run_packager


def test_quantize_compare_and_lint_speak_json(tmp_path: Path) -> None:
    model = tiny_models.save(tiny_models.text_encoder(), tmp_path / "float.onnx")
    out = tmp_path / "int8.onnx"
    done = run_packager("quantize", model, "-o", out, "--json", "--report", tmp_path / "report.json")
    assert done.code == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["outcome"] == "quantized"
    assert report["origin"] == "random:0"
    assert report["bytes"] == out.stat().st_size
    assert json.loads((tmp_path / "report.json").read_text())["gate"]["verdict"] == "pass"
    compared = run_packager("compare", out, "--reference", model, "--json")
    assert compared.code == 0, compared.stderr
    assert json.loads(compared.stdout)["verdict"] == "pass"
    linted = run_packager("lint", out, "--json")
    assert [finding for finding in json.loads(linted.stdout)["findings"] if finding["severity"] == "warning"] == []


def test_model_that_cannot_be_judged_is_an_error_with_its_reason(tmp_path: Path) -> None:
    model = tiny_models.save(tiny_models.constant_output(), tmp_path / "float.onnx")
    done = run_packager("quantize", model, "-o", tmp_path / "int8.onnx", "--json")
    assert done.code == 5
    assert done.stdout == ""
    assert json.loads(done.stderr)["error"]["reason"] == "gate-inconclusive"
    assert not (tmp_path / "int8.onnx").exists()


@pytest.mark.parametrize(
    ("arguments", "reason", "words"),
    [
        (["float.onnx", "-o", "no/such/out.onnx"], "file-not-found", "folder no/such does not exist"),
        (["float.onnx", "-o", "."], "output-exists", "found a folder"),
        (["float.onnx", "-o", "./float.onnx"], "output-exists", "output float.onnx is the input float.onnx"),
        (["float.onnx", "-o", "out.onnx", "--report", "no/report.json"], "file-not-found", "no/report.json"),
        (["float.onnx", "-o", "out.onnx", "--scheme", "int3"], "invalid-usage", "int3"),
        (["float.onnx", "-o", "out.onnx", "--random", "0"], "invalid-usage", "not in the range"),
        (["float.onnx", "-o", "out.onnx", "--inputs", "none.npz"], "samples-unreadable", "none.npz"),
        (["float.onnx", "-o", "out.onnx", "--metric", "no-such-program"], "metric-unusable", "cannot be run"),
        (["float.onnx", "-o", "out.onnx", "--update-of", "float.onnx", "--html", "x.html"], "invalid-usage", "--html"),
        (["none.onnx", "-o", "out.onnx"], "model-unreadable", "no such file"),
    ],
)
def test_what_cannot_be_done_is_told_before_anything_is_written(
    arguments: list[str], reason: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tiny_models.save(tiny_models.mlp(), tmp_path / "float.onnx")
    before = sorted(tmp_path.iterdir())
    done = run_packager("quantize", *arguments, "--json")
    assert done.code == 2
    error = json.loads(done.stderr)["error"]
    assert (error["reason"], words in error["message"]) == (reason, True), error
    assert sorted(tmp_path.iterdir()) == before


def test_int8_model_of_other_origin_is_held_to_ordinary_quantization(tmp_path: Path) -> None:
    model = tiny_models.save(tiny_models.text_encoder(), tmp_path / "float.onnx")
    assert run_packager("quantize", model, "-o", tmp_path / "int8.onnx").code == 0
    good = run_packager("compare", tmp_path / "int8.onnx", "--reference", model)
    assert good.code == 0, good.stderr
    # within the floor of 0.15, and yet no layer of an honest quantization is off by a percent
    broken = onnx.load(tmp_path / "int8.onnx")
    scale = next(t for t in broken.graph.initializer if t.name == "down0_scale")
    values = onnx.numpy_helper.to_array(scale) * 0.985
    scale.CopyFrom(onnx.numpy_helper.from_array(values.astype("float32"), scale.name))
    bad = run_packager("compare", tiny_models.save(broken, tmp_path / "bad.onnx"), "--reference", model)
    assert bad.code == 5
    assert "at most 1.15 x the baseline's" in bad.stderr
    assert run_packager("compare", tmp_path / "bad.onnx", "--reference", model, "--no-baseline").code == 0


def test_models_with_other_inputs_or_outputs_are_not_compared(tmp_path: Path) -> None:
    teacher = tiny_models.save(tiny_models.mlp(), tmp_path / "teacher.onnx")
    done = run_packager(
        "compare", tiny_models.save(tiny_models.conv_net(), tmp_path / "other.onnx"), "--reference", teacher, "--json"
    )
    assert done.code == 2
    assert json.loads(done.stderr)["error"]["reason"] == "interface-mismatch"


def test_student_that_is_another_model_fails_against_its_teacher(tmp_path: Path) -> None:
    teacher = tiny_models.save(tiny_models.mlp(0), tmp_path / "teacher.onnx")
    student = tiny_models.save(tiny_models.mlp(1), tmp_path / "student.onnx")
    done = run_packager("compare", student, "--reference", teacher)
    assert done.code == 5
    assert done.stderr.startswith("error:")
    assert "relative RMS" in done.stderr


def test_update_of_a_base_says_how_many_bits_a_weight(tmp_path: Path) -> None:
    model = tiny_models.save(tiny_models.text_encoder(), tmp_path / "old.onnx")
    base, out = tmp_path / "base.onnx", tmp_path / "new-int8.onnx"
    assert run_packager("quantize", model, "-o", base).code == 0
    done = run_packager("quantize", model, "-o", out, "--update-of", base, "--json")
    assert done.code == 0, done.stderr
    assert json.loads(done.stdout)["method"] == "joint"
    kept = out.read_bytes()
    done = run_packager("quantize", model, "-o", out, "--update-of", base, "--max-relative-rms", 1e-6)
    assert done.code == 5
    assert "relative RMS" in done.stderr
    assert out.read_bytes() == kept
    assert {path.name for path in tmp_path.iterdir()} == {"old.onnx", "base.onnx", "new-int8.onnx"}


@pytest.mark.parametrize("scheme", ["fp16", "fp32"])
def test_other_schemes_pass_the_same_gate(scheme: str, tmp_path: Path) -> None:
    model = tiny_models.save(tiny_models.mlp(), tmp_path / "float.onnx")
    done = run_packager("quantize", model, "-o", tmp_path / "out.onnx", "--scheme", scheme, "--json")
    assert done.code == 0, done.stderr
    assert json.loads(done.stdout)["scheme"] == scheme
    onnx.checker.check_model(onnx.load(tmp_path / "out.onnx"))


def test_signed_weights_of_full_range_are_a_warning(tmp_path: Path) -> None:
    model = tiny_models.save(tiny_models.mlp(), tmp_path / "float.onnx")
    quantized = tmp_path / "int8.onnx"
    assert run_packager("quantize", model, "-o", quantized, "--scheme", "int8-static").code == 0
    changed = onnx.load(quantized)
    for tensor in changed.graph.initializer:
        if tensor.name.endswith(("w1_quantized", "w1_zero_point")):
            tensor.data_type = onnx.TensorProto.INT8
    assert "saturates-without-vnni" in [
        finding.code for finding in lint(tiny_models.save(changed, tmp_path / "s8.onnx"))
    ]
