"""A release in the making: what the steps read and fill in, and what they ask of the world.

Rules:
1. A step reads what earlier steps have put here and fills in its own part; it never looks at a later one's.
2. A variant that is dropped stays here with its reason; steps work on `kept` ones only.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from bundle.contract import Contract, Health
from bundle.files import BundleDigest, BundleDirectory
from bundle.frames import Secret
from bundle.manifest import Manifest, PatchEntry, Quantization, Requirements
from packager.release.release_file import ReleasePlan, VariantPlan
from packager.repository.repository import Repository
from packager.repository.workspace import Workspace

if TYPE_CHECKING:
    from concurrent.futures import Executor

    from securesystemslib.signer import Signer

    from packager.diff.write.patch_report import PatchReport
    from packager.models.golden_vectors import GoldenReport
    from packager.models.samples import Samples
    from packager.quantize.gate import GateReport
    from packager.quantize.quantization_report import QuantizationReport
    from packager.quantize.update_aware.quantize_update import UpdateReport

Progress = Callable[[int, int], None]


class Reporter(Protocol):
    """Told what happens, while it happens."""

    def step(self, name: str, number: int, count: int) -> None:
        """Step `number` of `count` begins."""
        ...

    def note(self, text: str) -> None:
        """One line that a person should see."""
        ...

    def bar(self, label: str) -> Progress:
        """A function to call with (done, total)."""
        ...


class SilentReporter:
    """Tells nobody."""

    def step(self, name: str, number: int, count: int) -> None:
        """See Reporter."""

    def note(self, text: str) -> None:
        """See Reporter."""

    def bar(self, label: str) -> Progress:  # noqa: ARG002  # the protocol names it
        """See Reporter."""
        return lambda _done, _total: None


@dataclass(frozen=True, slots=True)
class PatchBase:
    """A bundle to make a patch from; `version` is for people."""

    version: str
    digest: BundleDigest
    directory: BundleDirectory


@dataclass(frozen=True, slots=True)
class QuantizedUpdate:
    """How a variant's numbers were chosen near those of an earlier release's, `version`."""

    version: str
    quantization: Quantization
    report: "UpdateReport"


@dataclass(frozen=True, slots=True)
class PlainPatch:
    """A patch before encryption."""

    base: PatchBase | None
    path: Path
    report: "PatchReport"


@dataclass(slots=True)
class VariantDraft:
    """One variant in the making; the steps fill in the fields from the top to the bottom.

    Attributes:
        folder: for work in progress.
        model: the file that ships, before a drill.
        dropped: why the variant is not in the release, or None.
    """

    plan: VariantPlan
    folder: Path
    model: Path
    drop_reason: str | None = None
    report: "QuantizationReport | None" = None
    update: "QuantizedUpdate | None" = None
    gate: "GateReport | None" = None
    quantization: Quantization = field(default_factory=Quantization)
    golden: "GoldenReport | None" = None
    bundle: BundleDirectory | None = None
    contract: Contract | None = None
    requires: Requirements | None = None
    health: Health | None = None
    provenance: dict[str, str] = field(default_factory=dict)
    patches: list[PlainPatch] = field(default_factory=list)
    content_key: Secret | None = None
    entries: tuple[PatchEntry, ...] = ()

    @property
    def name(self) -> str:
        """The variant's name."""
        return self.plan.name

    @property
    def golden_path(self) -> Path:
        """Where the golden vectors are written."""
        return self.folder / "golden.safetensors"


@dataclass(slots=True)
class Draft:
    """The whole release in the making.

    Attributes:
        counter: of the release.
        created: UTC, as in the manifest.
        folder: for work in progress; on the file system of the workspace.
        samples: inputs to measure and compare with.
        executor: runs parts of a diff; None runs them here.
        manifest: set by the sign step.
    """

    plan: ReleasePlan
    repository: Repository
    signers: "Sequence[Signer]"
    workspace: Workspace
    counter: int
    created: str
    folder: Path
    samples: "Samples"
    variants: list[VariantDraft]
    reporter: Reporter
    executor: "Executor | None" = None
    manifest: Manifest | None = None
    envelopes: int = 0
    sign_report: object = None
    publish_report: object = None

    @property
    def included_variants(self) -> list[VariantDraft]:
        """The variants that are in the release so far."""
        return [variant for variant in self.variants if variant.drop_reason is None]

    def drop_variant(self, variant: VariantDraft, reason: str) -> None:
        """Leave a variant out."""
        variant.drop_reason = reason
        self.reporter.note(f"variant {variant.name} is left out: {reason}")
