"""Keys in a PKCS#11 token: a real SoftHSM signs, and every way to be without it has its own word."""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from bundle.frames import Secret
from keys.errors import KeyUnreadable, TokenUnavailable, WrongPin
from keys.files import load_signer
from keys.roles import default_threshold
from keys.tokens import LIBRARY

LIBRARIES = (
    "/usr/lib/softhsm/libsofthsm2.so",
    "/usr/lib/x86_64-linux-gnu/softhsm/libsofthsm2.so",
    "/usr/lib64/softhsm/libsofthsm.so",
)
SOFTHSM = next((path for path in LIBRARIES if Path(path).exists()), None)
PIN = Secret(b"1234")
MESSAGE = b"message"

needs_softhsm = pytest.mark.skipif(
    SOFTHSM is None or shutil.which("softhsm2-util") is None or importlib.util.find_spec("pkcs11") is None,
    reason="SoftHSM (Debian: softhsm2) or python-pkcs11 (extra pkcs11) is not installed",
)

MAKE_KEYS = """
import os, pkcs11
from pkcs11.util.ec import encode_named_curve_parameters as curve
from pkcs11 import Attribute, KeyType, Mechanism
token = pkcs11.lib(os.environ["PYKCS11LIB"]).get_token(token_label="test")
with token.open(user_pin="1234", rw=True) as session:
    def parameters(kind, name):
        return session.create_domain_parameters(kind, {Attribute.EC_PARAMS: curve(name)}, local=True)
    parameters(KeyType.EC, "secp256r1").generate_keypair(store=True, id=b"\\x02", label="p256")
    edwards = parameters(KeyType.EC_EDWARDS, "1.3.101.112")
    edwards.generate_keypair(mechanism=Mechanism.EC_EDWARDS_KEY_PAIR_GEN, store=True, id=b"\\x03", label="ed25519")
"""


@pytest.fixture(scope="module")
def token(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Environment of a token with a P-256 key (2) and an Ed25519 key (3)."""
    folder = tmp_path_factory.mktemp("softhsm")
    (folder / "tokens").mkdir()
    (folder / "conf").write_text(f"directories.tokendir = {folder / 'tokens'}\n")
    environment = {"SOFTHSM2_CONF": os.fspath(folder / "conf"), LIBRARY: str(SOFTHSM)}
    both = {**os.environ, **environment}
    words = ["softhsm2-util", "--init-token", "--free", "--label", "test", "--pin", "1234", "--so-pin", "5678"]
    subprocess.run(words, env=both, check=True, capture_output=True)
    subprocess.run([sys.executable, "-c", MAKE_KEYS], env=both, check=True, capture_output=True)
    return environment


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
    monkeypatch.setenv(LIBRARY, "/nowhere/libnothing.so")
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
    monkeypatch.delenv(LIBRARY, raising=False)
    with pytest.raises(TokenUnavailable) as missing:
        load_signer("hsm:2?label=test", PIN)
    assert LIBRARY in missing.value.message
    monkeypatch.setenv(LIBRARY, "/nowhere/libnothing.so")
    with pytest.raises(TokenUnavailable):
        load_signer("hsm:2?label=test", PIN)
    for uri in ("hsm:two", "smartcard:1"):
        with pytest.raises(KeyUnreadable):
            load_signer(uri, PIN)
