"""Step 3: what a device will hold the model to: its contract, golden vectors and the health contract.

Rules:
1. Golden vectors come from the file that ships (before a drill), so that a device compares like with like.
2. A variant whose answers depend on threads or optimization level is left out with its reason, unless it is required.
3. A model with strings has none, since strings have no place in the file; `golden = 0` ships none either. Both are
   recorded.
"""

from dataclasses import replace

from bundle.contract import Contract, Health
from packager.errors import GoldenUnstable
from packager.models.golden_vectors import GoldenReport, record_golden
from packager.models.model_facts import contract_of
from packager.release.draft import Draft, VariantDraft


def run(draft: Draft) -> None:
    """Set `contract`, `golden` and `health`.

    Raises:
        GoldenUnstable (of a required variant), ModelDoesNotRun, ModelCrashes, InputUnsupported.
    """
    bar = draft.reporter.bar("golden vectors")
    for number, variant in enumerate(draft.included_variants, start=1):
        variant.contract = contract_of(variant.model)
        try:
            variant.golden = _record_golden(draft, variant, variant.contract)
        except GoldenUnstable as error:
            if variant.plan.required:
                raise
            draft.drop_variant(variant, error.message)
        variant.health = variant.plan.apply_health(health_of(variant.golden))
        bar(number, len(draft.variants))


def health_of(golden: GoldenReport | None) -> Health:
    """The default contract, with the tolerance that the golden vectors were seen to need."""
    return Health() if golden is None else replace(Health(), golden_relative_rms_ppm=golden.tolerance_ppm)


def _record_golden(draft: Draft, variant: VariantDraft, contract: Contract) -> GoldenReport | None:
    strings = [tensor.name for tensor in (*contract.inputs, *contract.outputs) if tensor.dtype == "string"]
    if draft.plan.golden == 0 or strings:
        why = f"{strings[0]!r} holds strings" if strings else "golden = 0"
        variant.provenance["golden"] = f"none: {why}"
        draft.reporter.note(
            f"variant {variant.name} has no golden vectors ({why}): devices will only see that it loads"
        )
        return None
    try:
        return record_golden(variant.model, draft.samples, variant.golden_path, draft.plan.golden)
    except GoldenUnstable as error:
        raise GoldenUnstable(
            f"variant {variant.name!r}: {error.message.removeprefix(f'{variant.model}: ')}",
            hint=f"{error.hint}; golden = 0 ships without golden vectors",
        ) from error
