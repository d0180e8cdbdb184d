"""No passphrase, PIN or private key shows in what the commands print, not even with a traceback."""

import base64
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bundle.frames import Secret
from keys.files import read_key_file
from keys.passphrase import ENVIRONMENT
from tests.repository.shop import PASSPHRASE, Shop

WRONG = "a wrong passphrase, also secret"


@pytest.fixture(scope="module")
def secrets(pristine_shop: Shop) -> list[str]:
    """Of every copy of the shop."""
    return private_strings(pristine_shop)


def private_strings(shop: Shop) -> list[str]:
    """What must not show: raw private bytes of every key file as hexadecimal and base64, and the passphrases."""
    found = [PASSPHRASE.value.decode(), WRONG]
    for path in sorted(shop.keys.rglob("*.key")):
        for key in read_key_file(path, PASSPHRASE)[1]:
            raw = getattr(key, "private_bytes_raw", None)
            if raw is not None:
                found += [raw().hex(), base64.b64encode(raw()).decode(), repr(raw())]
    return found


COMMANDS = (
    (("repo", "refresh", "--keys", "KEYS"), PASSPHRASE.value.decode()),
    (("repo", "refresh", "--keys", "KEYS", "--json"), WRONG),
    (("repo", "sign", "--keys", "KEYS"), PASSPHRASE.value.decode()),
    (("device", "epoch", "default", "--keys", "KEYS", "--json"), PASSPHRASE.value.decode()),
    (("keys", "check", "KEYS/root-ed25519-1.key"), WRONG),
    (("keys", "show", "KEYS/root-ml-dsa-65-1.key", "--json"), PASSPHRASE.value.decode()),
)


def test_nothing_secret_is_printed(shop: Shop, secrets: list[str]) -> None:
    for words, passphrase in COMMANDS:
        environment = {
            **os.environ,
            ENVIRONMENT: passphrase,
            "AIRWEIGHTS_TRACEBACK": "1",
            "PACKAGER_REPO": os.fspath(shop.repository.root),
        }
        command = [word.replace("KEYS", os.fspath(shop.keys)) for word in words]
        done = subprocess.run(
            [sys.executable, "-m", "packager", *command], env=environment, capture_output=True, text=True, check=False
        )
        said = done.stdout + done.stderr
        assert said
        for secret in secrets:
            assert secret not in said
    for path in shop.repository.root.rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            assert b"PRIVATE KEY" not in data, path
            assert PASSPHRASE.value not in data, path


def test_a_secret_does_not_show_itself() -> None:
    assert "secret" not in f"{Secret(b'secret')!r} {Secret(b'secret')} {[Secret(b'secret')]}"


def test_the_search_would_find_a_leak(secrets: list[str], tmp_path: Path) -> None:
    (tmp_path / "log").write_text(f"debug: key {secrets[2]}")
    assert any(secret in (tmp_path / "log").read_text() for secret in secrets)
