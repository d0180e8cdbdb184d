"""Write the test vectors of frame files and envelopes: `python -m tests.vectors.sealed`.

The folder `frames` has files that are sealed with KEY for CONTEXT, with a fixed salt and frames of 4,096 bytes. Its
`expected` (JSON) has the reason of the expected refusal, or the SHA-256 of the plaintext. The folder `envelope` has
envelopes of SECRET, sealed to the public key of PRIVATE in ENVELOPE_CONTEXT. HPKE is randomized: each run of the
generator writes other bytes with the same meaning.
"""

import hashlib
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from bundle.envelope import CONTENT_KEY_PURPOSE, MAGIC, EnvelopeContext, derive_public_key, seal
from bundle.frames import (
    BLOB_LABEL,
    HEADER_BYTES,
    MIN_FRAME_BYTES,
    TAG_BYTES,
    FrameContext,
    FrameWriter,
    Secret,
    _derive_cipher,
)
from bundle.key_sizes import PRIVATE_BYTES

FOLDER: Final = Path(__file__).parent
KEY: Final = Secret(bytes(range(32)))
CONTEXT: Final = FrameContext(BLOB_LABEL, "kws", 7, "int8")
SALT: Final = bytes(range(100, 132))
STEP: Final = MIN_FRAME_BYTES + TAG_BYTES
PLAIN: Final = bytes(n % 251 for n in range(2 * MIN_FRAME_BYTES + 1000))

PRIVATE: Final = Secret(bytes(range(PRIVATE_BYTES)))  # used by the vectors only
SECRET: Final = Secret(bytes(range(32, 64)))
ENVELOPE_CONTEXT: Final = EnvelopeContext(CONTENT_KEY_PURPOSE, "a" * 64, "default", 3, "kws", 7)


def make_frame_file(plain: bytes, *, key: Secret = KEY, context: FrameContext = CONTEXT) -> bytes:
    """Return a frame file of `plain`, with the fixed salt and frames of MIN_FRAME_BYTES."""
    out = io.BytesIO()
    writer = FrameWriter(out, key, context, frame_bytes=MIN_FRAME_BYTES, salt=SALT)
    writer.write(plain)
    writer.close()
    return out.getvalue()


def make_frame_vectors() -> dict[str, tuple[bytes, str]]:
    """Return each frame file by its name, with its expected reason or the SHA-256 of its plaintext."""
    good = make_frame_file(PLAIN)
    head, body = good[:HEADER_BYTES], good[HEADER_BYTES:]
    one, two, three = body[:STEP], body[STEP : 2 * STEP], body[2 * STEP :]
    aead: AESGCM = _derive_cipher(KEY, CONTEXT, head)
    exact = PLAIN[: 2 * MIN_FRAME_BYTES]
    empty_last = aead.encrypt(bytes(10) + b"\x01" + b"\x01", b"", head)

    def flip_bit(data: bytes, position: int) -> bytes:
        return data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :]

    def digest(data: bytes) -> str:
        return hashlib.sha256(data).hexdigest()

    return {
        "good": (good, digest(PLAIN)),
        "good-empty": (make_frame_file(b""), digest(b"")),
        "good-whole-frames": (make_frame_file(exact), digest(exact)),
        "nothing": (b"", "malformed"),
        "header-cut": (head[:-1], "malformed"),
        "header-alone": (head, "not-authentic"),
        "magic-of-another": (b"AWFRAME2" + good[8:], "malformed"),
        "frame-size-zero": (good[:8] + bytes(4) + good[12:], "malformed"),
        "frame-size-too-small": (good[:8] + (2048).to_bytes(4, "big") + good[12:], "malformed"),
        "frame-size-too-large": (good[:8] + (2**21).to_bytes(4, "big") + good[12:], "malformed"),
        "frame-size-changed": (good[:8] + (8192).to_bytes(4, "big") + good[12:], "not-authentic"),
        "salt-flipped": (flip_bit(good, 12), "not-authentic"),
        "first-frame-flipped": (flip_bit(good, HEADER_BYTES), "not-authentic"),
        "last-tag-flipped": (flip_bit(good, len(good) - 1), "not-authentic"),
        "last-frame-missing": (head + one + two, "not-authentic"),
        "last-byte-missing": (good[:-1], "not-authentic"),
        "byte-added": (good + b"\0", "not-authentic"),
        "frames-swapped": (head + two + one + three, "not-authentic"),
        "frame-repeated": (head + one + one + two + three, "not-authentic"),
        "first-frame-missing": (head + two + three, "not-authentic"),
        "last-frame-twice": (good + three, "not-authentic"),
        "empty-last-frame-added": (head + one + empty_last, "not-authentic"),
        "key-of-another": (make_frame_file(PLAIN, key=Secret(bytes(32))), "not-authentic"),
        "family-of-another": (make_frame_file(PLAIN, context=replace(CONTEXT, family="vision")), "not-authentic"),
        "counter-of-another": (make_frame_file(PLAIN, context=replace(CONTEXT, counter=8)), "not-authentic"),
        "variant-of-another": (make_frame_file(PLAIN, context=replace(CONTEXT, variant="fp32")), "not-authentic"),
        "label-of-another": (
            make_frame_file(PLAIN, context=replace(CONTEXT, label="airweights store v1")),
            "not-authentic",
        ),
    }


def make_envelope_vectors() -> dict[str, tuple[bytes, str | None]]:
    """Return each envelope by its name, with the expected reason, or None if it must open."""
    public = derive_public_key(PRIVATE)
    good = seal(SECRET, public, ENVELOPE_CONTEXT)
    other_recipient = derive_public_key(Secret(bytes(range(1, PRIVATE_BYTES + 1))))

    def seal_for(**fields: object) -> bytes:
        return seal(SECRET, public, replace(ENVELOPE_CONTEXT, **fields))  # type: ignore[arg-type]  # by the table below

    return {
        "good": (good, None),
        "empty": (b"", "malformed"),
        "magic-of-another": (b"AWENVEL2" + good[8:], "malformed"),
        "magic-alone": (MAGIC, "not-authentic"),
        "longer-than-allowed": (good + bytes(4096), "malformed"),
        "byte-added": (good + b"\0", "not-authentic"),
        "byte-missing": (good[:-1], "not-authentic"),
        "encapsulation-flipped": (good[:8] + bytes([good[8] ^ 1]) + good[9:], "not-authentic"),
        "ciphertext-flipped": (good[:-1] + bytes([good[-1] ^ 1]), "not-authentic"),
        "to-another-recipient": (seal(SECRET, other_recipient, ENVELOPE_CONTEXT), "not-authentic"),
        "of-another-purpose": (seal_for(purpose="airweights cohort key v1"), "not-authentic"),
        "of-another-repository": (seal_for(repository="b" * 64), "not-authentic"),
        "of-another-cohort": (seal_for(cohort="beta"), "not-authentic"),
        "of-another-epoch": (seal_for(epoch=2), "not-authentic"),
        "of-another-family": (seal_for(family="vision"), "not-authentic"),
        "of-another-counter": (seal_for(counter=6), "not-authentic"),
    }


def main() -> None:
    """Write all files of both folders."""
    tables: dict[str, dict[str, tuple[bytes, str | None]]] = {
        "frames": {**make_frame_vectors()},
        "envelope": make_envelope_vectors(),
    }
    for kind, vectors in tables.items():
        folder = FOLDER / kind
        for path in folder.glob("*.bin"):
            path.unlink()
        for name, (data, _) in vectors.items():
            (folder / f"{name}.bin").write_bytes(data)
        expected = {name: outcome for name, (_, outcome) in sorted(vectors.items())}
        (folder / "expected").write_text(json.dumps(expected, indent=1) + "\n")


if __name__ == "__main__":
    main()
