"""The `--json` output of release, bundle and quantization commands matches docs/schemas."""

import json
from pathlib import Path

import jsonschema
import pytest

from tests.support.json_schemas import SCHEMAS, check_schema
from tests.support.packager_cli import run_packager
from tests.support.release_fixtures import ReleaseSite


@pytest.mark.parametrize("path", sorted(SCHEMAS.glob("*.json")), ids=lambda path: path.stem)
def test_a_schema_is_a_schema(path: Path) -> None:
    schema = json.loads(path.read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    assert schema["title"]


def test_a_release(site: ReleaseSite) -> None:
    result = site.release("1.2.0.toml", "--dry-run", "--json")
    assert result.code == 0, result.stderr
    assert result.stderr == ""
    check_schema("release", result.json)
    assert result.json["published"] is False


def test_bundles_by_hand(site: ReleaseSite, tmp_path: Path) -> None:
    model = site.folder / "1.0.0.onnx"
    built = run_packager("bundle", "build", model, "-o", tmp_path / "A", "--family", "kws", "--golden", 2, "--json")
    check_schema("bundle-build", built.json)
    check_schema(
        "bundle-diff", run_packager("bundle", "diff", "-", tmp_path / "A", "-o", tmp_path / "p", "--json").json
    )
    check_schema(
        "bundle-apply", run_packager("bundle", "apply", "-", tmp_path / "p", "-o", tmp_path / "B", "--json").json
    )
    for place in (tmp_path / "A", tmp_path / "p"):
        check_schema("bundle-inspect", run_packager("bundle", "inspect", place, "--json").json)


@pytest.mark.parametrize(
    ("pattern", "kind"),
    [
        ("targets/bundles/kws/*.1.1.0.json", "manifest"),
        ("targets/rollouts/kws/*.stable.json", "rollout"),
        ("targets/fleet/*.fleet.json", "fleet"),
        ("blobs/*/*", "blob"),
        ("envelopes/content/kws/1", "envelope-shard"),
    ],
)
def test_published_files_can_be_inspected(site: ReleaseSite, pattern: str, kind: str) -> None:
    for place in (site.folder / "repo" / "published").glob(pattern):
        result = run_packager("bundle", "inspect", place, "--json")
        assert result.code == 0, result.stderr
        assert result.json["kind"] == kind
        check_schema("bundle-inspect", result.json)
        assert run_packager("bundle", "inspect", place).stdout.count("\n") >= 1


def test_a_kept_bundle_is_verified_against_the_published_manifest(site: ReleaseSite) -> None:
    manifest = site.published("targets/bundles/kws/*.1.1.0.json")
    bundle = run_packager("bundle", "inspect", manifest, "--json").json["bundles"]["int8"]
    stored = site.folder / "repo" / "private" / "bundles" / "kws" / bundle
    result = run_packager("bundle", "verify", stored, manifest, "int8", "--json")
    assert result.code == 0, result.stderr
    check_schema("bundle-verify", result.json)
    other = run_packager("bundle", "verify", stored, manifest, "fp32", "--json")
    assert (other.code, other.error["reason"]) == (3, "bundle-mismatch")
    unknown = run_packager("bundle", "verify", stored, manifest, "int4", "--json")
    assert (unknown.code, unknown.error["reason"]) == (2, "variant-unknown")
    assert "fp32, int8" in unknown.error["message"]


def test_quantize_and_compare(site: ReleaseSite, tmp_path: Path) -> None:
    model, inputs = site.folder / "1.0.0.onnx", site.folder / "inputs.npz"
    result = run_packager("quantize", model, "-o", tmp_path / "q.onnx", "--inputs", inputs, "--json")
    check_schema("quantize", result.json)
    check_schema(
        "compare", run_packager("compare", tmp_path / "q.onnx", "--reference", model, "--inputs", inputs, "--json").json
    )


def test_an_error(site: ReleaseSite) -> None:
    result = run_packager("bundle", "inspect", site.folder / "none", "--json")
    check_schema("error", json.loads(result.stderr))
