"""Make golden vectors of a shipped model file, with the tolerance that other runs of it need.

1. Inputs are chosen within a budget (packager.models.golden_inputs). Outputs come from the shipped file, run as it is
   judged (`settings_for`) and on the execution provider of its variant, in a subprocess that also runs it with the
   thread counts and optimization levels of RUN_SETTINGS.
2. With d = the largest error that the device's own comparison finds between these runs, in parts per million,
   tolerance = min(TOLERANCE_CEILING_PPM, max(floor, TOLERANCE_HEADROOM * d)). The floor of a quantized model is higher:
   on another CPU a float sum may round to another level.
3. A sample whose outputs are not finite, or differ in shape from run to run, cannot be a golden vector. NaN in an input
   is allowed as long as the outputs are finite: some models take it for a missing value.
4. The samples of a streaming model are one sequence from its initial state, in the order of the inputs.
5. The bytes that change with every release (scales and expected outputs) stay within the budget of an update: there are
   fewer samples where each takes more, but at least one.
"""

import hashlib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np

from bundle.golden.comparison import measure_errors
from bundle.golden.golden_file import (
    GoldenFile,
    describe_outputs,
    expected_size,
    read_golden_file,
    write_golden_file,
)
from bundle.golden.scales import Floats, keep_channels, scale_size
from bundle.golden.sketch import OutputRow, summarize
from packager.errors import GoldenUnstable, ModelDoesNotRun, SampleHasNan
from packager.models.damage_probe import rank_inputs, shows_damage
from packager.models.golden_budget import download_budget, update_budget
from packager.models.golden_inputs import (
    StoredSample,
    choose_inputs,
    choose_sequence,
    decode_samples,
    expand_repeats,
    fits_model,
    mark_repeats,
)
from packager.models.graphs import has_quantized_operators
from packager.models.inputs import ModelInterface, Sample, load_outline
from packager.models.model_package import external_data
from packager.models.model_runs import run_model
from packager.models.provider_session import ON_CPU, Provider
from packager.models.samples import Samples
from packager.models.sessions import RunSettings, settings_for
from packager.models.tflite_model import is_tflite, read_facts

RUN_SETTINGS: Final = (
    RunSettings(1, True),
    RunSettings(2, True),
    RunSettings(4, True),
    RunSettings(1, False),
    RunSettings(2, False),
)
TOLERANCE_HEADROOM: Final = 4.0  # other CPUs order float sums in more ways than RUN_SETTINGS shows
FLOAT_FLOOR_PPM: Final = 1_000  # least tolerance of a float model
QUANTIZED_FLOOR_PPM: Final = 10_000  # least tolerance of a quantized model: one level of 255 on a few activations
TOLERANCE_CEILING_PPM: Final = 50_000  # above it the outputs are not reproducible
NOISE_SHARE: Final = 0.125  # of the floor: the noise of channels that scales leave
FRAME_BYTES: Final = 96  # of a patch, beside the changed bytes


@dataclass(frozen=True, slots=True)
class GoldenReport:
    """The golden vectors that were written.

    Attributes:
        samples: number of samples.
        tolerance_ppm: relative RMS that the manifest allows, in parts per million.
        spread_ppm: largest deviation that was observed, in parts per million.
        bytes: size of the file.
        expected_bytes: part of it that changes with the weights.
        sha256: hexadecimal SHA-256 of the file.
    """

    samples: int
    tolerance_ppm: int
    spread_ppm: int
    bytes: int
    expected_bytes: int
    sha256: str

    def as_json(self) -> dict[str, int | str]:
        """Return plain values for `--json` and the release's record."""
        return {
            "samples": self.samples,
            "tolerance_ppm": self.tolerance_ppm,
            "spread_ppm": self.spread_ppm,
            "bytes": self.bytes,
            "expected_bytes": self.expected_bytes,
            "sha256": self.sha256,
        }


def record_golden(
    model: Path,
    samples: Samples,
    path: Path,
    count: int = 8,
    *,
    earlier: GoldenFile | None = None,
    golden_bytes: int | None = None,
    provider: Provider = ON_CPU,
) -> GoldenReport:
    """Write golden vectors of a model.

    Args:
        model: the shipped model file.
        samples: inputs, real ones if there are any.
        path: the file to write (docs/format.md section 8).
        count: maximum number of samples.
        earlier: golden vectors of an earlier release or another variant, whose inputs are used if the model runs on
            them.
        golden_bytes: limit of the bytes in a download and in an update; None for the default budgets.
        provider: execution provider and session options of the variant.

    Raises:
        GoldenUnstable: no sample has the same finite outputs from run to run.
        SampleHasNan: all samples have NaN in an input and in an output.
        ModelDoesNotRun: the model does not load, or does not run on a sample.
        ModelCrashes: the subprocess ended without a result.
    """
    interface = ModelInterface.from_file(model)
    is_stateful = is_tflite(model) and read_facts(model).is_stateful
    recorded = None
    if earlier is not None and fits_model(earlier.inputs, interface):
        with suppress(ModelDoesNotRun):  # for example numbers of words that a smaller vocabulary lacks
            recorded = _run(model, expand_repeats(earlier.inputs)[:count], provider, is_stateful=is_stateful)
    if recorded is None or not recorded.inputs:
        limit = download_budget(_model_bytes(model), golden_bytes)
        limit -= min(limit // 2, update_budget(0, golden_bytes))
        if is_stateful:
            chosen = choose_sequence(samples, count)
        else:
            chosen = choose_inputs(samples, count, limit, partial(shows_damage, model), partial(rank_inputs, model))
        recorded = _run(model, chosen, provider, is_stateful=is_stateful)
    if not recorded.inputs:
        raise recorded.refusal(model)
    floor = QUANTIZED_FLOOR_PPM if _is_quantized(model) else FLOAT_FLOOR_PPM
    rows = _describe(recorded, earlier, floor)
    recorded = recorded.take(_affordable_samples(recorded, rows, update_budget(0, golden_bytes)))
    data, worst_ppm = _write(recorded, rows)
    if worst_ppm > TOLERANCE_CEILING_PPM:
        raise GoldenUnstable(
            f"{model}: outputs differ by {worst_ppm} ppm between thread counts and optimization levels, "
            f"at most {TOLERANCE_CEILING_PPM} ppm allowed",
            hint="remove random or uninitialized operators from the model, or make no golden vectors (--golden 0; in a "
            "release file golden = 0)",
        )
    part = path.with_name(path.name + ".part")
    part.write_bytes(data)
    part.replace(path)
    tolerance = min(TOLERANCE_CEILING_PPM, max(floor, round(TOLERANCE_HEADROOM * worst_ppm)))
    changing = _scale_bytes(rows) + len(recorded.inputs) * _sample_bytes(recorded, rows)
    digest = hashlib.sha256(data).hexdigest()
    return GoldenReport(len(recorded.inputs), tolerance, worst_ppm, len(data), changing, digest)


@dataclass(frozen=True, slots=True)
class _Recorded:
    """Usable samples with their outputs.

    Attributes:
        inputs: stored inputs of each sample.
        outputs: outputs of each sample.
        runs: the outputs of each sample in further runs, [sample][run].
        has_nan_input: an unusable sample had NaN in an input.
        refused: number of unusable samples.
    """

    inputs: list[StoredSample]
    outputs: list[Sample]
    runs: list[list[Sample]]
    has_nan_input: bool
    refused: int

    def take(self, count: int) -> "_Recorded":
        return replace(self, inputs=self.inputs[:count], outputs=self.outputs[:count], runs=self.runs[:count])

    def refusal(self, model: Path) -> Exception:
        if self.has_nan_input:
            return SampleHasNan(
                f"{model}: {self.refused} samples have NaN in an input, and the outputs are NaN too",
                hint="leave the samples out, or fill in missing values as the application does",
            )
        return GoldenUnstable(
            f"{model}: none of {self.refused} samples has finite outputs that are the same from run to run",
            hint="give smaller or more typical inputs with --inputs FILE.npz, or repair weights that are not finite",
        )


def _is_quantized(model: Path) -> bool:
    if is_tflite(model):
        return read_facts(model).is_quantized
    return has_quantized_operators(load_outline(model))


def _run(model: Path, stored: list[StoredSample], provider: Provider, *, is_stateful: bool) -> _Recorded:
    """Run the model, and keep the samples that can be golden vectors."""
    settings = RunSettings(provider=provider)
    if provider == ON_CPU and not is_tflite(model):
        settings = settings_for(load_outline(model))
    others = (replace(one, integer_kernels=settings.integer_kernels, provider=provider) for one in RUN_SETTINGS)
    every = tuple(dict.fromkeys((settings, *others)))  # one of the others is `settings`
    count, has_nan_input = len(stored), False
    while True:
        inputs = decode_samples(stored)
        # the first sample runs twice in each session: random operators draw the same numbers in every new session
        results = run_model(model, [*inputs, *([] if is_stateful else inputs[:1])], every)
        outputs = results[0][: len(inputs)]
        runs = [[result[number] for result in results[1:]] for number in range(len(inputs))]
        if not is_stateful:
            runs[0] += [result[-1] for result in results]
        usable = [
            number
            for number, golden in enumerate(outputs)
            if _is_usable(golden) and all(_is_same_form(found, golden) for found in runs[number])
        ]
        has_nan_input |= any(
            array.dtype.kind == "f" and bool(np.isnan(array).any())
            for number, sample in enumerate(inputs)
            if number not in usable
            for array in sample.values()
        )
        is_numbered = any(item.code == "noise" for sample in stored for item in sample.values())
        is_final = len(usable) == len(stored) or not usable or not (is_numbered or is_stateful)
        stored = [stored[number] for number in usable]
        if is_final:  # otherwise noise or the state has changed with the numbers of the samples
            kept = [outputs[number] for number in usable], [runs[number] for number in usable]
            return _Recorded(stored, *kept, has_nan_input, count - len(usable))


def _is_usable(outputs: Sample) -> bool:
    return all(array.dtype.kind in "biufU" for array in outputs.values()) and all(
        bool(np.isfinite(array).all()) for array in outputs.values() if array.dtype.kind == "f"
    )


def _is_same_form(found: Sample, outputs: Sample) -> bool:
    """Return whether two runs agree in shapes, dtypes, and all values but floats, which must be finite."""
    for name, golden in outputs.items():
        output = found[name]
        if output.shape != golden.shape or output.dtype.kind != golden.dtype.kind:
            return False
        if not (np.isfinite(output).all() if golden.dtype.kind == "f" else np.array_equal(output, golden)):
            return False
    return True


def _describe(recorded: _Recorded, earlier: GoldenFile | None, floor_ppm: int) -> tuple[OutputRow, ...]:
    """Choose the scales of the outputs; those of channels are an earlier release's if they fit."""
    draft = describe_outputs(recorded.outputs)
    noise = {row.name: _channel_noise(recorded, row.name, row.axis) for row in draft if row.axis is not None}
    rows = describe_outputs(recorded.outputs, noise, noise_limit=NOISE_SHARE * floor_ppm / 1e6)
    known = {(row.name, row.axis): row.scale for row in (earlier.rows if earlier is not None else ())}
    return tuple(
        row if row.scale is None else replace(row, scale=keep_channels(row.scale, known.get((row.name, row.axis))))
        for row in rows
    )


def _channel_noise(recorded: _Recorded, name: str, axis: int) -> Floats:
    """Return the largest RMS by which a run differs in each channel, float64 [channels]."""
    worst = np.zeros(recorded.outputs[0][name].shape[axis])
    for golden, runs in zip(recorded.outputs, recorded.runs, strict=True):
        for found in runs:
            difference = np.moveaxis(found[name].astype(np.float64) - golden[name].astype(np.float64), axis, 0)
            worst = np.maximum(worst, np.sqrt(np.square(difference.reshape(len(worst), -1)).mean(axis=1)))
    return worst


def _write(recorded: _Recorded, rows: tuple[OutputRow, ...]) -> tuple[bytes, int]:
    """Return the file, and the largest error of a run in parts per million, as a device measures it."""
    inputs = mark_repeats(recorded.inputs)
    vectors = read_golden_file(write_golden_file(inputs, recorded.outputs, rows)).samples
    worst = 0.0
    steady: dict[tuple[int, str], bool] = {}
    for vector, runs in zip(vectors, recorded.runs, strict=True):
        for outputs in runs:
            found = summarize(outputs, rows, vector.number, vector.facts)
            worst = max(worst, *(error / share for _, error, share in measure_errors(found, vector)), 0.0)
            for name, facts in found.facts.items():
                key = (vector.number, name)
                steady[key] = steady.get(key, True) and facts.position == vector.facts[name].position
    return write_golden_file(inputs, recorded.outputs, rows, steady), round(1e6 * worst)


def _sample_bytes(recorded: _Recorded, rows: Sequence[OutputRow]) -> int:
    return max(expected_size(rows, [np.shape(sample[row.name]) for row in rows]) for sample in recorded.outputs)


def _scale_bytes(rows: Sequence[OutputRow]) -> int:
    return sum(scale_size(row.scale.channels) for row in rows if row.scale is not None)


def _affordable_samples(recorded: _Recorded, rows: Sequence[OutputRow], limit_bytes: int) -> int:
    left = limit_bytes - FRAME_BYTES - _scale_bytes(rows)
    return min(len(recorded.inputs), max(1, left // max(_sample_bytes(recorded, rows), 1)))


def _model_bytes(model: Path) -> int:
    return model.stat().st_size + sum((model.parent / name).stat().st_size for name in external_data(model))
