"""Provenance and SBOM follow their formats' schemas, match the release, and are verified."""

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from google.protobuf.json_format import ParseDict
from in_toto_attestation.predicates.provenance.v1.provenance_pb2 import Provenance
from in_toto_attestation.v1.statement import Statement
from in_toto_attestation.v1.statement_pb2 import Statement as StatementMessage

from bundle.manifest import Manifest
from packager.repository.repository import Repository
from packager.repository.workspace import Workspace
from tests.support.json_schemas import check_schema
from tests.support.packager_cli import CommandResult, run_packager
from tests.support.release_fixtures import ReleaseSite


@pytest.fixture(scope="module")
def folder(site: ReleaseSite, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the attestations of 1.1.0."""
    out = tmp_path_factory.mktemp("attested") / "attestations"
    result = run_packager(*create_command(site, out))
    assert result.code == 0, result.stderr
    return out


def create_command(site: ReleaseSite, out: Path, *words: object) -> tuple[object, ...]:
    place = ("--repo", site.folder / "repo", "--keys", site.folder / "keys", "-o", out)
    return ("attestation", "create", "kws", "1.1.0", *place, *words)


def verify(site: ReleaseSite, folder: Path, *words: object, version: str = "1.1.0") -> CommandResult:
    place = ("--repo", site.folder / "repo", "--folder", folder, "--json")
    return run_packager("attestation", "verify", "kws", version, *place, *words)


def read_statements(folder: Path) -> list[Any]:
    lines = (folder / "attestations.intoto.jsonl").read_text().splitlines()
    return [json.loads(base64.b64decode(json.loads(line)["payload"])) for line in lines]


def read_manifest(site: ReleaseSite) -> Manifest:
    manifest = Repository.open(site.folder / "repo").manifest("kws", "1.1.0")
    assert manifest is not None
    return manifest


def test_both_statements_are_in_totos_and_the_provenance_is_slsas(folder: Path) -> None:
    provenance, bill = read_statements(folder)
    for statement in (provenance, bill):
        Statement.copy_from_pb(ParseDict(statement, StatementMessage())).validate()
    assert provenance["predicateType"] == "https://slsa.dev/provenance/v1"
    ParseDict(provenance["predicate"], Provenance())
    assert bill["predicateType"] == "https://cyclonedx.org/bom"


def test_the_bill_of_materials_is_valid_cyclonedx(folder: Path) -> None:
    text = (folder / "bom.cdx.json").read_text()
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    damaged = json.loads(text)
    int8 = next(row for row in damaged["components"] if row["name"] == "int8")
    int8["modelCard"]["modelParameters"]["inputs"] = "x"
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(json.dumps(damaged)) is not None


def test_the_provenance_says_what_the_release_was_made_from_and_how(site: ReleaseSite, folder: Path) -> None:
    provenance, _ = read_statements(folder)
    definition, details = provenance["predicate"]["buildDefinition"], provenance["predicate"]["runDetails"]
    dependencies = {
        row["name"]: (row["annotations"]["role"], row["digest"]["sha256"]) for row in definition["resolvedDependencies"]
    }
    model = hashlib.sha256((site.folder / "1.1.0.onnx").read_bytes()).hexdigest()
    assert dependencies["1.1.0.onnx"] == ("model", model)
    assert dependencies["inputs.npz"][0] == "inputs"
    assert dependencies["labels.txt"][0] == "labels"
    int8 = dict(read_manifest(site).variants)["int8"]
    assert int8.quantization.calibration in {digest for _, digest in dependencies.values()}
    assert definition["externalParameters"]["release"]["variants"][1]["scheme"] == "int8"
    assert {"packager", "python", "onnx", "onnxruntime", "numpy"} <= set(details["builder"]["version"])
    report = {row["name"]: row["annotations"] for row in details["byproducts"]}["int8/report"]
    assert report["build"]["quantization"]["method"] == "weights"
    assert report["quantization"] == int8.quantization.as_json()
    assert report["quantization"]["relative_rms_ppm"] > 0
    assert str(site.folder) not in json.dumps(provenance)


def test_every_file_of_the_bundle_is_a_subject_that_sha256sum_can_check(site: ReleaseSite, folder: Path) -> None:
    manifest = read_manifest(site)
    subjects = {row["name"]: row["digest"]["sha256"] for row in read_statements(folder)[0]["subject"]}
    assert len(subjects) == 1 + sum(len(variant.files) for _, variant in manifest.variants)
    for name, variant in manifest.variants:
        stored = Workspace(site.folder / "repo").open_bundle("kws", variant.digest)
        assert stored is not None
        for file in stored.files:
            assert subjects[f"{name}/{file.path}"] == hashlib.sha256((stored.root / file.path).read_bytes()).hexdigest()


def test_the_model_card_says_what_the_model_takes_and_how_good_it_is(site: ReleaseSite, folder: Path) -> None:
    components = json.loads((folder / "bom.cdx.json").read_text())["components"]
    int8 = next(row for row in components if row["name"] == "int8")
    card = int8["modelCard"]
    assert card["modelParameters"]["inputs"][0]["format"].startswith("x: float32")
    (dataset,) = card["modelParameters"]["datasets"]
    assert dataset["ref"] in {row["bom-ref"] for row in components}
    figures = {row["type"]: float(row["value"]) for row in card["quantitativeAnalysis"]["performanceMetrics"]}
    signed = dict(read_manifest(site).variants)["int8"].quantization
    assert signed.relative_rms_ppm is not None
    assert figures["relative RMS error against the source model"] == signed.relative_rms_ppm / 1e6
    source = hashlib.sha256((site.folder / "1.1.0.onnx").read_bytes()).hexdigest()
    assert int8["pedigree"]["ancestors"][0]["hashes"] == [{"alg": "SHA-256", "content": source}]


def test_the_keys_of_the_release_role_sign_and_no_others(site: ReleaseSite, folder: Path) -> None:
    result = verify(site, folder)
    assert result.code == 0, result.stderr
    check_schema("attestation", result.json)
    assert len(result.json["key_ids"]) == 2
    names = {"release-kws-ed25519-1.key", "release-kws-ml-dsa-65-1.key"}
    ids = {run_packager("keys", "show", site.folder / "keys" / name, "--json").json["key_id"] for name in names}
    assert set(result.json["key_ids"]) == ids


def test_a_key_that_did_not_sign_is_missed(site: ReleaseSite, folder: Path) -> None:
    result = verify(site, folder, "--key", site.folder / "keys" / "timestamp-ed25519-1.key")
    assert (result.code, result.error["reason"]) == (3, "attestation-refused")
    assert "signed by 0 of the 1 keys, expected at least 1" in result.error["message"]


def test_one_of_two_signatures_is_not_enough(site: ReleaseSite, folder: Path, tmp_path: Path) -> None:
    def drop(envelope: dict[str, Any]) -> None:
        envelope["signatures"].pop()

    assert (
        verify_changed(site, folder, tmp_path, drop)
        .error["message"]
        .endswith("signed by 1 of the 2 keys, expected at least 2")
    )


def test_a_changed_payload_is_refused(site: ReleaseSite, folder: Path, tmp_path: Path) -> None:
    def change(envelope: dict[str, Any]) -> None:
        payload = base64.b64decode(envelope["payload"]).replace(b"int8", b"int4")
        envelope["payload"] = base64.b64encode(payload).decode()

    assert verify_changed(site, folder, tmp_path, change).error["reason"] == "attestation-refused"


def verify_changed(site: ReleaseSite, folder: Path, place: Path, change: Any) -> CommandResult:
    envelopes = [json.loads(line) for line in (folder / "attestations.intoto.jsonl").read_text().splitlines()]
    change(envelopes[0])
    (place / "attestations.intoto.jsonl").write_text("".join(json.dumps(row) + "\n" for row in envelopes))
    (place / "bom.cdx.json").write_bytes((folder / "bom.cdx.json").read_bytes())
    result = verify(site, place)
    assert result.code == 3
    return result


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\n",
        b"{}\n",
        b"[]\n{}\n",
        b"\xff\n",
        b"[" * 100_000,
        b'{"payload": 1, "payloadType": 1, "signatures": 1}\n',
    ],
)
def test_what_is_no_attestation_is_refused_in_one_line(site: ReleaseSite, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "attestations.intoto.jsonl").write_bytes(content)
    result = verify(site, tmp_path)
    assert (result.code, result.error["reason"]) == (3, "attestation-refused")


def test_attestations_of_another_release_are_refused(site: ReleaseSite, folder: Path) -> None:
    result = verify(site, folder, version="1.0.0")
    assert (result.code, result.error["reason"]) == (3, "attestation-refused")
    assert "the subjects are not the files of release kws 1.0.0" in result.error["message"]


def test_a_bill_that_was_changed_beside_its_signature_is_refused(
    site: ReleaseSite, folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "attestations.intoto.jsonl").write_bytes((folder / "attestations.intoto.jsonl").read_bytes())
    bill = json.loads((folder / "bom.cdx.json").read_text())
    bill["components"].pop()
    (tmp_path / "bom.cdx.json").write_text(json.dumps(bill))
    assert verify(site, tmp_path).error["message"].endswith("is not the bill of materials that was signed")


def test_the_same_release_gives_the_same_statements(site: ReleaseSite, folder: Path, tmp_path: Path) -> None:
    assert run_packager(*create_command(site, tmp_path)).code == 0
    assert read_statements(tmp_path) == read_statements(folder)
    assert (tmp_path / "bom.cdx.json").read_bytes() == (folder / "bom.cdx.json").read_bytes()


def test_a_release_whose_record_is_gone_is_attested_from_its_manifest(site: ReleaseSite, tmp_path: Path) -> None:
    record = site.folder / "repo" / "private" / "builds" / "kws" / "2.json"
    data = record.read_bytes()
    record.unlink()
    try:
        assert run_packager(*create_command(site, tmp_path)).code == 0
    finally:
        record.write_bytes(data)
    provenance, bill = read_statements(tmp_path)
    roles = [row["annotations"]["role"] for row in provenance["predicate"]["buildDefinition"]["resolvedDependencies"]]
    assert roles == ["model", "calibration"]
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(json.dumps(bill["predicate"])) is None


def test_a_damaged_record_is_told(site: ReleaseSite, tmp_path: Path) -> None:
    record = site.folder / "repo" / "private" / "builds" / "kws" / "2.json"
    data = record.read_bytes()
    record.write_bytes(data[:-9])
    try:
        result = run_packager(*create_command(site, tmp_path), "--json")
    finally:
        record.write_bytes(data)
    assert (result.code, result.error["reason"]) == (3, "workspace-damaged")


def test_a_release_that_is_not_there_is_told_with_those_that_are(site: ReleaseSite) -> None:
    place = ("--repo", site.folder / "repo", "--json")
    result = run_packager("attestation", "verify", "kws", "9.9.9", *place)
    assert (result.code, result.error["reason"]) == (2, "release-unknown")
    assert result.error["message"].endswith("found 1.0.0, 1.1.0")
    assert run_packager("attestation", "verify", "nope", "1.0.0", *place).error["reason"] == "family-unknown"
    assert run_packager("attestation", "verify", "kws", "1.0.0", *place).error["reason"] == "file-not-found"
