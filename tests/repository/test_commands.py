"""The commands of a release team change and show the repository, keys, devices and rollouts."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from bundle.enrollment import EnrollmentRequest
from bundle.envelope import (
    COHORT_KEY_PURPOSE,
    EnvelopeContext,
    derive_public_key,
    generate_private_key,
    open_envelope,
)
from keys.passphrase import PASSPHRASE_VARIABLE
from packager.commands.root import main
from tests.support.envelope_files import cohort_envelope_of
from tests.support.metadata_publisher import FAMILY, PASSPHRASE, CheckClient, MetadataPublisher
from tests.support.repository_commands import check_command_output


@pytest.fixture(autouse=True)
def passphrase(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PASSPHRASE_VARIABLE, PASSPHRASE.value.decode())


class Terminal:
    """Runs commands and returns their output."""

    def __init__(self, publisher: MetadataPublisher, capfd: pytest.CaptureFixture[str]) -> None:
        self._shop, self._capfd = publisher, capfd

    def json(self, *words: str, status: int = 0, keys: bool = False) -> dict[str, Any]:
        code = main([*words, "--repo", os.fspath(self._shop.repository.root), *self._keys(keys), "--json"])
        out, err = self._capfd.readouterr()
        assert code == status, (words, err)
        found = json.loads(out if code in (0, 4) and out else err)
        assert isinstance(found, dict)
        check_command_output(words, found)
        return found

    def text(self, *words: str, status: int = 0, keys: bool = False) -> str:
        code = main([*words, "--repo", os.fspath(self._shop.repository.root), *self._keys(keys)])
        out, err = self._capfd.readouterr()
        assert code == status, (words, err)
        return out + err

    def _keys(self, given: bool) -> list[str]:
        return ["--keys", os.fspath(self._shop.keys)] if given else []


@pytest.fixture
def terminal(publisher: MetadataPublisher, capfd: pytest.CaptureFixture[str]) -> Terminal:
    return Terminal(publisher, capfd)


def test_a_rollout_goes_up_by_stages_and_is_halted(
    publisher: MetadataPublisher, device: CheckClient, terminal: Terminal
) -> None:
    first = terminal.json("rollout", "set", FAMILY, "stable", "1.0.0", "--percent", "1", keys=True)
    assert first["rollout"]["percent_bp"] == 100
    assert first["published"]["channels"][0]["version"] == "1.0.0"
    salt = first["rollout"]["salt"]
    second = terminal.json("rollout", "set", FAMILY, "stable", "1.0.0", "--percent", "25", keys=True)
    assert second["rollout"]["salt"] == salt
    assert device.check(publisher.published).rollout.percent_bp == 2500
    terminal.json("rollout", "halt", FAMILY, "stable", "--note", "too warm", keys=True)
    assert device.check(publisher.published).rollout.halted
    assert "HALTED (too warm)" in terminal.text("rollout", "status")
    terminal.json("rollout", "resume", FAMILY, "stable", keys=True)
    assert not device.check(publisher.published).rollout.halted


def test_a_rollout_of_what_is_not_there_is_refused_with_what_is(terminal: Terminal) -> None:
    error = terminal.json("rollout", "set", FAMILY, "stable", "9.0.0", status=2)["error"]
    assert error["reason"] == "staging-invalid"
    assert "found 1.0.0" in error["message"]
    assert terminal.json("rollout", "halt", FAMILY, "beta", status=2)["error"]["reason"] == "staging-invalid"


def test_without_keys_a_change_waits_for_sign_and_publish(publisher: MetadataPublisher, terminal: Terminal) -> None:
    assert terminal.json("rollout", "set", FAMILY, "stable", "1.0.0", "--percent", "50")["published"] is None
    assert "staged file rollouts/vision/stable.json" in terminal.text("repo", "status")
    key = publisher.keys / "rollout-vision-ed25519-1.key"
    assert not terminal.json("repo", "sign", "--key", os.fspath(key))["complete"]
    root_key = publisher.keys / "root-ed25519-1.key"
    assert (
        terminal.json("repo", "sign", "--key", os.fspath(root_key), status=2)["error"]["reason"] == "signer-not-in-role"
    )
    assert terminal.json("repo", "publish", status=2)["error"]["reason"] == "below-threshold"
    assert terminal.json("repo", "sign", keys=True)["complete"]
    assert terminal.json("repo", "publish")["channels"][0]["version"] == "1.0.0"
    assert terminal.json("repo", "publish", status=2)["error"]["reason"] == "nothing-staged"


def test_a_device_is_enrolled_listed_and_revoked(publisher: MetadataPublisher, terminal: Terminal) -> None:
    private, signing = generate_private_key(), Ed25519PrivateKey.generate()
    request = EnrollmentRequest("cam-1", derive_public_key(private), signing.public_key().public_bytes_raw())
    file = publisher.folder / "request.json"
    file.write_bytes(request.encode(signing))
    wrong = terminal.json("device", "enroll", os.fspath(file), "--fingerprint", "0" * 40, keys=True, status=2)
    assert wrong["error"]["reason"] == "fingerprint-mismatch"
    admitted = terminal.json("device", "enroll", os.fspath(file), "--fingerprint", request.fingerprint, keys=True)
    assert admitted["device_id"] == request.device_id
    assert admitted["published"]["roles"].keys() == {"fleet", "snapshot", "timestamp"}
    assert publisher.repository.fleet().devices == 1
    cohort = publisher.repository.fleet().cohorts[0]
    envelope = cohort_envelope_of(publisher.published, cohort, request.x_wing_public)
    assert envelope is not None
    context = EnvelopeContext(COHORT_KEY_PURPOSE, publisher.repository.repository_id, "default", 1)
    assert derive_public_key(open_envelope(envelope, private, context)) == cohort.public_key
    assert terminal.json("device", "list")["devices"][0]["label"] == "cam-1"
    again = terminal.json("device", "enroll", os.fspath(file), "--fingerprint", request.fingerprint, keys=True)
    assert again["device_id"] == request.device_id
    # nothing is left behind that the next release would stumble over
    assert again["published"] is None
    assert publisher.repository.is_staging_empty
    words = ("device", "enroll", os.fspath(file), "--fingerprint", request.fingerprint)
    assert terminal.text(*words, keys=True).endswith("nothing changed\n")
    assert terminal.json("device", "revoke", "cam-1", keys=True)["revoked"]
    epoch = terminal.json("device", "rotate-cohort", "default", keys=True)
    assert (epoch["epoch"], epoch["envelopes"]) == (2, 0)
    assert publisher.repository.fleet().cohorts[0].epoch == 2


def test_status_says_what_is_due_by_its_exit_code(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "days left" in terminal.text("repo", "status")
    from packager.repository import repository_status

    monkeypatch.setattr(repository_status, "DUE_SHARE", 1.1)
    assert terminal.json("repo", "status", status=4)["is_due"]


def test_doctor_refresh_withdraw_and_garbage_have_their_say(
    publisher: MetadataPublisher, device: CheckClient, terminal: Terminal
) -> None:
    assert "if ML-DSA is broken, 1 classical key" in terminal.text("repo", "verify")
    assert terminal.json("repo", "refresh", keys=True)["roles"].keys() == {"timestamp"}
    assert terminal.json("repo", "collect-garbage", "--dry-run")["removed"] == []
    assert "withdrawal staged" in terminal.text("repo", "withdraw", FAMILY, "1.0.0") + terminal.text("repo", "status")
    assert terminal.json("repo", "unstage") == {"staged": False}
    assert device.check(publisher.published).manifest.version == "1.0.0"


def test_wrong_and_missing_passphrases_are_told_without_a_traceback(
    terminal: Terminal, publisher: MetadataPublisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(PASSPHRASE_VARIABLE, "not the passphrase")
    assert terminal.json("repo", "refresh", keys=True, status=2)["error"]["reason"] == "wrong-passphrase"
    monkeypatch.delenv(PASSPHRASE_VARIABLE)
    monkeypatch.setattr(sys, "stdin", open(os.devnull))  # noqa: SIM115  # pytest puts its own back
    assert terminal.json("repo", "refresh", keys=True, status=2)["error"]["reason"] == "passphrase-missing"
    file = publisher.folder / "passphrase"
    file.write_text(PASSPHRASE.value.decode() + "\n")
    file.chmod(0o644)
    error = terminal.json("repo", "refresh", "--passphrase-file", os.fspath(file), keys=True, status=2)["error"]
    assert (error["reason"], error["hint"]) == ("passphrase-missing", f"run `chmod 600 {file}`")
    file.chmod(0o600)
    terminal.json("repo", "refresh", "--passphrase-file", os.fspath(file), keys=True)


def test_keys_are_made_shown_and_checked(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    file = os.fspath(tmp_path / "a.key")
    assert main(["keys", "new", file, "--algorithm", "ml-dsa-65", "--json"]) == 0
    made = json.loads(capfd.readouterr().out)
    assert main(["keys", "show", file, "--json"]) == 0
    shown = json.loads(capfd.readouterr().out)
    assert shown["key_id"] == made["key_id"]
    assert main(["keys", "check", file, "--json"]) == 0
    works = json.loads(capfd.readouterr().out)
    assert works["works"]
    for command, result in (("new", made), ("show", shown), ("check", works)):
        check_command_output(["keys", command], result)
    assert main(["keys", "new", file, "--algorithm", "ed25519", "--json"]) == 2
    assert json.loads(capfd.readouterr().err)["error"]["reason"] == "key-exists"


def test_init_makes_a_repository_whose_root_is_ready_to_ship(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    words = [
        "repo",
        "init",
        os.fspath(tmp_path / "r"),
        "--keys",
        os.fspath(tmp_path / "k"),
        "--family",
        "kws",
        "--json",
    ]
    assert main(words) == 0
    made = json.loads(capfd.readouterr().out)
    check_command_output(["repo", "init"], made)
    assert Path(made["root"]).name == "1.root.json"
    assert Path(made["root"]).is_file()
    assert len(list((tmp_path / "k").glob("*.key"))) == 18
    assert main(words) == 2
    assert json.loads(capfd.readouterr().err)["error"]["reason"] == "repository-exists"


@pytest.mark.parametrize("group", ["repo", "rollout", "device", "keys"])
def test_help_imports_no_cryptography_and_no_tuf(group: str) -> None:
    script = (
        "import sys; from packager.commands.root import main; main(sys.argv[1:]);"
        "print([m for m in ('tuf', 'cryptography', 'numpy', 'onnx') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script, group, "--help"], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_roles_and_families_change_by_command(
    publisher: MetadataPublisher, device: CheckClient, terminal: Terminal
) -> None:
    folder = publisher.folder / "more"
    for name, algorithm in (("a", "ed25519"), ("b", "ml-dsa-65")):
        assert main(["keys", "new", os.fspath(folder / f"{name}.key"), "--algorithm", algorithm]) == 0
    a, b = os.fspath(folder / "a.key"), os.fspath(folder / "b.key")
    terminal.text("repo", "status")
    added = terminal.json("keys", "role", "add", "timestamp", "--key", a, "--key", b)
    assert (len(added["key_ids"]), added["threshold"]) == (4, 3)
    removed = terminal.json("keys", "role", "remove", "timestamp", added["key_ids"][0])
    assert removed["key_ids"] == added["key_ids"][1:]
    assert (
        terminal.json("keys", "role", "threshold", "timestamp", "1", status=2)["error"]["reason"] == "threshold-invalid"
    )
    assert terminal.json("keys", "role", "replace", "timestamp", "--key", a, "--key", b)["threshold"] == 2
    assert (
        terminal.json("keys", "role", "replace", "root", "x", "--key", a, "--key", b, status=2)["error"]["reason"]
        == "invalid-usage"
    )
    assert terminal.json("keys", "role", "renew", "targets")["renewed"] == ["targets"]
    assert terminal.json("keys", "role", "require-hybrid")["roles"][0]["threshold"] == 3
    family = terminal.json(
        "keys",
        "family",
        "add",
        "speech",
        "--release-key",
        a,
        "--release-key",
        b,
        "--rollout-key",
        a,
        "--rollout-key",
        b,
    )
    assert family["roles"] == ["release-speech", "rollout-speech"]
    assert terminal.json("keys", "family", "counter-epoch", FAMILY)["counter_epoch"] == 2
    assert terminal.json("keys", "family", "remove", "speech") == {"family": "speech"}
    assert not terminal.json("repo", "sign", keys=True)["complete"]
    assert terminal.json("repo", "sign", "--key", a, "--key", b)["complete"]
    terminal.json("repo", "publish")
    assert device.check(publisher.published).counter_epoch == 2
