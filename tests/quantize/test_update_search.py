"""Parts of the update search: blocks of rows, target outputs, retries after the gate, cached outputs."""

import math
import resource
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from packager.models.golden_vectors import record_golden
from packager.models.inputs import Sample
from packager.models.random_inputs import random_samples
from packager.models.samples import Samples
from packager.models.sessions import CachedSession, open_session, run_session
from packager.quantize.agreement import OutputFidelity
from packager.quantize.gate import GateReport, Thresholds, run_gate
from packager.quantize.prepare import prepare_model
from packager.quantize.schemes import QuantizeOptions, quantize_model
from packager.quantize.targets import TARGETS
from packager.quantize.update_aware import coordinate_descent, rate_search
from packager.quantize.update_aware.coordinate_descent import Layer, choose_levels
from packager.quantize.update_aware.fill_template import FLOAT_ROUNDING_STEPS
from packager.quantize.update_aware.float_prefix import FloatPrefix
from packager.quantize.update_aware.layer_statistics import measure_moments
from packager.quantize.update_aware.layers import SharedInput, conv_input_rows, execution_order
from packager.quantize.update_aware.quantize_update import quantize_update
from packager.quantize.update_aware.row_selection import measure_rows
from packager.quantize.update_aware.solver import Solver, grid_of
from packager.quantize.update_aware.template import read_template, to_matrices
from tests.support import tiny_models
from tests.support.model_pairs import QuantizedBase, fine_tune


def test_blocks_of_rows_come_to_what_rows_one_by_one_come_to(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(3)
    rows = rng.standard_normal((3000, 200)) @ rng.standard_normal((200, 200)) / 14
    h = (rows.T @ rows / len(rows)).astype(np.float32)
    base = rng.integers(-100, 100, (200, 90)).astype(np.int32)
    scale = np.full((1, 90), 1e-3)
    new = base * scale + 1.5e-4 * rng.standard_normal(base.shape)
    layer = Layer(new, scale, np.zeros((1, 90)), base, -127, 127)
    wanted = h @ new.astype(np.float32)
    energy = float(np.sum(new * wanted))
    found = {}
    for size in (1, 64, 128, 1000):
        monkeypatch.setattr(coordinate_descent, "BLOCK_ROWS", size)
        found[size] = choose_levels(layer, h, wanted, energy, 1e-12, len(rows))
    assert np.count_nonzero(found[1] != base) > 100
    for size in (64, 128, 1000):
        assert np.mean(found[size] != found[1]) < 1e-3


def test_what_a_layer_should_give_is_the_same_stored_wide_or_narrow(
    mlp_base: QuantizedBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = mlp_base.samples.take(40)
    prepared = prepare_model(mlp_base.write_fine_tuned(tmp_path, 0.02), next(iter(samples))).model
    template = onnx.load(mlp_base.path)
    weights = [weight for weight in read_template(template, prepared) if weight.source is not None]
    found: dict[bool, list[np.ndarray]] = {}
    for is_projected in (False, True):
        monkeypatch.setattr(SharedInput, "is_projected", is_projected)
        folder = tmp_path / str(is_projected)
        folder.mkdir()
        walked = execution_order(prepared, weights)
        everything = [shared for stage in walked for shared in stage]
        rows = measure_rows(prepared, everything, [], samples, folder)
        prefix = FloatPrefix(prepared, samples, folder)
        # an error in front, so that both sides differ
        prefix.set_weight(weights[0], weights[0].float_values() * 1.1)
        found[is_projected] = []
        for stage in walked:
            for shared, parts in zip(stage, measure_moments(prefix, stage, rows, folder), strict=True):
                matrix = to_matrices(shared.first_weight.float_values(), shared.first_weight.kind, 1)[0]
                columns = slice(0, matrix.shape[1])
                found[is_projected] += [parts[0].target_moment(matrix, columns), parts[0].target_mean(matrix, columns)]
    assert len(found[True]) >= 4
    for wide, narrow in zip(found[False], found[True], strict=True):
        np.testing.assert_allclose(narrow, wide, rtol=1e-3, atol=1e-4 * float(np.abs(wide).max()))


@pytest.fixture(scope="module")
def text_update(text_base: QuantizedBase, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Samples]:
    """Return (base, new, samples) of a text encoder."""
    return text_base.path, text_base.write_fine_tuned(tmp_path_factory.mktemp("update"), 0.1), text_base.samples


@pytest.mark.parametrize("factor", [pytest.param(0.02, id="too low"), pytest.param(50.0, id="too high")])
def test_search_comes_near_the_error_that_is_allowed_from_any_price(
    text_update: tuple[Path, Path, Samples], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, factor: float
) -> None:
    base, new, samples = text_update
    points: list[rate_search.RatePoint] = []
    monkeypatch.setattr(rate_search, "INITIAL_RATE_WEIGHT", rate_search.INITIAL_RATE_WEIGHT * factor)
    report = quantize_update(
        new, base, tmp_path / "update.onnx", *samples.split_halves(), max_over_baseline=1.6, on_solution=points.append
    )
    nearest, first, *others = points
    assert nearest.rate_weight == 0
    assert 1 <= len(others) < rate_search.MAX_SOLUTIONS
    assert len({point.rate_weight for point in points}) == len(points)
    assert (others[0].rate_weight > first.rate_weight) == (factor < 1)
    assert report.gate.verdict == "pass", report.gate.explanation
    good = [point for point in points if point.gate.verdict == "pass"]
    assert report.bits_per_weight == min(point.bits_per_weight for point in good)
    assert report.bits_per_weight < 0.3 * nearest.bits_per_weight


def test_search_goes_on_where_the_gate_asks_for_more_than_the_error(
    text_update: tuple[Path, Path, Samples], tmp_path: Path
) -> None:
    base, new, samples = text_update
    halves = samples.split_halves()
    plain = quantize_update(new, base, tmp_path / "plain.onnx", *halves, max_over_baseline=1.5)
    assert plain.rate_weight is not None
    found, ordinary = plain.gate.cosine_p1, plain.baseline.cosine_p1
    assert found is not None
    assert ordinary is not None
    strict = Thresholds(min_cosine_p1=(found + ordinary) / 2)
    report = quantize_update(new, base, tmp_path / "strict.onnx", *halves, max_over_baseline=1.5, thresholds=strict)
    assert (report.method, report.gate.verdict) == ("joint", "pass"), report.gate.explanation
    assert report.rate_weight is not None
    assert 0 < report.rate_weight < plain.rate_weight


@pytest.mark.parametrize(
    ("worth", "is_fitted"), [pytest.param(-1e9, True, id="any"), pytest.param(1.0, False, id="none")]
)
def test_ranges_are_fitted_again_for_a_clear_gain_alone(
    mlp_base: QuantizedBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, worth: float, *, is_fitted: bool
) -> None:
    tuned = fine_tune(mlp_base.model, 1, 0.02)
    bias = next(tensor for tensor in tuned.graph.initializer if tensor.name == "b1")
    moved = numpy_helper.to_array(bias) + np.random.default_rng(5).standard_normal(bias.dims)
    bias.CopyFrom(numpy_helper.from_array(moved.astype(np.float32), "b1"))
    new = tiny_models.save(tuned, tmp_path / "new.onnx")
    monkeypatch.setattr(rate_search, "MIN_REFIT_GAIN", worth)
    points: list[rate_search.RatePoint] = []
    halves = mlp_base.samples.split_halves()
    quantize_update(new, mlp_base.path, tmp_path / "update.onnx", *halves, on_solution=points.append)
    base, nearest = (
        {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}
        for proto in (onnx.load(mlp_base.path), points[0].model)
    )
    scales = [n.input[1] for n in points[0].model.graph.node if n.op_type == "QuantizeLinear"]
    assert any(not np.array_equal(base[name], nearest[name]) for name in scales) == is_fitted


@pytest.mark.slow
def test_leftovers_move_as_finely_as_the_answers_ask_for(conv_base: QuantizedBase, tmp_path: Path) -> None:
    tuned = fine_tune(conv_base.model, 1, 0.02)
    # rounding the changes of this bias to their own RMS would change every output
    bias = next(tensor for tensor in tuned.graph.initializer if tensor.name == "cb")
    moved = numpy_helper.to_array(bias) + np.random.default_rng(5).standard_normal(bias.dims)
    bias.CopyFrom(numpy_helper.from_array(moved.astype(np.float32), "cb"))
    new = tiny_models.save(tuned, tmp_path / "new.onnx")
    points: list[rate_search.RatePoint] = []
    halves = conv_base.samples.split_halves()
    report = quantize_update(new, conv_base.path, tmp_path / "update.onnx", *halves, on_solution=points.append)
    assert (report.method, report.gate.verdict) == ("joint", "pass"), report.reason
    assert report.bits_per_weight is not None
    assert report.bits_per_weight < 0.2 * points[0].bits_per_weight


class CountingSession:
    """A session that counts its runs."""

    def __init__(self, model: Path) -> None:
        self._session = open_session(model)
        self.runs = 0

    def get_outputs(self) -> list[Any]:
        """Return descriptions of the outputs."""
        return list(self._session.get_outputs())

    def run(self, names: list[str] | None, sample: Sample, /) -> list[Any]:
        """Run the session; return the outputs `names`, or all."""
        self.runs += 1
        return list(self._session.run(names, sample))


def test_answers_are_remembered_by_sample_and_not_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_models.save(tiny_models.mlp(), tmp_path / "model.onnx")
    first, second, *_ = random_samples(model, 4)
    plain, counting = open_session(model), CountingSession(model)
    cached = CachedSession(counting)
    for sample in (first, second, first, second):
        np.testing.assert_array_equal(run_session(cached, sample)[0], run_session(plain, sample)[0])
    assert counting.runs == 2
    monkeypatch.setattr("packager.models.sessions.MAX_CACHED_BYTES", run_session(plain, first)[0].nbytes)
    counting = CountingSession(model)
    full = CachedSession(counting)
    for sample in (first, second, first, second):
        np.testing.assert_array_equal(run_session(full, sample)[0], run_session(plain, sample)[0])
    assert counting.runs == 3, "the first stays in the cache, the second found no room in it"


def test_patches_at_no_place_have_the_width_of_any() -> None:
    conv = next(node for node in tiny_models.conv_net().graph.node if node.op_type == "Conv")
    image = np.zeros((1, 6, 8, 8), np.float32)
    nowhere, somewhere = np.zeros(0, np.int64), np.array([0, 5])
    for groups in (1, 2):
        assert conv_input_rows(image, conv, (3, 3), 0, groups, nowhere).shape == (0, 54 // groups)
        assert conv_input_rows(image, conv, (3, 3), 0, groups, somewhere).shape == (2, 54 // groups)


@pytest.mark.slow
def test_grouped_convolutions_need_few_open_files(conv_base: QuantizedBase, tmp_path: Path) -> None:
    new, samples = conv_base.write_fine_tuned(tmp_path, 0.05), conv_base.samples.take(40)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # fewer than the 64 groups of one layer
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(list(Path("/proc/self/fd").iterdir())) + 40, hard))
    try:
        report = quantize_update(new, conv_base.path, tmp_path / "update.onnx", *samples.split_halves())
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert report.jointly_optimized


def test_update_of_a_model_for_other_cpus_is_judged_as_exact_kernels_run_it(tmp_path: Path) -> None:
    old = tiny_models.save(tiny_models.text_encoder(width=128), tmp_path / "old.onnx")
    new = tiny_models.save(fine_tune(tiny_models.text_encoder(width=128), 1, 0.05), tmp_path / "new.onnx")
    samples = random_samples(old, 64)
    options = QuantizeOptions(methods=("static",), measure_latency=False, target=TARGETS["arm"])
    made = quantize_model(old, tmp_path / "base.onnx", "int8", samples, options)
    assert (made.outcome, made.numerics) == ("quantized", "s8s8"), made.as_lines()
    out = tmp_path / "update.onnx"
    report = quantize_update(new, tmp_path / "base.onnx", out, *samples.split_halves(), max_over_baseline=1.2)
    assert (report.method, report.gate.verdict) == ("joint", "pass"), report.reason
    # integer kernels of this CPU or not: the same gate, the same golden vectors
    assert (
        run_gate(new, out, samples.split_halves()[1], Thresholds(max_relative_rms=0.3)).relative_rms
        == report.gate.relative_rms
    )
    assert record_golden(out, samples, tmp_path / "golden").spread_ppm < 1_000


@pytest.mark.slow
def test_prices_that_change_little_are_followed_by_wider_steps(
    text_update: tuple[Path, Path, Samples], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ordinary, solver = _make_solver(text_update, tmp_path)
    assert ordinary.relative_rms is not None
    # an error a little below the one that is aimed at, whatever the price: each step that it asks for is small
    below = 0.95 * 1.5 * (1 - rate_search.HELD_OUT_MARGIN / math.sqrt(ordinary.samples))
    scaled = replace(ordinary, outputs=tuple(_scale_error(output, below) for output in ordinary.outputs))
    monkeypatch.setattr(rate_search, "INITIAL_RATE_WEIGHT", rate_search.INITIAL_RATE_WEIGHT * 1e-4)
    found = rate_search.RateSearch(solver, lambda _: scaled, lambda _: 0.0, ordinary, 1.5, None)
    found.find_best_point()
    _, first, second, third, *_ = found.points
    assert second.rate_weight < rate_search.RATE_BACKOFF * first.rate_weight
    assert second.bits_per_weight == pytest.approx(first.bits_per_weight, rel=rate_search.SAME_RELATIVE_TOLERANCE)
    assert third.rate_weight == pytest.approx(rate_search.RATE_BACKOFF * second.rate_weight)


def test_leftovers_take_the_widest_step_that_costs_at_most_three_hundredths(
    text_update: tuple[Path, Path, Samples], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ordinary, solver = _make_solver(text_update, tmp_path)
    widest, wide, *finer = FLOAT_ROUNDING_STEPS
    errors = {widest: 1.04, wide: 1.02, **dict.fromkeys(finer, 1.0)}
    monkeypatch.setattr(rate_search, "MAX_SOLUTIONS", 0)
    rate_search.RateSearch(
        solver, lambda _: ordinary, lambda _: errors[solver.float_rounding_step], ordinary, 1.5, None
    ).find_best_point()
    assert solver.float_rounding_step == wide


def _make_solver(update: tuple[Path, Path, Samples], folder: Path) -> tuple[GateReport, Solver]:
    """Return the gate of the base against the new model, and a solver between them."""
    base, new, samples = update
    template, prepared = onnx.load(base), prepare_model(new, next(iter(samples))).model
    grids = [grid_of(weight) for weight in read_template(template, prepared)]
    return run_gate(new, base, samples), Solver(template, prepared, grids, samples.take(16), {}, folder)


def _scale_error(output: OutputFidelity, factor: float) -> OutputFidelity:
    return output if output.relative_rms is None else replace(output, relative_rms=output.relative_rms * factor)
