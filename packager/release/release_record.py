"""The record of a build, written while the release is built; attestations are created from it."""

import hashlib
import platform
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

from bundle.version import VERSION
from packager.attestation.build_record import BuildRecord, Material
from packager.models.model_package import external_data
from packager.release.draft import Draft, QuantizedVariant
from packager.release.release_plan import ReleasePlan

RECORDED_TOOLS: Final = ("onnx", "onnxruntime", "numpy", "cryptography", "tuf")


def build_record(draft: Draft) -> BuildRecord:
    """Return the record of a draft with quantized variants.

    Paths are recorded by name only: folders of the build machine stay private.
    """
    return BuildRecord(
        plan=_plan_record(draft.plan),
        materials=_materials(draft),
        tools={
            "packager": VERSION,
            "python": platform.python_version(),
            **{tool: _tool_version(tool) for tool in RECORDED_TOOLS},
        },
        variants={variant.name: _variant_record(variant) for variant in draft.quantized.values()},
    )


def _variant_record(variant: QuantizedVariant) -> dict[str, Any]:
    update = variant.update
    return {
        "quantization": None if variant.report is None else variant.report.as_json(),
        "gate": None if variant.gate is None else variant.gate.as_json(),
        "update": None if update is None else {"of": update.version, **update.report.as_json()},
    }


def _materials(draft: Draft) -> tuple[Material, ...]:
    plan = draft.plan
    found = []
    for model in plan.models:
        found.append(Material("model", model.name, _sha256(model)))
        found += [Material("external-data", name, _sha256(model.parent / name)) for name in external_data(model)]
    if draft.samples and not draft.samples.is_random:
        name = "inputs" if plan.inputs is None else plan.inputs.name
        found.append(Material("inputs", name, draft.samples.digest))
    found += [Material(extra.role, extra.name, _sha256(extra.source)) for extra in plan.files]
    return tuple(dict.fromkeys(found))


def _plan_record(plan: ReleasePlan) -> dict[str, Any]:
    out: dict[str, Any] = _to_plain(asdict(plan))
    return {key: value for key, value in out.items() if value not in (None, [], {})}


def _to_plain(value: Any) -> Any:
    """Return `value` with paths reduced to their names and tuples turned into lists."""
    if isinstance(value, Path):
        return value.name
    if isinstance(value, dict):
        return {key: _to_plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_to_plain(item) for item in value]
    return value


def _tool_version(tool: str) -> str:
    try:
        return version(tool)
    except PackageNotFoundError:  # builds of onnxruntime are also distributed under other names
        return "unknown"


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
