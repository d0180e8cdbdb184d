"""Step 4: every variant becomes a bundle: a folder with the layout of packager.models.model_package, listed and
measured.

Rules:
1. A fire drill changes the model here, after gate and golden vectors; everything before it is an ordinary release.
2. What the bundle was made from and with is recorded in its provenance, which is signed.
"""

import hashlib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

from bundle.golden import read_golden
from bundle.version import VERSION
from packager.errors import ReleaseFileInvalid
from packager.models.inputs import load_proto
from packager.models.model_facts import requirements_of
from packager.models.model_package import build_package, open_package
from packager.models.oldest_runtime import oldest_runtime, parse_version
from packager.release.draft import Draft, VariantDraft

TOOLS: Final = ("onnx", "onnxruntime", "numpy")
MAX_PROVENANCE_CHARACTERS: Final = 512  # bundle.manifest


def run(draft: Draft) -> None:
    """Set `bundle`, `requires` and `provenance`.

    Raises:
        BundleNameInvalid, ExternalDataMissing, ReleaseFileInvalid, ReleaseFileMissing, DrillInvalid, ModelDoesNotRun,
        ModelCrashes.
    """
    for variant in draft.included_variants:
        root = variant.folder / "bundle"
        built = build_package(
            variant.model,
            root,
            family=draft.plan.family,
            version=draft.plan.version,
            variant=variant.name,
            files=draft.plan.files,
            golden=variant.golden_path if variant.golden is not None else None,
        )
        measured = requirements_of(variant.model, draft.samples, sum(file.size for file in built.files))
        variant.requires = variant.plan.apply_requires(measured)
        _check_runtime(variant)
        if draft.plan.drill is not None:
            _apply_drill(draft, variant, draft.plan.drill, root)
        variant.bundle = open_package(root)
        variant.provenance = {**_collect_provenance(draft, variant), **variant.provenance}


def _check_runtime(variant: VariantDraft) -> None:
    """What the release file says of the runtime must not be older than the operators. Raises ReleaseFileInvalid."""
    assert variant.requires is not None
    asked = oldest_runtime(load_proto(variant.model, external_data=False))
    if parse_version(variant.requires.onnxruntime_min) < asked.version:
        raise ReleaseFileInvalid(
            f"variants.{variant.name}: requires.onnxruntime_min: found {variant.requires.onnxruntime_min}, "
            f"its {asked.explanation} came with {asked}",
            hint=f"say {asked} or newer, or leave it out",
        )


def _apply_drill(draft: Draft, variant: VariantDraft, kind: str, root: Path) -> None:
    from packager.release.fire_drill import apply_drill

    golden = read_golden(variant.golden_path.read_bytes()) if variant.golden is not None else ()
    model = next(root / file.path for file in open_package(root).files if file.role == "model")
    apply_drill(kind, model, golden)
    variant.provenance["drill"] = kind
    draft.reporter.note(f"variant {variant.name} is a fire drill ({kind}): devices must refuse it or come back from it")


def _collect_provenance(draft: Draft, variant: VariantDraft) -> dict[str, str]:
    source = variant.plan.model or draft.plan.model
    out = {
        "source_sha256": _sha256(source),
        "packager": VERSION,
        "inputs": draft.samples.origin,
        **{tool: _version_of(tool) for tool in TOOLS},
    }
    if variant.update is not None:
        report = variant.update.report
        out["update_of"] = variant.update.version
        out["update"] = (
            f"{report.method}, {report.bits_per_weight or 0:.4f} bits a weight over {report.weights} weights"
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
    except PackageNotFoundError:  # onnxruntime has builds under other names
        return "unknown"


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
