"""Make the patches of a release: an executor runs (variant, base) pairs, or tensors of large bundles.

Rules:
1. A patch between bundles of at most `MAX_BUNDLE_BYTES` is one job (patch_job). Larger ones follow, one after the
   other, and their tensors are the jobs. So few large patches keep all workers busy, and so do many small ones.
2. The reports come in the order of the orders, and the bytes are those of one process.
3. What a worker returns is applied in this process before anything reads it.
"""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path

from bundle.files import BundleDirectory
from packager.diff.run_jobs import run_separate_jobs
from packager.diff.sources import Source
from packager.diff.write.make_patch import make_patch
from packager.diff.write.patch_job import PatchJob, create_patch, is_patch_job, list_sources, receive_patch
from packager.diff.write.patch_report import PatchReport

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class PatchOrder:
    """A patch to make.

    Attributes:
        base: None for a full download.
        target: the bundle that the patch makes.
        path: the file to write.
        label: names the patch in progress bars.
        codec: as for `make_patch`.
    """

    base: BundleDirectory | None
    target: BundleDirectory
    path: Path
    label: str
    codec: str = "auto"


def make_patches(
    orders: Sequence[PatchOrder], executor: Executor | None, bar: Callable[[str], Progress]
) -> list[PatchReport]:
    """Write patches, and return their reports in the same order.

    Args:
        orders: the patches.
        executor: runs the jobs; None makes one patch after the other in this thread.
        bar: returns the function that reports the progress of a label.

    Raises:
        PatchCheckFailed: a patch does not make its target's files.
        AirweightsError: the executor failed.
    """
    jobs = [] if executor is None else [order for order in orders if is_patch_job(order.base, order.target)]
    reports: dict[Path, PatchReport] = {}
    if executor is not None and len(jobs) > 1:
        created = run_separate_jobs(create_patch, map(_separate_job, jobs), executor)
        for order, patch in zip(jobs, created, strict=True):
            with order.path.open("xb") as out:
                reports[order.path] = receive_patch(patch, order.base, order.target, out)
            total = reports[order.path].target_bytes
            bar(order.label)(total, total)
    for order in orders:
        if order.path not in reports:
            with order.path.open("xb") as out:
                reports[order.path] = make_patch(
                    order.base, order.target, out, codec=order.codec, executor=executor, progress=bar(order.label)
                )
    return [reports[order.path] for order in orders]


def _separate_job(order: PatchOrder) -> tuple[PatchJob, Mapping[Source, Path], int]:
    base = None if order.base is None else order.base.files
    size = sum(file.size for file in order.target.files)
    return PatchJob(base, order.target.files, order.codec), list_sources(order.base, order.target), size
