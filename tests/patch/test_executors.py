"""Patches have the same bytes with any executor; a worker that dies, lacks memory or reads other bytes is found out."""

import multiprocessing
import os
import pickle
import signal
from io import BytesIO
from pathlib import Path

import pytest

from bundle.errors import AirweightsError
from bundle.files import BundleDirectory
from packager.diff.byte_range import BytePosition
from packager.diff.encode.entropy import EncoderOptions
from packager.diff.encode.tensor_job import TensorJob
from packager.diff.run_jobs import run_jobs
from packager.diff.sources import LocalFinder, Source, open_sources
from packager.diff.write.make_patch import make_patch
from packager.diff.write.plan_jobs import plan_jobs
from packager.errors import SourceMismatch, SourceMissing
from packager.executors.errors import ExecutorInvalid, WorkerLost, WorkerOutOfMemory
from packager.executors.open_executor import open_executor
from packager.executors.processes import ProcessExecutor
from tests.support import model_formats
from tests.support.memory_bundles import write_bundle


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> tuple[BundleDirectory, BundleDirectory]:
    folder = tmp_path_factory.mktemp("bundles")
    arrays = model_formats.make_weights(1)
    base = write_bundle(folder / "b", {"m": model_formats.to_onnx(arrays)})
    return base, write_bundle(folder / "t", {"m": model_formats.to_onnx(model_formats.fine_tune(arrays, 2))})


@pytest.fixture(scope="module")
def alone(bundles: tuple[BundleDirectory, BundleDirectory]) -> bytes:
    """The patch as it is without an executor."""
    out = BytesIO()
    make_patch(*bundles, out)
    return out.getvalue()


def test_processes_make_the_same_bytes(bundles: tuple[BundleDirectory, BundleDirectory], alone: bytes) -> None:
    out = BytesIO()
    with open_executor("processes:2") as executor:
        make_patch(*bundles, out, executor=executor)
    assert out.getvalue() == alone


def test_jobs_have_digests_and_no_paths(bundles: tuple[BundleDirectory, BundleDirectory]) -> None:
    plans = plan_jobs(*bundles, EncoderOptions())
    position = next(plan.job.segments[0].target for plan in plans if isinstance(plan.job, TensorJob))
    assert isinstance(position, BytePosition)
    assert position.source == Source(bundles[1].files[0].sha256, bundles[1].files[0].size)
    text = pickle.dumps([plan.job for plan in plans])
    assert str(bundles[0].root).encode() not in text
    assert str(bundles[1].root).encode() not in text


def kill_once(path: str) -> int:
    """End this process at the first call; a file remembers it."""
    marker = Path(path)
    if not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return os.getpid()


def kill_always(_: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def take_memory(size: int) -> int:
    return len(bytearray(size))


def test_jobs_of_a_killed_worker_run_again(
    bundles: tuple[BundleDirectory, BundleDirectory], alone: bytes, tmp_path: Path
) -> None:
    out = BytesIO()
    with ProcessExecutor(2) as executor:
        killed = [executor.submit(kill_once, str(tmp_path / "killed")) for _ in range(4)]
        make_patch(*bundles, out, executor=executor)
        assert all(future.result() != os.getpid() for future in killed)
    assert out.getvalue() == alone


def test_a_job_that_always_kills_its_worker_ends_with_an_error() -> None:
    with ProcessExecutor(2) as executor, pytest.raises(WorkerLost, match="3 times"):
        list(run_jobs(kill_always, [1], {}, executor))


def test_a_job_gets_its_workers_memory_and_no_more() -> None:
    with ProcessExecutor(2, memory_bytes=1 << 30) as executor:
        assert list(run_jobs(take_memory, [1 << 20], {}, executor)) == [1 << 20]
        with pytest.raises(WorkerOutOfMemory, match="1,024 MiB"):
            list(run_jobs(take_memory, [3 << 30], {}, executor))


@pytest.mark.parametrize(
    ("change", "error"),
    [(lambda path: path.write_bytes(b"other"), SourceMismatch), (lambda path: path.unlink(), SourceMissing)],
    ids=["other bytes", "gone"],
)
def test_a_worker_without_the_right_file_is_found_out(tmp_path: Path, change, error: type[AirweightsError]) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "file"
    path.write_bytes(os.urandom(16))
    source = Source("ab" * 32, 16)
    change(path)
    with pytest.raises(error), open_sources([source], LocalFinder(((source, str(path)),))):
        pass
    with pytest.raises(SourceMissing), open_sources([source], LocalFinder(())):
        pass


@pytest.mark.parametrize("text", ["", "processes", "processes:0", "processes:1000", "threads:2", "dask:8786"])
def test_what_is_no_executor_is_refused(text: str) -> None:
    with pytest.raises(ExecutorInvalid), open_executor(text):
        pass


def test_one_process_is_this_one() -> None:
    before = multiprocessing.active_children()
    with open_executor(None) as executor:
        assert executor is None
        assert multiprocessing.active_children() == before
