"""Plan an update without running it: the variant, the path, and the reasons.

Only metadata and the device's envelope are downloaded, and no bundle is changed. The check of the channel updates the
trust state. `outcome` and `reason` come from the checks that an update makes itself, in the same order.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Final

from bundle.acceptance import VerifiedRelease
from bundle.errors import Invalid, Refused, Unavailable, Unfit
from bundle.files import BundleDigest
from bundle.strict_json import SHA256_HEX_PATTERN, StrictObject
from bundle.variant import Variant
from device_agent.errors import UpdatesPaused
from device_agent.policy.attempt import Outcome
from device_agent.policy.download_bytes import DownloadBytes
from device_agent.policy.error_outcomes import error_outcome
from device_agent.policy.journal_records import BundleRecord
from device_agent.policy.planner import DeviceFacts, PatchPath, choose_variant, unmet_requirement
from device_agent.policy.state_machine import State
from device_agent.policy.variant_choice import explain_variant
from device_agent.update.channel_check import ChannelCheck, is_active, new_device_of
from device_agent.update.context import UpdateContext, find_patch_path
from device_agent.update.expected_download import expect_download
from device_agent.update.variant_trials import failed_variants, read_measurements
from device_agent.workers.worker_pool import WorkerPool

EXPLANATION_ACTIVE: Final = "compatible, and the active variant"
EXPLANATION_REQUESTED: Final = "compatible, and requested by the configuration"
NO_DOWNLOAD: Final = DownloadBytes()
MAX_ROWS: Final = 1000  # variants, and steps; manifests and max_chain allow fewer
# the longest detail names 32 variants and 64 processor features of 32 characters for each: about 73,000 characters
MAX_TEXT_CHARACTERS: Final = 128 * 1024


@dataclass(frozen=True, slots=True)
class PlannedVariant:
    """One variant of the release, and why it is chosen or not.

    Attributes:
        name: name of the variant.
        is_compatible: whether the device meets its requirements.
        explanation: why it is chosen or not.
        uncompressed_bytes: size of the bundle's files.
        memory_bytes: memory that the variant requires.
        bundle: digest of the bundle.
    """

    name: str
    is_compatible: bool
    explanation: str
    uncompressed_bytes: int
    memory_bytes: int
    bundle: BundleDigest

    def as_json(self) -> dict[str, Any]:
        """Return the row in `plan --json`."""
        return {
            "name": self.name,
            "is_compatible": self.is_compatible,
            "explanation": self.explanation,
            "uncompressed_bytes": self.uncompressed_bytes,
            "memory_bytes": self.memory_bytes,
            "bundle": self.bundle,
        }

    @classmethod
    def parse(cls, fields: StrictObject) -> "PlannedVariant":
        """Parse the output of `as_json`.

        Raises:
            Malformed: a field is missing, unknown or has a wrong type.
        """
        found = cls(
            fields.text("name"),
            fields.flag("is_compatible"),
            fields.text("explanation", max_length=MAX_TEXT_CHARACTERS),
            fields.integer("uncompressed_bytes"),
            fields.integer("memory_bytes"),
            BundleDigest(fields.text("bundle", SHA256_HEX_PATTERN)),
        )
        fields.reject_unknown()
        return found


@dataclass(frozen=True, slots=True)
class PlannedStep:
    """One patch of the path.

    Attributes:
        base: digest of the bundle that the patch starts from, or None for a full download.
        target: digest of the bundle that it creates.
        codec: codec of the patch.
        size: size of the blob in bytes.
    """

    base: BundleDigest | None
    target: BundleDigest
    codec: str
    size: int

    def as_json(self) -> dict[str, Any]:
        """Return the row in `plan --json`."""
        return {"from": self.base, "to": self.target, "codec": self.codec, "bytes": self.size}

    @classmethod
    def parse(cls, fields: StrictObject) -> "PlannedStep":
        """Parse the output of `as_json`.

        Raises:
            Malformed: a field is missing, unknown or has a wrong type.
        """
        base = fields.optional_text("from", SHA256_HEX_PATTERN)
        found = cls(
            None if base is None else BundleDigest(base),
            BundleDigest(fields.text("to", SHA256_HEX_PATTERN)),
            fields.text("codec"),
            fields.integer("bytes"),
        )
        fields.reject_unknown()
        return found


@dataclass(frozen=True, slots=True)
class PlannedPath:
    """The cheapest path to the chosen variant.

    Attributes:
        steps: patches in the order of their use; empty if the bundle is stored.
        fetch_bytes: bytes still to download.
        full_download_bytes: size of the cheapest full download, 0 if there is none.
        storage_bytes: peak size of spool and bundle store, in bytes.
        download: everything that an update receives now, by kind; zeros if it would end before a download.
    """

    steps: tuple[PlannedStep, ...]
    fetch_bytes: int
    full_download_bytes: int
    storage_bytes: int
    download: DownloadBytes = NO_DOWNLOAD

    def as_json(self) -> dict[str, Any]:
        """Return the object `path` of `plan --json`."""
        return {
            "steps": [step.as_json() for step in self.steps],
            "fetch_bytes": self.fetch_bytes,
            "full_download_bytes": self.full_download_bytes,
            "storage_bytes": self.storage_bytes,
            "download": self.download.as_json(),
        }

    @classmethod
    def parse(cls, fields: StrictObject) -> "PlannedPath":
        """Parse the output of `as_json`.

        Raises:
            Malformed: a field is missing, unknown or has a wrong type.
        """
        found = cls(
            tuple(PlannedStep.parse(row) for row in fields.objects("steps", max_items=MAX_ROWS)),
            fields.integer("fetch_bytes"),
            fields.integer("full_download_bytes"),
            fields.integer("storage_bytes"),
            DownloadBytes.parse(fields.object("download")),
        )
        fields.reject_unknown()
        return found


@dataclass(frozen=True, slots=True)
class PlannedDevice:
    """The facts that the choice depends on.

    Attributes:
        arch: machine name of `uname -m`.
        runtime: version of ONNX Runtime.
        memory_bytes: available memory.
        providers: execution providers that models can run on here, the preferred one first.
        cpu_features: those CPU features of the device that a variant of the release requires, sorted.
    """

    arch: str
    runtime: str
    memory_bytes: int
    providers: tuple[str, ...]
    cpu_features: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """Return the object `device` of `plan --json`."""
        return {
            "arch": self.arch,
            "onnxruntime": self.runtime,
            "available_memory_bytes": self.memory_bytes,
            "execution_providers": list(self.providers),
            "cpu_features": list(self.cpu_features),
        }

    @classmethod
    def parse(cls, fields: StrictObject) -> "PlannedDevice":
        """Parse the output of `as_json`.

        Raises:
            Malformed: a field is missing, unknown or has a wrong type.
        """
        found = cls(
            fields.text("arch"),
            fields.text("onnxruntime"),
            fields.integer("available_memory_bytes"),
            fields.texts("execution_providers"),
            fields.texts("cpu_features"),
        )
        fields.reject_unknown()
        return found


@dataclass(frozen=True, slots=True)
class Plan:
    """The steps that an update of one family would take now.

    Attributes:
        release: version that the channel runs.
        counter: its release counter.
        installed: version of the active release, or None.
        device: the facts that the choice depends on.
        requested_variant: `update.variant` of the configuration.
        chosen: name of the chosen variant, or None if no variant is compatible.
        variants: all variants of the release.
        path: the path to the chosen variant, or None if there is none.
        outcome: outcome of an update now (policy.attempt.Outcome), as far as it can be known before the download.
        reason: reason of the error that would end it (variant, quarantine, rollout, enrollment, path, space), or "".
        detail: message of that error, or "".
    """

    release: str
    counter: int
    installed: str | None
    device: PlannedDevice
    requested_variant: str
    chosen: str | None
    variants: tuple[PlannedVariant, ...]
    path: PlannedPath | None
    outcome: str
    reason: str
    detail: str

    def as_json(self) -> dict[str, Any]:
        """Return the object of `plan --json` for one family."""
        return {
            "release": self.release,
            "counter": self.counter,
            "installed": self.installed,
            "device": self.device.as_json(),
            "requested_variant": self.requested_variant,
            "chosen": self.chosen,
            "variants": [variant.as_json() for variant in self.variants],
            "path": None if self.path is None else self.path.as_json(),
            "outcome": self.outcome,
            "reason": self.reason or None,
            "detail": self.detail or None,
        }

    @classmethod
    def parse(cls, fields: StrictObject) -> "Plan":
        """Parse the output of `as_json`.

        Raises:
            Malformed: a field is missing, unknown or has a wrong type.
        """
        path = fields.value("path")
        found = cls(
            release=fields.text("release"),
            counter=fields.integer("counter"),
            installed=fields.optional_text("installed"),
            device=PlannedDevice.parse(fields.object("device")),
            requested_variant=fields.text("requested_variant"),
            chosen=fields.optional_text("chosen"),
            variants=tuple(PlannedVariant.parse(row) for row in fields.objects("variants", max_items=MAX_ROWS)),
            path=None if path is None else PlannedPath.parse(StrictObject(path, f"{fields.where}.path")),
            outcome=fields.text("outcome"),
            reason=fields.optional_text("reason") or "",
            detail=fields.optional_text("detail", max_length=MAX_TEXT_CHARACTERS) or "",
        )
        fields.reject_unknown()
        return found


def preview_update(context: UpdateContext) -> Plan:
    """Check the channel and return what an update would do.

    Raises:
        Refused, Unavailable: the check failed.
    """
    facts, settings = context.family_facts(), context.config.update
    active = context.journal.bundle(context.journal.pointers.active)
    current = None if active is None else active.variant
    path: PlannedPath | None = None
    chosen: str | None = None
    outcome, reason, detail = Outcome.UPDATED if context.serving is not None else Outcome.STAGED, "", ""
    with context.open_workers() as workers:
        release = workers.check_channel(
            context.journal.persistent_state, context.journal.bundles(), new_device=new_device_of(context)
        )
        manifest = release.manifest
        try:
            measured = read_measurements(context, facts)
            failed = failed_variants(context, manifest, facts)
            chosen, variant = choose_variant(manifest, settings.variant, facts, current, measured, failed)
            if is_active(context.journal, variant.digest):
                outcome = Outcome.NOTHING_NEW
            else:
                found = find_patch_path(context, manifest, release.counter_epoch, variant.digest, facts)
                path = _plan_path(found)
            _check_as_update(context, workers, release, chosen, facts, path)
            if path is not None:
                path = replace(path, download=expect_download(context, workers, release, found))
        except (Refused, Unavailable, Unfit, Invalid) as error:
            outcome, reason, detail = error_outcome(State.CHECKING, error).outcome, error.reason, error.message
    return Plan(
        release=manifest.version,
        counter=manifest.counter,
        installed=None if active is None else active.version,
        device=PlannedDevice(
            arch=facts.arch,
            runtime=facts.runtime,
            memory_bytes=facts.memory_bytes,
            providers=tuple(name for name, problem in facts.providers if not problem),
            cpu_features=tuple(sorted(facts.cpu_features & _required_cpu_features(manifest.variants))),
        ),
        requested_variant=settings.variant,
        chosen=chosen,
        variants=tuple(
            _plan_variant(context, name, variant, facts, chosen, current) for name, variant in manifest.variants
        ),
        path=path,
        outcome=outcome.value,
        reason=reason,
        detail=detail,
    )


def _check_as_update(
    context: UpdateContext,
    workers: WorkerPool,
    release: VerifiedRelease,
    chosen: str,
    facts: DeviceFacts,
    path: PlannedPath | None,
) -> None:
    """Raise the error that would end an update; `path` is None if the bundle is active."""
    if context.device_journal.persistent_state.is_paused:
        raise UpdatesPaused("updates are paused", hint="run `device-agent resume`")
    if path is None:
        return
    check = ChannelCheck(context, workers, facts)
    check.check_quarantine(BundleRecord.from_manifest(release.manifest, chosen, release.counter_epoch))
    check.check_eligible(release)
    if path.steps:
        context.store.check_space(path.storage_bytes)
        workers.check_enrollment(release, context.identity.x_wing_public)


def _plan_variant(
    context: UpdateContext, name: str, variant: Variant, facts: DeviceFacts, chosen: str | None, current: str | None
) -> PlannedVariant:
    settings = context.config.update
    problem = unmet_requirement(variant, facts)
    explanation = problem or f"compatible, but {chosen or settings.variant} is preferred"
    if name == chosen and settings.variant != "auto":
        explanation = EXPLANATION_REQUESTED
    elif name == chosen:
        preferred = f"compatible, and preferred for its {settings.preference}"
        explanation = EXPLANATION_ACTIVE if name == current else preferred
    if not problem and variant.runtime.is_run_by_agent:
        explanation += f"; {explain_variant(name, variant, read_measurements(context, facts))}"
    return PlannedVariant(
        name, not problem, explanation, variant.plain_size, variant.requires.memory_bytes, variant.digest
    )


def _plan_path(found: PatchPath) -> PlannedPath:
    steps = tuple(PlannedStep(edge.entry.base, edge.target, edge.entry.codec, edge.entry.size) for edge in found.steps)
    return PlannedPath(steps, found.fetch_bytes, found.full_bytes, found.storage_bytes)


def _required_cpu_features(variants: Iterable[tuple[str, Variant]]) -> frozenset[str]:
    return frozenset(feature for _, variant in variants for feature in variant.requires.cpu_features)
