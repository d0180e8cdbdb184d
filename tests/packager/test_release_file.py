"""release.toml is read strictly, and every mistake is reported with its position."""

from pathlib import Path

import onnx
import pytest

from bundle.contract import Health
from bundle.requirements import Requirements
from packager.errors import InputFileMissing, ReleaseFileInvalid
from packager.release.release_file import parse_release_file
from packager.release.release_plan import ReleasePlan, RolloutPlan, VariantPlan
from tests.support import tiny_models
from tests.support.release_texts import SMALL, WHOLE


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    onnx.save(tiny_models.mlp(), tmp_path / "model.onnx")
    (tmp_path / "labels.txt").write_text("a\n")
    (tmp_path / "inputs.npz").write_bytes(b"")
    return tmp_path


def read(folder: Path, text: str) -> ReleasePlan:
    place = folder / "release.toml"
    place.write_text(text)
    return parse_release_file(place)


def test_the_smallest_file_has_the_defaults(folder: Path) -> None:
    plan = read(folder, SMALL)
    assert plan == ReleasePlan(
        family="kws",
        version="1.0.0",
        channels=("stable",),
        model=folder / "model.onnx",
        variants=(VariantPlan("fp32"),),
    )


def test_everything_that_can_be_said_is_read(folder: Path) -> None:
    plan = read(folder, WHOLE)
    assert (plan.min_counter, plan.golden, plan.samples, plan.seed) == (3, 4, 12, 7)
    assert plan.rollout == RolloutPlan(("beta",), 1250, ("kitchen",), "slowly")
    assert plan.bases == ("1.0.0",)
    assert [extra.path for extra in plan.files] == ["labels/labels.txt", "other/notes/copy.txt"]
    assert plan.override_gate == "first of its line"
    assert plan.provenance == (("commit", "abc"),)
    int8 = plan.variants[1]
    assert int8.required
    assert int8.gate == (("max_relative_rms", 0.2),)
    assert int8.apply_requires(Requirements(storage_bytes=5)) == Requirements(
        arch=("x86_64",), memory_bytes=1000, storage_bytes=5
    )
    assert int8.apply_health(Health(golden_relative_rms_ppm=9)) == Health(
        golden_relative_rms_ppm=9, probation_window_s=5
    )


@pytest.mark.parametrize(
    ("change", "place"),
    [
        (("family", "famliy"), "unknown key 'famliy', did you mean 'family'?"),
        (('family = "kws"', 'family = "KWS"'), "family"),
        (('version = "1.2.0-rc.1"', 'version = "one"'), "version"),
        (('version = "1.2.0-rc.1"', "version = 1.2"), "version"),
        (('channels = ["stable", "beta"]', "channels = []"), "channels"),
        (('channels = ["stable", "beta"]', 'channels = ["stable", "stable"]'), "channels"),
        (("min_counter = 3", "min_counter = -1"), "min_counter"),
        (("min_counter = 3", 'min_counter = "3"'), "min_counter"),
        (("min_counter = 3", "min_counter = 2026-01-01"), "min_counter"),
        (("golden = 4", "golden = 4\nsurprise = 1"), "surprise"),
        (('role = "labels"', 'role = "label"'), "files[0].role"),
        (("required = true", 'required = "yes"'), "variants.int8.required"),
        (("[variants.fp32]", "[variants.FP32]"), "variants"),
        (("requires.memory_bytes = 1000", "requires.memory = 1000"), "variants.int8: requires"),
        (("requires.memory_bytes = 1000", "requires.memory_bytes = 1e3"), "memory_bytes"),
        (("health.probation_window_s = 5", "health.probation_window_s = 0.5"), "probation_window_s"),
        (("health.probation_window_s = 5", "health.probation_s = 5"), "probation_s"),
        (("gate.max_relative_rms = 0.2", "gate.max_relative_rms = -1"), "max_relative_rms"),
        (("gate.max_relative_rms = 0.2", "gate.rms = 1"), "variants.int8: gate"),
        (('from = ["1.0.0"]', "from = -1"), "patches.from"),
        (('from = ["1.0.0"]', 'from = ["first"]'), "patches.from"),
        (("percent = 12.5", "percent = 101"), "percent"),
        (('channels = ["beta"]', 'channels = ["alpha"]'), "rollout.channels"),
        (('override_gate = "first of its line"', 'override_gate = ""'), "override_gate"),
        (('override_gate = "first of its line"', 'drill = "fire"'), "drill"),
        (('scheme = "int8"', 'scheme = "int8"\nmodel = "model.onnx"'), "scheme"),
        (('commit = "abc"', "commit = 1"), "provenance.commit"),
        (('commit = "abc"', "commit = 'a\\\nb'"), "TOML"),
        (('family = "kws"', 'family = "kws'), "TOML"),
        (("[provenance]", "[family]"), "TOML"),
        (('family = "kws"', 'family = "kws"\nruntime = "litert"'), "runtime"),
    ],
)
def test_a_mistake_is_told_with_its_place(folder: Path, change: tuple[str, str], place: str) -> None:
    assert change[0] in WHOLE
    with pytest.raises(ReleaseFileInvalid) as caught:
        read(folder, WHOLE.replace(*change))
    assert place in caught.value.message
    assert "release.toml" in caught.value.message


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            ('version = "1.2.0-rc.1"', 'verison = "1.0.0"'),
            "release.toml: unknown key 'verison', did you mean 'version'?",
        ),
        (("golden = 4", "surprise = 1"), "release.toml: unknown key 'surprise'"),
        (('scheme = "int8"', 'shceme = "int8"'), "variants.int8: unknown key 'shceme', did you mean 'scheme'?"),
        (
            ("requires.memory_bytes", "requires.memory_byte"),
            "requires: unknown key 'memory_byte', did you mean 'memory_by",
        ),
        (("health.probation_window_s", "health.probation_window"), "did you mean 'probation_window_s'?"),
        (("gate.max_relative_rms", "gate.max_rms"), "gate: unknown key 'max_rms', did you mean 'max_relative_rms'?"),
        (('name = "notes/copy.txt"', 'nam = "notes/copy.txt"'), "files[1]: unknown key 'nam', did you mean 'name'?"),
        (("percent = 12.5", "percentage = 12.5"), "rollout: unknown key 'percentage', did you mean 'percent'?"),
        (('from = ["1.0.0"]', 'form = ["1.0.0"]'), "patches: unknown key 'form', did you mean 'from'?"),
    ],
)
def test_an_unknown_key_is_reported_before_a_missing_one_with_the_nearest_known_one(
    folder: Path, change: tuple[str, str], message: str
) -> None:
    assert change[0] in WHOLE
    with pytest.raises(ReleaseFileInvalid) as caught:
        read(folder, WHOLE.replace(*change).replace('family = "kws"', ""))
    assert message in caught.value.message
    assert caught.value.hint is not None
    assert caught.value.hint.startswith("use one of the known keys: ")


def test_a_file_without_variants_is_refused(folder: Path) -> None:
    with pytest.raises(ReleaseFileInvalid, match="variants"):
        read(folder, SMALL.replace("[variants.fp32]", ""))


def test_files_without_a_model_that_the_agent_runs_require_no_version_of_a_runtime(folder: Path) -> None:
    files = '[[files]]\npath = "labels.txt"\nrole = "labels"\n'
    text = SMALL.replace('model = "model.onnx"', 'runtime = "app"').replace("[variants", files + "[variants")
    assert read(folder, text).runtime == "app"
    with pytest.raises(ReleaseFileInvalid, match=r"variants\.fp32: requires\.runtime_min: .* no versions"):
        read(folder, text + 'requires.runtime_min = "1.31"\n')


def test_a_drill_of_live_answers_needs_golden_vectors(folder: Path) -> None:
    with pytest.raises(ReleaseFileInvalid, match="live-nan"):
        read(folder, SMALL.replace("[variants", 'drill = "live-nan"\ngolden = 0\n[variants'))


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (('model = "model.onnx"', 'model = "none.onnx"'), "none.onnx"),
        (('inputs = "inputs.npz"', 'inputs = "none.npz"'), "none.npz"),
        (('path = "labels.txt"\nrole = "labels"', 'path = "none.txt"\nrole = "labels"'), "none.txt"),
        (("[variants.fp32]", '[variants.fp32]\nmodel = "half.onnx"'), "half.onnx"),
    ],
)
def test_a_file_that_is_named_must_be_there(folder: Path, change: tuple[str, str], name: str) -> None:
    assert change[0] in WHOLE
    with pytest.raises(InputFileMissing) as caught:
        read(folder, WHOLE.replace(*change))
    assert name in caught.value.message


def test_a_missing_or_binary_release_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ReleaseFileInvalid, match="does not exist"):
        parse_release_file(tmp_path / "none.toml")
    (tmp_path / "binary.toml").write_bytes(b"\xfc\xfe\x00")
    with pytest.raises(ReleaseFileInvalid, match="UTF-8"):
        parse_release_file(tmp_path / "binary.toml")
    with pytest.raises(ReleaseFileInvalid, match="does not exist"):
        parse_release_file(tmp_path)
