"""Executing a model in steps gives the same values as complete runs."""

from pathlib import Path

import numpy as np
import onnx
import pytest

from packager.models.graphs import array_of
from packager.models.random_inputs import random_samples
from packager.models.sessions import run_session
from packager.quantize.update_aware.float_prefix import FloatPrefix
from packager.quantize.update_aware.row_selection import open_watching_session
from tests.support import tiny_models

NESTED = """
<ir_version: 9, opset_import: ["" : 17]>
nested (float[2, 4] x, bool flag) => (float[2, 4] y)
<float[4, 4] w1 = {1, 0, 2, 0, 0, 1, 0, 3, 1, 1, 0, 0, 0, 2, 0, 1},
 float[4, 4] w2 = {2, 0, 0, 1, 0, 1, 0, 0, 1, 0, 1, 0, 0, 0, 3, 1},
 int64 first = {0}>
{
    a = MatMul (x, w1)
    b = Relu (a)
    c = If (flag) <then_branch = yes () => (float[2, 4] p) { p = Add (a, b) },
               else_branch = no () => (float[2, 4] q) { q = Neg (a) }>
    all = SequenceConstruct (b, c)
    d = MatMul (c, w2)
    e = SequenceAt (all, first)
    f = Add (d, e)
    y = MatMul (f, w1)
}
"""


@pytest.fixture(scope="module")
def nested(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, onnx.ModelProto]:
    model = onnx.parser.parse_model(NESTED)
    return tiny_models.save(model, tmp_path_factory.mktemp("nested") / "model.onnx"), model


def test_each_stop_tells_what_a_whole_run_tells(nested: tuple[Path, onnx.ModelProto], tmp_path: Path) -> None:
    path, model = nested
    samples = random_samples(path, 5)
    prefix = FloatPrefix(model, samples, tmp_path)
    for before, names in ((0, ["x"]), (1, ["a", "x"]), (4, ["c"]), (5, ["c", "d"]), (7, ["f"])):
        whole = open_watching_session(model, names)
        walked = list(prefix.walk(before, names))
        inner = [name for name in names if name != "x"]
        for sample, values in zip(samples, walked, strict=True):
            expected = dict(zip(inner, run_session(whole, sample, inner), strict=True)) if inner else {}
            for name in names:
                np.testing.assert_allclose(
                    values[name], expected[name] if name in expected else sample[name], rtol=1e-6
                )


def test_what_was_walked_keeps_the_weights_of_then(nested: tuple[Path, onnx.ModelProto], tmp_path: Path) -> None:
    path, model = nested
    prefix = FloatPrefix(model, random_samples(path, 2), tmp_path)
    before = [values["c"] for values in prefix.walk(4, ["c"])]
    weight = array_of(next(tensor for tensor in model.graph.initializer if tensor.name == "w2"))
    prefix.correct_bias("w2", weight)
    for c, values in zip(before, prefix.walk(5, ["c", "d"]), strict=True):
        np.testing.assert_array_equal(values["c"], c)
        np.testing.assert_allclose(values["d"], c @ (2 * weight), rtol=1e-6)


def test_nothing_but_the_last_stop_is_kept(nested: tuple[Path, onnx.ModelProto], tmp_path: Path) -> None:
    path, model = nested
    prefix = FloatPrefix(model, random_samples(path, 2), tmp_path)
    for before, name in ((1, "a"), (2, "b"), (3, "c")):
        list(prefix.walk(before, [name]))
    assert len(list(tmp_path.iterdir())) == 1
