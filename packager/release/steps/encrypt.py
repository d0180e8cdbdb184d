"""Step 6: every patch is encrypted under the variant's content key, and the key is sealed to every cohort.

Rules:
1. The content key is random for each variant and release; it is committed to in the manifest and kept in the workspace.
2. A blob is named by the SHA-256 of its ciphertext.
"""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from bundle.envelope import CONTENT_KEY_PURPOSE, EnvelopeContext, envelope_name, seal
from bundle.fleet import Fleet
from bundle.frames import BLOB_LABEL, KEY_BYTES, FrameContext, FrameWriter, Secret
from bundle.manifest import PatchEntry
from packager.release.draft import Draft, PlainPatch

CHUNK_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Envelope:
    """One content key for one cohort; `path` is below the repository's `envelopes/`."""

    path: str
    data: bytes


def run(draft: Draft) -> None:
    """Set `content_key` and `entries`; the blobs lie beside the patches."""
    for variant in draft.included_variants:
        variant.content_key = Secret(os.urandom(KEY_BYTES))
        context = FrameContext(BLOB_LABEL, draft.plan.family, draft.counter, variant.name)
        variant.entries = tuple(
            encrypt_patch(patch, blob_path(patch), variant.content_key, context) for patch in variant.patches
        )


def encrypt_patch(patch: PlainPatch, out: Path, content_key: Secret, context: FrameContext) -> PatchEntry:
    """Write the blob of one patch; returns its entry for the manifest."""
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
    content_key: Secret, fleet: Fleet, *, repository: str, family: str, counter: int, variant: str
) -> tuple[Envelope, ...]:
    """One envelope for every cohort of the fleet document."""
    out = []
    for cohort in fleet.cohorts:
        context = EnvelopeContext(CONTENT_KEY_PURPOSE, repository, cohort.name, cohort.epoch, family, counter, variant)
        name = envelope_name(cohort.public_key, cohort.epoch)
        path = f"content/{family}/{counter}/{variant}/{name}"
        out.append(Envelope(path, seal(content_key, cohort.public_key, context)))
    return tuple(out)


def blob_path(patch: PlainPatch) -> Path:
    """Where a patch's blob is written."""
    return patch.path.with_suffix(".blob")


class _HashingSink:
    """Writes on, counting and hashing."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self.sha256 = hashlib.sha256()
        self.size = 0

    def write(self, data: bytes, /) -> None:
        self._stream.write(data)
        self.sha256.update(data)
        self.size += len(data)
