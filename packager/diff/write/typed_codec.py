"""The typed codec: runs the jobs of a plan and writes what they make, in order."""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from typing import Final

from bundle.files import BundleDirectory
from bundle.patch.elements import BY_NAME
from packager.diff.encode.copy_job import CopyJob
from packager.diff.encode.encode_edits import EditJob, encode_edits
from packager.diff.encode.encode_file import encode_raw
from packager.diff.encode.encode_tensor import Encoded, encode_job
from packager.diff.encode.encode_untyped import RawEncoded, RawJob
from packager.diff.encode.entropy import Effort
from packager.diff.encode.tensor_job import TensorJob, block_elements
from packager.diff.write.frame_writer import Spool
from packager.diff.write.generic_codecs import copy_frame
from packager.diff.write.patch_report import PatchRow
from packager.diff.write.plan_jobs import pending_bytes, plan_jobs
from packager.diff.write.planned_job import Job, Planned

IN_FLIGHT: Final = 6  # jobs at the executor at a time: enough for it, and few enough that memory stays bounded

Progress = Callable[[int, int], None]


def write_typed(
    base: BundleDirectory | None,
    target: BundleDirectory,
    spool: Spool,
    effort: Effort,
    executor: Executor | None,
    progress: Progress | None,
) -> None:
    """Write the frames of the typed codec, and a report's row for each job."""
    plans = plan_jobs(base, target, effort)
    waiting = pending_bytes(plans)
    spool.need(pending_bytes=waiting)
    total = sum(plan.job.size for plan in plans)
    done = 0
    for plan, encoded in _run(plans, executor):
        if isinstance(plan.job, CopyJob):
            stored = spool.write(copy_frame(plan.job.ranges))
            predictor = coder = "copy"
        elif isinstance(plan.job, EditJob):
            assert isinstance(encoded, bytes)
            stored = spool.write(encoded)
            predictor, coder = "base", "edits"
            spool.features |= plan.job.features
            spool.need(block_elements=plan.job.edits)
        elif isinstance(encoded, RawEncoded):
            stored = sum(spool.write(frame) for frame in encoded.frames)
            predictor, coder = (
                "base"
                if any(word in encoded.coder for word in ("dictionary", "bsdiff", "in place", "edits"))
                else "none",
                encoded.coder,
            )
            spool.features |= encoded.features
            spool.need(
                pending_bytes=max(encoded.largest_frame, waiting + encoded.waiting_bytes),
                dictionary_bytes=encoded.dictionary_bytes,
                block_elements=encoded.block_elements,
                window_log=encoded.window_log,
            )
        else:
            assert isinstance(encoded, Encoded)
            stored = sum(spool.write(frame) for frame in encoded.frames)
            predictor, coder = encoded.predictor, encoded.coder
            spool.features |= encoded.features
            size = BY_NAME[encoded.dtype].size
            block = min(block_elements(encoded.dtype), plan.job.size // size)
            spool.need(
                parameter_bytes=encoded.parameter_bytes,
                block_elements=block,
                pending_bytes=block * size,
                window_log=encoded.window_log,
            )
        spool.rows.append(
            PatchRow(plan.path, plan.name, plan.dtype, plan.shape, plan.job.size, stored, predictor, coder)
        )
        done += plan.job.size
        if progress is not None:
            progress(done, total)


def _run(
    plans: list[Planned], executor: Executor | None
) -> Iterator[tuple[Planned, Encoded | RawEncoded | bytes | None]]:
    if executor is None:
        for plan in plans:
            yield plan, _encode(plan.job)
        return
    waiting: deque[tuple[Planned, Future[Encoded | RawEncoded | bytes | None]]] = deque()
    for plan in plans:
        waiting.append((plan, executor.submit(_encode, plan.job)))
        if len(waiting) > IN_FLIGHT:
            first, future = waiting.popleft()
            yield first, future.result()
    for first, future in waiting:
        yield first, future.result()


def _encode(job: Job) -> Encoded | RawEncoded | bytes | None:
    if isinstance(job, TensorJob):
        return encode_job(job)
    if isinstance(job, EditJob):
        return encode_edits(job)
    return encode_raw(job) if isinstance(job, RawJob) else None
