"""Commands never print a passphrase, PIN or private key, not even in a traceback."""

import base64
import logging
import os
from pathlib import Path

import pytest

from bundle.frames import Secret
from keys.key_files import read_key_file
from keys.passphrase import PASSPHRASE_VARIABLE
from packager.commands.root import main
from tests.support.metadata_publisher import FAMILY, PASSPHRASE, MetadataPublisher

RELEASE = f"release-{FAMILY}"
WRONG = "a wrong passphrase, also secret"


@pytest.fixture(scope="module")
def secrets(pristine_publisher: MetadataPublisher) -> list[str]:
    """Return the secret strings of every copy of the publisher."""
    return private_strings(pristine_publisher)


def private_strings(publisher: MetadataPublisher) -> list[str]:
    """Return the strings that must not be printed: private keys as hexadecimal, base64 and repr, and passphrases."""
    found = [PASSPHRASE.value.decode(), WRONG]
    for path in sorted(publisher.keys.rglob("*.key")):
        for key in read_key_file(path, PASSPHRASE)[1]:
            raw = getattr(key, "private_bytes_raw", None)
            if raw is not None:
                found += [raw().hex(), base64.b64encode(raw()).decode(), repr(raw())]
    return found


RIGHT = PASSPHRASE.value.decode()
KEY = f"KEYS/{RELEASE}-ed25519-1.key"
COMMANDS = (
    ("keys new NEW/a.key --algorithm ml-dsa-65", RIGHT),
    ("keys show KEYS/root-ml-dsa-65-1.key --json", RIGHT),
    ("keys public KEYS/root-ed25519-1.key -o NEW/root.pem", RIGHT),
    ("keys check KEYS/root-ed25519-1.key", RIGHT),
    ("keys check KEYS/root-ed25519-1.key", WRONG),
    ("keys check KEYS/snapshot-ml-dsa-65-1.key --json", WRONG),
    ("keys role add timestamp --key KEYS/root-ed25519-2.key --key KEYS/root-ml-dsa-65-2.key", RIGHT),
    ("keys role renew targets --json", RIGHT),
    (f"keys family counter-epoch {FAMILY}", RIGHT),
    ("repo init NEW/repository --keys NEW/keys --family kws --json", RIGHT),
    ("repo prepare -o NEW/request.json", RIGHT),
    (f"repo sign NEW/request.json --key {KEY} --memory NEW/memory", RIGHT),
    ("repo sign NEW/request.json --keys KEYS --memory NEW/memory -o NEW/signatures", RIGHT),
    ("repo sign NEW/request.json --keys KEYS --memory NEW/memory -o NEW/signatures --json", WRONG),
    ("repo add-signatures NEW/signatures --keys KEYS --json", RIGHT),
    ("repo add-signatures NEW/signatures --keys KEYS", WRONG),
    ("repo sign --keys KEYS --json", RIGHT),
    ("repo publish --json", RIGHT),
    ("repo refresh --keys KEYS", RIGHT),
    ("repo refresh --keys KEYS --json", WRONG),
    ("repo status", RIGHT),
    ("repo verify --json", RIGHT),
    ("repo offline-pack NEW/pack --keys KEYS", RIGHT),
    ("repo collect-garbage --dry-run --json", RIGHT),
    (f"rollout set {FAMILY} stable 1.0.0 --percent 50 --keys KEYS --json", RIGHT),
    (f"rollout halt {FAMILY} stable --keys KEYS", WRONG),
    ("device rotate-cohort default --keys KEYS --json", RIGHT),
    ("device rotate-cohort default --keys KEYS", WRONG),
    ("device list", RIGHT),
    ("device revoke nobody --keys KEYS", RIGHT),
)


def test_nothing_secret_is_printed_or_written(
    publisher: MetadataPublisher,
    secrets: list[str],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Every command about keys, right and wrong, with tracebacks and at the loudest log level."""
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("AIRWEIGHTS_TRACEBACK", "1")
    monkeypatch.setenv("PACKAGER_REPO", os.fspath(publisher.repository.root))
    (tmp_path / "new").mkdir()
    result = []
    for line, passphrase in COMMANDS:
        monkeypatch.setenv(PASSPHRASE_VARIABLE, passphrase)
        words = line.replace("KEYS", os.fspath(publisher.keys)).replace("NEW", os.fspath(tmp_path / "new")).split()
        result.append(main(words))
        out, err = capfd.readouterr()
        assert out + err
        for secret in secrets:
            assert secret not in out + err + caplog.text, line
    assert [code for code, (_, passphrase) in zip(result, COMMANDS, strict=True) if passphrase == RIGHT][-1:] == [2]
    assert result.count(0) >= len(COMMANDS) - 12
    places = [publisher.repository.root, tmp_path / "new"]
    for path in (path for place in places for path in place.rglob("*") if path.is_file() and path.suffix != ".key"):
        data = path.read_bytes()
        assert b"PRIVATE KEY" not in data, path
        assert PASSPHRASE.value not in data, path


def test_a_secret_does_not_show_itself() -> None:
    assert "secret" not in f"{Secret(b'secret')!r} {Secret(b'secret')} {[Secret(b'secret')]}"


def test_the_search_would_find_a_leak(secrets: list[str], tmp_path: Path) -> None:
    (tmp_path / "log").write_text(f"debug: key {secrets[2]}")
    assert any(secret in (tmp_path / "log").read_text() for secret in secrets)
