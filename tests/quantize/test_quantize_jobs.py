"""Workers quantize variants to the same bytes; what a worker returns is confirmed, and a lie ends the release."""

import hashlib
import os
import signal
from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from bundle.variant import Quantization
from packager.errors import QuantizationNotConfirmed
from packager.executors.errors import WorkerLost
from packager.executors.open_executor import open_executor
from packager.executors.processes import ProcessExecutor
from packager.quantize.jobs.quantize_job import NOTHING
from packager.quantize.jobs.worker_results import WorkerQuantization, decode_quantization, encode_quantization
from packager.release.draft import Draft, SilentReporter
from packager.release.pipeline import samples_for
from packager.release.release_file import parse_release_file
from packager.release.release_plan import ReleasePlan
from packager.release.steps import quantize, quantize_jobs
from packager.release.steps.quantize_jobs import EarlierModel
from packager.repository.repository import Repository
from packager.repository.workspace import Workspace
from tests.support.dask_cluster import can_hide_folders, needs_dask, start_cluster
from tests.support.model_pairs import QuantizedBase
from tests.support.release_fixtures import create_site
from tests.support.s3_server import S3Server, needs_s3

RELEASE = """
family = "kws"
version = "1.1.0"
channels = ["stable"]
model = "tuned.onnx"
inputs = "inputs.npz"
[variants.near]
scheme = "int8-static"
[variants.fresh]
scheme = "int8"
required = true
gate = { max_latency_ratio = 1000 }
[variants.half]
scheme = "fp16"
gate = { max_latency_ratio = 1000 }
[rollout]
"""


@dataclass(frozen=True, slots=True)
class Bench:
    """A release, and the quantized model of the release before.

    Attributes:
        repository: a repository without releases.
        plan: the release.
        base: what the variant `near` stays near.
    """

    repository: Repository
    plan: ReleasePlan
    base: EarlierModel

    def quantize(self, executor: Executor | None = None) -> "tuple[dict[str, str], Draft]":
        """Run the step, and return the digest of each variant's model, and the draft."""
        workspace = Workspace(self.repository.root)
        with workspace.build_folder() as folder:
            draft = Draft(
                plan=self.plan,
                repository=self.repository,
                signers=(),
                workspace=workspace,
                counter=2,
                created="2026-01-01T00:00:00Z",
                folder=folder,
                samples=samples_for(self.plan),
                reporter=SilentReporter(),
                executor=executor,
            )
            for variant in self.plan.variants:
                draft.variant_folder(variant.name).mkdir()
            quantize.run(draft)
            digests = {
                name: hashlib.sha256(variant.require_model().read_bytes()).hexdigest()
                for name, variant in draft.quantized.items()
            }
        return digests, draft


@pytest.fixture(scope="module")
def bench(mlp_base: QuantizedBase, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    site = create_site(tmp_path_factory.mktemp("site"))
    mlp_base.write_fine_tuned(site.folder, 0.02).rename(site.folder / "tuned.onnx")
    rows = list(mlp_base.samples)
    columns = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    np.savez(site.folder / "inputs.npz", allow_pickle=False, **columns)
    (site.folder / "release.toml").write_text(RELEASE)
    base = EarlierModel("1.0.0", mlp_base.path, Quantization("int8-static", "exact", None, "pass", None, None))
    plan = parse_release_file(site.folder / "release.toml")
    return Bench(Repository.open(site.folder / "repo"), plan, base)


@pytest.fixture(autouse=True)
def any_size(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantize_jobs, "MIN_MODEL_BYTES", 0)
    monkeypatch.setattr(quantize, "base_of", lambda _, plan: bench.base if plan.name == "near" else None)


@pytest.fixture(scope="module")
def alone(bench: Bench) -> dict[str, str]:
    """The digests without an executor."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quantize, "base_of", lambda _, plan: bench.base if plan.name == "near" else None)
        digests, draft = bench.quantize()
    assert draft.quantized["near"].update is not None
    return digests


class ChangingExecutor(ThreadPoolExecutor):
    """An executor whose workers return something else.

    Args:
        change: makes a false result from a true one.
    """

    def __init__(self, change: Callable[[bytes], bytes] = lambda data: data) -> None:
        super().__init__(2)
        self._change = change
        self.jobs = 0

    def submit(self, function: Callable[..., Any], /, *arguments: Any, **options: Any) -> "Future[Any]":
        """Run a job, and change its result."""

        def run() -> object:
            found = function(*arguments, **options)
            return self._change(found) if isinstance(found, bytes) else found

        self.jobs += 1
        return super().submit(run)


def test_workers_make_the_same_models(bench: Bench, alone: dict[str, str]) -> None:
    with ChangingExecutor() as executor:
        digests, draft = bench.quantize(executor)
    assert executor.jobs == 3
    assert digests == alone
    assert draft.quantized["near"].update is not None


def change(update: Callable[[WorkerQuantization], WorkerQuantization]) -> Callable[[bytes], bytes]:
    """Return a function that changes results of quantizations."""
    return lambda data: encode_quantization(update(decode_quantization(data)))


def _other_update(found: WorkerQuantization) -> WorkerQuantization:
    """Return a model with weights of zero, that claims to be as good."""
    if found.update is None:
        return found
    model = onnx.ModelProto.FromString(found.model)
    for tensor in model.graph.initializer:
        if tensor.data_type in (onnx.TensorProto.INT8, onnx.TensorProto.UINT8) and len(tensor.dims) == 2:
            tensor.raw_data = bytes(len(tensor.raw_data))
    return replace(found, model=model.SerializeToString())


def _other_graph(found: WorkerQuantization) -> WorkerQuantization:
    if found.update is None:
        return found
    model = onnx.ModelProto.FromString(found.model)
    model.graph.node[0].op_type = "Identity"
    return replace(found, model=model.SerializeToString())


def _outside_data(found: WorkerQuantization) -> WorkerQuantization:
    """Return a model whose weights are in a file of the machine that signs."""
    if found.update is None:
        return found
    model = onnx.ModelProto.FromString(found.model)
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../keys/root")
    return replace(found, model=model.SerializeToString())


def _better_gate(found: WorkerQuantization) -> WorkerQuantization:
    return found if found.update is None else replace(found, update=replace(found.update, gate=found.update.baseline))


def _other_candidate(found: WorkerQuantization) -> WorkerQuantization:
    return found if found.report is None else replace(found, report=replace(found.report, method="dynamic"))


def _no_method(found: WorkerQuantization) -> WorkerQuantization:
    return found if found.report is None else replace(found, report=replace(found.report, method="int4"))


def _other_digest(found: WorkerQuantization) -> WorkerQuantization:
    return found if found.update is not None else replace(found, sha256="00" * 32)


def _nothing_of_both(found: WorkerQuantization) -> WorkerQuantization:
    return replace(found, update=None, report=None)


LIES = [_other_update, _other_graph, _outside_data, _better_gate, _other_candidate, _no_method, _other_digest]
LIES += [_nothing_of_both]


@pytest.mark.parametrize("lie", LIES)
def test_a_worker_that_lies_ends_the_release(bench: Bench, lie: Callable[..., WorkerQuantization]) -> None:
    with ChangingExecutor(change(lie)) as executor, pytest.raises(QuantizationNotConfirmed, match="variant"):
        bench.quantize(executor)


def test_a_worker_that_returns_nonsense_ends_the_release(bench: Bench) -> None:
    with (
        ChangingExecutor(lambda _: b"{}") as executor,
        pytest.raises(QuantizationNotConfirmed, match="no quantization"),
    ):
        bench.quantize(executor)


def test_what_another_processor_rounds_differently_is_quantized_here(bench: Bench, alone: dict[str, str]) -> None:
    def from_elsewhere(found: WorkerQuantization) -> WorkerQuantization:
        return replace(_other_update(_other_digest(found)), cpu="another processor")

    with ChangingExecutor(change(from_elsewhere)) as executor:
        digests, draft = bench.quantize(executor)
    assert digests == alone
    assert len([note for note in draft.notes if "another processor" in note]) == 3


def test_a_worker_cannot_leave_a_variant_out(bench: Bench, alone: dict[str, str]) -> None:
    with ChangingExecutor(lambda _: NOTHING) as executor:
        assert bench.quantize(executor)[0] == alone


def test_results_are_read_by_their_declared_types(bench: Bench) -> None:
    results: list[bytes] = []

    def keep(data: bytes) -> bytes:
        results.append(data)
        return data

    with ChangingExecutor(keep) as executor:
        bench.quantize(executor)
    for nonsense in (b"", b"\x80\x04N.", b"[" * 200_000):
        with pytest.raises(ValueError, match="no quantization"):
            decode_quantization(nonsense)
    for data in results:
        found = decode_quantization(data)
        assert encode_quantization(found) == data
        for wrong in (data.replace(b'"samples": 32', b'"samples": "32"'), data[:-1], data.replace(b"cpu", b"cpv")):
            with pytest.raises(ValueError, match="no quantization"):
                decode_quantization(wrong)


def kill_this_process(_: int) -> None:
    """End the worker that runs this."""
    os.kill(os.getpid(), signal.SIGKILL)


def test_processes_quantize_to_the_same_bytes_also_if_one_is_killed(bench: Bench, alone: dict[str, str]) -> None:
    with ProcessExecutor(2) as executor:
        killed = executor.submit(kill_this_process, 0)  # its worker ends with the jobs that run beside it
        assert bench.quantize(executor)[0] == alone
        assert isinstance(killed.exception(), WorkerLost)


@needs_dask
@needs_s3
def test_a_cluster_without_shared_folders_quantizes_to_the_same_bytes(
    bench: Bench, alone: dict[str, str], s3_server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hidden = [bench.repository.root.parent, bench.base.model.parent] if can_hide_folders else []
    with start_cluster(tmp_path, 2, hidden=hidden, variables=s3_server.environment()) as cluster:
        for name, value in (cluster.client_environment() | s3_server.environment()).items():
            monkeypatch.setenv(name, value)
        with open_executor(f"dask://{cluster.address}", inputs="s3://models/inputs") as executor:
            digests, draft = bench.quantize(executor)
    assert digests == alone
    assert draft.quantized["near"].update is not None
