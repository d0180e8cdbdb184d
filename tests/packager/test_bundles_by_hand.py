"""`packager bundle` builds, compares, applies, inspects and verifies; each bad input is a one-line error."""

import contextlib
import json
from pathlib import Path

import numpy as np
import onnx
import pytest

from tests.support import tiny_models
from tests.support.model_formats import make_weights, to_safetensors
from tests.support.packager_cli import assert_refused, read_all_files, run_packager


def write_models() -> None:
    """Write two models, labels and inputs into the current folder."""
    for seed, name in enumerate(("old", "new")):
        onnx.save(tiny_models.mlp(seed), f"{name}.onnx")
    Path("labels.txt").write_text("a\nb\n")
    np.savez("inputs.npz", x=np.random.default_rng(0).standard_normal((6, 1, 64)).astype(np.float32))


@pytest.fixture(scope="module")
def damaged_inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with models, a bundle and a patch, and with damaged copies of each."""
    folder = tmp_path_factory.mktemp("damages")
    with contextlib.chdir(folder):
        write_models()
        data = Path("old.onnx").read_bytes()
        Path("cut.onnx").write_bytes(data[: len(data) // 2])
        onnx.save(tiny_models.mlp(), "lost.onnx", save_as_external_data=True, location="lost.bin", size_threshold=0)
        Path("lost.bin").unlink()
        build_bundle("old", "OLD", "--golden", 0)
        run_packager("bundle", "diff", "old.onnx", "new.onnx", "-o", "p")
        patch = Path("p").read_bytes()
        Path("cut.p").write_bytes(patch[:-20])
        middle = len(patch) // 2
        Path("flipped.p").write_bytes(patch[:middle] + bytes([patch[middle] ^ 1]) + patch[middle + 1 :])
        Path("empty").write_bytes(b"")
        Path("other.json").write_text('{"schema": "something"}')
        Path("broken.json").write_text("{")
        Path("manifest.json").write_text(json.dumps({"schema": "airweights.manifest/2", "family": "kws"}))
    return folder


@pytest.fixture
def damaged(damaged_inputs: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Run commands in `damaged_inputs`, which no test may change."""
    monkeypatch.chdir(damaged_inputs)
    return damaged_inputs


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Run commands in a folder with two models."""
    monkeypatch.chdir(tmp_path)
    write_models()
    return tmp_path


def build_bundle(name: str, out: str, *more: object) -> dict[str, object]:
    result = run_packager("bundle", "build", f"{name}.onnx", "-o", out, "--family", "kws", "--json", *more)
    assert result.code == 0, result.stderr
    found: dict[str, object] = result.json
    return found


def test_a_bundle_is_built_diffed_and_made_again_from_the_patch(place: Path) -> None:
    old = build_bundle("old", "OLD", "--file", "labels=labels.txt", "--inputs", "inputs.npz")
    new = build_bundle("new", "NEW", "--file", "labels=labels.txt", "--inputs", "inputs.npz", "--version", "1.1")
    assert old["bundle"] != new["bundle"]
    diffed = run_packager("bundle", "diff", "OLD", "NEW", "-o", "p", "--json")
    assert diffed.code == 0, diffed.stderr
    assert diffed.json["plain_size"] == Path("p").stat().st_size
    applied = run_packager("bundle", "apply", "OLD", "p", "-o", "MADE", "--json")
    assert applied.json["bundle"] == new["bundle"]
    assert read_all_files(place / "MADE") == read_all_files(place / "NEW")


def test_a_bundle_of_files_that_no_agent_runs(place: Path) -> None:
    """A word list, tensors of a runtime of one's own, any bytes: built, shown, diffed and applied as models are."""
    for name, seed in (("old", 1), ("new", 2)):
        Path(f"{name}.safetensors").write_bytes(to_safetensors(make_weights(seed)))
    files = ("--file", "labels=labels.txt", "--family", "kws", "--json")
    made = {}
    for name, out in (("old", "OLD"), ("new", "NEW")):
        words = ("bundle", "build", f"{name}.safetensors", "--runtime", "app", "-o", out, *files)
        made[out] = run_packager(*words).json
        found = [(file["path"], file["role"]) for file in made[out]["files"]]
        assert found == [("labels/labels.txt", "labels"), (f"model/{name}.safetensors", "model")]
    assert (made["OLD"]["contract"], made["OLD"]["golden_tolerance_ppm"]) == (None, None)
    assert "model/old.safetensors" in run_packager("bundle", "inspect", "OLD").stdout
    assert run_packager("bundle", "diff", "OLD", "NEW", "-o", "p").code == 0
    assert run_packager("bundle", "apply", "OLD", "p", "-o", "MADE", "--json").json["bundle"] == made["NEW"]["bundle"]
    words_only = run_packager("bundle", "build", "-o", "WORDS", *files)
    assert [file["path"] for file in words_only.json["files"]] == ["labels/labels.txt"]
    parts = ("--runtime", "app", "--file", "model=old.onnx", "--file", "model=new.onnx", "-o", "PARTS")
    assert len(run_packager("bundle", "build", *parts, *files).json["files"]) == 3


def test_from_nothing_is_written_as_a_dash(place: Path) -> None:
    new = build_bundle("new", "NEW", "--golden", 0)
    assert run_packager("bundle", "diff", "-", "NEW", "-o", "p").code == 0
    assert run_packager("bundle", "apply", "-", "p", "-o", "MADE", "--json").json["bundle"] == new["bundle"]
    assert new["golden_tolerance_ppm"] is None


def test_single_files_are_diffed_too(place: Path) -> None:
    assert run_packager("bundle", "diff", "old.onnx", "new.onnx", "-o", "p").code == 0
    assert run_packager("bundle", "apply", "old.onnx", "p", "-o", "made.onnx").code == 0
    assert Path("made.onnx").read_bytes() == Path("new.onnx").read_bytes()


def test_every_kind_of_place_is_shown(place: Path) -> None:
    build_bundle("old", "OLD")
    run_packager("bundle", "diff", "-", "OLD", "-o", "p")
    for name, kind, word in (("OLD", "bundle", "model.onnx"), ("p", "patch", "full download")):
        assert run_packager("bundle", "inspect", name, "--json").json["kind"] == kind
        shown = run_packager("bundle", "inspect", name)
        assert shown.code == 0
        assert word in shown.stdout


@pytest.mark.parametrize(
    ("words", "code", "reason", "message"),
    [
        (["bundle", "build", "none.onnx", "-o", "X", "--family", "kws"], 2, "model-unreadable", "none.onnx"),
        (["bundle", "build", "labels.txt", "-o", "X", "--family", "kws"], 2, "model-unreadable", "labels.txt"),
        (["bundle", "build", "-o", "X", "--family", "kws"], 2, "invalid-usage", "at least one file"),
        (["bundle", "build", "-o", "X", "--family", "kws", "--runtime", "onnxruntime"], 2, "invalid-usage", "MODEL"),
        (
            ["bundle", "build", "labels.txt", "-o", "X", "--family", "kws", "--runtime", "none"],
            2,
            "invalid-usage",
            "none",
        ),
        (["bundle", "build", "n", "-o", "X", "--family", "kws", "--runtime", "app"], 2, "input-file-missing", "n"),
        (["bundle", "build", "OLD", "-o", "X", "--family", "kws", "--runtime", "app"], 2, "input-file-missing", "OLD"),
        (
            ["bundle", "build", "old.onnx", "-o", "X", "--family", "kws", "--runtime", "litert"],
            2,
            "invalid-usage",
            "not a TFLite model",
        ),
        (
            ["bundle", "build", "labels.txt", "-o", "X", "--family", "kws", "--runtime", "app", "--golden", "1"],
            2,
            "invalid-usage",
            "--golden",
        ),
        (
            ["bundle", "build", "old.onnx", "-o", "X", "--family", "kws", "--file", "model=new.onnx"],
            2,
            "invalid-usage",
            "labels",
        ),
        (["bundle", "build", "old.onnx", "-o", "labels.txt", "--family", "kws"], 2, "output-exists", "labels.txt"),
        (["bundle", "build", "old.onnx", "-o", "no/X", "--family", "kws"], 2, "file-not-found", "no"),
        (["bundle", "build", "old.onnx", "-o", "X", "--family", "K W S"], 2, "invalid-usage", "K W S"),
        (["bundle", "build", "old.onnx", "-o", "X", "--family", "kws", "--version", "x"], 2, "invalid-usage", "'x'"),
        (["bundle", "build", "old.onnx", "-o", "X", "--family", "kws", "--file", "l"], 2, "invalid-usage", "ROLE=PATH"),
        (
            ["bundle", "build", "old.onnx", "-o", "X", "--family", "kws", "--file", "labels=n"],
            2,
            "input-file-missing",
            "n",
        ),
        (
            ["bundle", "build", "old.onnx", "-o", "X", "--family", "kws", "--inputs", "n.npz"],
            2,
            "samples-unreadable",
            "n.npz",
        ),
        (["bundle", "build", "cut.onnx", "-o", "X", "--family", "kws"], 2, "model-unreadable", "cut.onnx"),
        (["bundle", "build", "lost.onnx", "-o", "X", "--family", "kws"], 2, "external-data-missing", "lost.bin"),
        (["bundle", "diff", "none", "old.onnx", "-o", "X"], 2, "file-not-found", "none"),
        (["bundle", "diff", "old.onnx", "none", "-o", "X"], 2, "file-not-found", "none"),
        (["bundle", "diff", "OLD", "old.onnx", "-o", "X"], 2, "invalid-usage", "expected two files or two folders"),
        (["bundle", "diff", "old.onnx", "new.onnx", "-o", "labels.txt"], 2, "output-exists", "labels.txt"),
        (["bundle", "diff", "old.onnx", "new.onnx", "-o", "no/X"], 2, "file-not-found", "no"),
        (["bundle", "diff", "old.onnx", "new.onnx", "-o", "X", "--codec", "zip"], 2, "invalid", "zip"),
        (["bundle", "apply", "old.onnx", "none", "-o", "X"], 2, "file-not-found", "none"),
        (["bundle", "apply", "old.onnx", "labels.txt", "-o", "X"], 3, "patch-version-unsupported", ""),
        (["bundle", "apply", "new.onnx", "p", "-o", "X"], 3, "wrong-base", "content"),
        (["bundle", "apply", "-", "p", "-o", "X"], 3, "wrong-base", "base"),
        (["bundle", "apply", "old.onnx", "cut.p", "-o", "X"], 3, "patch-truncated", ""),
        (["bundle", "apply", "old.onnx", "flipped.p", "-o", "X"], 3, "patch-corrupt", ""),
        (["bundle", "apply", "old.onnx", "p", "-o", "labels.txt"], 2, "output-exists", "labels.txt"),
        (["bundle", "inspect", "none"], 2, "unknown-format", "none"),
        (["bundle", "inspect", "labels.txt"], 2, "unknown-format", "labels.txt"),
        (["bundle", "inspect", "empty"], 2, "unknown-format", "found first bytes none"),
        (["bundle", "inspect", "other.json"], 2, "unknown-format", "schema"),
        (["bundle", "inspect", "broken.json"], 2, "unknown-format", "broken.json"),
        (["bundle", "inspect", "manifest.json"], 3, "malformed", "manifest"),
        (["bundle", "inspect", "cut.p"], 3, "patch-truncated", ""),
        (["bundle", "verify", "OLD", "none.json", "fp32"], 2, "unknown-format", "none.json"),
        (["bundle", "verify", "OLD", "manifest.json", "fp32"], 3, "malformed", "manifest"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    damaged: Path, words: list[str], code: int, reason: str, message: str
) -> None:
    before = read_all_files(damaged)
    assert_refused(run_packager(*words, "--json"), code=code, reason=reason, words=(message,))
    refused = run_packager(*words)
    assert refused.code == code
    assert refused.stderr.startswith("error: ")
    assert "Traceback" not in refused.stderr
    assert read_all_files(damaged) == before
