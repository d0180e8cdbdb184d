"""What `--json` prints is what docs/schemas says, for real outputs of every command."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from tests.packager.conftest import Site
from tests.support.packager_cli import packager
from tools.generate_docs.__main__ import DOCS

SCHEMAS = DOCS / "schemas"


def check(name: str, value: Any) -> None:
    """Raises jsonschema.ValidationError."""
    schema = json.loads((SCHEMAS / f"{name}.json").read_text())
    jsonschema.Draft202012Validator(schema).validate(value)


@pytest.mark.parametrize("path", sorted(SCHEMAS.glob("*.json")), ids=lambda path: path.stem)
def test_a_schema_is_a_schema(path: Path) -> None:
    schema = json.loads(path.read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    assert schema["title"]


def test_a_release(site: Site) -> None:
    said = site.release("1.2.0.toml", "--dry-run", "--json")
    assert said.code == 0, said.stderr
    assert said.stderr == ""
    check("release", said.json)
    assert said.json["published"] is False


def test_bundles_by_hand(site: Site, tmp_path: Path) -> None:
    model = site.folder / "1.0.0.onnx"
    built = packager("bundle", "build", model, "-o", tmp_path / "A", "--family", "kws", "--golden", 2, "--json")
    check("bundle-build", built.json)
    check("bundle-diff", packager("bundle", "diff", "-", tmp_path / "A", "-o", tmp_path / "p", "--json").json)
    check("bundle-apply", packager("bundle", "apply", "-", tmp_path / "p", "-o", tmp_path / "B", "--json").json)
    for place in (tmp_path / "A", tmp_path / "p"):
        check("bundle-inspect", packager("bundle", "inspect", place, "--json").json)


@pytest.mark.parametrize(
    ("pattern", "kind"),
    [
        ("targets/bundles/kws/*.1.1.0.json", "manifest"),
        ("targets/rollouts/kws/*.stable.json", "rollout"),
        ("targets/fleet/*.fleet.json", "fleet"),
        ("blobs/*/*", "blob"),
        ("envelopes/content/kws/1/fp32/*", "envelope"),
    ],
)
def test_published_files_can_be_inspected(site: Site, pattern: str, kind: str) -> None:
    for place in (site.folder / "repo" / "published").glob(pattern):
        said = packager("bundle", "inspect", place, "--json")
        assert said.code == 0, said.stderr
        assert said.json["kind"] == kind
        check("bundle-inspect", said.json)
        assert packager("bundle", "inspect", place).stdout.count("\n") >= 1


def test_a_kept_bundle_is_verified_against_the_published_manifest(site: Site) -> None:
    manifest = site.published("targets/bundles/kws/*.1.1.0.json")
    bundle = packager("bundle", "inspect", manifest, "--json").json["bundles"]["int8"]
    kept = site.folder / "repo" / "private" / "bundles" / "kws" / bundle
    said = packager("bundle", "verify", kept, manifest, "int8", "--json")
    assert said.code == 0, said.stderr
    check("bundle-verify", said.json)
    other = packager("bundle", "verify", kept, manifest, "fp32", "--json")
    assert (other.code, other.error["reason"]) == (3, "bundle-mismatch")
    unknown = packager("bundle", "verify", kept, manifest, "int4", "--json")
    assert (unknown.code, unknown.error["reason"]) == (2, "variant-unknown")
    assert "fp32, int8" in unknown.error["message"]


def test_quantize_and_compare(site: Site, tmp_path: Path) -> None:
    model, inputs = site.folder / "1.0.0.onnx", site.folder / "inputs.npz"
    said = packager("quantize", model, "-o", tmp_path / "q.onnx", "--inputs", inputs, "--json")
    check("quantize", said.json)
    check("compare", packager("compare", tmp_path / "q.onnx", "--reference", model, "--inputs", inputs, "--json").json)


def test_an_error(site: Site) -> None:
    said = packager("bundle", "inspect", site.folder / "none", "--json")
    check("error", json.loads(said.stderr))
