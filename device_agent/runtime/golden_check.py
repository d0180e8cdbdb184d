"""Run a model's golden inputs and compare the outputs, in the probe and in a serving process."""

from collections.abc import Callable, Sequence

from bundle.golden.comparison import GoldenVector, check_outputs
from device_agent.errors import NanOutput
from device_agent.runtime.loaded_model import LoadedModel
from device_agent.runtime.tensors import has_non_finite


def check_golden_samples(
    model: LoadedModel,
    samples: Sequence[GoldenVector],
    tolerance_ppm: int,
    on_sample: Callable[[str], object] = lambda _name: None,
) -> float:
    """Run the golden inputs on a model in its initial state, and compare the outputs.

    Args:
        model: the loaded model.
        samples: its golden samples.
        tolerance_ppm: maximum relative RMS error, in parts per million.
        on_sample: called with the name of each sample before it runs.

    Returns:
        The largest relative RMS error of the float outputs.

    Raises:
        GoldenMismatch: an output differs by more than the tolerance.
        NanOutput: an output has NaN or infinity.
        InferenceFailed: a run failed.
    """
    worst = 0.0
    model = model.in_initial_state()
    for number, sample in enumerate(samples):
        where = f"golden {number}"
        on_sample(where)
        outputs = model.infer(sample.inputs)
        for row in sample.rows:
            if row.name in outputs and has_non_finite(outputs[row.name]):
                # checked before the tolerance: NaN has a reason of its own
                raise NanOutput(f"{where}: output {row.name!r} has NaN or infinity")
        worst = max(worst, check_outputs(outputs, sample, tolerance_ppm=tolerance_ppm, where=where))
    return worst
