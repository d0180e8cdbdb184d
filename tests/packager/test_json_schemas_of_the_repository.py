"""What the commands about repositories, rollouts, devices and keys print with `--json` is what docs/schemas says."""

from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from bundle.enrollment import EnrollmentRequest
from bundle.envelope import derive_public_key, generate_private_key
from tests.packager.conftest import PASSPHRASE, make_site
from tests.packager.test_json_schemas import check
from tests.support.packager_cli import CommandResult, packager


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, and the passphrase in the environment."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PACKAGER_PASSPHRASE", PASSPHRASE)
    return tmp_path


def done(*words: object) -> CommandResult:
    """A command that succeeds."""
    said = packager(*words, "--json")
    assert said.code == 0, said.stderr
    return said


def test_keys(here: Path) -> None:
    check("keys-new", done("keys", "new", "k.key", "--algorithm", "ml-dsa-65").json)
    check("keys-show", done("keys", "show", "k.key").json)
    check("keys-public", done("keys", "public", "k.key", "-o", "k.pem").json)
    assert done("keys", "show", "k.pem").json["key_id"] == done("keys", "show", "k.key").json["key_id"]
    check("keys-check", done("keys", "check", "k.key").json)


def test_repository_and_rollouts(here: Path) -> None:
    site = make_site(here)
    again = done("repo", "init", "other", "--keys", "other-keys", "--family", "ocr")
    check("repo-init", again.json)
    repo = ("--repo", "repo")
    keys = (*repo, "--keys", "keys")
    assert site.release("small-1.0.0.toml", "--until", "sign").code == 0
    check("repo-status", done("repo", "status", *repo).json)
    check("repo-sign", done("repo", "sign", *keys).json)
    check("repo-publish", done("repo", "publish", *repo).json)
    check("repo-publish", done("repo", "refresh", *keys).json)
    check("repo-status", done("repo", "verify", *repo).json)
    check("rollout-change", done("rollout", "set", "kws", "stable", "1.0.0", "--percent", 50, *keys).json)
    check("rollout-change", done("rollout", "halt", "kws", "stable", *keys).json)
    check("rollout-status", done("rollout", "status", *repo).json)
    assert site.release("small-1.1.0.toml").code == 0
    check("patch-add", done("patch", "add", "kws", "1.1.0", "--from", "1.0.0", *keys).json)
    check("repo-withdraw", done("repo", "withdraw", "kws", "1.0.0", *repo).json)
    check("repo-unstage", done("repo", "unstage", *repo).json)
    check("repo-collect-garbage", done("repo", "collect-garbage", "--dry-run", "--grace-hours", 0, *repo).json)


def test_devices(here: Path) -> None:
    make_site(here)
    signing = Ed25519PrivateKey.generate()
    request = EnrollmentRequest(
        label="door",
        x_wing_public=derive_public_key(generate_private_key()),
        ed25519_public=signing.public_key().public_bytes_raw(),
        attributes=(("site", "north"),),
    )
    Path("request.json").write_bytes(request.encode(signing))
    keys = ("--repo", "repo", "--keys", "keys")
    check("device-change", done("device", "enroll", "request.json", "--fingerprint", request.fingerprint, *keys).json)
    check("device-list", done("device", "list", "--repo", "repo").json)
    check("device-rotate-cohort", done("device", "rotate-cohort", "default", *keys).json)
    check("device-change", done("device", "revoke", "door", *keys).json)
