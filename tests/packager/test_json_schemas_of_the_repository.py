"""The `--json` output of repository, rollout, device and key commands matches docs/schemas."""

from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from bundle.enrollment import EnrollmentRequest
from bundle.envelope import derive_public_key, generate_private_key
from tests.support.json_schemas import check_schema
from tests.support.packager_cli import CommandResult, run_packager
from tests.support.release_fixtures import PASSPHRASE, create_site


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Run commands in an empty folder, with the passphrase in the environment."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PACKAGER_PASSPHRASE", PASSPHRASE)
    return tmp_path


def run_successfully(*words: object) -> CommandResult:
    """Run a command that must succeed."""
    result = run_packager(*words, "--json")
    assert result.code == 0, result.stderr
    return result


def test_keys(here: Path) -> None:
    check_schema("keys-new", run_successfully("keys", "new", "k.key", "--algorithm", "ml-dsa-65").json)
    check_schema("keys-show", run_successfully("keys", "show", "k.key").json)
    check_schema("keys-public", run_successfully("keys", "public", "k.key", "-o", "k.pem").json)
    assert (
        run_successfully("keys", "show", "k.pem").json["key_id"]
        == run_successfully("keys", "show", "k.key").json["key_id"]
    )
    check_schema("keys-check", run_successfully("keys", "check", "k.key").json)


def test_repository_and_rollouts(here: Path) -> None:
    site = create_site(here)
    again = run_successfully("repo", "init", "other", "--keys", "other-keys", "--family", "ocr")
    check_schema("repo-init", again.json)
    repo = ("--repo", "repo")
    keys = (*repo, "--keys", "keys")
    assert site.release("small-1.0.0.toml", "--until", "sign").code == 0
    check_schema("repo-status", run_successfully("repo", "status", *repo).json)
    check_schema("repo-sign", run_successfully("repo", "sign", *keys).json)
    check_schema("repo-publish", run_successfully("repo", "publish", *repo).json)
    check_schema("repo-publish", run_successfully("repo", "refresh", *keys).json)
    check_schema("repo-status", run_successfully("repo", "verify", *repo).json)
    check_schema(
        "rollout-change", run_successfully("rollout", "set", "kws", "stable", "1.0.0", "--percent", 50, *keys).json
    )
    check_schema("rollout-change", run_successfully("rollout", "halt", "kws", "stable", *keys).json)
    plan = run_successfully("rollout", "plan", "kws", "stable", "1.0.0", "--stages", "50,100", *keys).json
    check_schema("rollout-plan", plan)
    assert plan["plan"]["stages_bp"] == [5000, 10_000]
    check_schema("rollout-plan", run_successfully("rollout", "plan", "kws", "stable", "--remove", *keys).json)
    check_schema("rollout-status", run_successfully("rollout", "status", *repo).json)
    assert site.release("small-1.1.0.toml").code == 0
    check_schema("patch-add", run_successfully("patch", "add", "kws", "1.1.0", "--from", "1.0.0", *keys).json)
    check_schema("repo-withdraw", run_successfully("repo", "withdraw", "kws", "1.0.0", *repo).json)
    check_schema("repo-unstage", run_successfully("repo", "unstage", *repo).json)
    check_schema(
        "repo-collect-garbage", run_successfully("repo", "collect-garbage", "--dry-run", "--grace-hours", 0, *repo).json
    )


def test_devices(here: Path) -> None:
    create_site(here)
    signing = Ed25519PrivateKey.generate()
    request = EnrollmentRequest(
        label="door",
        x_wing_public=derive_public_key(generate_private_key()),
        ed25519_public=signing.public_key().public_bytes_raw(),
        attributes=(("site", "north"),),
    )
    Path("request.json").write_bytes(request.encode(signing))
    keys = ("--repo", "repo", "--keys", "keys")
    check_schema(
        "device-change",
        run_successfully("device", "enroll", "request.json", "--fingerprint", request.fingerprint, *keys).json,
    )
    check_schema("device-list", run_successfully("device", "list", "--repo", "repo").json)
    check_schema("device-rotate-cohort", run_successfully("device", "rotate-cohort", "default", *keys).json)
    check_schema("device-change", run_successfully("device", "revoke", "door", *keys).json)
