"""Step golden: record what a device checks: the contract, golden vectors and the health contract.

Rules:
- Golden vectors are recorded from the model that is released (before a fire drill), so that a device compares the same
  model.
- A variant whose outputs depend on threads or optimization level is left out with the reason; if it is required, the
  release fails.
- A variant uses the golden inputs of its latest earlier release whose bundle is in the workspace, else those of another
  variant, so that patches copy them. If they do not fit the model, or it does not run on them, others are chosen.
- A model with string inputs has no golden vectors, because their file format has no such inputs. `golden = 0` records
  none either. The provenance contains the reason.
"""

from dataclasses import replace

from bundle.contract import Contract, Health
from bundle.errors import Refused
from bundle.golden.golden_file import GoldenFile, read_golden_file
from bundle.manifest import Manifest
from packager.errors import GoldenUnstable
from packager.models.golden_vectors import GoldenReport, record_golden
from packager.models.model_facts import contract_of
from packager.release.draft import DeviceChecks, Draft, ModelChecks, QuantizedVariant
from packager.release.release_plan import ModelPlan


def run(draft: Draft) -> None:
    """Set `checks` of the variants, or drop them.

    Raises:
        GoldenUnstable: the outputs of a required variant differ from run to run.
        ModelDoesNotRun: the model does not run on a sample.
        ModelCrashes: the model crashes its process.
        InputUnsupported: a tensor has no numeric type.
    """
    bar = draft.reporter.bar("golden vectors")
    for number, variant in enumerate(list(draft.quantized.values()), start=1):
        if variant.model is None:
            health = variant.plan.apply_health(Health())
            draft.checks[variant.name] = DeviceChecks(None, health, None, f"runtime {draft.plan.runtime}")
            continue
        contract = contract_of(variant.model)
        reason = _no_golden_reason(draft, contract)
        golden = None
        further: tuple[ModelChecks, ...] = ()
        try:
            further = tuple(_check_further(draft, variant, each) for each in draft.plan.further)
            if reason is None:
                golden = _record_golden(draft, variant)
            else:
                draft.note(f"variant {variant.name} has no golden vectors ({reason}): devices only check that it loads")
        except GoldenUnstable as error:
            if variant.plan.required:
                raise
            draft.drop_variant(variant.name, error.message)
        else:
            default = replace(health_of(golden), golden_relative_rms_ppm=_tolerance_ppm(golden, further))
            health = variant.plan.apply_health(default)
            draft.checks[variant.name] = DeviceChecks(contract, health, golden, reason, further)
        bar(number, len(draft.plan.variants))


def health_of(golden: GoldenReport | None) -> Health:
    """Return the default health contract, with the tolerance that the golden vectors need."""
    return Health() if golden is None else replace(Health(), golden_relative_rms_ppm=golden.tolerance_ppm)


def _tolerance_ppm(golden: GoldenReport | None, further: tuple[ModelChecks, ...]) -> int:
    """Return the largest tolerance that the golden vectors of a variant need, in parts per million."""
    reports = (golden, *(each.golden for each in further))
    return max(health_of(report).golden_relative_rms_ppm for report in reports)


def _check_further(draft: Draft, variant: QuantizedVariant, plan: ModelPlan) -> ModelChecks:
    """Record what a device checks of a further model."""
    contract = contract_of(plan.model)
    reason = _no_golden_reason(draft, contract)
    if reason is not None:
        draft.note(f"model {plan.name} has no golden vectors ({reason}): devices only check that it loads")
        return ModelChecks(plan.name, contract, None)
    report = record_golden(
        plan.model,
        draft.further_samples[plan.name],
        draft.golden_path(variant.name, plan.name),
        draft.plan.golden,
        earlier=_find_earlier_of_model(draft, variant.name, plan.name),
        golden_bytes=draft.plan.golden_bytes,
    )
    return ModelChecks(plan.name, contract, report)


def _find_earlier_of_model(draft: Draft, variant: str, model: str) -> GoldenFile | None:
    for manifest in reversed(draft.repository.releases(draft.plan.family)):
        found = _read_released(draft, manifest, variant, model)
        if found is not None:
            return found
    return None


def _no_golden_reason(draft: Draft, contract: Contract) -> str | None:
    strings = [tensor.name for tensor in contract.inputs if tensor.dtype == "string"]
    if strings:
        return f"input {strings[0]!r} holds strings"
    return "golden = 0" if draft.plan.golden == 0 else None


def _record_golden(draft: Draft, variant: QuantizedVariant) -> GoldenReport:
    try:
        return record_golden(
            variant.require_model(),
            draft.samples,
            draft.golden_path(variant.name),
            draft.plan.golden,
            earlier=find_earlier(draft, variant.name),
            golden_bytes=draft.plan.golden_bytes,
            provider=variant.plan.provider,
        )
    except GoldenUnstable as error:
        raise GoldenUnstable(
            f"variant {variant.name!r}: {error.message.removeprefix(f'{variant.model}: ')}",
            hint=f"{error.hint}; or set golden = 0 to release without golden vectors",
        ) from error


def find_earlier(draft: Draft, variant: str) -> GoldenFile | None:
    """Return the golden vectors whose inputs a variant should use, or None.

    Args:
        draft: the release in progress.
        variant: name of the variant.
    """
    for manifest in reversed(draft.repository.releases(draft.plan.family)):
        found = _read_released(draft, manifest, variant, draft.plan.model_name)
        if found is not None:
            return found
    for name, checks in draft.checks.items():
        if checks.golden is not None and draft.golden_path(name).exists():
            return read_golden_file(draft.golden_path(name).read_bytes())
    return None


def _read_released(draft: Draft, manifest: Manifest, variant: str, name: str) -> GoldenFile | None:
    released = manifest.variant(variant)
    models = () if released is None else released.models
    path = next((model.golden for model in models if model.name == name), None)
    if released is None or path is None:
        return None
    directory = draft.workspace.open_bundle(draft.plan.family, released.digest)  # verifies all of it
    if directory is None:
        return None
    try:
        return read_golden_file((directory.root / path).read_bytes())
    except Refused:
        return None  # of an older format
