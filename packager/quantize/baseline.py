"""Measure the baseline of an int8 model that another tool made.
It is the error of plain int8 quantization of the same float model.

Plain is int8 per channel with nothing kept in float, static and dynamic. The larger error of the two counts, so that
neither kind of model is measured by the other's figure.
"""

from pathlib import Path

from packager.errors import ModelDoesNotRun, QuantizationRefused
from packager.models.model_files import model_bytes
from packager.models.samples import Samples
from packager.models.sessions import open_session, open_session_of
from packager.quantize.candidates import CandidateBuilder, Method
from packager.quantize.gate import Thresholds, judge
from packager.quantize.prepare import prepare_model

BASELINE_METHODS: tuple[Method, ...] = ("static", "dynamic")


def baseline_error(model: Path, samples: Samples, thresholds: Thresholds) -> float | None:
    """Return the relative RMS of the worst output of `model` after plain quantization.

    Half of the samples calibrate; all are judged, as the model in question is judged on all.

    Args:
        model: the float model.
        samples: inputs to run the model on.
        thresholds: a method whose own error exceeds `max_relative_rms` does not count.

    Returns:
        None if no method applies.

    Raises:
        ModelUnreadable, ModelDoesNotRun, AlreadyQuantized, WeightsNotFinite: the float model cannot be used.
    """
    prepared = prepare_model(model, next(iter(samples.take(1)))).integer_model
    builder = CandidateBuilder(prepared, samples.split_halves()[0], model_bytes(model))
    reference = open_session(model)
    errors: list[float] = []
    for method in BASELINE_METHODS:
        try:
            error = judge(reference, open_session_of(builder.build(method, is_partial=True)), samples).relative_rms
        except (QuantizationRefused, ModelDoesNotRun):
            continue
        if error is not None and error <= thresholds.max_relative_rms:
            errors.append(error)
    return max(errors, default=None)
