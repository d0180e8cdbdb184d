"""Keys in cloud key services: Vault over real HTTP, and a clear error for every missing library."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from keys.errors import KeyServiceUnavailable, KeyUnreadable
from keys.key_files import encode_public_pem, load_public_key, load_signer
from keys.services import SERVICES
from keys.signers import read_public_key
from tests.support.vault import TOKEN, Vault, run_vault

MESSAGE = b"message"
URIS = {
    "awskms": "awskms:arn:aws:kms:eu-west-1:111122223333:key/1234abcd",
    "gcpkms": "gcpkms:projects/p/locations/l/keyRings/r/cryptoKeys/k/cryptoKeyVersions/1",
    "azurekms": "azurekms://team.vault.azure.net/keys/release",
    "hv": "hv:release",
}


@pytest.fixture
def transit(monkeypatch: pytest.MonkeyPatch) -> Iterator[Vault]:
    """Run a Vault with the key `release`, and set its environment variables in this process."""
    with run_vault() as running:
        running.rotate("release")
        monkeypatch.setenv("VAULT_ADDR", running.url)
        monkeypatch.setenv("VAULT_TOKEN", TOKEN)
        yield running


def test_vault_signs_and_its_key_has_one_id_however_it_came(transit: Vault, tmp_path: Path) -> None:
    signer = load_signer("hv:release", None)
    signer.public_key.verify_signature(signer.sign(MESSAGE), MESSAGE)
    assert transit.signed == [("release", 1)]
    pem = tmp_path / "release.pem"
    pem.write_bytes(encode_public_pem(signer.public_key))
    assert load_public_key(pem) == signer.public_key == read_public_key("hv:release/1")
    assert TOKEN not in repr(signer)


def test_a_version_that_is_named_signs_or_none(transit: Vault) -> None:
    first = load_signer("hv:release/1", None)
    transit.rotate("release")
    assert first.sign(MESSAGE).keyid == first.public_key.keyid
    assert transit.signed == [("release", 1)]
    with pytest.raises(KeyUnreadable) as rotated:
        load_signer("hv:release/1", None)
    assert "the newest version of the key is hv:release/2" in rotated.value.message
    assert load_signer("hv:release", None).public_key.keyid != first.public_key.keyid


def test_no_such_key_no_permission_no_answer_are_told_without_the_token(
    transit: Vault, monkeypatch: pytest.MonkeyPatch
) -> None:
    signer = load_signer("hv:release", None)
    result = []
    with pytest.raises(KeyServiceUnavailable) as missing:
        load_signer("hv:another", None)
    result.append(missing.value)
    transit.is_sealed = True
    with pytest.raises(KeyServiceUnavailable) as sealed:
        signer.sign(MESSAGE)
    assert "sealed" in sealed.value.message
    result.append(sealed.value)
    transit.is_sealed = False
    monkeypatch.setenv("VAULT_TOKEN", f"{TOKEN}-wrong")
    with pytest.raises(KeyServiceUnavailable) as denied:
        load_signer("hv:release", None)
    assert "permission denied" in denied.value.message
    result.append(denied.value)
    monkeypatch.setenv("VAULT_ADDR", "http://127.0.0.1:1")
    with pytest.raises(KeyServiceUnavailable) as silent:
        load_signer("hv:release", None)
    result.append(silent.value)
    for error in result:
        assert error.reason == "key-service-unavailable"
        assert error.message.startswith("hv:")
        assert "\n" not in error.message
        assert error.hint
        assert TOKEN not in error.message


def test_uris_that_no_service_has_are_wrong_input() -> None:
    for uri in ("azurekms://team.example.com/keys/a", "azurekms://team.vault.azure.net/secrets/a", "smartcard:1"):
        with pytest.raises(KeyUnreadable):
            load_signer(uri, None)


@pytest.mark.parametrize("scheme", sorted(SERVICES))
def test_a_missing_library_is_told_with_the_extra_that_brings_it(scheme: str, tmp_path: Path) -> None:
    """In a process that cannot import any of the services' libraries."""
    blocked = "hvac boto3 google.cloud.kms azure.identity"
    script = (
        "import sys\n"
        f"for name in {blocked.split()!r}: sys.modules[name] = None\n"
        "from packager.commands.root import main\n"
        "sys.exit(main(sys.argv[1:]))"
    )
    words = [sys.executable, "-c", script, "keys", "check", URIS[scheme], "--json"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    error = json.loads(done.stderr)["error"]
    assert (done.returncode, error["reason"]) == (4, "key-service-unavailable")
    assert error["hint"] == f"pip install 'airweights[{SERVICES[scheme].extra}]'"
    extras = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    assert f"{SERVICES[scheme].extra} = [" in extras
