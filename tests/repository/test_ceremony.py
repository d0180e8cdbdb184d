"""The commands of the ceremony and of a compromise work in order (docs/operations)."""

import json
import os
from pathlib import Path

import pytest

from bundle.errors import UntrustedMetadata
from keys.key_files import load_signer
from keys.passphrase import PASSPHRASE_VARIABLE, PIN_VARIABLE
from keys.signers import load_folder_signers
from packager.commands.root import main
from tests.support.attacker import Attacker
from tests.support.docs_page import run_block
from tests.support.metadata_publisher import PASSPHRASE, MetadataPublisher, create_client, make_rollout
from tests.support.softhsm import PIN, make_token, needs_softhsm

PAGE = "operations/ceremony-and-keys.md"
pytestmark = needs_softhsm


class CommandRunner:
    """Runs the commands of the page in one folder."""

    def __init__(self, capfd: pytest.CaptureFixture[str]) -> None:
        self._capfd = capfd

    def run(self, *words: str, status: int = 0) -> str:
        code = main(list(words))
        out, err = self._capfd.readouterr()
        assert code == status, (words, err)
        return out + err

    def release(
        self, publisher: MetadataPublisher, version: str, counter: int, ci: str, engineer: str, online: str
    ) -> None:
        """Create a release that the build machine and the engineer sign with separate signing histories."""
        manifest = publisher.make_manifest(version, counter)
        publisher.repository.stage_manifest(manifest)
        publisher.repository.stage_rollout(make_rollout(manifest))
        self.run("repo", "prepare", "--repo", "repository", "-o", "request.json")
        for key, signer in ((ci, "ci"), (engineer, "engineer")):
            shown = self.run("repo", "sign", "request.json", "--key", key, "--history", f"{signer}/history")
            assert f"release vision {version}, counter {counter}" in shown
            assert "UNSOUND" not in shown
            words = ["--key", key, "--history", f"{signer}/history", "-o", f"{signer}.signatures"]
            self.run("repo", "sign", "request.json", *words)
        files = ("ci.signatures", "engineer.signatures")
        self.run("repo", "add-signatures", *files, "--repo", "repository", "--keys", online)
        self.run("repo", "publish", "--repo", "repository")


def test_the_ceremony_and_ten_years_in_one_afternoon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, value in make_token(tmp_path / "token", "OFFICER", with_keys=False).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv(PASSPHRASE_VARIABLE, PASSPHRASE.value.decode())
    monkeypatch.setenv(PIN_VARIABLE, PIN.value.decode())
    runner, publisher = CommandRunner(capfd), MetadataPublisher(tmp_path, [])

    run_block(PAGE, "ceremony: keys")
    run_block(PAGE, "ceremony: init")
    capfd.readouterr()
    waiting = json.loads(runner.run("repo", "status", "--repo", "repository", "--json", status=4))
    assert {role["name"]: role["missing"] for role in waiting["staged"] if role["missing"]} == {
        "root": 3,
        "targets": 3,
        "release-vision": 2,
    }
    assert "more must sign" in runner.run("repo", "publish", "--repo", "repository", status=2)
    run_block(PAGE, "ceremony: sign")
    run_block(PAGE, "ceremony: publish")
    root = next(role for role in publisher.repository.status().roles if role.name == "root")
    assert (root.threshold, root.classical, root.post_quantum) == (3, 2, 2)
    assert [key.scheme for key in root.keys] == ["ecdsa-sha2-nistp256", "ed25519", "ml-dsa-65/1", "ml-dsa-65/1"]
    assert [key.has_signed for key in root.keys] == [True, True, True, False]
    late, regular = create_client(publisher, "late"), create_client(publisher, "regular")
    runner.release(publisher, "1.0.0", 1, "ci/release.key", "engineer/release.key", "online")
    assert regular.check(publisher.published).manifest.version == "1.0.0"

    run_block(PAGE, "ceremony: rotate")
    for gone, signer in (("ci/release.key", "ci"), ("engineer/release.key", "engineer")):
        manifest = publisher.make_manifest("6.6.6", 666)
        publisher.repository.stage_manifest(manifest)
        runner.run("repo", "prepare", "--repo", "repository", "-o", "request.json")
        words = ("--key", gone, "--history", f"{signer}/another", "-o", "late.signatures")
        assert "none of the 1 given keys" in runner.run("repo", "sign", "request.json", *words, status=2)
        runner.run("repo", "unstage", "--repo", "repository")
    runner.release(publisher, "2.0.0", 2, "ci/release-2.key", "engineer/release-2.key", "online")
    assert regular.check(publisher.published).manifest.version == "2.0.0"

    stolen = load_folder_signers(tmp_path / "online", PASSPHRASE)
    run_block("operations/incidents.md", "ceremony: compromise")
    attacker = Attacker(publisher, stolen, publisher.copy_published("attacker"))
    first = publisher.repository.manifest("vision", "1.0.0")
    assert first is not None
    attacker.roll_out(make_rollout(first))
    assert regular.check(publisher.published).manifest.version == "2.0.0"
    with pytest.raises(UntrustedMetadata):
        regular.check(attacker.publish())

    # the other three root keys go one after the other, each lost by its owner: three sign, and the new one
    for name, algorithm, others in (
        ("bea", "ed25519", ("carl/root.key", "dora/root.key")),
        ("carl", "ml-dsa-65", ("bea/root-2.key", "dora/root.key")),
        ("dora", "ml-dsa-65", ("bea/root-2.key", "carl/root-2.key")),
    ):
        runner.run("keys", "new", f"{name}/root-2.key", "--algorithm", algorithm)
        runner.run(
            "keys", "role", "replace", "root", f"{name}-root.pem", "--key", f"{name}/root-2.key", "--repo", "repository"
        )
        runner.run("repo", "prepare", "--repo", "repository", "-o", "request.json")
        files = []
        for number, key in enumerate(("hsm:4?label=OFFICER", *others, f"{name}/root-2.key")):
            files.append(f"{number}.signatures")
            words = ("--key", key, "--history", f"{name}/history-{number}", "-o", files[-1])
            runner.run("repo", "sign", "request.json", *words)
        runner.run("repo", "add-signatures", *files, "--repo", "repository", "--keys", "online-2")
        runner.run("repo", "publish", "--repo", "repository")
    runner.release(publisher, "3.0.0", 3, "ci/release-2.key", "engineer/release-2.key", "online-2")

    assert late.check(publisher.published).manifest.version == "3.0.0"
    assert regular.check(publisher.published).manifest.version == "3.0.0"
    report = json.loads(runner.run("repo", "verify", "--repo", "repository", "--json"))
    assert report["is_sound"]
    assert report["roles"][0]["version"] == 6
    assert len(list((publisher.published / "metadata").glob("*.root.json"))) == 6
    officer_key = load_signer("hsm:4?label=OFFICER", PIN).public_key
    assert officer_key.keyid in {key["key_id"] for key in report["roles"][0]["keys"]}
    secret = [path for path in tmp_path.rglob("*.key") if path.stat().st_mode & 0o077]
    assert not secret, [os.fspath(path) for path in secret]
