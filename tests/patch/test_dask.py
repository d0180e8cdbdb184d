"""A Dask cluster creates the same bytes; its workers share no folder, get their inputs sealed, and may die."""

import hashlib
import threading
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import pytest

from bundle.errors import AirweightsError
from bundle.files import BundleDirectory
from packager.diff.encode.encode_tensor import EncodedTensor
from packager.diff.encode.encode_untyped import UntypedFrames
from packager.diff.run_jobs import run_jobs
from packager.diff.sources import Source
from packager.diff.write.make_patch import make_patch
from packager.diff.write.make_patches import PatchOrder, make_patches
from packager.diff.write.patch_job import CreatedPatch
from packager.diff.write.patch_report import PatchRow
from packager.errors import SourceMismatch, SourceMissing
from packager.executors.dask import DaskExecutor
from packager.executors.dask_gateway import run_on_worker
from packager.executors.errors import ExecutorInvalid, WorkerIncompatible, WorkerLost, WorkerOutOfMemory
from packager.executors.open_executor import open_executor
from packager.executors.results import decode_result, encode_result
from packager.executors.sealed_inputs import SealedFinder, share_inputs
from packager.stores.open_store import open_store
from tests.support import model_formats
from tests.support.dask_cluster import Cluster, can_hide_folders, needs_dask, start_cluster
from tests.support.memory_bundles import write_bundle
from tests.support.s3_server import S3Server, needs_s3


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


@pytest.fixture(scope="module")
def cluster(
    bundles: tuple[BundleDirectory, BundleDirectory], s3_server: S3Server, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Cluster]:
    """Two workers that do not see the bundles, but reach the store."""
    hidden = [bundles[0].root.parent] if can_hide_folders else []
    folder = tmp_path_factory.mktemp("cluster")
    with start_cluster(folder, 2, hidden=hidden, variables=s3_server.environment()) as found:
        yield found


def run(
    cluster: Cluster,
    environment: pytest.MonkeyPatch,
    bundles: tuple[BundleDirectory, BundleDirectory],
    inputs: str | None,
) -> bytes:
    for name, value in cluster.client_environment().items():
        environment.setenv(name, value)
    out = BytesIO()
    with open_executor(f"dask://{cluster.address}", inputs=inputs) as executor:
        make_patch(bundles[0], bundles[1], out, executor=executor)
    return out.getvalue()


def run_pairs(cluster: Cluster, bundles: tuple[BundleDirectory, BundleDirectory], folder: Path) -> list[bytes]:
    """Make two patches, of which each is a job, and return their bytes."""
    folder.mkdir()
    orders = [PatchOrder(base, bundles[1], folder / f"{base is None}", "") for base in (None, bundles[0])]
    with open_executor(f"dask://{cluster.address}", inputs="s3://models/inputs") as executor:
        make_patches(orders, executor, lambda _: lambda _done, _total: None)
    return [order.path.read_bytes() for order in orders]


@needs_dask
@needs_s3
def test_workers_without_a_shared_folder_make_the_same_bytes_also_if_one_dies(
    cluster: Cluster,
    s3_server: S3Server,
    bundles: tuple[BundleDirectory, BundleDirectory],
    alone: bytes,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    for name, value in s3_server.environment().items():
        monkeypatch.setenv(name, value)
    if can_hide_folders:
        with pytest.raises(SourceMissing, match="No such file"):
            run(cluster, monkeypatch, bundles, None)
    assert run(cluster, monkeypatch, bundles, "s3://models/inputs") == alone
    full, patch = run_pairs(cluster, bundles, tmp_path / "two")
    assert patch == alone
    timer = threading.Timer(1.5, cluster.workers[0].kill)
    timer.start()
    try:
        assert run(cluster, monkeypatch, bundles, "s3://models/inputs") == alone
    finally:
        timer.join()
    assert run_pairs(cluster, bundles, tmp_path / "one") == [full, alone]
    assert [path for path in open_store("s3://models/inputs").list_files() if "inputs/" in path] == []


@needs_dask
def test_without_certificates_there_is_no_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CA_FILE", "CLIENT__CERT", "CLIENT__KEY"):
        monkeypatch.delenv(f"DASK_DISTRIBUTED__COMM__TLS__{name}", raising=False)
    with pytest.raises(ExecutorInvalid, match="mutual TLS"), open_executor("dask://127.0.0.1:1"):
        pass


@needs_dask
def test_a_scheduler_that_is_not_there(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in cluster.client_environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT", "1s")
    with pytest.raises(WorkerLost), open_executor("dask://127.0.0.1:1"):
        pass


def raise_nonsense(_: int) -> None:
    raise LookupError("nonsense")


@needs_dask
@needs_s3
def test_a_job_that_fails_on_a_worker_ends_with_its_error(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in cluster.client_environment().items():
        monkeypatch.setenv(name, value)
    with open_executor(f"dask://{cluster.address}") as executor, pytest.raises(WorkerLost, match="nonsense"):
        list(run_jobs(raise_nonsense, [1], {}, executor))


def take_memory(size: int) -> int:
    return len(bytearray(size))


@needs_dask
@needs_s3
def test_a_job_that_needs_more_memory_than_its_worker_has_says_so(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in cluster.client_environment().items():
        monkeypatch.setenv(name, value)
    with open_executor(f"dask://{cluster.address}") as executor:
        with pytest.raises(WorkerOutOfMemory):
            list(run_jobs(take_memory, [8 << 30], {}, executor))
        assert list(run_jobs(take_memory, [1 << 20], {}, executor)) == [1 << 20]


@needs_dask
def test_a_cluster_without_any_worker_ends_the_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with start_cluster(tmp_path, 1) as found:
        for name, value in found.client_environment().items():
            monkeypatch.setenv(name, value)
        with DaskExecutor(found.address, gone_s=2) as executor:
            found.workers[0].kill()
            with pytest.raises(WorkerLost, match="no worker for 2 s"):
                list(run_jobs(take_memory, [1], {}, executor))


def test_a_worker_that_joined_later_with_another_version_is_refused() -> None:
    with pytest.raises(WorkerIncompatible, match="the worker has airweights"):
        run_on_worker({"airweights": "0.0.0"}, take_memory, 1)


def test_results_are_a_closed_format() -> None:
    tensor = EncodedTensor((b"a", b"\xff"), "base", "zstd", frozenset({"x"}), "f32", 3, 4)
    untyped = UntypedFrames((b"a",), "zstd", frozenset(), 1, 2, 3, 4, 5)
    patch = CreatedPatch(b"a\xff", "typed", (PatchRow("m", "w", "f32", (2, 3), 24, 9, "base", "zstd"),))
    for result in (None, b"bytes", 7, tensor, untyped, patch):
        assert decode_result(encode_result(result)) == result
    pickled, other_type = b"cos\nsystem\n(S'true'\ntR.", encode_result(tensor).replace(b"3", b'"3"')
    for data in (b"", b"{}", b'{"kind": "other"}', b"[" * 200_000, pickled, other_type):
        with pytest.raises(WorkerLost):
            decode_result(data)


def test_sealed_inputs_are_found_again_and_changes_are_noticed(tmp_path: Path) -> None:
    data = bytes(range(256)) * 8300  # three chunks
    path, url = tmp_path / "plain", (tmp_path / "store").as_uri()
    path.write_bytes(data)
    source, key = Source(hashlib.sha256(data).hexdigest(), len(data)), bytes(32)
    (name,) = share_inputs(url, key, {source: path})
    assert share_inputs(url, key, {source: path}, {name}) == []
    sealed = tmp_path / "store" / name
    assert data[:64] not in sealed.read_bytes()
    finder = SealedFinder(url, key)
    found = finder.find(source)
    assert found is not None
    assert found.read_bytes() == data
    finder.release(found)
    assert not found.exists()
    assert SealedFinder(url, bytes(31) + b"1").find(source) is None
    sealed.write_bytes(sealed.read_bytes()[:-1] + b"x")
    with pytest.raises(SourceMismatch):
        SealedFinder(url, key).find(source)


def test_inputs_need_a_cluster() -> None:
    with pytest.raises(AirweightsError, match="--inputs"), open_executor("processes:2", inputs="file:///x"):
        pass
