"""All signing keys of a folder."""

from pathlib import Path

from securesystemslib.signer import Signer

from bundle.frames import Secret
from keys.errors import KeyMissing
from keys.files import SUFFIX, load_signer


def signers_from(key_dir: Path, passphrase: Secret | None) -> list[Signer]:
    """A signer for every key file directly in `key_dir`, by name; keys of cohorts lie deeper and are no signers.

    Raises:
        KeyMissing: no folder, or no key file in it.
        WrongPassphrase, KeyDamaged, KeyUnreadable.
    """
    files = key_files(key_dir)
    if not files:
        raise KeyMissing(f"there is no key file (*{SUFFIX}) in {key_dir}")
    return [load_signer(file, passphrase) for file in files]


def key_files(key_dir: Path) -> list[Path]:
    """Key files directly in a folder, by name."""
    return sorted(key_dir.glob(f"*{SUFFIX}"))
