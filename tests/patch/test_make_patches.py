"""The patches of a release are jobs of workers: the same bytes, bounded memory, and lies are found out."""

import hashlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import pytest

from bundle.files import BundleDirectory
from packager.diff import run_jobs, sources
from packager.diff.sources import LocalFinder, Source, open_sources, read_source
from packager.diff.write import patch_job
from packager.diff.write.make_patch import make_patch
from packager.diff.write.make_patches import PatchOrder, make_patches
from packager.diff.write.patch_job import (
    MAX_WORKER_BYTES,
    CreatedPatch,
    PatchJob,
    create_patch,
    list_sources,
    receive_patch,
)
from packager.errors import PatchCheckFailed
from packager.executors.open_executor import open_executor
from packager.executors.processes import MIN_MEMORY_BYTES
from tests.support import model_formats
from tests.support.memory_bundles import write_bundle

Bundles = tuple[BundleDirectory, ...]


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Bundles:
    """A target with a second file in a folder of its own, then two bases; the last one is large."""
    folder, arrays = tmp_path_factory.mktemp("bundles"), model_formats.make_weights(1)
    rows = [(0, b""), (1, b""), (2, bytes(200_000))]
    return tuple(
        write_bundle(
            folder / str(seed),
            {
                "m": model_formats.to_onnx(model_formats.fine_tune(arrays, seed) if seed else arrays),
                "files/labels.txt": b"yes no\n" * (seed + 1) + more,
            },
        )
        for seed, more in rows
    )


@pytest.fixture(scope="module")
def created(bundles: Bundles) -> CreatedPatch:
    """The patch from the first base, as a worker returns it."""
    target, base, *_ = bundles
    paths = list_sources(base, target)
    finder = LocalFinder(tuple((source, str(path)) for source, path in paths.items()))
    with open_sources(tuple(paths), finder):
        return create_patch(PatchJob(base.files, target.files, "auto"))


def quiet(_: str) -> Callable[[int, int], None]:
    return lambda _done, _total: None


def test_two_processes_make_the_same_bytes_and_reports(
    bundles: Bundles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, *bases = bundles
    made = []
    limit = sum(file.size for file in bases[-1].files) - 1
    monkeypatch.setattr(patch_job, "MAX_BUNDLE_BYTES", limit)  # the tensors of the last patch are jobs
    for text in ("processes:1", "processes:2"):
        folder = tmp_path / text
        folder.mkdir()
        orders = [PatchOrder(base, target, folder / f"{n}", "") for n, base in enumerate([None, *bases])]
        with open_executor(text) as executor:
            reports = make_patches(orders, executor, quiet)
        made.append(([order.path.read_bytes() for order in orders], reports))
    assert made[0] == made[1]


def test_a_patch_of_a_worker_is_that_of_this_process(bundles: Bundles, created: CreatedPatch) -> None:
    target, base, *_ = bundles
    out, received = BytesIO(), BytesIO()
    report = make_patch(base, target, out)
    assert receive_patch(created, base, target, received) == report
    assert received.getvalue() == out.getvalue()


@pytest.mark.parametrize(
    "lie",
    [
        lambda patch, _: replace(patch, data=b""),
        lambda patch, _: replace(patch, data=patch.data[:-9]),
        lambda patch, _: replace(patch, data=patch.data[:-30] + bytes([patch.data[-30] ^ 1]) + patch.data[-29:]),
        lambda patch, _: replace(patch, codec="gzip"),
        lambda patch, other: replace(patch, data=other),
    ],
    ids=["nothing", "cut", "flipped", "codec", "another target"],
)
def test_a_worker_that_lies_is_found_out(
    lie: Callable[[CreatedPatch, bytes], CreatedPatch], bundles: Bundles, created: CreatedPatch
) -> None:
    target, base, *_ = bundles
    other, out = BytesIO(), BytesIO()
    make_patch(None, base, other, codec="zstd")
    with pytest.raises(PatchCheckFailed):
        receive_patch(lie(created, other.getvalue()), base, target, out)
    assert out.getvalue() == b""


class FolderFinder:
    """Finds files by their SHA-256, and remembers which ones were given back."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.released = folder, list[str]()

    def find(self, source: Source) -> Path:
        return self.folder / source.sha256

    def release(self, path: Path) -> None:
        self.released.append(path.name)


def test_a_worker_gives_back_the_files_that_no_job_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    finder, found = FolderFinder(tmp_path), []
    for number in range(4):
        data = bytes([number]) * 1000
        found.append(Source(hashlib.sha256(data).hexdigest(), len(data)))
        (tmp_path / found[-1].sha256).write_bytes(data)
    monkeypatch.setattr(sources, "MAX_IDLE_BYTES", 2000)
    with open_sources(found[:1], finder):
        for source in found[1:]:
            with open_sources([source], finder):
                pass
        assert finder.released == [found[1].sha256]
        assert read_source(found[0], 0, 2) == b"\0\0"
    assert finder.released == [found[1].sha256, found[0].sha256]


def test_no_more_results_wait_than_memory_is_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_jobs, "MAX_WAITING_BYTES", 250)
    submitted: list[int] = []

    def jobs() -> Iterator[tuple[int, dict[Source, Path], int]]:
        for number in range(5):
            submitted.append(number)
            yield number, {}, 100

    with ThreadPoolExecutor(1) as executor:
        results = run_jobs.run_separate_jobs(str, jobs(), executor)
        assert next(results) == "0"
        assert submitted == [0, 1, 2]  # the third waits until there is room
        assert list(results) == ["1", "2", "3", "4"]


def test_a_worker_has_the_memory_that_its_largest_job_needs() -> None:
    assert MIN_MEMORY_BYTES == MAX_WORKER_BYTES
    assert 17 * patch_job.MAX_BUNDLE_BYTES < MAX_WORKER_BYTES
