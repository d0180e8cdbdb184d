"""ModelRuntime: models are checked, swapped and rolled back while calls run, at both isolation levels."""

import gc
import os
import signal
import threading
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from airweights import ModelRuntime, bundle_from_files
from bundle.errors import GoldenMismatch
from device_agent.errors import ContractMismatch, InferenceFailed, ModelDoesNotLoad, NothingToRollBack, RequestInvalid
from device_agent.runtime.model_runtime import NoModelLoaded
from device_agent.runtime.tensors import Array
from tests.support.memfd_bundles import create_memfd_bundle, floats, make_graph_model, make_scale_model

SAMPLE = [{"x": floats(1, 2, 3, 4)}]
BOTH = pytest.mark.parametrize("isolation", ["inproc", "worker"])


def first(runtime: ModelRuntime) -> float:
    return float(runtime.run({"x": floats(1, 2, 3, 4)})["y"][0])


@BOTH
def test_a_model_is_swapped_and_rolled_back(isolation: str) -> None:
    with ModelRuntime(isolation=isolation, threads=1) as runtime:
        with pytest.raises(NoModelLoaded):
            first(runtime)
        with create_memfd_bundle(make_scale_model(2.0), list(SAMPLE)) as bundle:
            report = runtime.swap(bundle.fds, bundle.contract)
        assert (report.generation, runtime.generation, first(runtime)) == (1, 1, 2.0)
        with pytest.raises(NothingToRollBack):
            runtime.rollback()
        for factor in (3.0, 4.0):
            with create_memfd_bundle(make_scale_model(factor), list(SAMPLE)) as bundle:
                runtime.swap(bundle.fds, bundle.contract)
            assert first(runtime) == factor
        assert runtime.rollback() == 2
        assert first(runtime) == 3.0
        runtime.discard_previous()
    with pytest.raises(NoModelLoaded):
        first(runtime)


@BOTH
def test_a_candidate_that_is_wrong_changes_nothing(isolation: str) -> None:
    def wrong(outputs: dict[str, Array]) -> None:
        outputs["y"] = outputs["y"] + 1

    with ModelRuntime(isolation=isolation, threads=1) as runtime:
        with create_memfd_bundle(make_scale_model(2.0), list(SAMPLE)) as good:
            runtime.swap(good.fds)
            with create_memfd_bundle(b"noise", contract=good.contract) as bundle, pytest.raises(ModelDoesNotLoad):
                runtime.swap(bundle.fds)
            with create_memfd_bundle(make_scale_model(3.0, size=5)) as bundle, pytest.raises(ContractMismatch):
                runtime.swap(bundle.fds, good.contract)
            with (
                create_memfd_bundle(make_scale_model(3.0), list(SAMPLE), damage=wrong) as bundle,
                pytest.raises(GoldenMismatch),
            ):
                runtime.swap(bundle.fds)
        assert (runtime.generation, first(runtime)) == (1, 2.0)


@BOTH
def test_a_lease_outlives_a_swap(isolation: str) -> None:
    with ModelRuntime(isolation=isolation, threads=1) as runtime:
        with create_memfd_bundle(make_scale_model(2.0)) as even, create_memfd_bundle(make_scale_model(3.0)) as odd:
            runtime.swap(even.fds)
            swapped = threading.Event()

            def swap_twice() -> None:
                runtime.swap(odd.fds)
                swapped.set()
                runtime.swap(even.fds)  # drains generation 1, which is on lease

            with runtime.lease() as lease:
                swapper = threading.Thread(target=swap_twice)
                swapper.start()
                assert swapped.wait(30)
                assert (lease.generation, float(lease.run(SAMPLE[0])["y"][0])) == (1, 2.0)
            swapper.join()


@BOTH
def test_no_call_fails_while_models_are_swapped_under_load(isolation: str) -> None:
    swaps = 50 if isolation == "inproc" else 5
    answers: Counter[float] = Counter()
    with ModelRuntime(isolation=isolation, threads=1) as runtime:
        with (
            create_memfd_bundle(make_scale_model(2.0), list(SAMPLE)) as even,
            create_memfd_bundle(make_scale_model(3.0), list(SAMPLE)) as odd,
        ):
            runtime.swap(even.fds)
            stop = threading.Event()

            def call() -> None:
                while not stop.is_set():
                    answers[first(runtime)] += 1

            callers = [threading.Thread(target=call) for _ in range(2)]
            for caller in callers:
                caller.start()
            for number in range(swaps):
                runtime.swap((even if number % 2 else odd).fds)
                if number % 5 == 4:
                    runtime.rollback()
            stop.set()
            for caller in callers:
                caller.join()
    assert set(answers) == {2.0, 3.0}


def test_a_worker_that_dies_is_restarted_and_the_call_sent_once_more() -> None:
    with ModelRuntime(isolation="worker", threads=1) as runtime, create_memfd_bundle(make_scale_model(2.0)) as bundle:
        runtime.swap(bundle.fds)
        with runtime.lease() as lease:
            assert lease.worker_pid is not None
            os.kill(lease.worker_pid, signal.SIGKILL)
            assert float(lease.run(SAMPLE[0])["y"][0]) == 2.0
        assert first(runtime) == 2.0


@BOTH
def test_wrong_inputs_are_told_from_a_failing_model(isolation: str) -> None:
    with ModelRuntime(isolation=isolation, threads=1) as runtime, create_memfd_bundle(make_scale_model(2.0)) as bundle:
        runtime.swap(bundle.fds)
        with pytest.raises(RequestInvalid, match="the model rejects these inputs"):
            runtime.run({"x": floats(1, 2)})
        with pytest.raises((RequestInvalid, InferenceFailed), match=r"z|x"):
            runtime.run({"z": floats(1, 2, 3, 4)})
        assert first(runtime) == 2.0


def test_large_tensors_travel_in_shared_memory_that_is_reused_only_once_results_are_gone() -> None:
    with (
        ModelRuntime(isolation="worker", threads=1) as runtime,
        create_memfd_bundle(make_scale_model(2.0, size="n")) as bundle,
    ):
        runtime.swap(bundle.fds)
        held = []
        for number in range(8):
            x = np.full(100_000 + 30_000 * number, number, np.float32)
            held.append((number, runtime.run({"x": x})["y"]))
        for number, y in held:
            assert np.array_equal(y, np.full(100_000 + 30_000 * number, 2 * number, np.float32))
        del held, y
        gc.collect()
        for number in range(20):
            x = np.full(100_000, number, np.float32)
            assert np.array_equal(runtime.run({"x": x})["y"], 2 * x)
        kept = runtime.run({"x": x})["y"]
    assert np.array_equal(kept, 2 * x)


def test_a_bundle_is_made_of_plain_files(tmp_path: Path) -> None:
    onnx.save(make_scale_model(2.0), str(tmp_path / "model.onnx"))
    bundle = bundle_from_files(tmp_path / "model.onnx")
    with ModelRuntime(threads=1) as runtime:
        runtime.swap(bundle)
        bundle.close()
        assert first(runtime) == 2.0
    with pytest.raises(ValueError, match="isolation: found 'x'"):
        ModelRuntime(isolation="x")


def child_processes() -> set[str]:
    """Return the ids of this process's children."""
    return {child for path in Path("/proc/self/task").glob("*/children") for child in path.read_text().split()}


def test_outputs_whose_size_depends_on_the_values_are_right_every_time() -> None:
    nodes = [helper.make_node("NonZero", ["x"], ["y"])]
    model = make_graph_model(nodes, [("x", "float32", ["n"])], [("y", "int64", [1, "k"])])
    rng = np.random.default_rng(0)
    with ModelRuntime(isolation="worker", threads=1) as runtime, create_memfd_bundle(model) as bundle:
        runtime.swap(bundle.fds)
        before = child_processes()
        for share in (0.5, 0.5, 0.9, 0.9, 0.1, 0.0):
            x = (rng.random(50_000) < share).astype(np.float32)
            assert np.array_equal(runtime.run({"x": x})["y"], [np.nonzero(x)[0]])
        assert child_processes() == before, "a model process ended"
