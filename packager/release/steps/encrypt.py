"""Step encrypt: encrypt every patch under the release's content key, and seal the key to every cohort.

Rules:
- The content key is random for each release, and common to its variants: the key of each blob's frames is derived from
  it with the variant and a random salt. The manifest commits to it, and the workspace stores it.
- The envelopes of all cohorts are one shard (bundle.envelope_shard).
- A blob is named by the SHA-256 of its ciphertext.
"""

import hashlib
import os
from pathlib import Path
from typing import BinaryIO, Final

from bundle.envelope import CONTENT_KEY_PURPOSE, EnvelopeContext, envelope_name, seal
from bundle.fleet import Fleet
from bundle.frames import BLOB_LABEL, KEY_BYTES, FrameContext, FrameWriter, Secret
from bundle.variant import PatchEntry
from packager.release.draft import Draft, EncryptedVariant, PlainPatch

CHUNK_BYTES: Final = 1 << 20


def run(draft: Draft) -> None:
    """Encrypt the patches and set `encrypted`; the blobs are written beside the patches."""
    content_key = Secret(os.urandom(KEY_BYTES))
    for assembled in draft.assembled.values():
        context = FrameContext(BLOB_LABEL, draft.plan.family, draft.counter, assembled.name)
        entries = tuple(encrypt_patch(patch, blob_path(patch), content_key, context) for patch in assembled.patches)
        draft.encrypted[assembled.name] = EncryptedVariant(assembled, content_key, entries)


def encrypt_patch(patch: PlainPatch, out: Path, content_key: Secret, context: FrameContext) -> PatchEntry:
    """Write the blob of one patch, and return its entry of the manifest.

    Args:
        patch: the patch to encrypt.
        out: the blob to write.
        content_key: the release's content key.
        context: the use that the frames are bound to (docs/format.md, encrypted frames).
    """
    with patch.path.open("rb") as plain, out.open("wb") as stream:
        sink = _HashingSink(stream)
        writer = FrameWriter(sink, content_key, context)
        while chunk := plain.read(CHUNK_BYTES):
            writer.write(chunk)
        writer.close()
    return PatchEntry(
        base=patch.base.digest if patch.base is not None else None,
        codec=patch.report.codec,
        features=patch.report.features,
        blob=sink.sha256.hexdigest(),
        size=sink.size,
        plain_size=patch.report.plain_size,
        peak_memory=patch.report.peak_memory_bytes,
    )


def seal_to_cohorts(
    content_key: Secret, fleet: Fleet, *, repository: str, family: str, counter: int
) -> dict[str, bytes]:
    """Seal a content key to every cohort of the fleet document; return the envelopes by name.

    Args:
        content_key: key to seal.
        fleet: document with the cohorts' public keys.
        repository: id of the repository.
        family: family of the release.
        counter: counter of the release.
    """
    out = {}
    for cohort in fleet.cohorts:
        context = EnvelopeContext(CONTENT_KEY_PURPOSE, repository, cohort.name, cohort.epoch, family, counter)
        out[envelope_name(cohort.public_key, cohort.epoch)] = seal(content_key, cohort.public_key, context)
    return out


def blob_path(patch: PlainPatch) -> Path:
    """Return the path of a patch's blob."""
    return patch.path.with_suffix(".blob")


class _HashingSink:
    """Passes data on to a stream, and counts and hashes it."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self.sha256 = hashlib.sha256()
        self.size = 0

    def write(self, data: bytes, /) -> None:
        self._stream.write(data)
        self.sha256.update(data)
        self.size += len(data)
