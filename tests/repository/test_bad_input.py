"""Every wrong key, order and file on the command line has its own reason, exit code and hint."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from keys.errors import TokenUnavailable
from keys.key_files import load_signer
from keys.passphrase import PASSPHRASE_VARIABLE, PIN_VARIABLE
from packager.commands.root import main
from packager.repository import tuf_documents
from packager.repository.detached_signing import prepare_request, review_request, sign_request
from packager.repository.role_changes import replace_key
from tests.support.metadata_publisher import FAMILY, NOW_S, PASSPHRASE, MetadataPublisher, build_publisher, make_rollout
from tests.support.softhsm import PIN, make_token, needs_softhsm

RELEASE = f"release-{FAMILY}"


class CommandRunner:
    """Runs commands and checks how they fail."""

    def __init__(self, publisher: MetadataPublisher, capfd: pytest.CaptureFixture[str]) -> None:
        self.publisher, self._capfd = publisher, capfd

    def run(self, *words: str | Path) -> None:
        assert main([str(word) for word in words]) == 0, (words, self._capfd.readouterr().err)
        self._capfd.readouterr()

    def run_failing(self, exit_code: int, reason: str, *words: str | Path) -> dict[str, Any]:
        code = main([*(str(word) for word in words), "--json"])
        out, err = self._capfd.readouterr()
        error: dict[str, Any] = json.loads(err)["error"]
        assert (code, error["reason"], error["exit_code"], out) == (exit_code, reason, exit_code, ""), error
        assert error["hint"], error
        assert PASSPHRASE.value.decode() not in err
        return error

    def key(self, role: str, algorithm: str = "ed25519") -> Path:
        return self.publisher.keys / f"{role}-{algorithm}-1.key"


@pytest.fixture
def runner(
    publisher: MetadataPublisher, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> CommandRunner:
    monkeypatch.setenv(PASSPHRASE_VARIABLE, PASSPHRASE.value.decode())
    monkeypatch.setenv("PACKAGER_REPO", os.fspath(publisher.repository.root))
    return CommandRunner(publisher, capfd)


def stage_release(publisher: MetadataPublisher, version: str = "1.1.0", counter: int = 2) -> None:
    manifest = publisher.make_manifest(version, counter)
    publisher.repository.stage_manifest(manifest)
    publisher.repository.stage_rollout(make_rollout(manifest))


def test_keys_that_do_not_open(runner: CommandRunner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage_release(runner.publisher)
    key, damaged = runner.key(RELEASE), tmp_path / "damaged.key"
    text = key.read_text()
    damaged.write_text(text.replace(text[-100:-90], "A" * 10))
    runner.run_failing(2, "key-damaged", "repo", "sign", "--key", damaged)
    runner.run_failing(2, "key-missing", "repo", "sign", "--key", tmp_path / "nowhere.key")
    monkeypatch.setenv(PASSPHRASE_VARIABLE, "not what it was")
    runner.run_failing(2, "wrong-passphrase", "repo", "sign", "--key", key)
    monkeypatch.delenv(PASSPHRASE_VARIABLE)
    monkeypatch.setattr("sys.stdin", open(os.devnull))  # noqa: SIM115  # pytest puts its own back
    runner.run_failing(2, "passphrase-missing", "repo", "sign", "--key", key)
    assert not runner.publisher.repository.status().staged


def test_the_wrong_order_and_the_wrong_file(runner: CommandRunner, tmp_path: Path) -> None:
    publisher = runner.publisher
    request, signatures, memory = tmp_path / "request.json", tmp_path / "a.signatures", tmp_path / "memory"
    online = ("--keys", os.fspath(publisher.keys))
    runner.run_failing(2, "nothing-staged", "repo", "prepare", "-o", request)
    runner.run_failing(2, "invalid-usage", "repo", "sign")
    stage_release(publisher)
    runner.run_failing(2, "below-threshold", "repo", "publish")
    runner.run("repo", "prepare", "-o", request)
    sign = ("repo", "sign", request, "--history", memory)
    runner.run_failing(2, "signer-not-in-role", *sign, "--key", runner.key("root"), "-o", signatures)
    runner.run_failing(2, "invalid-usage", *sign, "--key", runner.key(RELEASE), "--expect", "0" * 64, "-o", signatures)
    assert not signatures.exists()
    runner.run(*sign, "--key", runner.key(RELEASE), "-o", signatures)
    old = tmp_path / "old.json"
    shutil.copy(request, old)
    runner.run_failing(3, "malformed", "repo", "sign", signatures, "--history", memory, "--key", runner.key(RELEASE))
    runner.run_failing(3, "malformed", "repo", "add-signatures", request, *online)
    runner.run("repo", "add-signatures", signatures)
    runner.run_failing(2, "below-threshold", "repo", "publish")
    # another document under the same version
    runner.run("repo", "unstage")
    runner.run_failing(2, "nothing-staged", "repo", "add-signatures", signatures)
    stage_release(publisher, "1.9.0", 9)
    runner.run("repo", "prepare", "-o", request)
    runner.run_failing(3, "signing-request-replayed", *sign, "--key", runner.key(RELEASE), "-o", signatures)
    runner.run_failing(3, "signature-refused", "repo", "add-signatures", signatures, *online)
    # a key outside the role, whose signature is good
    other = runner.key(RELEASE, "ml-dsa-65")
    runner.run("repo", "sign", request, "--history", tmp_path / "another", "--key", other, "-o", signatures)
    value = json.loads(signatures.read_bytes())
    value["signatures"][0]["key_id"] = publisher.signers_of("fleet")[0].public_key.keyid
    signatures.write_text(json.dumps(value))
    runner.run_failing(3, "signature-refused", "repo", "add-signatures", signatures, *online)
    # an old request after a newer one
    publisher.publish()
    stage_release(publisher, "2.0.0", 10)
    runner.run("repo", "prepare", "-o", request)
    runner.run(*sign, "--key", runner.key(RELEASE), "-o", signatures)
    runner.run_failing(
        3, "signing-request-replayed", "repo", "sign", old, "--history", memory, "--key", runner.key(RELEASE)
    )


def test_a_threshold_that_one_algorithm_meets_is_not_staged(runner: CommandRunner) -> None:
    runner.run_failing(2, "threshold-invalid", "keys", "role", "threshold", RELEASE, "1")
    error = runner.run_failing(2, "signer-not-in-role", "keys", "role", "remove", RELEASE, "0000")
    assert "matches 0 keys" in error["message"]


def test_an_expired_role_is_told_and_holds_up_no_other_family(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    publisher = build_publisher(tmp_path / "publisher", families=(FAMILY, "speech"))
    publisher.release("1.0.0", 1)
    monkeypatch.setenv(PASSPHRASE_VARIABLE, PASSPHRASE.value.decode())
    monkeypatch.setenv("PACKAGER_REPO", os.fspath(publisher.repository.root))
    runner = CommandRunner(publisher, capfd)
    online = ("--keys", os.fspath(publisher.keys))
    later = NOW_S + 100 * tuf_documents.DAY_S
    monkeypatch.setattr("time.time", lambda: later)
    assert main(["repo", "status"]) == 4
    capfd.readouterr()
    # the fleet's and the families' roles lived 91 days: what is online is renewed, and the channel said to be without
    assert main(["repo", "refresh", *online, "--json"]) == 0
    (channel,) = json.loads(capfd.readouterr().out)["channels"]
    assert (channel["version"], "is expired" in channel["refusal"]) == (None, True)
    assert main(["repo", "status"]) == 4
    runner.run("keys", "role", "renew", "fleet")
    publisher.repository.sign(publisher.signers)
    result = runner.run_failing(4, "metadata-expired", "repo", "publish")
    assert RELEASE in result["message"]
    assert "keys role renew" in result["hint"]
    runner.run("keys", "role", "renew", "fleet", RELEASE, "release-speech")
    publisher.publish()
    assert main(["repo", "status"]) == 0
    # a year without a release of one family: the daily refresh goes on, and says which channel has no release
    monkeypatch.setattr("time.time", lambda: later + 80 * tuf_documents.DAY_S)
    runner.run("keys", "role", "renew", "fleet", "release-speech", "targets")
    publisher.publish(check_clients=False)
    monkeypatch.setattr("time.time", lambda: later + 95 * tuf_documents.DAY_S)
    capfd.readouterr()
    assert main(["repo", "refresh", *online, "--json"]) == 0
    (channel,) = json.loads(capfd.readouterr().out)["channels"]
    assert channel["version"] is None
    assert RELEASE in channel["refusal"]


@needs_softhsm
def test_a_token_that_is_pulled_out_in_mid_signing(
    publisher: MetadataPublisher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The officer's token signs one document, and is gone before the next: nothing is signed, nothing remembered."""
    for name, value in make_token(tmp_path / "token").items():
        monkeypatch.setenv(name, value)
    token = load_signer("hsm:2?label=test", PIN)
    old = publisher.signers_of(RELEASE)[0]
    replace_key(publisher.repository.layout, RELEASE, old.public_key.keyid, token.public_key)
    request = prepare_request(publisher.repository.layout, NOW_S)
    memory = tmp_path / "memory"
    reviewed = review_request(request, [token.public_key], memory, NOW_S)
    assert reviewed.roles == (RELEASE,)
    token.sign(b"the first document")
    shutil.rmtree(tmp_path / "token" / "tokens")
    with pytest.raises(TokenUnavailable) as gone:
        sign_request(request, reviewed, [token], memory)
    assert gone.value.reason == "token-unavailable"
    assert gone.value.hint
    assert not memory.exists()


@needs_softhsm
def test_a_token_with_another_pin_label_or_key(
    runner: CommandRunner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in make_token(tmp_path / "token").items():
        monkeypatch.setenv(name, value)
    stage_release(runner.publisher)
    monkeypatch.setenv(PIN_VARIABLE, "0000")
    runner.run_failing(4, "wrong-pin", "keys", "check", "hsm:2?label=test")
    monkeypatch.setenv(PIN_VARIABLE, PIN.value.decode())
    runner.run("keys", "check", "hsm:2?label=test")
    runner.run_failing(4, "token-unavailable", "repo", "sign", "--key", "hsm:2?label=another")
    runner.run_failing(4, "token-unavailable", "repo", "sign", "--key", "hsm:9?label=test")
    runner.run_failing(2, "signer-not-in-role", "repo", "sign", "--key", "hsm:2?label=test")
    runner.run_failing(2, "key-exists", "keys", "new", "hsm:3?label=test", "--algorithm", "ed25519")
    monkeypatch.delenv("PYKCS11LIB")
    runner.run_failing(4, "token-unavailable", "repo", "sign", "--key", "hsm:2?label=test")
