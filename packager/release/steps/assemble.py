"""Step assemble: build the bundle folder of every variant, and measure its requirements.

Rules:
- The folder has the layout of packager.models.model_package.
- A fire drill changes the model in the folder, after gate and golden vectors.
- The provenance, which is signed, records what the bundle was made from and with.
"""

import hashlib
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

from bundle.contract import PPM
from bundle.cpu_features import read_cpu_name
from bundle.frames import sealed_size
from bundle.golden.golden_file import read_golden
from bundle.requirements import Requirements, Runtime
from bundle.variant import Measured
from bundle.version import VERSION
from packager.errors import ReleaseFileInvalid
from packager.models.inputs import load_outline
from packager.models.model_facts import runtime_of
from packager.models.model_package import PackagedModel, build_files_bundle, build_package, open_package
from packager.models.oldest_runtime import oldest_runtime, onnxruntime_version, parse_version
from packager.models.provider_session import ON_CPU, Provider
from packager.models.tflite_model import is_tflite
from packager.release.draft import AssembledVariant, DeviceChecks, Draft, QuantizedVariant
from packager.release.release_plan import UNQUANTIZED_SCHEME

EMPTY_PROCESS_BYTES: Final = 40 * 1024 * 1024  # a model process without a model takes 45 MiB
TOOLS: Final = ("onnx", "onnxruntime", "numpy")
MAX_PROVENANCE_CHARACTERS: Final = 512  # bundle.manifest


def run(draft: Draft) -> None:
    """Build the bundle folders and set `assembled`.

    Raises:
        BundleNameInvalid: a file name is not allowed in a bundle.
        ExternalDataMissing: a file with the model's external weights is missing.
        InputFileMissing: a further file is missing.
        ReleaseFileInvalid: the file names an ONNX Runtime that lacks an operator of the model.
        DrillInvalid: the model has nothing to break.
        ModelDoesNotRun: the model does not run on a sample.
        ModelCrashes: the model crashes its process.
    """
    for variant in draft.quantized.values():
        if variant.model is None:
            draft.assembled[variant.name] = _assemble_files(draft, variant)
            continue
        checks, on = draft.checks[variant.name], variant.plan.provider
        root = draft.variant_folder(variant.name) / "bundle"
        built = build_package(
            variant.model,
            root,
            family=draft.plan.family,
            version=draft.plan.version,
            variant=variant.name,
            files=draft.plan.files,
            golden=draft.golden_path(variant.name) if checks.golden is not None else None,
            name=draft.plan.model_name,
            further=_further_models(draft, variant.name, checks),
        )
        measured = Requirements(
            memory_bytes=draft.memory_of(variant.model, provider=on).peak_bytes,
            storage_bytes=sealed_size(sum(file.size for file in built.files)),
        )
        requires = variant.plan.apply_requires(_with_further(draft, measured))
        models = variant.model, *(each.model for each in draft.plan.further)
        runtime = variant.plan.apply_runtime(_newest_runtime(models, on))
        _check_runtime(variant, runtime)
        if draft.plan.drill is not None:
            _apply_drill(draft, variant.name, checks, draft.plan.drill, root)
        provenance = _collect_provenance(draft, variant)
        if checks.no_golden_reason is not None:
            provenance["golden"] = f"none: {checks.no_golden_reason}"
        if draft.plan.drill is not None:
            provenance["drill"] = draft.plan.drill
        draft.assembled[variant.name] = AssembledVariant(
            variant, checks, open_package(root), runtime, requires, provenance, _measured_figures(draft, variant)
        )


def _assemble_files(draft: Draft, variant: QuantizedVariant) -> AssembledVariant:
    """Build the bundle of a variant without a model that the agent runs."""
    built = build_files_bundle(draft.plan.files, draft.variant_folder(variant.name) / "bundle")
    measured = Requirements(storage_bytes=sealed_size(sum(file.size for file in built.files)))
    provenance = {"packager": VERSION, **dict(draft.plan.provenance)}
    return AssembledVariant(
        variant,
        draft.checks[variant.name],
        built,
        Runtime(draft.plan.runtime, None),
        variant.plan.apply_requires(measured),
        {name: _to_printable(text) for name, text in provenance.items()},
    )


def _further_models(draft: Draft, variant: str, checks: DeviceChecks) -> tuple[PackagedModel, ...]:
    return tuple(
        PackagedModel(
            plan.name, plan.model, draft.golden_path(variant, plan.name) if found.golden is not None else None
        )
        for plan, found in zip(draft.plan.further, checks.further, strict=True)
    )


def _with_further(draft: Draft, requires: Requirements) -> Requirements:
    """Return the requirements with the memory of the further models; all share a process."""
    for each in draft.plan.further:
        memory = draft.memory_of(each.model, each.name)
        more_bytes = max(memory.peak_bytes - EMPTY_PROCESS_BYTES, memory.load_bytes)
        requires = replace(requires, memory_bytes=requires.memory_bytes + more_bytes)
    return requires


def _newest_runtime(models: tuple[Path, ...], provider: Provider) -> Runtime:
    """Return the runtime that loads all of the models."""
    found = [runtime_of(model, provider) for model in models]
    names = {runtime.name for runtime in found}
    if len(names) > 1:
        raise ReleaseFileInvalid(
            f"models: found models for {' and '.join(sorted(names))}, expected one runtime for all models of a release",
            hint="convert them to one format, or release them in families of their own",
        )
    return max(found, key=lambda runtime: parse_version(runtime.min_version or "0"))


def _measured_figures(draft: Draft, variant: QuantizedVariant) -> Measured:
    is_float = variant.plan.scheme == UNQUANTIZED_SCHEME and variant.plan.model is None
    is_float = is_float and variant.plan.provider == ON_CPU
    ratio = 1.0 if is_float else variant.latency.ratio if variant.latency is not None else None
    return Measured(
        cpu=read_cpu_name(),
        runtime=_version_of("ai-edge-litert") if is_tflite(variant.require_model()) else onnxruntime_version(),
        float_ratio_ppm=None if ratio is None else max(1, round(ratio * PPM)),
        load_memory_bytes=draft.memory_of(variant.require_model(), provider=variant.plan.provider).load_bytes
        + sum(draft.memory_of(each.model, each.name).load_bytes for each in draft.plan.further),
    )


def _check_runtime(variant: QuantizedVariant, runtime: Runtime) -> None:
    """Check that the required ONNX Runtime has all operators of the model. Raises ReleaseFileInvalid."""
    if is_tflite(variant.require_model()):
        return
    oldest = oldest_runtime(load_outline(variant.require_model()))
    if runtime.min_version is not None and parse_version(runtime.min_version) < oldest.version:
        raise ReleaseFileInvalid(
            f"variants.{variant.name}: requires.runtime_min: found {runtime.min_version}, "
            f"its {oldest.explanation} came with {oldest}",
            hint=f"set it to {oldest} or newer, or remove the key",
        )


def _apply_drill(draft: Draft, name: str, checks: DeviceChecks, drill: str, root: Path) -> None:
    from packager.release.fire_drill import apply_drill

    golden = read_golden(draft.golden_path(name).read_bytes()) if checks.golden is not None else ()
    model = next(root / file.path for file in open_package(root).files if file.role == "model")
    apply_drill(drill, model, golden)
    draft.note(f"variant {name} is a fire drill ({drill}): devices must refuse it or roll it back")


def _collect_provenance(draft: Draft, variant: QuantizedVariant) -> dict[str, str]:
    source = variant.plan.model or draft.plan.require_model()
    out = {
        "source_sha256": _sha256(source),
        **{f"source_sha256_{each.name}": _sha256(each.model) for each in draft.plan.further},
        "packager": VERSION,
        "inputs": draft.samples.origin,
        **{tool: _version_of(tool) for tool in TOOLS},
    }
    if variant.update is not None:
        report = variant.update.report
        out["update_of"] = variant.update.version
        out["update"] = (
            f"{report.method}, {report.bits_per_weight or 0:.4f} bits per weight over {report.weights} weights"
        )
    if variant.report is not None:
        out["quantization"] = f"{variant.report.scheme} {variant.report.method} {variant.report.numerics}"
        if variant.report.float_nodes:
            out["kept_float"] = ", ".join(variant.report.float_nodes)
        if variant.report.promoted_activations:
            out["wide_activations"] = ", ".join(variant.report.promoted_activations)
        if variant.report.promoted_weights:
            out["wide_weights"] = ", ".join(variant.report.promoted_weights)
        for number, note in enumerate(variant.report.notes):
            out[f"note_{number}"] = note
    if draft.plan.override_gate is not None:
        out["override_gate"] = draft.plan.override_gate
    out.update(draft.plan.provenance)
    return {name: _to_printable(text) for name, text in out.items()}


def _to_printable(text: str) -> str:
    return "".join(c if c.isprintable() else " " for c in text)[:MAX_PROVENANCE_CHARACTERS]


def _version_of(tool: str) -> str:
    try:
        return version(tool)
    except PackageNotFoundError:  # builds of onnxruntime are also distributed under other names
        return "unknown"


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
