"""Create the in-toto statement with the SLSA v1 provenance of a release.

Formats: in-toto attestation v1, https://slsa.dev/spec/v1.0/provenance.

- The subjects are each file of each variant's plain bundle, as VARIANT/PATH, and the manifest without its patches,
  which may be added later. All of them can be verified with `sha256sum`.
- Facts that the signed manifest contains are taken from it; the build record adds the others.
- The statement is checked against the in-toto project's own message definitions before it is signed.
"""

import hashlib
import importlib.util
import json
from typing import Any, Final

from bundle.manifest import Manifest
from bundle.strict_json import JSON
from bundle.variant import Variant
from packager.attestation.build_record import BuildRecord
from packager.errors import ExtraMissing

STATEMENT_TYPE: Final = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE: Final = "https://slsa.dev/provenance/v1"
BUILD_TYPE: Final = "urn:airweights:release:1"
INSTALL_HINT: Final = "install it with `pip install 'airweights[provenance]'`"
DEFAULT_BUILDER: Final = "urn:airweights:packager"


def create_statement(manifest: Manifest, record: BuildRecord, builder: str = DEFAULT_BUILDER) -> dict[str, Any]:
    """Return the provenance statement of a release, checked.

    Args:
        manifest: the release's manifest.
        record: its build record; an empty one if there is none.
        builder: URI of the build's operator, for example the identity of a CI system.

    Raises:
        ExtraMissing: the extra `provenance` is not installed.
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
    """Check that the libraries for attestations are installed, before any work is done.

    Raises:
        ExtraMissing: one is not installed.
    """
    for name in ("in_toto_attestation", "cyclonedx"):
        if importlib.util.find_spec(name) is None:
            raise ExtraMissing(f"{name} is not installed", hint=INSTALL_HINT)


def check_statement(statement: dict[str, Any]) -> None:
    """Check a statement against the in-toto project's message definitions.

    Raises:
        ExtraMissing: the extra `provenance` is not installed.
        ValueError: the statement is malformed.
    """
    try:
        from google.protobuf.json_format import ParseDict, ParseError
        from in_toto_attestation.predicates.provenance.v1.provenance_pb2 import Provenance
        from in_toto_attestation.v1.statement import Statement
        from in_toto_attestation.v1.statement_pb2 import Statement as StatementMessage
    except ImportError as error:
        raise ExtraMissing(
            f"{error.name} is not installed, which is needed for provenance", hint=INSTALL_HINT
        ) from error
    try:
        message = ParseDict(statement, StatementMessage())
        Statement.copy_from_pb(message).validate()
        ParseDict(statement["predicate"], Provenance())
    except (ParseError, KeyError) as error:
        raise ValueError(f"not a provenance statement: {error}") from error


def subjects_of(manifest: Manifest) -> list[dict[str, Any]]:
    """List the subjects of a release: its manifest without patches, and each file of each variant."""
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
    """Return the reports of a variant; the digest is that of the annotations as JSON with sorted keys."""
    report: dict[str, JSON | Any] = {
        "bundle_digest": variant.digest,
        "quantization": variant.quantization.as_json(),
        "provenance": dict(variant.provenance),
        "build": record.variants.get(name, {}),
    }
    # JSON has no NaN and infinity: such measurements are stored as text
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
