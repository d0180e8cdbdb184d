"""OpenSSF model signatures that we create are verified by the independent command line of that library."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from bundle.frames import Secret
from keys.key_files import generate_key_file
from packager.repository.workspace import Workspace
from tests.support.json_schemas import check_schema
from tests.support.packager_cli import CommandResult, run_packager
from tests.support.release_fixtures import ReleaseSite

pytest.importorskip("model_signing", reason="model-signing is not installed: extra oms")

PASSPHRASE = "only for tests"


@pytest.fixture
def key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "oms.key"
    generate_key_file(path, "ecdsa-p256", Secret(PASSPHRASE.encode()))
    monkeypatch.setenv("PACKAGER_PASSPHRASE", PASSPHRASE)
    return path


@pytest.fixture
def bundle(site: ReleaseSite, tmp_path: Path) -> Path:
    """Return a copy of a released bundle."""
    workspace = Workspace(site.folder / "repo")
    stored = workspace.find_variant("kws", 2, "int8")
    assert stored is not None
    opened = workspace.open_bundle("kws", stored.bundle)
    assert opened is not None
    out = tmp_path / "a bundle"
    for file in opened.files:
        (out / file.path).parent.mkdir(parents=True, exist_ok=True)
        (out / file.path).write_bytes((opened.root / file.path).read_bytes())
    return out


def sign(bundle: Path, key: Path, out: Path) -> CommandResult:
    return run_packager("bundle", "sign-oms", bundle, "--key", key, "-o", out, "--json")


def verify_by_their_command_line(bundle: Path, signature: Path, public_key: Path) -> "subprocess.CompletedProcess[str]":
    words = ["verify", "key", str(bundle), "--signature", str(signature), "--public_key", str(public_key)]
    command = [sys.executable, "-m", "model_signing", *words, "--no-ignore-git-paths"]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


def verify_by_ours(bundle: Path, signature: Path, public_key: Path) -> CommandResult:
    return run_packager("bundle", "verify-oms", bundle, signature, "--public-key", public_key, "--json")


def test_their_command_line_accepts_what_was_signed_here(bundle: Path, key: Path, tmp_path: Path) -> None:
    result = sign(bundle, key, tmp_path / "model.sig")
    assert result.code == 0, result.stderr
    check_schema("bundle-sign-oms", result.json)
    public = tmp_path / "model.sig.pub.pem"
    assert "PRIVATE" not in public.read_text()
    done = verify_by_their_command_line(bundle, tmp_path / "model.sig", public)
    assert done.returncode == 0, done.stderr
    assert "succeeded" in done.stdout
    ours = verify_by_ours(bundle, tmp_path / "model.sig", public)
    assert ours.code == 0, ours.stderr
    check_schema("bundle-verify-oms", ours.json)


def change_a_byte(bundle: Path) -> None:
    path = next(path for path in sorted(bundle.rglob("*.onnx")))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def add_below(folder: str) -> Callable[[Path], None]:
    def add(bundle: Path) -> None:
        (bundle / folder).mkdir(exist_ok=True)
        (bundle / folder / "hook.py").write_text("slipped in")

    return add


def remove_the_labels(bundle: Path) -> None:
    next(bundle.rglob("labels.txt")).unlink()


@pytest.mark.parametrize(
    "attack",
    [change_a_byte, remove_the_labels, add_below("."), add_below(".github"), add_below(".git")],
    ids=["changed", "removed", "added", "added-below-.github", "added-below-.git"],
)
def test_a_bundle_that_was_changed_is_refused_by_them_and_by_us(
    bundle: Path, key: Path, tmp_path: Path, attack: Callable[[Path], None]
) -> None:
    assert sign(bundle, key, tmp_path / "model.sig").code == 0
    attack(bundle)
    public = tmp_path / "model.sig.pub.pem"
    assert verify_by_their_command_line(bundle, tmp_path / "model.sig", public).returncode != 0
    result = verify_by_ours(bundle, tmp_path / "model.sig", public)
    assert (result.code, result.error["reason"]) == (3, "model-signature-refused")


def test_another_key_is_refused(bundle: Path, key: Path, tmp_path: Path) -> None:
    assert sign(bundle, key, tmp_path / "model.sig").code == 0
    other = tmp_path / "other.key"
    generate_key_file(other, "ecdsa-p256", Secret(PASSPHRASE.encode()))
    assert sign(bundle, other, tmp_path / "other.sig").code == 0
    result = verify_by_ours(bundle, tmp_path / "model.sig", tmp_path / "other.sig.pub.pem")
    assert (result.code, result.error["reason"]) == (3, "model-signature-refused")


def test_only_elliptic_curve_keys_are_taken(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PACKAGER_PASSPHRASE", PASSPHRASE)
    for algorithm in ("ed25519", "ml-dsa-65"):
        generate_key_file(tmp_path / algorithm, algorithm, Secret(PASSPHRASE.encode()))
        result = sign(bundle, tmp_path / algorithm, tmp_path / "model.sig")
        assert (result.code, result.error["reason"]) == (2, "key-unreadable")
        assert algorithm in result.error["message"]
    assert not (tmp_path / "model.sig").exists()


def test_a_wrong_passphrase_is_told_as_everywhere(
    bundle: Path, key: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PACKAGER_PASSPHRASE", "another")
    assert sign(bundle, key, tmp_path / "model.sig").error["reason"] == "wrong-passphrase"


@pytest.mark.parametrize(
    ("folder", "out", "reason"),
    [
        ("nowhere", "model.sig", "file-not-found"),
        ("a bundle", "a bundle/model.sig", "output-exists"),
        ("a bundle", "oms.key", "output-exists"),
    ],
)
def test_a_place_that_is_wrong_is_told(
    bundle: Path, key: Path, tmp_path: Path, folder: str, out: str, reason: str
) -> None:
    before = key.read_bytes()
    result = sign(tmp_path / folder, key, tmp_path / out)
    assert (result.code, result.error["reason"]) == (2, reason)
    assert key.read_bytes() == before


def test_a_symbolic_link_is_not_signed(bundle: Path, key: Path, tmp_path: Path) -> None:
    (bundle / "link").symlink_to("/etc/hostname")
    result = sign(bundle, key, tmp_path / "model.sig")
    assert (result.code, result.error["reason"]) == (3, "model-signature-refused")
    assert not (tmp_path / "model.sig").exists()


def test_the_key_is_in_no_file_and_in_no_word(bundle: Path, key: Path, tmp_path: Path) -> None:
    result = sign(bundle, key, tmp_path / "model.sig")
    assert "PRIVATE KEY" not in result.stdout + result.stderr
    for path in tmp_path.rglob("*"):
        if path.is_file() and path != key:
            assert b"PRIVATE KEY" not in path.read_bytes(), path
