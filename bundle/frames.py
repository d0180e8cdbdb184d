"""Encrypted frame files: the form of blobs in a repository and of bundles in a device's store.

A frame file is `header ‖ frame 0 ‖ frame 1 ‖ …` (docs/format.md section 6).

Rules:
- Header = magic "AWFRAME1" (8 bytes) ‖ frame size (u32, big-endian, plaintext bytes per frame, 4 KiB to 1 MiB) ‖ salt
  (32 bytes).
- The file's key is HKDF-SHA256(secret, salt, info = canonical JSON of the context ‖ header). A random salt gives each
  file its own key, so that a patch that is built twice never repeats a nonce under one key.
- Each frame is AES-256-GCM with nonce = 7 zero bytes ‖ frame number (u32) ‖ last flag (1 byte): the STREAM construction
  (Hoang, Reyhanitabar, Rogaway, Vizár 2015). The associated data is the header. Only the last frame may be shorter than
  the frame size, and it is empty only if the whole plaintext is.
- A reader returns no byte of a frame before the frame is authenticated, and ends only at a frame with the last flag. It
  refuses truncated, reordered, repeated and extended files. A wrong key and changed bytes raise the same error.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from bundle import strict_json
from bundle.errors import Malformed, NotAuthentic

MAGIC: Final = b"AWFRAME1"
SALT_BYTES: Final = 32
HEADER_BYTES: Final = len(MAGIC) + 4 + SALT_BYTES
TAG_BYTES: Final = 16
KEY_BYTES: Final = 32
DEFAULT_FRAME_BYTES: Final = 64 * 1024
MIN_FRAME_BYTES: Final = 4 * 1024
MAX_FRAME_BYTES: Final = 1024 * 1024  # a reader keeps two frames in memory
MAX_FRAMES: Final = 2**32


class Source(Protocol):
    """A stream that is read forward; a read returns fewer bytes than requested only at the end."""

    def read(self, size: int, /) -> bytes:
        """Return up to `size` bytes; fewer only at the end."""


class Sink(Protocol):
    """A stream that is written forward."""

    def write(self, data: bytes, /) -> object:
        """Write all of `data`; the result is ignored."""


@dataclass(frozen=True, slots=True)
class Secret:
    """Key material whose `repr` does not show it.

    Attributes:
        value: a key of KEY_BYTES, or a serialized private key.
    """

    value: bytes

    def __repr__(self) -> str:
        return f"Secret(<{len(self.value)} bytes>)"


@dataclass(frozen=True, slots=True)
class FrameContext:
    """The use of a frame file; part of its key, so that one file cannot be used in place of another.

    Attributes:
        label: kind of the file: BLOB_LABEL or STORE_LABEL.
        family: family of the release.
        counter: counter of the release, or 0 for stored bundles.
        variant: name of the variant.
        digest: digest of the bundle for stored bundles, else "".
    """

    label: str
    family: str
    counter: int
    variant: str
    digest: str = ""

    def as_bytes(self) -> bytes:
        """Return the canonical JSON of all fields."""
        return strict_json.encode(
            {
                "counter": self.counter,
                "digest": self.digest,
                "family": self.family,
                "label": self.label,
                "variant": self.variant,
            }
        )


BLOB_LABEL: Final = "airweights blob v1"
STORE_LABEL: Final = "airweights store v1"


class FrameWriter:
    """A sink that encrypts a stream in bounded memory; call `close` at the end.

    Args:
        out: receives the frame file.
        key: content key or storage key, KEY_BYTES long.
        context: the use of the file.
        frame_bytes: plaintext bytes per frame.
        salt: SALT_BYTES; random by default. Fixed salts are for test vectors only.
    """

    def __init__(
        self,
        out: Sink,
        key: Secret,
        context: FrameContext,
        *,
        frame_bytes: int = DEFAULT_FRAME_BYTES,
        salt: bytes | None = None,
    ) -> None:
        if not MIN_FRAME_BYTES <= frame_bytes <= MAX_FRAME_BYTES:
            raise ValueError(f"frame size {frame_bytes}, expected {MIN_FRAME_BYTES} to {MAX_FRAME_BYTES}")
        salt = os.urandom(SALT_BYTES) if salt is None else salt
        self._header = MAGIC + frame_bytes.to_bytes(4, "big") + salt
        self._aead = _derive_cipher(key, context, self._header)
        self._out, self._frame_bytes = out, frame_bytes
        self._pending = bytearray()
        self._number = 0
        self._cached_number, self._cached = -1, b""
        out.write(self._header)

    def write(self, data: bytes | memoryview) -> None:
        """Encrypt any number of bytes; the last ones are written by `close`."""
        self._pending += data
        # write a frame only when a byte follows it, because the last frame has another nonce
        while len(self._pending) > self._frame_bytes:
            self._write_frame(bytes(self._pending[: self._frame_bytes]), is_last=False)
            del self._pending[: self._frame_bytes]

    def read_back(self, length: int, offset: int, pread: Callable[[int, int], bytes]) -> bytes:
        """Return plaintext that was written, with one frame in memory at a time.

        Args:
            length: number of bytes.
            offset: offset of the first byte in the plaintext.
            pread: returns `length` bytes of the frame file from `offset`, as `pread(length, offset)`.

        Raises:
            NotAuthentic: a frame of the file was changed.
        """
        parts, end = [], offset + length
        while offset < end:
            number, start = divmod(offset, self._frame_bytes)
            frame = self._pending if number == self._number else self._reopen_frame(number, pread)
            part = bytes(frame[start : start + end - offset])
            if not part:
                raise ValueError(f"byte {offset} of the plaintext is not written yet")
            parts.append(part)
            offset += len(part)
        return b"".join(parts)

    def _reopen_frame(self, number: int, pread: Callable[[int, int], bytes]) -> bytes:
        if number != self._cached_number:
            step = self._frame_bytes + TAG_BYTES
            sealed = pread(step, HEADER_BYTES + number * step)
            self._cached = _decrypt_frame(self._aead, number, sealed, self._header, is_last=False)
            self._cached_number = number
        return self._cached

    def close(self) -> None:
        """Write the last frame. Do not write afterwards; `out` stays open."""
        self._write_frame(bytes(self._pending), is_last=True)
        self._pending.clear()

    def _write_frame(self, plaintext: bytes, *, is_last: bool) -> None:
        self._out.write(self._aead.encrypt(_nonce(self._number, is_last=is_last), plaintext, self._header))
        self._number += 1


class FrameReader:
    """A source that decrypts a frame file in bounded memory.

    Args:
        source: the frame file.
        key: content key or storage key, KEY_BYTES long.
        context: the use that the file must have.

    Raises:
        Malformed: the file has no valid header.
        NotAuthentic: the file was truncated or changed, or key or context are wrong; also raised by `read`.
    """

    def __init__(self, source: Source, key: Secret, context: FrameContext) -> None:
        header = source.read(HEADER_BYTES)
        self._frame_bytes = parse_frame_size(header)
        self._header = header
        self._aead = _derive_cipher(key, context, header)
        self._source = source
        self._next_sealed = source.read(self._frame_bytes + TAG_BYTES)
        self._plaintext = memoryview(b"")
        self._number = 0
        self._is_done = False

    def read(self, size: int, /) -> bytes:
        """Return `size` bytes of plaintext; fewer only at the end.

        Raises:
            NotAuthentic: the next frame was truncated or changed, or key or context are wrong.
        """
        parts = []
        while size > 0 and (self._plaintext or self._open_next_frame()):
            part = self._plaintext[:size]
            self._plaintext = self._plaintext[len(part) :]
            size -= len(part)
            parts.append(bytes(part))
        return b"".join(parts)

    def _open_next_frame(self) -> bool:
        if self._is_done:
            return False
        sealed, self._next_sealed = self._next_sealed, b""
        if len(sealed) == self._frame_bytes + TAG_BYTES:
            self._next_sealed = self._source.read(self._frame_bytes + TAG_BYTES)
        self._is_done = not self._next_sealed
        self._plaintext = memoryview(
            _decrypt_frame(self._aead, self._number, sealed, self._header, is_last=self._is_done)
        )
        if not self._plaintext and self._number:
            raise NotAuthentic("frame file ends in an empty frame")
        self._number += 1
        return bool(self._plaintext)


class FrameRandomReader:
    """A reader of any byte range of a frame file, with one frame in memory at a time.

    The last frame is decrypted first, so that a truncated file is refused before anything is read from it.

    Args:
        pread: returns `length` bytes of the frame file from `offset`, as `pread(length, offset)`.
        sealed_size: size of the frame file, in bytes.
        key: content key or storage key, KEY_BYTES long.
        context: the use that the file must have.

    Raises:
        Malformed: the file has no valid header.
        NotAuthentic: the file was truncated or changed, or key or context are wrong; also raised by `pread`.
    """

    def __init__(
        self, pread: Callable[[int, int], bytes], sealed_size: int, key: Secret, context: FrameContext
    ) -> None:
        header = pread(HEADER_BYTES, 0)
        self._frame_bytes = parse_frame_size(header)
        self._header = header
        self._aead = _derive_cipher(key, context, header)
        self._pread = pread
        step = self._frame_bytes + TAG_BYTES
        self._frame_count, rest = divmod(sealed_size - HEADER_BYTES, step)
        self._frame_count += rest > 0
        self.size = sealed_size - HEADER_BYTES - self._frame_count * TAG_BYTES
        if self._frame_count < 1 or self.size < 0:
            raise NotAuthentic(f"frame file of {sealed_size} bytes contains no complete frame")
        self._cached_number, self._cached = -1, b""
        if not self._read_frame(self._frame_count - 1) and self._frame_count > 1:
            raise NotAuthentic("frame file ends in an empty frame")

    def pread(self, length: int, offset: int) -> bytes:
        """Return exactly `length` bytes of plaintext.

        Args:
            length: number of bytes.
            offset: offset of the first byte in the plaintext.

        Raises:
            Malformed: the range exceeds the plaintext.
            NotAuthentic: a frame was changed, or key or context are wrong.
        """
        if offset < 0 or length < 0 or offset + length > self.size:
            raise Malformed(f"read of {length} bytes at {offset} from a plaintext of {self.size} bytes")
        parts = []
        while length:
            number, start = divmod(offset, self._frame_bytes)
            part = self._read_frame(number)[start : start + length]
            parts.append(part)
            offset += len(part)
            length -= len(part)
        return b"".join(parts)

    def _read_frame(self, number: int) -> bytes:
        if number != self._cached_number:
            step = self._frame_bytes + TAG_BYTES
            sealed = self._pread(step, HEADER_BYTES + number * step)
            self._cached = _decrypt_frame(
                self._aead, number, sealed, self._header, is_last=number == self._frame_count - 1
            )
            self._cached_number = number
        return self._cached


def sealed_size(plain_size: int, frame_bytes: int = DEFAULT_FRAME_BYTES) -> int:
    """Return the size of a frame file, in bytes.

    Args:
        plain_size: size of the plaintext, in bytes.
        frame_bytes: plaintext bytes per frame.
    """
    frames = max(1, -(-plain_size // frame_bytes))
    return HEADER_BYTES + plain_size + frames * TAG_BYTES


def parse_frame_size(header: bytes) -> int:
    """Parse the header of a frame file and return the plaintext bytes per frame.

    Raises:
        Malformed: the header is incomplete, has another magic, or a frame size out of range.
    """
    if len(header) != HEADER_BYTES or not header.startswith(MAGIC):
        raise Malformed(
            f"frame file: found {bytes(header[:8])!r}, expected a header of {HEADER_BYTES} bytes with {MAGIC!r}"
        )
    frame_bytes = int.from_bytes(header[8:12], "big")
    if not MIN_FRAME_BYTES <= frame_bytes <= MAX_FRAME_BYTES:
        raise Malformed(f"frame file: frame size {frame_bytes}, expected {MIN_FRAME_BYTES} to {MAX_FRAME_BYTES}")
    return frame_bytes


def _derive_cipher(key: Secret, context: FrameContext, header: bytes) -> AESGCM:
    if len(key.value) != KEY_BYTES:
        raise ValueError(f"key of {len(key.value)} bytes, expected {KEY_BYTES}")
    salt = header[-SALT_BYTES:]
    info = context.as_bytes() + header
    return AESGCM(HKDF(algorithm=hashes.SHA256(), length=KEY_BYTES, salt=salt, info=info).derive(key.value))


def _nonce(number: int, *, is_last: bool) -> bytes:
    if number >= MAX_FRAMES:
        raise ValueError("more than 2^32 frames")
    return bytes(7) + number.to_bytes(4, "big") + bytes([is_last])


def _decrypt_frame(aead: AESGCM, number: int, sealed: bytes, header: bytes, *, is_last: bool) -> bytes:
    if len(sealed) < TAG_BYTES:
        raise NotAuthentic(f"frame {number} does not decrypt: the file was truncated or changed, or the key is wrong")
    try:
        return aead.decrypt(_nonce(number, is_last=is_last), sealed, header)
    except InvalidTag as error:
        raise NotAuthentic(
            f"frame {number} does not decrypt: the file was truncated or changed, or the key is wrong"
        ) from error
