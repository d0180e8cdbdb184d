"""Key files are encrypted and private, and errors about them are specific for their owner."""

import hashlib
import os
import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from bundle.envelope import derive_public_key
from bundle.frames import Secret
from keys.cli import ALGORITHMS
from keys.cohorts import create_next_epoch, load_private_key
from keys.errors import KeyDamaged, KeyExists, KeyMissing, KeyUnreadable, PlaintextKey, WrongPassphrase
from keys.key_files import SIGNING_ALGORITHMS, generate_key_file, is_encrypted, load_public_key, load_signer
from keys.signers import load_folder_signers

PASSPHRASE = Secret(b"a good passphrase")
MESSAGE = b"message"


@pytest.mark.parametrize("algorithm", SIGNING_ALGORITHMS)
def test_a_key_file_signs_and_its_public_half_needs_no_passphrase(tmp_path: Path, algorithm: str) -> None:
    path = tmp_path / "folder" / "a.key"
    public = generate_key_file(path, algorithm, PASSPHRASE)
    signer = load_signer(path, PASSPHRASE)
    assert load_public_key(path) == public == signer.public_key
    public.verify_signature(signer.sign(MESSAGE), MESSAGE)
    assert path.stat().st_mode & 0o777 == 0o600
    assert is_encrypted(path)
    assert f"algorithm: {algorithm}" in path.read_text()


def test_openssl_knows_the_private_block_as_encrypted_pkcs8(tmp_path: Path) -> None:
    path = tmp_path / "a.key"
    generate_key_file(path, "ed25519", PASSPHRASE)
    text = path.read_text()
    salt = text.split("stretch: scrypt 14 8 1 ")[1].splitlines()[0]
    stretched = hashlib.scrypt(PASSPHRASE.value, salt=bytes.fromhex(salt), n=2**14, r=8, p=1, maxmem=2**26).hex()
    done = subprocess.run(
        ["openssl", "pkey", "-in", os.fspath(path), "-passin", "stdin", "-noout"], input=stretched.encode(), check=False
    )
    assert done.returncode == 0


def test_a_wrong_passphrase_and_a_damaged_file_are_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "a.key"
    generate_key_file(path, "ml-dsa-65", PASSPHRASE)
    with pytest.raises(WrongPassphrase) as wrong:
        load_signer(path, Secret(b"another"))
    assert wrong.value.reason == "wrong-passphrase"
    assert "the file itself is intact" in wrong.value.message
    data = path.read_bytes()
    for place in range(0, len(data), 37):
        path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        with pytest.raises((KeyDamaged, KeyUnreadable, WrongPassphrase)) as damaged:
            load_signer(path, PASSPHRASE)
        if place > len(b"airweights-key"):
            assert damaged.value.reason == "key-damaged"


def test_no_passphrase_for_an_encrypted_file_is_said(tmp_path: Path) -> None:
    generate_key_file(tmp_path / "a.key", "ed25519", PASSPHRASE)
    with pytest.raises(WrongPassphrase) as error:
        load_signer(tmp_path / "a.key", None)
    assert "no passphrase was given" in error.value.message


def test_no_key_is_written_without_encryption_unless_that_is_said(tmp_path: Path) -> None:
    with pytest.raises(PlaintextKey) as error:
        generate_key_file(tmp_path / "a.key", "ed25519", None)
    assert error.value.reason == "plaintext-key"
    assert not (tmp_path / "a.key").exists()
    generate_key_file(tmp_path / "a.key", "ed25519", None, insecure_plaintext=True)
    assert not is_encrypted(tmp_path / "a.key")
    assert (tmp_path / "a.key").stat().st_mode & 0o777 == 0o600
    load_signer(tmp_path / "a.key", None).sign(MESSAGE)


def test_a_key_file_is_never_written_over(tmp_path: Path) -> None:
    generate_key_file(tmp_path / "a.key", "ed25519", PASSPHRASE)
    before = (tmp_path / "a.key").read_bytes()
    with pytest.raises(KeyExists):
        generate_key_file(tmp_path / "a.key", "ed25519", PASSPHRASE)
    assert (tmp_path / "a.key").read_bytes() == before


def test_a_foreign_pem_file_is_read_and_its_errors_are_not_guessed(tmp_path: Path) -> None:
    private = Ed25519PrivateKey.generate()
    path = tmp_path / "foreign.pem"
    path.write_bytes(private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"pw")))
    assert load_signer(path, Secret(b"pw")).sign(MESSAGE).signature == private.sign(MESSAGE).hex()
    with pytest.raises(WrongPassphrase) as error:
        load_signer(path, Secret(b"no"))
    assert "the passphrase is wrong, or the file is damaged" in error.value.message
    public = tmp_path / "foreign.pub"
    public.write_bytes(private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    assert load_public_key(public).keyval["public"] == private.public_key().public_bytes_raw().hex()


def test_what_is_no_key_is_said_to_be_none(tmp_path: Path) -> None:
    with pytest.raises(KeyMissing):
        load_signer(tmp_path / "none.key", PASSPHRASE)
    with pytest.raises(KeyMissing):
        load_signer(tmp_path, PASSPHRASE)
    with pytest.raises(KeyMissing):
        load_folder_signers(tmp_path, PASSPHRASE)
    for name, data in {"text": b"hello", "binary": bytes(range(256)), "long": b"x" * 100_000, "empty": b""}.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(KeyUnreadable):
            load_signer(tmp_path / name, PASSPHRASE)
    rsa = generate_private_key(65537, 2048).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (tmp_path / "rsa").write_bytes(rsa)
    with pytest.raises(KeyUnreadable) as error:
        load_signer(tmp_path / "rsa", None)
    assert "RSA" in error.value.message


def test_a_cohort_key_is_no_signing_key_and_is_bound_to_its_epoch(tmp_path: Path) -> None:
    first = create_next_epoch(tmp_path, "default", None, PASSPHRASE)
    second = create_next_epoch(tmp_path, "default", first, PASSPHRASE)
    assert (first.epoch, second.epoch) == (1, 2)
    assert derive_public_key(load_private_key(tmp_path, second, PASSPHRASE)) == second.public_key != first.public_key
    with pytest.raises(KeyUnreadable):
        load_signer(tmp_path / "cohorts" / "default-1.key", PASSPHRASE)
    assert "PRIVATE" in (tmp_path / "cohorts" / "default-1.key").read_text()


def test_no_secret_shows_in_a_repr(tmp_path: Path) -> None:
    path = tmp_path / "a.key"
    generate_key_file(path, "ed25519", PASSPHRASE)
    signer = load_signer(path, PASSPHRASE)
    assert repr(signer) == f"FileSigner(ed25519, {signer.public_key.keyid[:16]}…)"
    assert "passphrase" not in repr(PASSPHRASE)


def test_the_command_line_names_the_algorithms_that_there_are() -> None:
    assert ALGORITHMS == SIGNING_ALGORITHMS
