"""An in-toto statement with SLSA v1 provenance of one release (in-toto attestation v1, slsa.dev/spec/v1.0/provenance).

Rules:
1. The subjects are every file of every variant's plain bundle, as `<variant>/<path>`, and the manifest without its
   patches (which may be added later): all of it can be checked with `sha256sum`.
2. What the signed manifest says comes from there; the build record adds what a manifest has no room for.
3. The statement is held to the in-toto project's own message definitions before it is signed.
"""

import hashlib
import importlib.util
import json
from typing import Any, Final

from bundle.manifest import Manifest, Variant
from bundle.strict_json import JSON
from packager.attestation.build_record import BuildRecord
from packager.errors import ExtraMissing

STATEMENT_TYPE: Final = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE: Final = "https://slsa.dev/provenance/v1"
BUILD_TYPE: Final = "urn:airweights:release:1"
INSTALL_HINT: Final = "pip install 'airweights[provenance]'"
DEFAULT_BUILDER: Final = "urn:airweights:packager"


def make_statement(manifest: Manifest, record: BuildRecord, builder: str = DEFAULT_BUILDER) -> dict[str, Any]:
    """The statement of a release.

    Args:
        manifest: as published.
        record: empty for a release that has none.
        builder: URI of who ran the build, for example a CI system's identity.

    Raises:
        ExtraMissing.
    """
    statement = {
        "_type": STATEMENT_TYPE,
        "subject": subjects_of(manifest),
        "predicateType": PREDICATE_TYPE,
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD_TYPE,
                "externalParameters": {
                    "family": manifest.family,
                    "version": manifest.version,
                    "counter": manifest.counter,
                    "release": record.plan,
                },
                "internalParameters": {"tools": record.tools},
                "resolvedDependencies": _dependencies(manifest, record),
            },
            "runDetails": {
                "builder": {"id": builder, "version": record.tools},
                "metadata": {
                    "invocationId": f"{manifest.family}/{manifest.counter}",
                    "startedOn": manifest.created,
                },
                "byproducts": [_byproduct(name, variant, record) for name, variant in manifest.variants],
            },
        },
    }
    check_statement(statement)
    return statement


def check_libraries() -> None:
    """That the libraries of attestations are here, before any work is done. Raises ExtraMissing."""
    for name in ("in_toto_attestation", "cyclonedx"):
        if importlib.util.find_spec(name) is None:
            raise ExtraMissing(f"{name} is not installed", hint=INSTALL_HINT)


def check_statement(statement: dict[str, Any]) -> None:
    """Rule 3. Raises ExtraMissing, ValueError."""
    try:
        from google.protobuf.json_format import ParseDict, ParseError
        from in_toto_attestation.predicates.provenance.v1.provenance_pb2 import Provenance
        from in_toto_attestation.v1.statement import Statement
        from in_toto_attestation.v1.statement_pb2 import Statement as StatementMessage
    except ImportError as error:
        raise ExtraMissing(f"{error.name} is not installed, which checks provenance", hint=INSTALL_HINT) from error
    try:
        message = ParseDict(statement, StatementMessage())
        Statement.copy_from_pb(message).validate()
        ParseDict(statement["predicate"], Provenance())
    except (ParseError, KeyError) as error:
        raise ValueError(f"not a provenance statement: {error}") from error


def subjects_of(manifest: Manifest) -> list[dict[str, Any]]:
    """Rule 1."""
    name = f"bundles/{manifest.family}/{manifest.version}.json without patches"
    subjects = [{"name": name, "digest": {"sha256": manifest.digest_without_patches()}}]
    for variant_name, variant in manifest.variants:
        for file in variant.files:
            subjects.append({"name": f"{variant_name}/{file.path}", "digest": {"sha256": file.sha256}})
    return subjects


def _dependencies(manifest: Manifest, record: BuildRecord) -> list[dict[str, Any]]:
    materials = [(m.role, m.name, m.sha256) for m in record.materials]
    known = {sha256 for _, _, sha256 in materials}
    for name, variant in manifest.variants:
        signed = dict(variant.provenance)
        source = signed.get("source_sha256")
        if source is not None and source not in known:
            materials.append(("model", f"source of {name}", source))
            known.add(source)
        if variant.quantization.calibration is not None and variant.quantization.calibration not in known:
            materials.append(("calibration", f"calibration of {name}", variant.quantization.calibration))
            known.add(variant.quantization.calibration)
    return [
        {"name": name, "digest": {"sha256": sha256}, "annotations": {"role": role}} for role, name, sha256 in materials
    ]


def _byproduct(name: str, variant: Variant, record: BuildRecord) -> dict[str, Any]:
    """What was measured of a variant; its digest is that of the annotations in JSON with sorted keys."""
    report: dict[str, JSON | Any] = {
        "bundle_digest": variant.digest,
        "quantization": variant.quantization.as_json(),
        "provenance": dict(variant.provenance),
        "build": record.variants.get(name, {}),
    }
    # a NaN has no place in JSON, and a measurement that gave one is told as a word
    text = json.dumps(_replace_nonfinite(report), sort_keys=True)
    return {
        "name": f"{name}/report",
        "digest": {"sha256": hashlib.sha256(text.encode()).hexdigest()},
        "mediaType": "application/json",
        "annotations": json.loads(text),
    }


def _replace_nonfinite(value: Any) -> Any:
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return str(value)
    if isinstance(value, dict):
        return {key: _replace_nonfinite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_replace_nonfinite(item) for item in value]
    return value
