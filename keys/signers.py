"""Signing keys from wherever they are named: a file, a URI, all files of a folder."""

from pathlib import Path

from securesystemslib.signer import HSMSigner, Key, Signer

from bundle.frames import Secret
from keys.errors import KeyMissing
from keys.key_files import KEY_FILE_SUFFIX, is_uri, load_public_key, load_signer
from keys.passphrase import read_pin


def load_source_signer(path_or_uri: str, passphrase: Secret | None, pin_file: Path | None) -> Signer:
    """The signer of a `--key` option.

    Args:
        path_or_uri: a key file or a key URI.
        passphrase: of key files; a token's PIN is read on its own (keys.passphrase).
        pin_file: `--passphrase-file`.

    Raises: as `load_signer`, and PassphraseMissing.
    """
    if is_uri(path_or_uri) and path_or_uri.startswith(f"{HSMSigner.SCHEME}:"):
        passphrase = read_pin(pin_file, uri=path_or_uri)
    return load_signer(path_or_uri, passphrase)


def read_public_key(path_or_uri: str) -> Key:
    """The public half of a key file, a PEM file of a public key, or a key URI; no passphrase and no PIN is needed.

    Raises:
        as `load_public` and `load_signer`.
    """
    return load_signer(path_or_uri, None).public_key if is_uri(path_or_uri) else load_public_key(Path(path_or_uri))


def load_folder_signers(key_dir: Path, passphrase: Secret | None) -> list[Signer]:
    """A signer for every key file directly in `key_dir`, by name; keys of cohorts lie deeper and are no signers.

    Raises:
        KeyMissing: no folder, or no key file in it.
        WrongPassphrase, KeyDamaged, KeyUnreadable.
    """
    files = list_key_files(key_dir)
    if not files:
        raise KeyMissing(f"there is no key file (*{KEY_FILE_SUFFIX}) in {key_dir}")
    return [load_signer(file, passphrase) for file in files]


def list_key_files(key_dir: Path) -> list[Path]:
    """Key files directly in a folder, by name."""
    return sorted(key_dir.glob(f"*{KEY_FILE_SUFFIX}"))
