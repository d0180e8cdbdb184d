"""Sign and verify plain bundles in the OpenSSF Model Signing format, which devices do not use.

- The signature covers every file of the folder. By default the library ignores `.git` and `.github`, where a file could
  then be added unnoticed. So verifiers must call `model_signing verify` with `--no-ignore-git-paths`.
- The key is an elliptic-curve key (P-256), the only kind that the format supports. The library gets it in a memory
  file, so that it is never written to a disk.
- Each new signature is verified with the public key alone before it is stored.
"""

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from bundle.frames import Secret
from bundle.local_files import missing_file_hint, read_local_file
from keys.errors import KeyUnreadable
from keys.key_files import read_key_file
from packager.errors import ExtraMissing, FileNotFound, ModelSignatureRefused, OutputExists

INSTALL_HINT: Final = "install it with `pip install 'airweights[oms]'`"
MAX_SIGNATURE_BYTES: Final = 16 * 1024 * 1024  # room for the digests of 100,000 files


@dataclass(frozen=True, slots=True)
class ModelSignatureReport:
    """A written model signature.

    Attributes:
        folder: the signed folder.
        signature: the signature file.
        public_key: the PEM file of the public key.
        files: number of files in the folder.
    """

    folder: Path
    signature: Path
    public_key: Path
    files: int

    def as_json(self) -> dict[str, object]:
        """Return the JSON object for `--json`."""
        return {
            "folder": str(self.folder),
            "signature": str(self.signature),
            "public_key": str(self.public_key),
            "files": self.files,
        }


def sign_model(folder: Path, key: Path, passphrase: Secret | None, signature: Path) -> ModelSignatureReport:
    """Sign every file below a folder.

    Args:
        folder: a plain bundle, or any folder.
        key: an ECDSA key file.
        passphrase: opens the key file.
        signature: the file to write, outside of `folder`; the public key is written beside it, with the suffix
            `.pub.pem`.

    Raises:
        ExtraMissing: the extra `oms` is not installed.
        FileNotFound: the folder does not exist.
        OutputExists: an output file exists, or would be inside the folder.
        KeyUnreadable: the key is not an elliptic-curve key.
        KeyMissing, KeyDamaged, WrongPassphrase: the key file cannot be opened.
        ModelSignatureRefused: the library refuses the folder, for example because of a symbolic link.
    """
    if not folder.is_dir():
        raise FileNotFound(f"there is no folder {folder}", hint="give the folder of a plain bundle")
    public_path = signature.with_name(signature.name + ".pub.pem")
    for out in (signature, public_path):
        if out.exists():
            raise OutputExists(f"{out} exists already", hint="name another file with -o")
        if folder.resolve() in out.resolve().parents:
            raise OutputExists(f"{out} is inside the folder to be signed", hint="name a file outside with -o")
    _check_library()
    private = _load_private_key(key, passphrase)
    public = private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    signature.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".signing-", dir=signature.parent) as temporary:
        new_signature, new_public = Path(temporary) / "model.sig", Path(temporary) / "key.pem"
        new_public.write_bytes(public)
        _sign(folder, private, new_signature)
        verify_model(folder, new_signature, new_public)
        new_public.replace(public_path)
        new_signature.replace(signature)
    files = sum(1 for path in folder.rglob("*") if path.is_file())
    return ModelSignatureReport(folder, signature, public_path, files)


def verify_model(folder: Path, signature: Path, public_key: Path) -> None:
    """Verify a model signature, like `model_signing verify key --no-ignore-git-paths`.

    Args:
        folder: the signed folder.
        signature: the signature file.
        public_key: the PEM file of the public key.

    Raises:
        ModelSignatureRefused: the signature is invalid for this folder and key.
        FileNotFound: the folder or a file does not exist.
        FileNotRegular, TooLarge: a file cannot be a signature or a key.
        ExtraMissing: the extra `oms` is not installed.
    """
    _check_library()
    from model_signing import hashing, verifying

    if not folder.is_dir():
        raise FileNotFound(f"there is no folder {folder}", hint=missing_file_hint(folder))
    for path in (signature, public_key):  # the library reads both without a limit
        try:
            read_local_file(path, MAX_SIGNATURE_BYTES)
        except (FileNotFoundError, IsADirectoryError) as error:
            raise FileNotFound(f"there is no file {path}", hint=missing_file_hint(path)) from error
    try:
        config = verifying.Config().use_elliptic_key_verifier(public_key=public_key)
        config.set_hashing_config(_ignore_no_files(hashing.Config()))
        config.verify(folder, signature)
    except Exception as error:  # the library raises ValueError, OSError, cryptography's and protobuf's own errors
        text = " ".join(str(error).split()) or type(error).__name__
        raise ModelSignatureRefused(f"{signature} is not a valid signature of {folder}: {text[:500]}") from error


def _sign(folder: Path, private: EllipticCurvePrivateKey, out: Path) -> None:
    from model_signing import hashing, signing

    pem = private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    memory = os.memfd_create("model-signing-key", os.MFD_CLOEXEC)
    try:
        os.write(memory, pem)
        config = signing.Config().use_elliptic_key_signer(private_key=f"/proc/self/fd/{memory}")
        config.set_hashing_config(_ignore_no_files(hashing.Config()))
        config.sign(folder, out)
    except (ValueError, OSError) as error:
        raise ModelSignatureRefused(f"cannot sign {folder}: {' '.join(str(error).split())[:500]}") from error
    finally:
        os.close(memory)


def _ignore_no_files(config: Any) -> Any:
    return config.set_ignored_paths(paths=[], ignore_git_paths=False)


def _check_library() -> None:
    try:
        import model_signing.signing
        import model_signing.verifying  # noqa: F401  # both need pyOpenSSL
    except ImportError as error:
        raise ExtraMissing(
            f"{error.name} is not installed, which is needed for model signatures", hint=INSTALL_HINT
        ) from error


def _load_private_key(key: Path, passphrase: Secret | None) -> EllipticCurvePrivateKey:
    algorithm, components = read_key_file(key, passphrase)
    match components:
        case [EllipticCurvePrivateKey() as private]:
            return private
        case _:
            raise KeyUnreadable(
                f"{key} is a key of algorithm {algorithm}, expected an elliptic-curve key for model signing",
                hint="create one with `packager keys new --algorithm ecdsa-p256`",
            )
