"""Checks of a release file that need several keys, or other files (packager.release.release_file)."""

from pathlib import Path

from bundle.errors import Malformed
from bundle.variant import MAX_PLAIN_FILES
from packager.errors import InputFileMissing
from packager.models.model_package import FILE_ROLES
from packager.release.release_plan import RUNTIME_KEYS, UNQUANTIZED_SCHEME, ReleasePlan


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
    if plan.is_run_by_agent:
        if plan.model is None:
            raise Malformed(f"{where}: model: missing, expected the model that {plan.runtime} runs")
        if plan.runtime == "litert":
            _check_litert(plan, where)
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
        if variant.model is not None or variant.scheme != UNQUANTIZED_SCHEME or variant.gate:
            raise Malformed(
                f"{where}: variants.{variant.name}: model, scheme and gate have no effect for runtime {plan.runtime!r}"
            )
        given = next((name for name, _ in variant.requires if name in RUNTIME_KEYS), None)
        if given is not None:
            raise Malformed(
                f"{where}: variants.{variant.name}: requires.{given}: runtime {plan.runtime!r} has no versions"
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
    named += [(f"variants.{v.name}.model", v.model) for v in plan.variants]
    named += [(f"files {extra.name!r}", extra.source) for extra in plan.files]
    for key, path in named:
        if path is not None and not _exists(path, f"{where}: {key}", is_file=True):
            raise InputFileMissing(
                f"{where}: {key}: {path} does not exist", hint="name a path relative to the release file"
            )
    if plan.inputs is not None and not _exists(plan.inputs, f"{where}: inputs"):
        raise InputFileMissing(
            f"{where}: inputs: {plan.inputs} does not exist",
            hint="name an .npz or a folder of .npz files",
        )


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


def _exists(path: Path, where: str, *, is_file: bool = False) -> bool:
    """Return whether a file or folder exists. Raises InputFileMissing: the system cannot look it up."""
    try:
        return path.is_file() if is_file else path.exists()
    except OSError as error:
        raise InputFileMissing(f"{where}: {path} cannot be read: {error.strerror}") from error
