"""Pruning sets the requested share of weights to zero if the gate passes, and writes nothing otherwise."""

from pathlib import Path

import numpy as np
import onnx
import pytest

from packager.errors import GateFailed, QuantizationRefused
from packager.models.graphs import array_of
from packager.models.random_inputs import random_samples
from packager.quantize.gate import Thresholds
from packager.quantize.prune import prune_model
from tests.support import tiny_models


def test_asked_share_becomes_zero(tmp_path: Path) -> None:
    model = tiny_models.save(tiny_models.mlp(), tmp_path / "float.onnx")
    report = prune_model(model, tmp_path / "out.onnx", random_samples(model, 32), sparsity=0.1)
    assert report.sparsity == pytest.approx(0.1, abs=0.001)
    assert report.gate.verdict == "pass"


def test_two_of_four_inputs_are_zero_in_each_channel(tmp_path: Path) -> None:
    model = tiny_models.save(tiny_models.text_encoder(), tmp_path / "float.onnx")
    with pytest.raises(GateFailed, match="relative RMS"):
        prune_model(model, tmp_path / "out.onnx", random_samples(model, 32), pattern="2:4")
    assert not (tmp_path / "out.onnx").exists()
    loose = tiny_models.save(tiny_models.looping(), tmp_path / "loop.onnx")
    lenient = Thresholds(max_relative_rms=10.0, min_cosine_p1=-1.0, min_top1_agreement=0.0)
    prune_model(loose, tmp_path / "out.onnx", random_samples(loose, 32), pattern="2:4", thresholds=lenient)
    body = onnx.load(tmp_path / "out.onnx").graph.node[0].attribute[0].g
    weight = array_of(next(t for t in body.initializer if t.name == "body_w"))
    assert (np.count_nonzero(weight.T.reshape(48, 12, 4), axis=2) == 2).all()


def test_sparsity_outside_its_bounds_is_refused(tmp_path: Path) -> None:
    model = tiny_models.save(tiny_models.mlp(), tmp_path / "float.onnx")
    with pytest.raises(QuantizationRefused, match=r"1\.5"):
        prune_model(model, tmp_path / "out.onnx", random_samples(model, 4), sparsity=1.5)
