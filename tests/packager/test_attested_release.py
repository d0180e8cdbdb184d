"""`packager release --attest`: the attestations are written with the release."""

from pathlib import Path

from tests.support.json_schemas import check_schema
from tests.support.packager_cli import run_packager
from tests.support.release_fixtures import create_site


def test_a_release_writes_its_attestations_where_it_is_asked_to(tmp_path: Path) -> None:
    site = create_site(tmp_path)
    result = site.release("small-1.0.0.toml", "--attest", "--builder", "https://ci.example/runs/7", "--json")
    assert result.code == 0, result.stderr
    folder = tmp_path / "repo" / "attestations" / "kws" / "1.0.0"
    check_schema("release", result.json)
    assert result.json["attestations"]["folder"] == str(folder)
    assert run_packager("attestation", "verify", "kws", "1.0.0", "--repo", tmp_path / "repo").code == 0
    assert not list((tmp_path / "repo" / "published").rglob("*.intoto.jsonl")), "not served without being asked to"


def test_attest_without_signing_is_told_before_any_work(tmp_path: Path) -> None:
    site = create_site(tmp_path)
    result = site.release("small-1.0.0.toml", "--attest", "--dry-run", "--json")
    assert (result.code, result.error["reason"]) == (2, "invalid-usage")
