"""What ordinary int8 quantization of a model costs: the yardstick for an int8 model of other origin.

Rules:
1. Ordinary is int8 per channel with nothing kept in float, static and dynamic; the larger error of the two counts, so
   that neither kind of model is held to the other's figure.
2. A method whose own error is beyond the floor is no yardstick.
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
    """Relative RMS of the worst output of `model`, quantized in an ordinary way; None where no method applies.

    Half of the samples calibrate; all are judged, as the model of other origin is judged on all.

    Raises:
        ModelUnreadable, ModelDoesNotRun, AlreadyQuantized, WeightsNotFinite.
    """
    prepared = prepare_model(model, next(iter(samples.take(1)))).model
    workshop = CandidateBuilder(prepared, samples.split_halves()[0], model_bytes(model))
    reference = open_session(model)
    found: list[float] = []
    for method in BASELINE_METHODS:
        try:
            error = judge(reference, open_session_of(workshop.build(method, is_partial=True)), samples).relative_rms
        except (QuantizationRefused, ModelDoesNotRun):
            continue
        if error is not None and error <= thresholds.max_relative_rms:
            found.append(error)
    return max(found, default=None)
