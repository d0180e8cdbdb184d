"""Judge an update that another process quantized, with figures of this process.

Rules:
1. The update is the base with other numbers: the same graph, names, shapes and types. Anything else is refused before
   a runtime loads it.
2. Baseline and unchanged base are measured here, too: an update is judged relative to them.
"""

from pathlib import Path
from typing import Final

import onnx

from bundle.patch.single_thread import use_single_thread
from packager.errors import ModelUnreadable
from packager.models.graphs import all_tensors
from packager.models.inputs import load_proto
from packager.models.samples import Samples
from packager.models.sessions import CachedSession, open_session, open_session_of, settings_for
from packager.quantize.gate import GateReport, Thresholds, judge
from packager.quantize.prepare import prepare_model
from packager.quantize.update_aware.matching_baseline import quantize_like_template
from packager.quantize.update_aware.quantize_update import MAX_SAMPLES

VALUE_FIELDS: Final = (
    *("raw_data", "float_data", "int32_data", "int64_data", "double_data", "uint64_data", "string_data"),
)


@use_single_thread()
def judge_update(
    new: Path, base: Path, update: Path, calibration: Samples, held_out: Samples, thresholds: Thresholds
) -> tuple[GateReport, GateReport, GateReport]:
    """Return the gates of the update, the baseline and the unchanged base, as `quantize_update` does.

    Args:
        new: the new release's float model.
        base: the quantized model on the devices.
        update: the model to judge.
        calibration: inputs from which the baseline is quantized.
        held_out: inputs that judge.
        thresholds: limits of the gate.

    Raises:
        ModelUnreadable: the update is not the base with other numbers.
        AirweightsError: the model cannot be quantized, or does not run.
    """
    template, model = load_proto(base), load_proto(update, external_data=False)
    if _without_values(template) != _without_values(model):
        raise ModelUnreadable("the model of a worker is not the base with other numbers")
    calibration = calibration.take(MAX_SAMPLES)
    prepared = prepare_model(new, next(iter(calibration.take(1)))).like(template)
    reference = CachedSession(open_session(new))

    def judge_alone(one: onnx.ModelProto) -> GateReport:
        return judge(reference, open_session_of(one, settings_for(one)), held_out, thresholds)

    baseline, unchanged = judge_alone(quantize_like_template(template, prepared, calibration)), judge_alone(template)
    gate = judge(
        reference,
        open_session_of(model, settings_for(model)),
        held_out,
        thresholds,
        baseline_rms=baseline.relative_rms,
        unchanged_base_rms=unchanged.relative_rms,
    )
    return gate, baseline, unchanged


def _without_values(model: onnx.ModelProto) -> bytes:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for tensor in all_tensors(copy):
        for name in VALUE_FIELDS:
            tensor.ClearField(name)
    return bytes(copy.SerializeToString(deterministic=True))
