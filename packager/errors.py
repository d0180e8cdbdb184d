"""Errors of the packager; the page of all errors is generated from these classes (`make docs`).

Choose the kind (bundle.errors) by how the caller must react, and the class by the cause. The class name is the reason
in CamelCase. A docstring's first sentence is the meaning of the error, its second is what to do.
"""

from bundle.errors import DigestMismatch, Invalid, Refused, Unavailable, Unfit
from bundle.errors import InvalidUsage as InvalidUsage


class ModelUnreadable(Invalid):
    """The file is missing or is not a model that the runtime loads. Name an ONNX or TFLite file. Files of
    other formats are released with runtime "app" or "none".
    """

    reason = "model-unreadable"


class ExternalDataMissing(ModelUnreadable):
    """A file with the model's external weights is not beside the model. Copy the model together with
    its external data.
    """

    reason = "external-data-missing"


class ModelDoesNotRun(Invalid):
    """ONNX Runtime does not load the model, or does not run it on a sample. Fix the model, or supply
    other samples.
    """

    reason = "model-does-not-run"


class InputUnsupported(Invalid):
    """A model input or output has a type, name or rank that requests cannot carry, such as a sequence.
    Export the model as the hint says.
    """

    reason = "input-unsupported"


class NoWorkingInput(Invalid):
    """No random input was found on which the model runs. Supply samples with --inputs, or with `inputs`
    in the release file.
    """

    reason = "no-working-input"


class SamplesUnreadable(Invalid):
    """The samples are not an `.npz` file, or the file is damaged. Write them again with numpy.savez."""

    reason = "samples-unreadable"


class SampleNameMismatch(Invalid):
    """The names of the sample arrays differ from the names of the model inputs. Store one array per
    model input, under its name.
    """

    reason = "sample-name-mismatch"


class SampleShapeMismatch(Invalid):
    """A sample array has another shape than the model input. Store arrays of shape [samples, *input
    shape].
    """

    reason = "sample-shape-mismatch"


class SampleDtypeMismatch(Invalid):
    """A sample array has another type than the model input. Convert the array to the type of the input."""

    reason = "sample-dtype-mismatch"


class SampleHasNan(Invalid):
    """A sample contains NaN, and so do the outputs. Remove the sample, or fix its preprocessing."""

    reason = "sample-has-nan"


class TooFewSamples(Invalid):
    """The command needs more samples than it was given. Supply more samples."""

    reason = "too-few-samples"


class AlreadyQuantized(Invalid):
    """The model already contains quantized weights. Start from the float model."""

    reason = "already-quantized"


class WeightsNotFinite(Invalid):
    """A weight of the model is NaN or infinite. Fix the training or the export of the model."""

    reason = "weights-not-finite"


class InterfaceMismatch(Invalid):
    """Two compared models have different inputs or outputs. Compare models with the same input and
    output names.
    """

    reason = "interface-mismatch"


class RuntimeNotInstalled(Unavailable):
    """The runtime of the model is not installed here. Install the extra that the message names."""

    reason = "runtime-not-installed"


class ProviderNotInstalled(Unavailable):
    """The execution provider of a variant does not run here. Make the release on a machine that has it."""

    reason = "provider-not-installed"


class MetricUnusable(Invalid):
    """The user's metric cannot be called, or does not return a number. Fix the metric, then check it
    with `packager compare --metric`.
    """

    reason = "metric-unusable"


class ModelCrashes(Unfit):
    """The model crashes the process that runs it. Fix the model, or try another version of ONNX Runtime."""

    reason = "model-crashes"


class QuantizationRefused(Unfit):
    """The model cannot be quantized with this scheme; the message names the cause. Choose another
    scheme, or ship the float variant.
    """

    reason = "quantization-refused"


class GateFailed(Unfit):
    """The model's outputs differ more from the reference model's than the gate allows. Supply more
    samples, choose another scheme, or raise the limits of the gate.
    """

    reason = "gate-failed"


class GateInconclusive(Unfit):
    """The samples cannot distinguish a good model from a bad one. Supply real samples of several kinds."""

    reason = "gate-inconclusive"


class GoldenUnstable(Unfit):
    """The model's outputs differ from run to run, so no golden vectors can be recorded. Remove
    randomness from the model, or set `golden = 0`.
    """

    reason = "golden-unstable"


class DrillInvalid(Invalid):
    """The fire drill is unknown, or the model has no weights or outputs to break. Choose another drill
    or model.
    """

    reason = "drill-invalid"


class ReleaseFileInvalid(Invalid):
    """The release file is missing, is not TOML, or has an invalid key or value. Fix the key that the
    message names.
    """

    reason = "release-file-invalid"


class InputFileMissing(Invalid):
    """A file that the release file or an option names does not exist. Correct the path; paths in a
    release file are relative to it.
    """

    reason = "input-file-missing"


class BundleNameInvalid(Invalid):
    """A file name is not allowed in a bundle. Rename the file."""

    reason = "bundle-name-invalid"


class UnknownFormat(Invalid):
    """The file is neither manifest, rollout, fleet document, patch, blob, shard nor bundle folder.
    Name another file.
    """

    reason = "unknown-format"


class VariantUnknown(Invalid):
    """The manifest has no variant of this name. Choose one of the variants that the message lists."""

    reason = "variant-unknown"


class BaseMissing(Invalid):
    """A base of a patch was never released, or its plain bundle or key is gone from the workspace.
    Choose another base, or restore the workspace from a copy.
    """

    reason = "base-missing"


class TooManyPatches(Invalid):
    """The manifest would list more patches than the format allows. Create fewer patches."""

    reason = "too-many-patches"


class NotReproduced(Refused):
    """A rebuilt release differs from the manifest. Compare inputs and versions before you sign."""

    reason = "not-reproduced"


class PatchCheckFailed(Refused):
    """A new patch does not make the files of its target, so it is not released.
    Create it again; if it fails again, check the disk and memory of the build machine.
    """

    reason = "patch-check-failed"


class SourceMissing(Unavailable):
    """A process that creates patches does not find an input file.
    Share the folder, or name a store for inputs.
    """

    reason = "source-missing"


class SourceMismatch(Refused):
    """A process that creates patches found other bytes than the input's digest.
    Find out who changed the file.
    """

    reason = "source-mismatch"


class QuantizationNotConfirmed(Refused):
    """A worker returned a quantized model that this machine does not make or judge as the worker says.
    Find out what runs on the worker, or quantize without `--executor`.
    """

    reason = "quantization-not-confirmed"


class VersionTaken(Invalid):
    """The version is already released or staged. Choose another version."""

    reason = "version-taken"


class FileNotFound(Invalid):
    """A named file or folder does not exist. Correct the path."""

    reason = "file-not-found"


class OutputExists(Invalid):
    """The output exists already, or is also an input. Name another output, or remove the existing one."""

    reason = "output-exists"


class ReleaseUnknown(Invalid):
    """The family has no release of this version. Choose one of the versions that the message lists."""

    reason = "release-unknown"


class ExtraMissing(Invalid):
    """A library of an optional extra is not installed. Install the extra that the message names."""

    reason = "extra-missing"


class NoPlan(Invalid):
    """A channel follows no signed plan. Sign one with `packager rollout plan`, and start its rollout."""

    reason = "no-plan"


class LinesMalformed(Invalid):
    """A file of device lines or evidence cannot be read. Name a file of JSON objects, one on each line."""

    reason = "lines-malformed"


class EvidenceMismatch(Refused):
    """The evidence of a decision does not lead to that decision. Find out who changed it."""

    reason = "evidence-mismatch"


class CensusDamaged(Refused):
    """The follower's list of the devices that a rollout counts is damaged. Restore it from a backup."""

    reason = "census-damaged"


class NotificationFailed(Unavailable):
    """A notification could not be delivered. Check the command or URL of --notify."""

    reason = "notification-failed"


class AttestationRefused(Refused):
    """The attestations are not signed by the required keys, or describe another release. Create them
    again with `packager attestation create`.
    """

    reason = "attestation-refused"


class ModelSignatureRefused(Refused):
    """The OpenSSF model signature is invalid, or the folder contains an entry that cannot be signed.
    Get the folder again from its publisher, or remove the entry.
    """

    reason = "model-signature-refused"


class BundleMismatch(DigestMismatch):
    """A plain bundle differs from the one that the manifest lists. Use the bundle of this release, or
    the manifest of this bundle.
    """

    reason = "bundle-mismatch"


class WorkspaceDamaged(Refused):
    """A bundle or key stored in the workspace is damaged. Restore the workspace from a copy."""

    reason = "workspace-damaged"


class BundleUnfit(Unfit):
    """The installed agent refuses the bundle, as devices would. Fix the cause that the message names."""

    reason = "bundle-unfit"


class BundleNotProbed(Unavailable):
    """The installed agent could not judge the bundle. Try again on an idle machine."""

    reason = "bundle-not-probed"


class NoVariantLeft(Unfit):
    """Every variant was left out, so there is nothing to release. Fix the causes that the message lists."""

    reason = "no-variant-left"


class DemoFailed(Unfit):
    """A check of the demo failed. Run it again on an idle machine; if it fails again, report it."""

    reason = "demo-failed"


class RepositoryMissing(Invalid):
    """The folder contains no repository. Name the repository's folder with --repo, or run `packager
    repo init`.
    """

    reason = "repository-missing"


class RepositoryExists(Invalid):
    """The folder already contains a repository. Choose another folder."""

    reason = "repository-exists"


class FamilyUnknown(Invalid):
    """The repository delegates no such family. Run `packager keys family add`, or correct the name."""

    reason = "family-unknown"


class StagingInvalid(Invalid):
    """The change contradicts the published repository. Correct the command as the message says."""

    reason = "staging-invalid"


class NothingStaged(Invalid):
    """No change is staged to sign or publish. Stage a change first, for example with `packager release`."""

    reason = "nothing-staged"


class BelowThreshold(Invalid):
    """Fewer keys of a role have signed than its threshold requires. Sign with the keys that `packager
    repo status` lists.
    """

    reason = "below-threshold"


class RepositoryDamaged(Refused):
    """A published or staged file differs from the signed one. Restore the repository from a copy."""

    reason = "repository-damaged"


class SigningRequestReplayed(Refused):
    """The signing request is older than the last signed one, or a second one on the same base. Ask for
    a new request; add --replace if the correction is intended.
    """

    reason = "signing-request-replayed"


class RepositoryUnknown(Refused):
    """The signing request is from a repository that this key has not signed for on this machine. Check
    the repository, then add --new-repository.
    """

    reason = "repository-unknown"


class SigningHistoryDamaged(Refused):
    """The signing history on this machine cannot be read. Restore the folder of --history from a copy."""

    reason = "signing-history-damaged"


class SignatureRefused(Refused):
    """A signature does not match the staged document, or its key may not sign it. Sign the current
    request with a key of the role.
    """

    reason = "signature-refused"


class PublishConflict(Unavailable):
    """Another process published in the meantime, or is publishing now. Run the command again."""

    reason = "publish-conflict"


class BaseIncompatible(Unfit):
    """The new model's graph or weights differ too much from the base for an update-aware encoding.
    Quantize the model without --update-of.
    """

    reason = "base-incompatible"


class ServedCheckFailed(Unavailable):
    """The device's fetcher, which checks what is served, does not run on this machine. Install the agent's
    libraries, or run the command on another machine.
    """

    reason = "served-check-failed"


class WindowInvalid(Invalid):
    """A maintenance window or its time zone is malformed, or all windows have closed. Correct `--window`."""

    reason = "window-invalid"


class RolloutBackwards(Invalid):
    """The change would point a channel at an older release than it runs. Pass `--allow-older` if this is
    intended.
    """

    reason = "rollout-backwards"
