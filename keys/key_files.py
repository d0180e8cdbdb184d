"""Write and read key files: one encrypted private key each, with its public key in the clear.

A key file is text (docs/format.md, Key files):

    airweights-key: 1
    algorithm: ed25519 | ml-dsa-65 | ecdsa-p256 | x-wing
    stretch: scrypt <log2 n> <r> <p> <salt, hexadecimal>      (or: none)
    sha256: <of the two lines before and of all after the empty line, hexadecimal>

    -----BEGIN PUBLIC KEY----- …                              (one block a component)
    -----BEGIN ENCRYPTED PRIVATE KEY----- …

Rules:
- The PKCS#8 password is scrypt(passphrase, salt) in hexadecimal. OpenSSL's own stretching (2,048 rounds of PBKDF2) is
  too weak: a graphics card tries millions of passphrases per second.
- The checksum lets the owner distinguish a damaged file from a wrong passphrase. It does not detect deliberate changes.
- A file is created with mode 0600 and never overwritten. It is written without encryption only if the caller sets
  `insecure_plaintext`.
- PKCS#8 files of other programs are read too. They have no checksum, so damage looks like a wrong passphrase.
"""

import hashlib
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, TypeAlias

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePrivateKey, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA65PrivateKey
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)
from securesystemslib.signer import CryptoSigner, Key, Signer, SSlibKey

from bundle.envelope import MLKEM_SEED_BYTES
from bundle.errors import TooLarge
from bundle.frames import Secret
from bundle.local_files import decode_text, missing_file_hint, read_local_file
from bundle.private_folder import check_private_folder
from keys.errors import KeyDamaged, KeyExists, KeyMissing, KeyUnreadable, PlaintextKey, WrongPassphrase

PrivateKey: TypeAlias = (
    Ed25519PrivateKey | MLDSA65PrivateKey | EllipticCurvePrivateKey | MLKEM768PrivateKey | X25519PrivateKey
)

GENERATORS: Final[dict[str, Callable[[], PrivateKey]]] = {
    "ed25519": Ed25519PrivateKey.generate,
    "ml-dsa-65": MLDSA65PrivateKey.generate,
    "ecdsa-p256": lambda: generate_private_key(SECP256R1()),
}
SIGNING_ALGORITHMS: Final = tuple(GENERATORS)
X_WING: Final = "x-wing"
KEY_FILE_SUFFIX: Final = ".key"
MAX_KEY_FILE_BYTES: Final = 64 * 1024
MAGIC: Final = "airweights-key: 1"
SCRYPT_LOG2_N: Final = 14  # 16 MiB and some 30 ms a file; RFC 7914 section 2
SCRYPT_R: Final = 8
SCRYPT_P: Final = 1
SCRYPT_MAX_LOG2_N: Final = 20
LOST_PASSPHRASE_HINT: Final = "if the passphrase is lost, replace the key: `packager keys role replace`"  # noqa: S105  # a sentence
URI_PATTERN: Final = re.compile(r"[a-z][a-z0-9]+:.*")
BLOCK_PATTERN: Final = re.compile(r"-----BEGIN ([A-Z ]+)-----\n.*?-----END \1-----\n", re.DOTALL)


class FileSigner(CryptoSigner):
    """A signer with the key of a key file; its `repr` shows the key id only."""

    def __repr__(self) -> str:
        return f"FileSigner({self.public_key.keytype}, {self.public_key.keyid[:16]}…)"


def generate_key_file(
    path: Path, algorithm: str, passphrase: Secret | None, *, insecure_plaintext: bool = False
) -> SSlibKey:
    """Create a signing key in a new key file.

    Args:
        path: the key file; it must not exist yet.
        algorithm: one of SIGNING_ALGORITHMS.
        passphrase: encrypts the private key; None only with `insecure_plaintext`.
        insecure_plaintext: allow a key file without encryption.

    Returns:
        The public key.

    Raises:
        KeyExists: the file exists.
        PlaintextKey: there is no passphrase, and `insecure_plaintext` is not set.
        KeyUnreadable: the algorithm is unknown.
    """
    if algorithm not in GENERATORS:
        raise KeyUnreadable(f"unknown algorithm {algorithm!r}, expected one of {', '.join(SIGNING_ALGORITHMS)}")
    private = GENERATORS[algorithm]()
    write_key_file(path, algorithm, [private], passphrase, insecure_plaintext=insecure_plaintext)
    return _to_public_key(private)


def write_key_file(
    path: Path,
    algorithm: str,
    components: Sequence[PrivateKey],
    passphrase: Secret | None,
    *,
    insecure_plaintext: bool = False,
) -> None:
    """Write private keys to a new key file, synced.

    Args:
        path: the key file; missing parent folders are created with mode 0700.
        algorithm: the value of the file's `algorithm` line.
        components: the private keys: one for a signing key, ML-KEM-768 and X25519 for X-Wing.
        passphrase: encrypts the private keys; None only with `insecure_plaintext`.
        insecure_plaintext: allow a key file without encryption.

    Raises:
        KeyExists: the file exists.
        PlaintextKey: there is no passphrase, and `insecure_plaintext` is not set.
        FolderUnsafe: other users could replace the file.
    """
    if passphrase is None and not insecure_plaintext:
        raise PlaintextKey(
            f"key {path} would be written without encryption", hint="give a passphrase, or --insecure-plaintext"
        )
    salt = os.urandom(16).hex()
    stretch = "none" if passphrase is None else f"scrypt {SCRYPT_LOG2_N} {SCRYPT_R} {SCRYPT_P} {salt}"
    encryption = (
        NoEncryption()
        if passphrase is None
        else BestAvailableEncryption(_stretch_passphrase(passphrase, stretch, where=str(path)))
    )
    blocks = [
        *(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo) for key in components),
        *(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption) for key in components),
    ]
    body = b"".join(blocks).decode()
    text = f"{MAGIC}\nalgorithm: {algorithm}\nstretch: {stretch}\n"
    text += f"sha256: {_checksum(algorithm, stretch, body)}\n\n{body}"
    check_private_folder(path.parent)
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError as error:
        raise KeyExists(f"{path} exists already", hint="choose another name; keys are never overwritten") from error
    with open(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def load_signer(path_or_uri: str | Path, passphrase: Secret | None) -> Signer:
    """Load the signer of a key file or a key URI (`hsm:`, `awskms:`, `gcpkms:`, `azurekms:`, `hv:`).

    Args:
        path_or_uri: a file's path, or a URI (keys.uris).
        passphrase: the file's passphrase or the token's PIN; None if the key needs none.

    Raises:
        KeyMissing: the file does not exist.
        KeyUnreadable: it is not a signing key, or the key has an unsupported algorithm.
        KeyDamaged: the checksum or the content is wrong.
        WrongPassphrase: the passphrase does not open the file, or none was given for an encrypted file.
        TokenUnavailable, WrongPin: the token cannot be used (keys.tokens).
        KeyServiceUnavailable: the key service cannot be used (keys.services).
    """
    if is_uri(path_or_uri):
        from keys.uris import load_uri  # its libraries are extras

        return load_uri(str(path_or_uri), passphrase)
    path = Path(path_or_uri)
    algorithm, components = read_key_file(path, passphrase)
    if len(components) != 1 or algorithm == X_WING:
        raise KeyUnreadable(f"{path} is a {algorithm} key, expected a signing key")
    return FileSigner(components[0], _to_public_key(components[0]))


def is_uri(path_or_uri: str | Path) -> bool:
    """Return whether this is a key URI; a file of the same name takes precedence."""
    return isinstance(path_or_uri, str) and bool(URI_PATTERN.fullmatch(path_or_uri)) and not Path(path_or_uri).exists()


def encode_public_pem(public: Key) -> bytes:
    """Encode a public key as a PEM file (SubjectPublicKeyInfo), which `load_public_key` reads."""
    text = str(public.keyval["public"])
    if public.keytype == "ed25519":
        loaded = Ed25519PublicKey.from_public_bytes(bytes.fromhex(text))
        return loaded.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return f"{text.strip()}\n".encode()


def load_public_key(path: Path) -> SSlibKey:
    """Load the public key of a key file or a PEM file; needs no passphrase.

    Raises:
        KeyMissing: the file does not exist.
        KeyUnreadable: the file has no public key or several, or its kind is unsupported.
        KeyDamaged: the checksum is wrong.
    """
    _, blocks = _parse_key_file(path, _read_text(path))
    public = [text for kind, text in blocks if kind == "PUBLIC KEY"]
    if len(public) != 1:
        raise KeyUnreadable(f"{path} contains {len(public)} public keys, expected one")
    try:
        return SSlibKey.from_crypto(load_pem_public_key(public[0].encode()))
    except (ValueError, UnsupportedAlgorithm) as error:
        raise KeyUnreadable(f"{path}: its public key is of an unsupported kind") from error


def is_encrypted(path: Path) -> bool:
    """Return whether a key file needs a passphrase.

    Raises:
        KeyMissing: the file does not exist.
        KeyUnreadable: it is not a key file.
        KeyDamaged: the checksum is wrong.
    """
    _, blocks = _parse_key_file(path, _read_text(path))
    return any(kind == "ENCRYPTED PRIVATE KEY" for kind, _ in blocks)


def read_key_file(path: Path, passphrase: Secret | None) -> tuple[str, list[PrivateKey]]:
    """Return the algorithm and the private keys of a key file.

    Args:
        path: the key file, or a PKCS#8 PEM file of another program.
        passphrase: decrypts the private keys; None if the file is not encrypted.

    Raises:
        KeyMissing: the file does not exist.
        KeyUnreadable: it has no private key, or one of an unsupported kind.
        KeyDamaged: the checksum or the content is wrong.
        WrongPassphrase: the passphrase does not open the file, or none was given for an encrypted file.
    """
    header, blocks = _parse_key_file(path, _read_text(path))
    secret = (
        None if passphrase is None else _stretch_passphrase(passphrase, header.get("stretch", "none"), where=str(path))
    )
    private = [text for kind, text in blocks if kind.endswith("PRIVATE KEY")]
    if not private:
        raise KeyUnreadable(f"{path} contains no private key")
    components = [_open_block(path, text, secret, is_whole="sha256" in header) for text in private]
    algorithm = header.get("algorithm") or _to_public_key(components[0]).scheme
    return algorithm, components


def encode_x_wing_secret(components: Sequence[PrivateKey], where: str) -> Secret:
    """Serialize an X-Wing private key: the 64-byte ML-KEM seed, then the 32-byte X25519 key.

    Args:
        components: the private keys of an X-Wing key file.
        where: the file's name, for the error message.

    Raises:
        KeyUnreadable: the components are not an ML-KEM-768 and an X25519 key.
    """
    match components:
        case [MLKEM768PrivateKey() as kem, X25519PrivateKey() as curve]:
            return Secret(kem.private_bytes_raw() + curve.private_bytes_raw())
        case _:
            raise KeyUnreadable(f"{where} is not an X-Wing key")


def split_x_wing_secret(secret: Secret) -> list[PrivateKey]:
    """Split a serialized X-Wing private key into its components, the inverse of `encode_x_wing_secret`."""
    return [
        MLKEM768PrivateKey.from_seed_bytes(secret.value[:MLKEM_SEED_BYTES]),
        X25519PrivateKey.from_private_bytes(secret.value[MLKEM_SEED_BYTES:]),
    ]


def _to_public_key(private: PrivateKey) -> SSlibKey:
    return SSlibKey.from_crypto(private.public_key())


def _read_text(path: Path) -> str:
    try:
        data = read_local_file(path, MAX_KEY_FILE_BYTES)
    except FileNotFoundError as error:
        raise KeyMissing(f"there is no key file {path}", hint=missing_file_hint(path)) from error
    except IsADirectoryError as error:
        raise KeyMissing(f"{path} is a folder, expected a key file") from error
    except TooLarge as error:
        raise KeyUnreadable(f"{path} is larger than {MAX_KEY_FILE_BYTES} bytes, the limit for a key file") from error
    try:
        return decode_text(data, where=str(path))
    except UnicodeDecodeError as error:
        raise KeyDamaged(f"{path} is not text, expected a key file") from error


def _parse_key_file(path: Path, text: str) -> tuple[dict[str, str], list[tuple[str, str]]]:
    head, empty_line, body = text.partition("\n\n")
    header = {}
    if text.startswith(MAGIC.split(":")[0]):
        lines = head.splitlines()
        header = dict(line.split(": ", 1) for line in lines[1:] if ": " in line)
        if lines[0] != MAGIC or not empty_line or set(header) != {"algorithm", "stretch", "sha256"}:
            raise KeyDamaged(f"{path}: the header lines are damaged", hint="restore the file from a backup")
        if _checksum(header["algorithm"], header["stretch"], body) != header["sha256"]:
            raise KeyDamaged(f"{path} is damaged: its checksum does not match", hint="restore the file from a backup")
        text = body
    blocks = [(match[1], match[0]) for match in BLOCK_PATTERN.finditer(text if text.endswith("\n") else text + "\n")]
    if not blocks:
        raise KeyUnreadable(f"{path} is not a key file: found {text[:20]!r}, expected a PEM block")
    return header, blocks


def _checksum(algorithm: str, stretch: str, body: str) -> str:
    return hashlib.sha256(f"algorithm: {algorithm}\nstretch: {stretch}\n{body}".encode()).hexdigest()


def _open_block(path: Path, block: str, secret: bytes | None, *, is_whole: bool) -> PrivateKey:
    is_sealed = "ENCRYPTED" in block.splitlines()[0]
    if is_sealed and secret is None:
        raise WrongPassphrase(
            f"{path} is encrypted, and no passphrase was given",
            hint="give --passphrase-file, or set PACKAGER_PASSPHRASE",
        )
    try:
        key = load_pem_private_key(block.encode(), secret if is_sealed else None)
    except (ValueError, TypeError) as error:
        if is_sealed and is_whole:
            raise WrongPassphrase(
                f"the passphrase does not open {path}; the file itself is intact", hint=LOST_PASSPHRASE_HINT
            ) from error
        if is_sealed:
            raise WrongPassphrase(
                f"cannot open {path}: the passphrase is wrong, or the file is damaged", hint=LOST_PASSPHRASE_HINT
            ) from error
        raise KeyDamaged(f"{path}: cannot read the private key", hint="restore the file from a backup") from error
    except UnsupportedAlgorithm as error:
        raise KeyUnreadable(f"{path}: the private key is of an unsupported kind") from error
    if not isinstance(key, PrivateKey):
        raise KeyUnreadable(f"{path}: found a {type(key).__name__}, expected one of {', '.join(SIGNING_ALGORITHMS)}")
    return key


def _stretch_passphrase(passphrase: Secret, stretch: str, *, where: str) -> bytes:
    if stretch == "none":
        return passphrase.value
    kind, *fields = stretch.split(" ")
    if kind != "scrypt" or len(fields) != 4 or not all(field.isdigit() for field in fields[:3]):
        raise KeyUnreadable(f"{where}: the passphrase is stretched with {stretch[:40]!r}, expected scrypt")
    log2_n, r, p = (int(field) for field in fields[:3])
    try:
        salt = bytes.fromhex(fields[3])
    except ValueError as error:
        raise KeyDamaged(f"{where}: the salt is not hexadecimal") from error
    if not (1 <= log2_n <= SCRYPT_MAX_LOG2_N and 1 <= r <= 32 and 1 <= p <= 16):
        raise KeyUnreadable(f"{where}: scrypt parameters {log2_n} {r} {p} are out of range")
    memory = 256 * r * (1 << log2_n) + 1024 * 1024
    return hashlib.scrypt(passphrase.value, salt=salt, n=1 << log2_n, r=r, p=p, maxmem=memory).hex().encode()
