"""If plain int8 fails, the nodes with the largest errors get more bits, and the report lists every candidate."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from packager.models.graphs import all_nodes
from packager.models.random_inputs import random_samples
from packager.models.sessions import EXACT_SETTINGS, open_session
from packager.quantize.gate import Thresholds, judge
from packager.quantize.html_report import write_page
from packager.quantize.prepare import prepare_model
from packager.quantize.quantization_report import QuantizationReport
from packager.quantize.schemes import QuantizeOptions, quantize_model
from packager.quantize.targets import TARGETS
from packager.quantize.update_aware.matching_baseline import quantize_like_template
from tests.support import tiny_models

INT4 = QuantizeOptions(measure_latency=False)


def quantize_int8(model: onnx.ModelProto, folder: Path, **options: object) -> QuantizationReport:
    path = tiny_models.save(model, folder / "float.onnx")
    return quantize_model(
        path,
        folder / "int8.onnx",
        "int8",
        random_samples(path, 64),
        QuantizeOptions(measure_latency=False, **options),  # type: ignore[arg-type]
    )


def test_activation_with_an_outlier_is_read_in_16_bits(tmp_path: Path) -> None:
    report = quantize_int8(
        tiny_models.with_outlier_feature(3000.0), tmp_path, methods=("static", "weights"), target=TARGETS["x86-vnni"]
    )
    assert report.outcome == "quantized", report.as_lines()
    assert (report.method, report.float_nodes) == ("static", ())
    assert report.promoted_activations == ("behind the outlier",)
    assert report.sensitivity[0].nodes == ("behind the outlier",)
    plain, *repaired = [trial for trial in report.trials if trial.method == "static"]
    assert (plain.verdict, plain.promoted_activations) == ("fail", ())
    assert repaired[-1].relative_rms is not None
    assert plain.relative_rms is not None
    assert repaired[-1].relative_rms < 0.2 * plain.relative_rms
    made = onnx.load(tmp_path / "int8.onnx")
    zeros = {numpy_helper.to_array(t).dtype for t in made.graph.initializer if t.name.startswith("h1_zero_point")}
    assert zeros == {np.dtype(np.uint16)}


def test_weights_that_4_bits_spoil_get_8(tmp_path: Path) -> None:
    path = tiny_models.save(tiny_models.text_encoder(layers=3), tmp_path / "float.onnx")
    samples = random_samples(path, 64)
    whole = quantize_model(path, tmp_path / "whole.onnx", "int4", samples, INT4)
    assert whole.gate is not None
    assert whole.gate.relative_rms is not None
    assert whole.bytes is not None
    strict = replace(INT4, thresholds=Thresholds(max_relative_rms=0.6 * whole.gate.relative_rms))
    report = quantize_model(path, tmp_path / "int4.onnx", "int4", samples, strict)
    assert report.outcome == "quantized", report.trials_as_lines()
    assert report.promoted_weights
    assert report.float_nodes == ()
    assert report.bytes is not None
    assert whole.bytes < report.bytes < 0.5 * report.float_bytes
    made = {node.name: node for node in all_nodes(onnx.load(tmp_path / "int4.onnx"))}
    assert {made[name].op_type for name in report.promoted_weights} <= {"MatMul", "Gemm"}
    assert any(node.op_type == "MatMulNBits" for node in made.values())
    assert f"8-bit weights: {report.promoted_weights[0]}" in "\n".join(report.as_lines())
    write_page(report, path, tmp_path / "int4.onnx", samples, tmp_path / "page.html")
    shown = re.search(r"Nodes with 8-bit weights</h2>\s*<p>([^<]*)</p>", (tmp_path / "page.html").read_text())
    assert shown is not None
    assert shown[1] == ", ".join(report.promoted_weights)


def test_rows_of_a_table_that_a_product_reads_are_8_bits_too(tmp_path: Path) -> None:
    report = quantize_int8(tiny_models.text_encoder(), tmp_path, methods=("weights",))
    assert report.outcome == "quantized", report.trials_as_lines()
    assert (report.method, report.float_nodes) == ("weights", ())
    assert report.bytes is not None
    assert report.bytes < 0.4 * report.float_bytes


def test_update_of_a_repaired_model_is_measured_against_one_repaired_alike(tmp_path: Path) -> None:
    wide = tiny_models.save(tiny_models.with_outlier_feature(3000.0), tmp_path / "wide.onnx")
    deep = tiny_models.save(tiny_models.text_encoder(layers=3), tmp_path / "deep.onnx")
    cases = (
        (
            wide,
            "int8",
            QuantizeOptions(measure_latency=False, methods=("static", "weights"), target=TARGETS["x86-vnni"]),
        ),
        (deep, "int4", replace(INT4, thresholds=Thresholds(max_relative_rms=0.4))),
    )
    for path, scheme, options in cases:
        samples = random_samples(path, 64)
        report = quantize_model(path, tmp_path / "made.onnx", scheme, samples, options)
        assert report.promoted_activations or report.promoted_weights, report.trials_as_lines()
        made = onnx.load(tmp_path / "made.onnx")
        again = quantize_like_template(made, prepare_model(path, next(iter(samples))).model, samples)
        for parts in (lambda m: [t.name for t in m.graph.initializer], lambda m: [n.op_type for n in all_nodes(m)]):
            assert sorted(parts(again)) == sorted(parts(made))


def test_int4_nodes_under_names_of_another_tool_count_as_int4(tmp_path: Path) -> None:
    path = tiny_models.save(tiny_models.text_encoder(layers=3), tmp_path / "float.onnx")
    samples = random_samples(path, 64)
    loose = replace(INT4, thresholds=Thresholds(max_relative_rms=1.0, min_top1_agreement=0.0))
    assert quantize_model(path, tmp_path / "int4.onnx", "int4", samples, loose).outcome == "quantized"
    foreign = onnx.load(tmp_path / "int4.onnx")
    del foreign.metadata_props[:]
    renamed = [node for node in all_nodes(foreign) if node.op_type == "MatMulNBits"]
    for node in renamed:
        node.name += "_Q4"
    made = quantize_like_template(foreign, prepare_model(path, next(iter(samples))).model, samples)
    assert [node.op_type for node in all_nodes(made)].count("MatMulNBits") == len(renamed) > 0


def test_node_that_cannot_be_quantized_goes_back_to_float(tmp_path: Path) -> None:
    strict = Thresholds(max_relative_rms=0.03)
    report = quantize_int8(tiny_models.text_encoder(), tmp_path, thresholds=strict, methods=("dynamic",))
    assert report.outcome == "quantized", report.as_lines()
    assert report.float_nodes
    kept = [node for node in all_nodes(onnx.load(tmp_path / "int8.onnx")) if node.name in report.float_nodes]
    assert {node.op_type for node in kept} <= {"MatMul", "Gemm", "Gather"}
    assert all(trial.bytes is not None for trial in report.trials if trial.verdict == "pass")


SHARED = """
<ir_version: 8, opset_import: ["" : 17]>
agraph (float[1, 64] x) => (float[1, 128] y)
<float[64, 64] w, float[64] mask, float[64, 128] head>
{
    a = Mul (x, mask)
    b = MatMul (a, w)
    c = Tanh (b)
    d = Mul (c, mask)
    e = MatMul (d, w)
    y = MatMul (e, head)
}
"""


def test_weight_that_several_nodes_share_goes_back_to_float_with_all_of_them(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    model = onnx.parser.parse_model(SHARED)
    w, mask = 0.1 * rng.standard_normal((64, 64)), np.ones(64)
    w[0], mask[0] = 100.0, 0.0  # never read, and as large as to leave no level for the rest
    tensors = {"w": w, "mask": mask, "head": rng.standard_normal((64, 128))}
    del model.graph.initializer[:]
    model.graph.initializer.extend(numpy_helper.from_array(a.astype(np.float32), name) for name, a in tensors.items())
    report = quantize_int8(model, tmp_path, methods=("weights",))
    assert report.outcome == "quantized", report.trials_as_lines()
    first, *others = report.sensitivity
    assert len(first.nodes) == 2
    assert set(report.float_nodes) == set(first.nodes)
    assert all(len(blame.nodes) == 1 for blame in others)


def test_int8_that_is_larger_than_fp16_says_so(tmp_path: Path) -> None:
    cases = ((Thresholds(), False), (Thresholds(max_relative_rms=0.026), True))
    for thresholds, is_named in cases:
        report = quantize_int8(tiny_models.text_encoder(), tmp_path, thresholds=thresholds, methods=("weights",))
        half = quantize_model(
            tmp_path / "float.onnx", tmp_path / "half.onnx", "fp16", random_samples(tmp_path / "float.onnx", 8)
        )
        assert report.bytes is not None
        assert half.bytes is not None
        assert (report.bytes > half.bytes) == is_named
        assert any("--scheme fp16 would be smaller" in note for note in report.notes) == is_named


def test_gate_that_nothing_passes_is_refused_with_every_trial(tmp_path: Path) -> None:
    report = quantize_int8(tiny_models.mlp(), tmp_path, thresholds=Thresholds(max_relative_rms=1e-9))
    assert report.outcome == "refused"
    assert "gate failed" in report.reason
    table = report.trials_as_lines()
    assert len(table) == len(report.trials) + 1
    assert {line.split()[0] for line in table[1:]} == {"static", "dynamic", "weights"}
    assert not (tmp_path / "int8.onnx").exists()


def test_model_that_answers_at_random_is_refused(tmp_path: Path) -> None:
    model = tiny_models.mlp()
    noise = onnx.helper.make_node("RandomNormalLike", ["logits"], ["noise"])
    added = onnx.helper.make_node("Add", ["logits", "noise"], ["noisy"])
    model.graph.node[-1].input[0] = "noisy"
    model.graph.node.insert(4, noise)
    model.graph.node.insert(5, added)
    report = quantize_int8(model, tmp_path)
    assert report.outcome == "refused"
    assert "differs from run to run" in report.reason


def test_arm_gets_signed_activations_and_weights_of_full_range(tmp_path: Path) -> None:
    report = quantize_int8(
        tiny_models.conv_net(), tmp_path, target=TARGETS["arm"], methods=("static",), thresholds=Thresholds(0.3)
    )
    assert (report.outcome, report.numerics) == ("quantized", "s8s8"), report.as_lines()
    made = onnx.load(tmp_path / "int8.onnx")
    arrays = {t.name: numpy_helper.to_array(t) for t in made.graph.initializer}
    read = [n for n in made.graph.node if n.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert {arrays[n.input[2]].dtype for n in read} <= {np.dtype(np.int8), np.dtype(np.int32), np.dtype(np.uint8)}
    assert {arrays[n.input[2]].dtype for n in read if n.op_type == "QuantizeLinear"} == {np.dtype(np.int8)}
    assert (
        max(int(np.abs(a.astype(np.int16)).max()) for a in arrays.values() if a.dtype == np.int8 and a.ndim == 4) == 127
    )
    # as exact kernels would: those of a CPU without VNNI saturate
    sides = open_session(tmp_path / "float.onnx"), open_session(tmp_path / "int8.onnx", EXACT_SETTINGS)
    assert judge(*sides, random_samples(tmp_path / "float.onnx", 8), Thresholds(0.3)).verdict == "pass"
