"""Inputs of jobs in a store, sealed: for workers that share no folder with this machine.

Rules:
1. A file is encrypted with a key of this build and of the file (AES-256-GCM, in chunks), and stored under a name that
   does not reveal its digest. The key travels with each job, over the executor's mutual TLS, and is in no store.
2. A worker decrypts a file into memory once, and gives the memory back when the file is released
   (packager.diff.sources). It is never on the worker's disk.
3. The files are deleted from the store when the build ends.
"""

import hashlib
import hmac
import os
import tempfile
from collections.abc import Container, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from packager.diff.sources import Source
from packager.errors import RepositoryDamaged, SourceMismatch
from packager.stores.open_store import open_store
from packager.stores.store import PRIVATE

CHUNK_BYTES: Final = 1 << 20
TAG_BYTES: Final = 16
KEY_BYTES: Final = 32
DESCRIPTOR_FOLDER: Final = Path("/proc/self/fd")


@dataclass(frozen=True, slots=True)
class SealedFinder:
    """Finds sealed inputs in a store; it is sent to workers.

    Attributes:
        url: the store.
        key: key of this build.
    """

    url: str
    key: bytes

    def __repr__(self) -> str:
        """Return the text without the key."""
        return f"SealedFinder({self.url!r})"

    def find(self, source: Source) -> Path | None:
        """Fetch and decrypt a source; None if the store does not have it.

        Raises:
            SourceMismatch: the stored bytes are not what was sealed.
        """
        store = open_store(self.url)
        with tempfile.TemporaryDirectory(prefix="airweights-input-") as folder:
            sealed = Path(folder) / "sealed"
            try:
                store.download(input_name(self.key, source), sealed)
            except RepositoryDamaged:
                return None
            fd = os.memfd_create("input")
            try:
                with sealed.open("rb") as stream, open(fd, "wb", closefd=False) as out:
                    unseal(stream, out, self.key, source)
            except BaseException:
                os.close(fd)
                raise
        return DESCRIPTOR_FOLDER / str(fd)

    def release(self, path: Path) -> None:
        """Give the memory of a decrypted file back."""
        os.close(int(path.name))


def share_inputs(url: str, key: bytes, paths: Mapping[Source, Path], known: Container[str] = ()) -> list[str]:
    """Seal files into a store; return the names of those that it did not have.

    Args:
        url: the store.
        key: key of this build.
        paths: the files.
        known: names of files that this build has sealed already.
    """
    store, added = open_store(url), []
    for source, path in paths.items():
        name = input_name(key, source)
        if name not in known:
            with tempfile.NamedTemporaryFile() as sealed, path.open("rb") as stream:
                seal(stream, sealed, key, source)
                sealed.flush()
                store.put(name, Path(sealed.name), PRIVATE)
            added.append(name)
    return added


def input_name(key: bytes, source: Source) -> str:
    """Return the name of a source in the store.

    Args:
        key: key of this build.
        source: the content.
    """
    return f"inputs/{hmac.digest(key, b'name' + source.sha256.encode(), hashlib.sha256).hex()}"


def seal(stream: BinaryIO, out: "BinaryIO | tempfile._TemporaryFileWrapper[bytes]", key: bytes, source: Source) -> None:
    """Encrypt a file in chunks.

    Args:
        stream: its content.
        out: receives the encrypted chunks.
        key: key of this build.
        source: its digest and size.
    """
    cipher, bound = _cipher(key, source)
    for number in range(_chunks(source)):
        out.write(cipher.encrypt(number.to_bytes(12, "big"), stream.read(CHUNK_BYTES), bound))


def unseal(stream: BinaryIO, out: BinaryIO, key: bytes, source: Source) -> None:
    """Decrypt a file in chunks.

    Args:
        stream: the encrypted chunks.
        out: receives the content.
        key: key of this build.
        source: its digest and size.

    Raises:
        SourceMismatch: a chunk is not what was sealed.
    """
    from cryptography.exceptions import InvalidTag

    cipher, bound = _cipher(key, source)
    for number in range(_chunks(source)):
        try:
            out.write(cipher.decrypt(number.to_bytes(12, "big"), stream.read(CHUNK_BYTES + TAG_BYTES), bound))
        except (InvalidTag, ValueError) as error:
            raise SourceMismatch(f"the sealed input {source.sha256[:16]}… was changed in the store") from error


def _cipher(key: bytes, source: Source):  # type: ignore[no-untyped-def]
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    # a key for each file, so that no nonce is used twice
    return AESGCM(hmac.digest(key, b"file" + source.sha256.encode(), hashlib.sha256)), str(source.size).encode()


def _chunks(source: Source) -> int:
    return max(1, -(-source.size // CHUNK_BYTES))
