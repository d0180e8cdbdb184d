"""A drill changes the outputs of a model exactly where it should."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from bundle.errors import GoldenMismatch
from bundle.golden.comparison import GoldenVector, check_outputs
from bundle.golden.golden_file import GoldenSample, read_golden, write_golden
from packager.errors import DrillInvalid
from packager.models.random_inputs import random_samples
from packager.release.fire_drill import apply_drill
from tests.support import tiny_models

MODELS = {
    "mlp": tiny_models.mlp,
    "conv_net": tiny_models.conv_net,
    "branching": tiny_models.branching,
    "recurrent": lambda: tiny_models.recurrent("GRU"),
    "text_encoder": tiny_models.text_encoder,
    "constant_answer": tiny_models.constant_output,
    "without_weights": tiny_models.without_weights,
}


def run_model(model: Path, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    session = onnxruntime.InferenceSession(str(model))
    names = [out.name for out in session.get_outputs()]
    return dict(zip(names, session.run(names, inputs), strict=True))


def make_golden_and_other_inputs(model: Path) -> tuple[tuple[GoldenVector, ...], list[dict[str, np.ndarray]]]:
    samples = list(random_samples(model, 6, seed=3))
    golden = [GoldenSample(sample, run_model(model, sample)) for sample in samples[:3]]
    return read_golden(write_golden(golden)), samples[3:]


def matches_golden(model: Path, sample: GoldenVector) -> bool:
    try:
        check_outputs(run_model(model, sample.inputs), sample, tolerance_ppm=50_000, where="golden")
    except GoldenMismatch:
        return False
    return True


@pytest.mark.parametrize("name", MODELS)
def test_damaged_weights_are_wrong_on_a_golden_sample(name: str, tmp_path: Path) -> None:
    model = tiny_models.save(MODELS[name](), tmp_path / "m.onnx")
    golden, _ = make_golden_and_other_inputs(model)
    apply_drill("damaged-weights", model, golden)
    assert not all(matches_golden(model, sample) for sample in golden)


@pytest.mark.parametrize("name", sorted(set(MODELS) - {"constant_answer"}))
def test_live_nan_keeps_the_golden_answers_and_spoils_the_others(name: str, tmp_path: Path) -> None:
    model = tiny_models.save(MODELS[name](), tmp_path / "m.onnx")
    golden, others = make_golden_and_other_inputs(model)
    apply_drill("live-nan", model, golden)
    for sample in golden:
        check_outputs(run_model(model, sample.inputs), sample, tolerance_ppm=1, where="golden")
    for inputs in others:
        assert any(np.isnan(out).any() for out in run_model(model, inputs).values() if out.dtype.kind == "f")


def test_external_data_stays_beside_the_model(tmp_path: Path) -> None:
    model = tmp_path / "m.onnx"
    onnx.save_model(tiny_models.mlp(), model, save_as_external_data=True, location="m.data", size_threshold=0)
    golden, _ = make_golden_and_other_inputs(model)
    apply_drill("damaged-weights", model, golden)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.data", "m.onnx"]
    assert not matches_golden(model, golden[0])


def test_an_unknown_drill_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DrillInvalid, match="found drill 'flood'"):
        apply_drill("flood", tiny_models.save(tiny_models.mlp(), tmp_path / "m.onnx"), ())
