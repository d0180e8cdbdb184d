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
│   ├── SampleHoldsNan           sample-holds-nan          NaN in a sample: nothing can be measured on it
│   ├── TooFewSamples            too-few-samples
│   ├── AlreadyQuantized         already-quantized         the model holds quantized weights
│   ├── WeightsNotFinite         weights-not-finite        NaN or infinity among the weights
│   ├── InterfaceMismatch        interface-mismatch        models that are compared differ in inputs or outputs
│   ├── MetricUnusable           metric-unusable           the user's metric cannot be called, or gives no number
│   ├── UsageInvalid             usage                     an option or argument that the command does not take
│   ├── ReleaseFileInvalid       release-file              a release.toml that is missing, or says what has no meaning
│   ├── ReleaseFileMissing       release-file-missing      a file that a release.toml names is not there
│   ├── BundleNameInvalid        bundle-name               a file name that a bundle cannot hold
│   ├── NotRecognized            not-recognized            no manifest, patch, blob, envelope, rollout or bundle
│   ├── UnknownVariant           unknown-variant           the manifest has no variant of that name
│   ├── BaseMissing              base-missing              a base to diff from was not released, or is no longer here
│   ├── TooManyPatches           too-many-patches          more than a manifest may name
│   ├── VersionTaken             version-taken             the version was released before
│   ├── NoSuchPlace              no-such-place             a file or folder that was named is not there
│   ├── OutputExists             output-exists             what would be written is there already
│   ├── ReleaseUnknown           release-unknown           the family has no release of that version
│   ├── ExtraMissing             extra-missing             a library of one of the extras is not installed
│   ├── DrillInvalid             drill-invalid             the model offers nothing for a drill to break
│   ├── RepositoryMissing        repository-missing        no repository in this folder
│   ├── RepositoryExists         repository-exists         a repository is never made over another
│   ├── FamilyUnknown            family-unknown            the repository delegates no such family
│   ├── StagingInvalid           staging-invalid           what would be staged contradicts what is published
│   ├── NothingStaged            nothing-staged            there is nothing to sign or to publish
│   └── BelowThreshold           below-threshold           too few keys of a role have signed
├── Refused
│   ├── RepositoryDamaged        repository-damaged        a published or staged file is not what was signed
│   ├── RequestReplayed          request-replayed          an old signing request, or a second one on the same base
│   ├── RepositoryUnfamiliar     repository-unfamiliar     a key that signed for one repository is to sign for another
│   ├── SignerMemoryDamaged      signer-memory-damaged     what was signed here before cannot be read
│   ├── SignatureRefused         signature-refused         not over the staged document, or by a key that may not
│   ├── BundleMismatchRefused    bundle-mismatch           a plain bundle is not the one that the manifest lists
│   ├── ReportRefused            report                    of a device that is not ours, or with another's signature
│   │   ├── ReportForked         report-forked             another report of the same number was accepted
│   │   └── ReportGap            report-gap                reports before it are missing
│   ├── AttestationRefused       attestation               attestations that do not hold, or are of another release
│   ├── ModelSignatureRefused    model-signature           an OpenSSF model signature that does not hold
│   └── WorkspaceRefused         workspace                 a kept bundle or key is not what was kept
├── Unavailable
│   └── PublishConflict          publish-conflict          somebody else published, or is publishing
└── Unfit
    ├── ModelCrashes             model-crashes             it takes its process down
    ├── QuantizationRefused      quantization-refused      no scheme fits; the message says why
    ├── GateFailed               gate-failed               further from the float model than allowed
    ├── GateInconclusive         gate-inconclusive         the samples cannot show a difference
    ├── GoldenUnstable           golden-unstable           answers differ from run to run
    ├── NoVariantLeft            no-variant-left           every variant was refused by its gate
    └── DemoUnproven             demo-unproven             the demo ran and one of its claims did not hold
"""

from bundle.errors import DigestMismatch, Invalid, Refused, Unavailable, Unfit
from bundle.errors import InvalidUsage as InvalidUsage


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


class SampleHasNan(Invalid):
    """NaN in a sample: nothing can be measured on it."""

    reason = "sample-has-nan"


class TooFewSamples(Invalid):
    """Not enough samples for what was asked."""

    reason = "too-few-samples"


class AlreadyQuantized(Invalid):
    """A model that already holds quantized weights."""

    reason = "already-quantized"


class WeightsNotFinite(Invalid):
    """NaN or infinity among the weights."""

    reason = "weights-not-finite"


class InterfaceMismatch(Invalid):
    """Two models that are compared do not take the same inputs, or do not give the same outputs."""

    reason = "interface-mismatch"


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


class ReleaseFileInvalid(Invalid):
    """A release.toml that is missing, or says what has no meaning."""

    reason = "release-file-invalid"


class InputFileMissing(Invalid):
    """A file that a release.toml names is not there."""

    reason = "input-file-missing"


class BundleNameInvalid(Invalid):
    """A file name that a bundle cannot hold."""

    reason = "bundle-name-invalid"


class UnknownFormat(Invalid):
    """Neither a manifest, a patch, a blob, an envelope, a rollout nor a bundle folder."""

    reason = "unknown-format"


class VariantUnknown(Invalid):
    """The manifest has no variant of that name."""

    reason = "variant-unknown"


class BaseMissing(Invalid):
    """A base to diff from was not released, or its plain bundle is no longer here."""

    reason = "base-missing"


class TooManyPatches(Invalid):
    """More patches than a manifest may name."""

    reason = "too-many-patches"


class VersionTaken(Invalid):
    """The version was released before."""

    reason = "version-taken"


class FileNotFound(Invalid):
    """A file or folder that was named is not there."""

    reason = "file-not-found"


class OutputExists(Invalid):
    """What would be written is there already."""

    reason = "output-exists"


class ReleaseUnknown(Invalid):
    """The family has no release of that version."""

    reason = "release-unknown"


class ExtraMissing(Invalid):
    """A library of one of the extras is not installed."""

    reason = "extra-missing"


class ReportRefused(Refused):
    """A report of a device that is not registered or is revoked, or whose signature does not hold."""

    reason = "report-refused"


class ReportForked(ReportRefused):
    """A device that reports two different things under one number: its disk was put back, or copied."""

    reason = "report-forked"


class ReportGap(ReportRefused):
    """Reports before this one are missing."""

    reason = "report-gap"


class AttestationRefused(Refused):
    """Attestations that are not signed as they should be, or are of another release."""

    reason = "attestation-refused"


class ModelSignatureRefused(Refused):
    """An OpenSSF model signature that does not hold, or a folder that cannot be signed."""

    reason = "model-signature-refused"


class BundleMismatch(DigestMismatch):
    """A plain bundle is not the one that the manifest lists."""

    reason = "bundle-mismatch"


class WorkspaceDamaged(Refused):
    """A kept bundle or key is not what was kept."""

    reason = "workspace-damaged"


class NoVariantLeft(Unfit):
    """Every variant was refused by its gate."""

    reason = "no-variant-left"


class DemoFailed(Unfit):
    """The demo ran and one of its claims did not hold."""

    reason = "demo-failed"


class RepositoryMissing(Invalid):
    """There is no repository in the folder."""

    reason = "repository-missing"


class RepositoryExists(Invalid):
    """A repository is never made over another."""

    reason = "repository-exists"


class FamilyUnknown(Invalid):
    """The repository delegates no such family."""

    reason = "family-unknown"


class StagingInvalid(Invalid):
    """What would be staged contradicts what is published."""

    reason = "staging-invalid"


class NothingStaged(Invalid):
    """There is nothing to sign or to publish."""

    reason = "nothing-staged"


class BelowThreshold(Invalid):
    """Too few keys of a role have signed."""

    reason = "below-threshold"


class RepositoryDamaged(Refused):
    """A published or staged file is not what was signed."""

    reason = "repository-damaged"


class SigningRequestReplayed(Refused):
    """A signing request that is older than what was signed last, or another one on the same base."""

    reason = "signing-request-replayed"


class RepositoryUnknown(Refused):
    """A request of a repository that is new here, for a key that signed here for another one."""

    reason = "repository-unknown"


class SigningHistoryDamaged(Refused):
    """A signer's own copy of what it signed last cannot be read."""

    reason = "signing-history-damaged"


class SignatureRefused(Refused):
    """A signature that is not over the staged document, or by a key that may not sign it."""

    reason = "signature-refused"


class PublishConflict(Unavailable):
    """Somebody else published in between, or is publishing now."""

    reason = "publish-conflict"


class BaseIncompatible(Unfit):
    """A new model whose graph or weights are too far from the base's for an update to be made from it."""

    reason = "base-incompatible"
