"""Checks of a release file that need several keys, or other files (packager.release.release_file)."""

from collections.abc import Sequence
from pathlib import Path

from bundle.errors import Malformed
from bundle.session_options import unknown_option
from bundle.variant import MAX_MODELS, MAX_PLAIN_FILES
from packager.errors import InputFileMissing
from packager.models.model_package import FILE_ROLES, RESERVED_ROLES
from packager.models.provider_session import ON_CPU
from packager.release.release_plan import RUNTIME_KEYS, UNQUANTIZED_SCHEME, ReleasePlan, VariantPlan


def check_runtime(plan: ReleasePlan, where: str) -> None:
    """Check what depends on the runtime.

    Args:
        plan: the plan.
        where: name of the file, for messages.

    Raises:
        Malformed: a key is missing, or has no effect.
    """
    if plan.at_rest == "plain":
        _check_plain(plan, where)
    for variant in plan.variants:
        if problem := unknown_option(variant.provider.name, variant.session):
            raise Malformed(f"{where}: variants.{variant.name}: session: found {problem}")
    if plan.is_run_by_agent:
        if plan.model is None:
            raise Malformed(f"{where}: model: missing, expected the model that {plan.runtime} runs")
        if plan.runtime == "litert":
            _check_litert(plan, where)
        if plan.further:
            _check_several_models(plan, where)
        for extra in plan.files:
            if extra.role not in FILE_ROLES:
                raise Malformed(f"{where}: files {extra.name!r}: role {extra.role!r} needs runtime 'app' or 'none'")
        return
    if plan.model is not None:
        raise Malformed(
            f"{where}: model: found one for runtime {plan.runtime!r}, expected a [[files]] entry with role = 'model'"
        )
    if not plan.files:
        raise Malformed(f"{where}: files: found none for runtime {plan.runtime!r}, expected at least one [[files]]")
    for key in ("inputs", "metric", "drill", "override_gate"):
        if getattr(plan, key) is not None:
            raise Malformed(f"{where}: {key}: has no effect for runtime {plan.runtime!r}, expected no such key")
    for variant in plan.variants:
        if variant.model is not None or variant.scheme != UNQUANTIZED_SCHEME or variant.gate or variant.session:
            raise Malformed(
                f"{where}: variants.{variant.name}: model, scheme, gate and session have no effect for "
                f"runtime {plan.runtime!r}"
            )
        given = next((name for name, _ in variant.requires if name in RUNTIME_KEYS), None)
        if given is not None:
            raise Malformed(
                f"{where}: variants.{variant.name}: requires.{given}: runtime {plan.runtime!r} has no versions "
                "and providers"
            )


def check_model_names(names: Sequence[str], where: str) -> None:
    """Check the names of the entries of [[models]].

    Args:
        names: the names, in the order of the file.
        where: name of the file, for messages.

    Raises:
        Malformed: there are too few or too many, or a name is there twice, or a bundle cannot have it.
    """
    if not 1 <= len(names) <= MAX_MODELS:
        raise Malformed(f"{where}: models: found {len(names)}, expected 1 to {MAX_MODELS}")
    for name in names:
        if names.count(name) > 1 or name in RESERVED_ROLES:
            raise Malformed(
                f"{where}: models: found the name {name!r}, expected each name once, and none of "
                f"{', '.join(RESERVED_ROLES)}"
            )


def check_files(plan: ReleasePlan, where: str) -> None:
    """Check that all named files exist.

    Args:
        plan: the plan.
        where: name of the file, for messages.

    Raises:
        InputFileMissing: one does not exist, or the system cannot look it up.
    """
    named: list[tuple[str, Path | None]] = [("model", plan.model)]
    named += [(f"models {each.name!r}", each.model) for each in plan.further]
    named += [(f"variants.{v.name}.model", v.model) for v in plan.variants]
    named += [(f"files {extra.name!r}", extra.source) for extra in plan.files]
    for key, path in named:
        if path is not None and not _exists(path, f"{where}: {key}", is_file=True):
            raise InputFileMissing(
                f"{where}: {key}: {path} does not exist", hint="name a path relative to the release file"
            )
    for inputs in (plan.inputs, *(each.inputs for each in plan.further)):
        if inputs is not None and not _exists(inputs, f"{where}: inputs"):
            raise InputFileMissing(
                f"{where}: inputs: {inputs} does not exist",
                hint="name an .npz or a folder of .npz files",
            )


def _check_several_models(plan: ReleasePlan, where: str) -> None:
    """Check that nothing is to be done to one of several models. Raises Malformed: a key has no effect."""
    for key in ("metric", "drill", "override_gate"):
        if getattr(plan, key) is not None:
            raise Malformed(f"{where}: {key}: has no effect with several models, expected no such key")
    for variant in plan.variants:
        if variant.model is not None or variant.scheme != UNQUANTIZED_SCHEME or variant.gate:
            raise Malformed(
                f"{where}: variants.{variant.name}: several models are released unchanged, expected no model, scheme "
                "or gate; quantize them with `packager quantize`, and name the files in [[models]]"
            )
        _check_on_cpu(variant, f"{where}: variants.{variant.name}: several models are released")


def _check_plain(plan: ReleasePlan, where: str) -> None:
    """Check that applications can map the files. Raises Malformed: they cannot."""
    if plan.is_run_by_agent:
        raise Malformed(
            f"{where}: at_rest: found 'plain' for runtime {plan.runtime!r}, whose models are run from memory; "
            "expected runtime 'app' or 'none', or at_rest = 'sealed'"
        )
    if len(plan.files) > MAX_PLAIN_FILES:
        raise Malformed(f"{where}: files: found {len(plan.files)}, at most {MAX_PLAIN_FILES} if at_rest is 'plain'")


def _check_litert(plan: ReleasePlan, where: str) -> None:
    """Check that nothing is to be done to a TFLite model. Raises Malformed: a key has no effect."""
    for key in ("metric", "drill", "override_gate"):
        if getattr(plan, key) is not None:
            raise Malformed(f"{where}: {key}: has no effect for runtime 'litert', expected no such key")
    for variant in plan.variants:
        if variant.scheme != UNQUANTIZED_SCHEME or variant.gate:
            raise Malformed(
                f"{where}: variants.{variant.name}: TFLite models are released unchanged, expected no scheme and no "
                "gate; quantize the model with your converter, and name the file as the variant's model"
            )
        _check_on_cpu(variant, f"{where}: variants.{variant.name}: TFLite models are released")


def _check_on_cpu(variant: VariantPlan, what: str) -> None:
    """Check that a variant is for the CPU, with the default options. Raises Malformed: it is not."""
    if variant.provider != ON_CPU:
        raise Malformed(f"{what} for the CPU, expected no requires.providers and no session")


def _exists(path: Path, where: str, *, is_file: bool = False) -> bool:
    """Return whether a file or folder exists. Raises InputFileMissing: the system cannot look it up."""
    try:
        return path.is_file() if is_file else path.exists()
    except OSError as error:
        raise InputFileMissing(f"{where}: {path} cannot be read: {error.strerror}") from error
