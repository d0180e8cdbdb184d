"""What can go wrong while a release is made.

AirweightsError
├── Invalid
│   ├── ModelUnreadable          model-unreadable          not an ONNX model, or no such file
│   │   └── ExternalDataMissing  external-data-missing     the weights that it names are not beside it
│   ├── ModelDoesNotRun          model-does-not-run        the runtime does not load it, or not run it on a sample
│   ├── InputUnsupported         input-unsupported         strings, sequences, maps
│   ├── NoWorkingInput           no-working-input          no size was found at which the model runs
│   ├── SamplesUnreadable        samples-unreadable        not an .npz, or damaged
│   ├── SampleNameMismatch       sample-name-mismatch      arrays that the model does not take, or too few
│   ├── SampleShapeMismatch      sample-shape-mismatch
│   ├── SampleDtypeMismatch      sample-dtype-mismatch
│   ├── TooFewSamples            too-few-samples
│   ├── AlreadyQuantized         already-quantized         the model holds quantized weights
│   ├── WeightsNotFinite         weights-not-finite        NaN or infinity among the weights
│   └── MetricUnusable           metric-unusable           the user's metric cannot be called, or gives no number
└── Unfit
    ├── ModelCrashes             model-crashes             it takes its process down
    ├── QuantizationRefused      quantization-refused      no scheme fits; the message says why
    ├── GateFailed               gate-failed               further from the float model than allowed
    ├── GateInconclusive         gate-inconclusive         the samples cannot show a difference
    └── GoldenUnstable           golden-unstable           answers differ from run to run
"""

from bundle.errors import Invalid, Unfit


class ModelUnreadable(Invalid):
    """Not an ONNX model, or no such file."""

    reason = "model-unreadable"


class ExternalDataMissing(ModelUnreadable):
    """The weights that a model names are not beside it."""

    reason = "external-data-missing"


class ModelDoesNotRun(Invalid):
    """The runtime does not load the model, or does not run it on a sample."""

    reason = "model-does-not-run"


class InputUnsupported(Invalid):
    """An input or output that is not a tensor of numbers."""

    reason = "input-unsupported"


class NoWorkingInput(Invalid):
    """No size was found at which the model runs."""

    reason = "no-working-input"


class SamplesUnreadable(Invalid):
    """Not an `.npz`, or a damaged one."""

    reason = "samples-unreadable"


class SampleNameMismatch(Invalid):
    """Arrays that the model does not take, or too few of them."""

    reason = "sample-name-mismatch"


class SampleShapeMismatch(Invalid):
    """An array whose samples do not have the shape that the model takes."""

    reason = "sample-shape-mismatch"


class SampleDtypeMismatch(Invalid):
    """An array of another type than the model takes."""

    reason = "sample-dtype-mismatch"


class TooFewSamples(Invalid):
    """Not enough samples for what was asked."""

    reason = "too-few-samples"


class AlreadyQuantized(Invalid):
    """A model that already holds quantized weights."""

    reason = "already-quantized"


class WeightsNotFinite(Invalid):
    """NaN or infinity among the weights."""

    reason = "weights-not-finite"


class MetricUnusable(Invalid):
    """A user's metric that cannot be called, or gives no number."""

    reason = "metric-unusable"


class ModelCrashes(Unfit):
    """A model that takes its process down."""

    reason = "model-crashes"


class QuantizationRefused(Unfit):
    """No way to quantize this model; the message says why."""

    reason = "quantization-refused"


class GateFailed(Unfit):
    """The quantized model's answers are further from the float model's than the gate allows."""

    reason = "gate-failed"


class GateInconclusive(Unfit):
    """The samples cannot tell a good model from a bad one."""

    reason = "gate-inconclusive"


class GoldenUnstable(Unfit):
    """A model whose answers differ from run to run, so that no golden vector can be made."""

    reason = "golden-unstable"


class DrillInvalid(Invalid):
    """A fire drill that is not known, or that the model offers no place for."""

    reason = "drill-invalid"
