"""The typed codec: run the planned jobs, in parallel if possible, and write their frames in order."""

from collections.abc import Callable
from concurrent.futures import Executor

from bundle.files import BundleDirectory
from bundle.patch.elements import ELEMENT_TYPE_BY_NAME
from packager.diff.bundle_folder import file_path
from packager.diff.encode.copy_job import CopyJob, encode_copy_frame
from packager.diff.encode.encode_edits import EditJob, encode_edits
from packager.diff.encode.encode_file import encode_untyped
from packager.diff.encode.encode_tensor import EncodedTensor, encode_tensor_job
from packager.diff.encode.encode_untyped import UntypedFrames, UntypedJob
from packager.diff.encode.entropy import EncoderOptions
from packager.diff.encode.tensor_job import TensorJob, block_elements
from packager.diff.run_jobs import run_jobs
from packager.diff.sources import Source
from packager.diff.write.frame_writer import PatchFrameWriter
from packager.diff.write.patch_report import PatchRow
from packager.diff.write.plan_jobs import max_pending_bytes, plan_jobs, target_origin
from packager.diff.write.planned_job import Job

Progress = Callable[[int, int], None]


def write_typed(
    base: BundleDirectory | None,
    target: BundleDirectory,
    writer: PatchFrameWriter,
    options: EncoderOptions,
    executor: Executor | None,
    progress: Progress | None,
) -> None:
    """Write the frames of the typed codec, and a report row for each job.

    Args:
        base: None for a full download.
        target: the bundle that the patch makes.
        writer: receives the frames.
        options: encoder settings, such as the zstd level.
        executor: runs the jobs; None runs them in this thread.
        progress: called with (target bytes done, target bytes in all).
    """
    plans = plan_jobs(base, target, options)
    origin = target_origin(base)
    if any(_reads_target(plan.job, origin) for plan in plans):
        writer.features.add("repeat")
    pending_bytes = max_pending_bytes(plans)
    writer.raise_limits(pending_bytes=pending_bytes)
    total = sum(plan.job.size for plan in plans)
    done = 0
    paths = {
        Source(file.sha256, file.size): file_path(side, file)
        for side in (base, target)
        if side is not None
        for file in side.files
    }
    results = run_jobs(_encode_job, [plan.job for plan in plans], paths, executor)
    for plan, encoded in zip(plans, results, strict=True):
        if isinstance(plan.job, CopyJob):
            stored = writer.write_frame(encode_copy_frame(plan.job.ranges))
            predictor = coder = "copy"
        elif isinstance(plan.job, EditJob):
            assert isinstance(encoded, bytes)
            stored = writer.write_frame(encoded)
            predictor, coder = "base", "edits"
            writer.features |= plan.job.features
            writer.raise_limits(block_elements=plan.job.edit_count)
        elif isinstance(encoded, UntypedFrames):
            stored = sum(writer.write_frame(frame) for frame in encoded.frames)
            predictor, coder = (
                "base"
                if any(word in encoded.coder for word in ("dictionary", "bsdiff", "in place", "edits"))
                else "none",
                encoded.coder,
            )
            writer.features |= encoded.features
            writer.raise_limits(
                pending_bytes=max(encoded.largest_frame_bytes, pending_bytes + encoded.waiting_bytes),
                dictionary_bytes=encoded.dictionary_bytes,
                block_elements=encoded.block_elements,
                window_log=encoded.window_log,
            )
        else:
            assert isinstance(encoded, EncodedTensor)
            stored = sum(writer.write_frame(frame) for frame in encoded.frames)
            predictor, coder = encoded.predictor, encoded.coder
            writer.features |= encoded.features
            size = ELEMENT_TYPE_BY_NAME[encoded.dtype].size
            block = min(block_elements(encoded.dtype), plan.job.size // size)
            writer.raise_limits(
                parameter_bytes=encoded.parameter_bytes,
                block_elements=block,
                pending_bytes=block * size,
                window_log=encoded.window_log,
            )
        writer.rows.append(
            PatchRow(plan.path, plan.name, plan.dtype, plan.shape, plan.job.size, stored, predictor, coder)
        )
        done += plan.job.size
        if progress is not None:
            progress(done, total)


def _reads_target(job: Job, origin: int) -> bool:
    if isinstance(job, CopyJob):
        return any(source >= origin for _, source, _ in job.ranges)
    if isinstance(job, TensorJob):
        return any(segment.base is not None and segment.base.address >= origin for segment in job.segments)
    return False


def _encode_job(job: Job) -> EncodedTensor | UntypedFrames | bytes | None:
    if isinstance(job, TensorJob):
        return encode_tensor_job(job)
    if isinstance(job, EditJob):
        return encode_edits(job)
    return encode_untyped(job) if isinstance(job, UntypedJob) else None
