"""An OpenSSF Model Signing signature over a plain bundle, which `model_signing verify` checks. Never the device's gate.

Rules:
1. Every file of the folder is covered: the library's default leaves out what lies under `.git` and `.github`, and such
   a file could then be slipped in unseen. So nothing is ignored, and whoever verifies says `--no-ignore-git-paths`.
2. The key is an elliptic-curve one (P-256 here), since the format knows no other; it is handed to the library in a
   memory file, never on a disk.
3. The signature is checked once more right after it was made, with the public half alone.
"""

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from bundle.frames import Secret
from keys.errors import KeyUnreadable
from keys.key_files import read_key_file
from packager.errors import ExtraMissing, FileNotFound, ModelSignatureRefused, OutputExists

INSTALL_HINT: Final = "pip install 'airweights[oms]'"


@dataclass(frozen=True, slots=True)
class ModelSignatureReport:
    """What was written: the signature, and the public half of the key in PEM."""

    folder: Path
    signature: Path
    public_key: Path
    files: int

    def as_json(self) -> dict[str, object]:
        """For `--json`."""
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
        passphrase: of the key file.
        signature: the file to write, outside of `folder`; the public key goes beside it, as `<signature>.pub.pem`.

    Raises:
        ExtraMissing, NoSuchPlace, OutputExists, KeyUnreadable and the other errors of key files.
        ModelSignatureRefused: the library refuses the folder, for example for a symbolic link in it.
    """
    if not folder.is_dir():
        raise FileNotFound(f"there is no folder {folder}")
    public_path = signature.with_name(signature.name + ".pub.pem")
    for out in (signature, public_path):
        if out.exists():
            raise OutputExists(f"{out} is there already", hint="name another with -o")
        if folder.resolve() in out.resolve().parents:
            raise OutputExists(f"{out} lies in the folder that is signed", hint="name a place outside with -o")
    _check_library()
    private = _load_private_key(key, passphrase)
    public = private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    signature.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".signing-", dir=signature.parent) as place:
        made, made_public = Path(place) / "model.sig", Path(place) / "key.pem"
        made_public.write_bytes(public)
        _sign(folder, private, made)
        verify_model(folder, made, made_public)
        made_public.replace(public_path)
        made.replace(signature)
    files = sum(1 for path in folder.rglob("*") if path.is_file())
    return ModelSignatureReport(folder, signature, public_path, files)


def verify_model(folder: Path, signature: Path, public_key: Path) -> None:
    """What `model_signing verify key --no-ignore-git-paths` does. Raises ModelSignatureRefused, ExtraMissing."""
    _check_library()
    from model_signing import hashing, verifying

    try:
        config = verifying.Config().use_elliptic_key_verifier(public_key=public_key)
        config.set_hashing_config(_ignore_no_files(hashing.Config()))
        config.verify(folder, signature)
    except Exception as error:  # the library raises ValueError, OSError, cryptography's and protobuf's own errors
        text = " ".join(str(error).split()) or type(error).__name__
        raise ModelSignatureRefused(f"{signature} does not hold over {folder}: {text[:500]}") from error


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
        raise ModelSignatureRefused(f"{folder} cannot be signed: {' '.join(str(error).split())[:500]}") from error
    finally:
        os.close(memory)


def _ignore_no_files(config: Any) -> Any:
    return config.set_ignored_paths(paths=[], ignore_git_paths=False)


def _check_library() -> None:
    try:
        import model_signing.signing
        import model_signing.verifying  # noqa: F401  # both need pyOpenSSL
    except ImportError as error:
        raise ExtraMissing(f"{error.name} is not installed, which signs models", hint=INSTALL_HINT) from error


def _load_private_key(key: Path, passphrase: Secret | None) -> EllipticCurvePrivateKey:
    algorithm, components = read_key_file(key, passphrase)
    match components:
        case [EllipticCurvePrivateKey() as private]:
            return private
        case _:
            raise KeyUnreadable(
                f"{key} is of algorithm {algorithm}, model signing takes elliptic-curve keys only",
                hint="`packager keys new --algorithm ecdsa-p256`",
            )
