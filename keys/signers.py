"""Load signers and public keys from key files, folders of key files, and key URIs."""

from pathlib import Path

from securesystemslib.signer import HSMSigner, Key, Signer

from bundle.frames import Secret
from keys.errors import KeyMissing
from keys.key_files import KEY_FILE_SUFFIX, is_uri, load_public_key, load_signer
from keys.passphrase import read_pin


def load_source_signer(path_or_uri: str, passphrase: Secret | None, pin_file: Path | None) -> Signer:
    """Load the signer of a `--key` option.

    Args:
        path_or_uri: a key file or a key URI.
        passphrase: opens key files; a token's PIN is read separately (keys.passphrase.read_pin).
        pin_file: the value of `--passphrase-file`, which may contain a PIN.

    Raises:
        PassphraseMissing: a token needs a PIN, and there is none.
        KeyMissing, KeyUnreadable, KeyDamaged, WrongPassphrase, TokenUnavailable, WrongPin, KeyServiceUnavailable: as
            `keys.key_files.load_signer`.
    """
    if is_uri(path_or_uri) and path_or_uri.startswith(f"{HSMSigner.SCHEME}:"):
        passphrase = read_pin(pin_file, uri=path_or_uri)
    return load_signer(path_or_uri, passphrase)


def read_public_key(path_or_uri: str) -> Key:
    """Read the public key of a key file, PEM file or key URI, without passphrase and PIN.

    Raises:
        KeyMissing, KeyUnreadable, KeyDamaged: the file cannot be read as a key.
        TokenUnavailable, KeyServiceUnavailable: the token or key service cannot be used.
    """
    return load_signer(path_or_uri, None).public_key if is_uri(path_or_uri) else load_public_key(Path(path_or_uri))


def load_folder_signers(key_dir: Path, passphrase: Secret | None) -> list[Signer]:
    """Load a signer for each key file directly in a folder, sorted by file name.

    Cohort keys are in a subfolder and cannot sign.

    Args:
        key_dir: the folder.
        passphrase: opens all of the files.

    Raises:
        KeyMissing: the folder does not exist, or has no key file.
        WrongPassphrase, KeyDamaged, KeyUnreadable: a file cannot be opened.
    """
    files = list_key_files(key_dir)
    if not files:
        raise KeyMissing(
            f"there is no key file (*{KEY_FILE_SUFFIX}) in {key_dir}", hint="give the folder of your key files"
        )
    return [load_signer(file, passphrase) for file in files]


def list_key_files(key_dir: Path) -> list[Path]:
    """List the key files directly in a folder, sorted by name."""
    return sorted(key_dir.glob(f"*{KEY_FILE_SUFFIX}"))
