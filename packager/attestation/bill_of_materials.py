"""Create the CycloneDX 1.6 bill of materials of a release, with a model card for each variant.

- Each variant is a component of type machine-learning-model with its files below it. Its source model is its pedigree,
  the tools are in the metadata, and calibration data is a component of type data.
- The library does not support model cards, so they are added to its output; tests check the result against the schema.
- The same release gives the same bytes: the serial number is derived from the manifest's digest.
"""

import json
import uuid
from datetime import datetime
from typing import Any, Final

from bundle.manifest import Manifest
from bundle.variant import Variant
from packager.attestation.build_record import BuildRecord
from packager.errors import ExtraMissing

SERIAL_NAMESPACE: Final = uuid.UUID("6f1f2c1e-6c6b-5d53-9c0c-6f2b8f3d8a11")  # random, used for nothing else


def create_bill_of_materials(manifest: Manifest, record: BuildRecord) -> dict[str, Any]:
    """Return the bill of materials of a release as JSON values.

    Args:
        manifest: the release's manifest.
        record: its build record; an empty one if there is none.

    Raises:
        ExtraMissing: the extra `provenance` is not installed.
    """
    try:
        from cyclonedx.model import HashAlgorithm, HashType, Property
        from cyclonedx.model.bom import Bom, BomMetaData
        from cyclonedx.model.component import Component, ComponentType, Pedigree
        from cyclonedx.model.tool import ToolRepository
        from cyclonedx.output.json import JsonV1Dot6
    except ImportError as error:
        raise ExtraMissing(
            f"{error.name} is not installed, which is needed for bills of materials",
            hint="install it with `pip install 'airweights[provenance]'`",
        ) from error

    def hashed(sha256: str) -> list[HashType]:
        return [HashType(alg=HashAlgorithm.SHA_256, content=sha256)]

    def source(variant: Variant) -> list[Component]:
        digest = dict(variant.provenance).get("source_sha256")
        names = {m.sha256: m.name for m in record.materials}
        if digest is None:
            return []
        model = ComponentType.MACHINE_LEARNING_MODEL
        return [Component(name=names.get(digest, "source model"), type=model, hashes=hashed(digest))]

    def variant_component(name: str, variant: Variant) -> Component:
        quantization = {f"airweights:quantization:{key}": value for key, value in _property_rows(variant)}
        return Component(
            type=ComponentType.MACHINE_LEARNING_MODEL,
            group=manifest.family,
            name=name,
            version=manifest.version,
            bom_ref=_variant_ref(manifest, name),
            properties=[
                Property(name="airweights:bundle-digest", value=variant.digest),
                *(Property(name=key, value=value) for key, value in sorted(quantization.items())),
                *(Property(name=f"airweights:provenance:{key}", value=value) for key, value in variant.provenance),
            ],
            pedigree=Pedigree(ancestors=source(variant)) if source(variant) else None,
            components=[
                Component(
                    type=ComponentType.FILE,
                    name=file.path,
                    bom_ref=f"{_variant_ref(manifest, name)}/{file.path}",
                    hashes=hashed(file.sha256),
                    properties=[Property(name="airweights:role", value=file.role)],
                )
                for file in variant.files
            ],
        )

    data = [m for m in record.materials if m.role == "inputs"]
    known = {m.sha256: m.name for m in data}
    for _, variant in manifest.variants:
        calibration = variant.quantization.calibration
        if calibration is not None:
            known.setdefault(calibration, "calibration samples")
    bom = Bom(
        serial_number=uuid.uuid5(SERIAL_NAMESPACE, manifest.digest_without_patches()),
        components=[
            *(variant_component(name, variant) for name, variant in manifest.variants),
            *(
                Component(type=ComponentType.DATA, name=name, bom_ref=f"data/{sha256}", hashes=hashed(sha256))
                for sha256, name in known.items()
            ),
        ],
        metadata=BomMetaData(
            timestamp=datetime.fromisoformat(manifest.created),
            component=Component(
                type=ComponentType.MACHINE_LEARNING_MODEL,
                name=manifest.family,
                version=manifest.version,
                bom_ref=f"{manifest.family}@{manifest.version}",
                properties=[
                    Property(name="airweights:counter", value=str(manifest.counter)),
                    Property(name="airweights:manifest-digest", value=manifest.digest_without_patches()),
                ],
            ),
            tools=ToolRepository(
                components=[
                    Component(type=ComponentType.APPLICATION, name=name, version=version)
                    for name, version in sorted(record.tools.items())
                ]
            ),
        ),
    )
    parts = [c for c in bom.components if c.type is ComponentType.MACHINE_LEARNING_MODEL]
    assert bom.metadata.component is not None
    bom.register_dependency(bom.metadata.component, parts)
    for name, variant in manifest.variants:
        needed = [c for c in bom.components if str(c.bom_ref) == f"data/{variant.quantization.calibration}"]
        made = next(c for c in bom.components if str(c.bom_ref) == _variant_ref(manifest, name))
        bom.register_dependency(made, needed)
    document: dict[str, Any] = json.loads(JsonV1Dot6(bom).output_as_string())
    variants = dict(manifest.variants)
    for component in document["components"]:
        if component["type"] == "machine-learning-model":
            component["modelCard"] = _model_card(variants[component["name"]], known)
    return document


def _variant_ref(manifest: Manifest, name: str) -> str:
    return f"{manifest.family}@{manifest.version}/{name}"


def _property_rows(variant: Variant) -> list[tuple[str, str]]:
    return [(key, str(value)) for key, value in variant.quantization.as_json().items() if value is not None]


def _model_card(variant: Variant, data: dict[str, str]) -> dict[str, Any]:
    """Return a model card: inputs and outputs, calibration data, and errors against the source model."""
    quantization = variant.quantization
    inputs = [tensor for model in variant.models for tensor in model.contract.inputs]
    outputs = [tensor for model in variant.models for tensor in model.contract.outputs]
    metrics = []
    if quantization.relative_rms_ppm is not None:
        metrics.append(
            {"type": "relative RMS error against the source model", "value": _format_ppm(quantization.relative_rms_ppm)}
        )
    if quantization.top1_agreement_ppm is not None:
        metrics.append(
            {"type": "top-1 agreement with the source model", "value": _format_ppm(quantization.top1_agreement_ppm)}
        )
    parameters: dict[str, Any] = {
        "inputs": [{"format": f"{tensor.name}: {tensor.dtype} {list(tensor.shape)}"} for tensor in inputs],
        "outputs": [{"format": f"{tensor.name}: {tensor.dtype} {list(tensor.shape)}"} for tensor in outputs],
    }
    if quantization.calibration is not None and quantization.calibration in data:
        parameters["datasets"] = [{"ref": f"data/{quantization.calibration}"}]
    card: dict[str, Any] = {"modelParameters": parameters}
    if metrics:
        card["quantitativeAnalysis"] = {"performanceMetrics": metrics}
    return card


def _format_ppm(ppm: int) -> str:
    return f"{ppm / 1_000_000:.6f}"
