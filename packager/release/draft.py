"""The values that the steps of a release read and create.

A variant grows from step to step, and each stage is a type of its own, so that a step cannot read a value that a later
step creates:

    VariantPlan       (release file)
    QuantizedVariant  created by quantize, completed by compare
    DeviceChecks      created by golden
    AssembledVariant  created by assemble, completed by diff
    EncryptedVariant  created by encrypt

`Draft` stores each stage by the name of the variant. A dropped variant keeps only its reason.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from bundle.contract import Contract, Health
from bundle.errors import Bug
from bundle.files import BundleDigest, BundleDirectory
from bundle.frames import Secret
from bundle.manifest import Manifest
from bundle.requirements import Requirements, Runtime
from bundle.variant import Measured, PatchEntry, Quantization
from packager.models.provider_session import ON_CPU, Provider
from packager.release.release_plan import ReleasePlan, VariantPlan
from packager.repository.repository import Repository
from packager.repository.workspace import Workspace

if TYPE_CHECKING:
    from concurrent.futures import Executor

    from securesystemslib.signer import Signer

    from packager.diff.write.patch_report import PatchReport
    from packager.models.golden_vectors import GoldenReport
    from packager.models.samples import Samples
    from packager.models.trial_run import MemoryUse
    from packager.quantize.gate import GateReport
    from packager.quantize.latency import Latency
    from packager.quantize.quantization_report import QuantizationReport
    from packager.quantize.update_aware.quantize_update import UpdateReport
    from packager.repository.publishing import PublishReport
    from packager.repository.staging import SignReport

Progress = Callable[[int, int], None]


class Reporter(Protocol):
    """Receives the progress of a release."""

    def step(self, name: str, number: int, count: int) -> None:
        """Report the start of a step.

        Args:
            name: name of the step.
            number: its number, from 1.
            count: number of steps.
        """
        ...

    def note(self, text: str) -> None:
        """Report one line for the user."""
        ...

    def bar(self, label: str) -> Progress:
        """Return a function of (done, total) that reports progress under `label`."""
        ...


class SilentReporter:
    """A `Reporter` that reports nothing."""

    def step(self, name: str, number: int, count: int) -> None:
        """Ignore the start of a step.

        Args:
            name: name of the step.
            number: its number, from 1.
            count: number of steps.
        """

    def note(self, text: str) -> None:
        """Ignore a line for the user."""

    def bar(self, label: str) -> Progress:  # noqa: ARG002  # the protocol names it
        """Return a function that ignores its arguments."""
        return lambda _done, _total: None


@dataclass(frozen=True, slots=True)
class PatchBase:
    """A bundle to create a patch from; `version` is shown to people only."""

    version: str
    digest: BundleDigest
    directory: BundleDirectory


@dataclass(frozen=True, slots=True)
class PlainPatch:
    """A patch before encryption; `base` None is a full download."""

    base: PatchBase | None
    path: Path
    report: "PatchReport"


@dataclass(frozen=True, slots=True)
class QuantizedUpdate:
    """An update-aware quantization near the variant of an earlier release.

    Attributes:
        version: version of the earlier release.
        quantization: quantization of the earlier variant.
        report: result of the search.
    """

    version: str
    quantization: Quantization
    report: "UpdateReport"


@dataclass(frozen=True, slots=True)
class QuantizedVariant:
    """A variant with its model file.

    Attributes:
        plan: the variant's table of the release file.
        model: the model file that is released (before a fire drill); None if the agent runs no model.
        report: result of the quantization, or None if the model was not quantized, or is an update.
        update: result of the update-aware quantization, or None.
        gate: comparison with the reference model, set by the step compare; None if the model is the reference itself.
        quantization: the manifest's record of the quantization, set by the step compare.
        latency: latency relative to the float model; None if it was not measured.
    """

    plan: VariantPlan
    model: Path | None
    report: "QuantizationReport | None" = None
    update: QuantizedUpdate | None = None
    gate: "GateReport | None" = None
    quantization: Quantization = field(default_factory=Quantization)
    latency: "Latency | None" = None

    @property
    def name(self) -> str:
        """The variant's name in the manifest."""
        return self.plan.name

    def require_model(self) -> Path:
        """Return the model file of a variant whose model the agent runs."""
        if self.model is None:
            raise Bug(f"variant {self.name!r} has no model")
        return self.model


@dataclass(frozen=True, slots=True)
class ModelChecks:
    """The limits that a device checks a further model against.

    Attributes:
        name: name of the model.
        contract: its inputs and outputs.
        golden: the recorded golden vectors, or None.
    """

    name: str
    contract: Contract
    golden: "GoldenReport | None"


@dataclass(frozen=True, slots=True)
class DeviceChecks:
    """The limits that a device checks a variant against.

    Attributes:
        contract: inputs and outputs of the model, or None if the agent runs no model.
        health: the health contract.
        golden: the recorded golden vectors, or None.
        no_golden_reason: cause of `golden` None, for the provenance.
        further: those of the further models, in order.
    """

    contract: Contract | None
    health: Health
    golden: "GoldenReport | None"
    no_golden_reason: str | None
    further: tuple[ModelChecks, ...] = ()


@dataclass(frozen=True, slots=True)
class AssembledVariant:
    """A variant with its bundle folder.

    Attributes:
        quantized: the variant's model.
        checks: the limits that a device checks.
        bundle: the bundle folder.
        runtime: runtime that the variant is made for.
        requires: requirements of the device.
        provenance: printable strings about the build, by name.
        measured: figures of this machine, for the manifest.
        patches: the patches, full downloads first; set by the step diff.
    """

    quantized: QuantizedVariant
    checks: DeviceChecks
    bundle: BundleDirectory
    runtime: Runtime
    requires: Requirements
    provenance: dict[str, str]
    measured: Measured = field(default_factory=Measured)
    patches: tuple[PlainPatch, ...] = ()

    @property
    def name(self) -> str:
        """The variant's name in the manifest."""
        return self.quantized.name


@dataclass(frozen=True, slots=True)
class EncryptedVariant:
    """A variant with encrypted patches.

    Attributes:
        assembled: the variant's bundle and patches.
        content_key: the key of all its blobs.
        entries: the manifest's entries of `assembled.patches`, in the same order.
    """

    assembled: AssembledVariant
    content_key: Secret
    entries: tuple[PatchEntry, ...]

    @property
    def name(self) -> str:
        """The variant's name in the manifest."""
        return self.assembled.name


@dataclass(slots=True)
class Draft:
    """A release in progress.

    Attributes:
        plan: the contents of the release file.
        repository: repository that the release is published in.
        signers: private keys on this machine.
        workspace: stores plain bundles and content keys.
        counter: counter of the release.
        created: time of the release, UTC, as in the manifest.
        folder: temporary folder, on the file system of the workspace.
        samples: inputs to measure and compare with.
        reporter: receives the progress.
        executor: runs parts of a diff; None runs them in this process.
        memory: memory of each model that ran in a process of its own, by its file and provider.
        quantized, checks, assembled, encrypted: the stages of each variant, by its name.
        drop_reasons: reasons of the variants that are left out, by name.
        notes: what a person who signs should know, one sentence each.
        manifest: the signed manifest, set by the step sign.
        envelopes: number of sealed envelopes.
        further_samples: inputs of the further models, by name.
        sign_report, publish_report: results of the steps sign and publish.
    """

    plan: ReleasePlan
    repository: Repository
    signers: "Sequence[Signer]"
    workspace: Workspace
    counter: int
    created: str
    folder: Path
    samples: "Samples"
    reporter: Reporter
    executor: "Executor | None" = None
    memory: dict[tuple[Path, Provider], "MemoryUse"] = field(default_factory=dict)
    quantized: dict[str, QuantizedVariant] = field(default_factory=dict)
    checks: dict[str, DeviceChecks] = field(default_factory=dict)
    assembled: dict[str, AssembledVariant] = field(default_factory=dict)
    encrypted: dict[str, EncryptedVariant] = field(default_factory=dict)
    drop_reasons: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    manifest: Manifest | None = None
    envelopes: int = 0
    further_samples: dict[str, "Samples"] = field(default_factory=dict)
    sign_report: "SignReport | None" = None
    publish_report: "PublishReport | None" = None

    def variant_folder(self, name: str) -> Path:
        """Return the temporary folder of a variant."""
        return self.folder / name

    def golden_path(self, name: str, model: str | None = None) -> Path:
        """Return the path of a variant's golden vectors.

        Args:
            name: name of the variant.
            model: name of a further model; None for the first one.
        """
        return self.variant_folder(name) / ("golden.bin" if model is None else f"golden-{model}.bin")

    def memory_of(self, model: Path, further: str | None = None, provider: Provider = ON_CPU) -> "MemoryUse":
        """Return the memory of a model; the first time, it runs in a process of its own.

        Args:
            model: the model's file.
            further: name of a further model; None for a file of the first one.
            provider: execution provider and session options.

        Raises:
            ModelDoesNotRun: the model does not load, or does not run on a sample.
            ModelCrashes: the model crashes its process.
        """
        from packager.models.trial_run import run_trial

        if (model, provider) not in self.memory:
            samples = self.samples if further is None else self.further_samples[further]
            self.memory[model, provider] = run_trial(model, samples, provider)
        return self.memory[model, provider]

    def note(self, text: str) -> None:
        """Report one sentence now, and again in the report of the release."""
        self.notes.append(text)
        self.reporter.note(text)

    def drop_variant(self, name: str, reason: str) -> None:
        """Leave a variant out of the release.

        Args:
            name: name of the variant.
            reason: why it is left out.
        """
        self.drop_reasons[name] = reason
        self.quantized.pop(name, None)
        self.reporter.note(f"variant {name} is left out: {reason}")
