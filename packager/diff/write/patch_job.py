"""A whole patch as one job: the smallest patch of a (variant, base) pair, created by a worker.

Rules:
1. A job names the files of both bundles by their digests, and has no path. The worker lays out both bundles as folders
   of links to the files that it found (packager.diff.sources).
2. A worker takes the memory of one whole-file codec: bsdiff needs 17 bytes for each byte of a file. So only bundles of
   at most MAX_BUNDLE_BYTES are such a job; the tensors of larger ones are (typed_codec). MAX_WORKER_BYTES is what a
   worker needs for the largest job of either kind.
3. A worker is not trusted: `receive_patch` takes figures from the patch, and applies it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import BinaryIO, Final

from bundle.errors import AirweightsError
from bundle.files import BundleDirectory, BundleFile
from bundle.patch.container import Header, read_header
from bundle.patch.limits import PatchLimits
from packager.diff.bundle_folder import file_path
from packager.diff.encode.encode_delta import MAX_DELTA_BYTES
from packager.diff.sources import Source, find_path
from packager.diff.write.check_patch import JoinedReader, check_patch
from packager.diff.write.make_patch import make_patch
from packager.diff.write.patch_report import PatchReport, PatchRow
from packager.errors import PatchCheckFailed

MAX_BUNDLE_BYTES: Final = MAX_DELTA_BYTES
MAX_WORKER_BYTES: Final = 2 << 30
CREATED_CODECS: Final = ("typed", "bsdiff4", "zstd")
# what a received patch may declare; above, a worker could take the memory of the process that applies its patch
RECEIVED_LIMITS: Final = PatchLimits(
    payload_bytes=2 * MAX_BUNDLE_BYTES,
    pending_bytes=2 * MAX_BUNDLE_BYTES,
    dictionary_bytes=2 * MAX_BUNDLE_BYTES,
    parameter_bytes=2 * MAX_BUNDLE_BYTES,
    block_elements=MAX_BUNDLE_BYTES,
    window_log=27,
    memory_bytes=MAX_WORKER_BYTES,
)


@dataclass(frozen=True, slots=True)
class PatchJob:
    """One patch to create.

    Attributes:
        base: files of the base; None for a full download.
        target: files of the bundle that the patch makes.
        codec: as for `make_patch`.
    """

    base: tuple[BundleFile, ...] | None
    target: tuple[BundleFile, ...]
    codec: str


@dataclass(frozen=True, slots=True)
class CreatedPatch:
    """A patch that a worker created.

    Attributes:
        data: the patch.
        codec: its name for the manifest.
        rows: the rows of its report.
    """

    data: bytes
    codec: str
    rows: tuple[PatchRow, ...]


def is_patch_job(base: BundleDirectory | None, target: BundleDirectory) -> bool:
    """Return whether a patch is one job; otherwise its tensors are.

    Args:
        base: None for a full download.
        target: the bundle that the patch makes.
    """
    return all(sum(file.size for file in side.files) <= MAX_BUNDLE_BYTES for side in (base, target) if side is not None)


def list_sources(base: BundleDirectory | None, target: BundleDirectory) -> Mapping[Source, Path]:
    """Return the files that a patch job reads, each with its path.

    Args:
        base: None for a full download.
        target: the bundle that the patch makes.
    """
    return {
        Source(file.sha256, file.size): file_path(side, file)
        for side in (base, target)
        if side is not None
        for file in side.files
    }


def create_patch(job: PatchJob) -> CreatedPatch:
    """Create a patch, in a worker that has found its files."""
    with TemporaryDirectory(prefix="airweights-patch-") as folder:
        base = None if job.base is None else _lay_out(Path(folder, "base"), job.base)
        out = BytesIO()
        report = make_patch(base, _lay_out(Path(folder, "target"), job.target), out, codec=job.codec, is_checked=False)
    return CreatedPatch(out.getvalue(), report.codec, report.rows)


def receive_patch(
    created: CreatedPatch, base: BundleDirectory | None, target: BundleDirectory, out: BinaryIO
) -> PatchReport:
    """Check a patch that another process created, write it, and return its report.

    Args:
        created: what the process returned.
        base: None for a full download.
        target: the bundle that the patch is to make.
        out: receives the patch.

    Raises:
        PatchCheckFailed: the patch does not make the target's files.
    """
    if created.codec not in CREATED_CODECS:
        raise PatchCheckFailed(f"the patch to {target.root} has no codec that is known: {created.codec[:40]!r}")
    header = _read_header(created, target)
    base = base if header.base else None
    check_patch(JoinedReader(b"", BytesIO(created.data)), base, target, header.declared_limits)
    out.write(created.data)
    memory, total = header.declared_limits.memory_bound_bytes(), sum(file.size for file in target.files)
    return PatchReport(created.codec, header.features, len(created.data), memory, total, created.rows)


def _read_header(created: CreatedPatch, target: BundleDirectory) -> Header:
    try:
        return read_header(BytesIO(created.data), RECEIVED_LIMITS)
    except AirweightsError as error:
        raise PatchCheckFailed(f"a worker returned no patch to {target.root}: {error.message}") from error


def _lay_out(folder: Path, files: tuple[BundleFile, ...]) -> BundleDirectory:
    for file in files:
        path = folder / file.path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(find_path(Source(file.sha256, file.size)).absolute())
    return BundleDirectory(folder, files)
