"""Keys in a PKCS#11 token: a real SoftHSM signs, and every problem has its own error."""

import pytest

from bundle.frames import Secret
from keys.errors import KeyUnreadable, TokenUnavailable, WrongPin
from keys.key_files import load_signer
from keys.roles import default_threshold
from keys.tokens import LIBRARY_VARIABLE
from tests.support.softhsm import PIN, make_token, needs_softhsm

MESSAGE = b"message"


@pytest.fixture(scope="module")
def token(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return the environment variables of a token with keys."""
    return make_token(tmp_path_factory.mktemp("softhsm") / "token")


@pytest.fixture
def plugged_in(token: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in token.items():
        monkeypatch.setenv(name, value)


@needs_softhsm
@pytest.mark.usefixtures("plugged_in")
@pytest.mark.parametrize(
    ("uri", "kind"), [("hsm:2?label=test", "ecdsa"), ("hsm:?label=test", "ecdsa"), ("hsm:3?label=test", "ed25519")]
)
def test_a_token_signs(uri: str, kind: str) -> None:
    signer = load_signer(uri, PIN)
    assert signer.public_key.keytype == kind
    signer.public_key.verify_signature(signer.sign(MESSAGE), MESSAGE)
    assert "1234" not in repr(signer)


@needs_softhsm
@pytest.mark.usefixtures("plugged_in")
def test_a_wrong_pin_is_told_apart_from_a_missing_token_or_key() -> None:
    for uri in ("hsm:2?label=test", "hsm:3?label=test"):
        with pytest.raises(WrongPin) as wrong:
            load_signer(uri, Secret(b"0000")).sign(MESSAGE)
        assert wrong.value.reason == "wrong-pin"
    with pytest.raises(TokenUnavailable) as missing:
        load_signer("hsm:2?label=another", PIN)
    assert "another" in missing.value.message
    with pytest.raises(TokenUnavailable) as none:
        load_signer("hsm:9?label=test", PIN)
    assert "could not find" in none.value.message


@needs_softhsm
@pytest.mark.usefixtures("plugged_in")
def test_a_token_that_is_removed_in_mid_signing_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    signer = load_signer("hsm:2?label=test", PIN)
    monkeypatch.setenv(LIBRARY_VARIABLE, "/nowhere/libnothing.so")
    with pytest.raises(TokenUnavailable):
        signer.sign(MESSAGE)


@needs_softhsm
@pytest.mark.usefixtures("plugged_in")
def test_a_token_key_counts_as_classical() -> None:
    from securesystemslib.signer import CryptoSigner

    pair = [CryptoSigner.generate_mldsa().public_key for _ in range(2)]
    classical = [load_signer("hsm:2?label=test", PIN).public_key, load_signer("hsm:3?label=test", PIN).public_key]
    assert default_threshold("root", [*classical, *pair]) == 3


def test_a_uri_without_a_library_or_of_another_scheme_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(LIBRARY_VARIABLE, raising=False)
    with pytest.raises(TokenUnavailable) as missing:
        load_signer("hsm:2?label=test", PIN)
    assert LIBRARY_VARIABLE in missing.value.message
    monkeypatch.setenv(LIBRARY_VARIABLE, "/nowhere/libnothing.so")
    with pytest.raises(TokenUnavailable):
        load_signer("hsm:2?label=test", PIN)
    for uri in ("hsm:two", "smartcard:1"):
        with pytest.raises(KeyUnreadable):
            load_signer(uri, PIN)
