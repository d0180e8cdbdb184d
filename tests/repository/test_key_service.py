"""An online key in a key service and its ML-DSA partner in a file sign together."""

import json
import os

import pytest
from securesystemslib.signer import Key

from keys.key_files import load_signer
from keys.passphrase import PASSPHRASE_VARIABLE
from packager.commands.root import main
from packager.repository.role_changes import replace_keys
from tests.support.metadata_publisher import PASSPHRASE, CheckClient, MetadataPublisher
from tests.support.vault import TOKEN, run_vault


def test_a_repository_is_refreshed_with_a_key_in_vault(
    publisher: MetadataPublisher,
    device: CheckClient,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with run_vault() as running:
        running.rotate("online")
        monkeypatch.setenv("VAULT_ADDR", running.url)
        monkeypatch.setenv("VAULT_TOKEN", TOKEN)
        monkeypatch.setenv(PASSPHRASE_VARIABLE, PASSPHRASE.value.decode())
        loaded = load_signer("hv:online", None)
        partner = [signer for signer in publisher.signers_of("timestamp") if signer.public_key.keytype != "ed25519"]
        keys: list[Key] = [loaded.public_key, *(signer.public_key for signer in partner)]
        replace_keys(publisher.repository.layout, "timestamp", keys)
        publisher.signers.append(loaded)
        publisher.publish()
        running.signed.clear()
        words = ["repo", "refresh", "--repo", os.fspath(publisher.repository.root), "--keys", os.fspath(publisher.keys)]
        assert main([*words, "--json"]) == 2
        assert json.loads(capfd.readouterr().err)["error"]["reason"] == "below-threshold"
        assert main([*words, "--key", "hv:online"]) == 0
        assert running.signed == [("online", 1)]
    assert device.check(publisher.published).manifest.version == "1.0.0"
