"""The probe's verdicts: a good candidate passes, each kind of bad one fails for its own reason."""

import contextlib
import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from math import ceil
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import onnx
import pytest

from bundle.contract import Contract, Health, TensorSpec
from bundle.errors import Bug, Unfit
from device_agent.config.serve import ServeSettings
from device_agent.errors import (
    CandidateMalformed,
    MemoryLeak,
    NanOutput,
    ProbeCrashed,
    ProbeTimeout,
    TooMuchMemory,
    TooSlow,
    error_from_dict,
)
from device_agent.process.jail import JailPolicy
from device_agent.runtime.bundle_fds import BundleFds, FurtherModel, create_sealed_memfd
from device_agent.runtime.probe_runner import (
    LATENCY_ALLOWANCE_US,
    ProbeBaseline,
    ProbeReport,
    compare_with_baseline,
    run_probe_process,
)
from device_agent.runtime.session import OnnxModel
from device_agent.runtime.tensors import Array
from device_agent.update.probe_client import ProbeClient, probe_error
from device_agent.workers import probe as probe_process
from tests.support import hostile_models as hostile
from tests.support.memfd_bundles import MemfdBundle, add_arbitrary_golden, create_memfd_bundle, floats, make_scale_model

SAMPLES: list[dict[str, Array]] = [{"x": floats(1, 2, 3, 4)}, {"x": floats(0, -1, 0.5, 100)}]
HEALTH = Health(probe_deadline_s=60)


def probe(bundle: MemfdBundle, health: Health = HEALTH, baseline: ProbeBaseline | None = None) -> ProbeReport:
    return run_probe_process(bundle.fds, bundle.contract, health, baseline, threads=1)


@pytest.fixture(scope="module")
def deadline_s() -> int:
    """Return a deadline, in seconds, that a start keeps on this machine; what does not end takes all of it."""
    started = time.monotonic()
    with create_memfd_bundle(make_scale_model(2.0)) as bundle:
        assert probe(bundle).verdict == "pass"
    return min(60, ceil(3 + 5 * (time.monotonic() - started)))


def test_a_good_candidate_passes_with_its_numbers() -> None:
    with create_memfd_bundle(make_scale_model(2.0), list(SAMPLES)) as bundle:
        report = probe(bundle)
        assert (report.verdict, report.reason) == ("pass", "")
        assert (report.samples, report.worst_relative_rms_ppm) == (2, 0)
        assert report.runs >= 10
        assert report.latency_us is not None
        assert report.peak_bytes > 0
        again = probe(bundle, baseline=report.baseline())
        assert again.verdict == "pass", again


def test_a_candidate_without_golden_vectors_is_run_on_zeros() -> None:
    with create_memfd_bundle(make_scale_model(2.0)) as bundle:
        report = probe(bundle)
        assert (report.verdict, report.samples, report.worst_relative_rms_ppm) == ("pass", 0, None)
        assert report.runs >= 10


def _scale_outputs(outputs: dict[str, Array]) -> None:
    outputs["y"] = outputs["y"] * 1.01


def _cut_outputs(outputs: dict[str, Array]) -> None:
    outputs["y"] = outputs["y"][:3]


@pytest.mark.parametrize("damage", [_scale_outputs, _cut_outputs])
def test_wrong_answers_fail(damage: Callable[[dict[str, Array]], None]) -> None:
    with create_memfd_bundle(make_scale_model(2.0), list(SAMPLES), damage=damage) as bundle:
        report = probe(bundle)
        assert (report.verdict, report.reason) == ("fail", "golden-mismatch")
        assert "golden 0: output 'y'" in report.detail


def test_every_reason_of_a_failed_probe_has_a_class_of_its_own() -> None:
    for error in (TooMuchMemory, TooSlow, MemoryLeak, NanOutput, ProbeCrashed, ProbeTimeout, CandidateMalformed):
        found = probe_error(ProbeReport("fail", error.reason, "detail"))
        assert (type(found), found.message) == (error, "detail")
    assert isinstance(error_from_dict({"reason": "never-heard-of", "message": "m", "exit_code": 5}), Unfit)
    with pytest.raises(Bug, match="'never-heard-of'"):
        probe_error(ProbeReport("fail", "never-heard-of", "detail"))


def test_nan_fails_with_its_own_reason() -> None:
    def finite(outputs: dict[str, Array]) -> None:
        outputs["y"] = np.nan_to_num(outputs["y"])

    with create_memfd_bundle(hostile.make_nan_model(), list(SAMPLES), damage=finite) as bundle:
        report = probe(bundle)
        assert (report.verdict, report.reason) == ("fail", "nan-output")
        assert report.detail == "golden 1: output 'y' has NaN or infinity"


@pytest.mark.parametrize(
    "model",
    [
        b"",
        b"not a model",
        hostile.make_unknown_opset_model(),
        hostile.make_unknown_ir_model(),
        hostile.make_unknown_domain_model(),
        hostile.make_file_reading_model("../../../../etc/passwd"),
        hostile.make_file_reading_model("/etc/passwd"),
        hostile.make_file_reading_model("w.bin"),
        hostile.make_file_reading_model("0"),
        hostile.make_nested_model(40),
        hostile.make_nested_model(10_000),
    ],
    ids=["empty", "noise", "opset", "ir", "domain", "dots", "absolute", "missing", "descriptor", "nested", "deep"],
)
def test_what_does_not_load_fails(model: onnx.ModelProto | bytes) -> None:
    contract = Contract((TensorSpec("x", "float32", (4,)),), (TensorSpec("y", "float32", (4,)),))
    with create_memfd_bundle(
        model if isinstance(model, bytes) else model.SerializeToString(), contract=contract
    ) as bundle:
        report = probe(bundle)
        assert (report.verdict, report.reason) == ("fail", "model-does-not-load"), report


FOUR = Contract((TensorSpec("x", "float32", (4,)),), (TensorSpec("y", "float32", (4,)),))


def serialized(model: onnx.ModelProto | bytes) -> bytes:
    return model if isinstance(model, bytes) else model.SerializeToString()


@pytest.mark.parametrize("model", hostile.make_broken_models().values(), ids=hostile.make_broken_models())
def test_a_broken_graph_does_not_load(model: onnx.ModelProto | bytes) -> None:
    with create_memfd_bundle(serialized(model), contract=FOUR) as bundle:
        report = probe(bundle)
        assert (report.verdict, report.reason) == ("fail", "model-does-not-load"), report


@pytest.mark.parametrize(
    "model", hostile.make_models_of_other_contracts().values(), ids=hostile.make_models_of_other_contracts()
)
def test_another_contract_fails(model: onnx.ModelProto) -> None:
    with create_memfd_bundle(serialized(model), contract=FOUR) as bundle:
        report = probe(bundle)
        assert (report.verdict, report.reason) == ("fail", "contract-mismatch"), report


@pytest.mark.parametrize("with_golden", [True, False])
@pytest.mark.parametrize(
    "model", hostile.make_excessive_operator_models().values(), ids=hostile.make_excessive_operator_models()
)
def test_a_run_that_asks_for_what_can_not_be_had_fails(
    model: onnx.ModelProto, with_golden: bool, deadline_s: int
) -> None:
    with (
        create_memfd_bundle(serialized(model), contract=FOUR) as bundle,
        add_arbitrary_golden(bundle, 4) as bundle_with_golden,
    ):
        report = probe(bundle_with_golden if with_golden else bundle, Health(probe_deadline_s=deadline_s))
        if with_golden:
            assert (report.verdict, report.reason) in (
                ("fail", "inference-failed"),
                ("fail", "probe-timeout"),  # a machine with much memory is still filling it
                ("fail", "probe-crashed"),
            ), report
        else:
            # onnxruntime may reject the zeros as wrong inputs; then the model was not run
            assert report.verdict == "fail" or report.runs == 0, report


@pytest.mark.parametrize("model", hostile.make_slow_loading_models().values(), ids=hostile.make_slow_loading_models())
def test_loading_without_end_is_cut_off(model: onnx.ModelProto, deadline_s: int) -> None:
    with create_memfd_bundle(serialized(model), contract=FOUR) as bundle:
        report = probe(bundle, Health(probe_deadline_s=deadline_s))
        assert (report.verdict, report.reason) == ("fail", "probe-timeout"), report
        assert report.detail == f"not finished within {deadline_s} s, at load"


def test_wishes_in_the_models_metadata_are_not_heard(tmp_path: Path) -> None:
    model = make_scale_model(2.0)
    model.metadata_props.add(key="session.register_custom_ops_library", value=str(tmp_path / "evil.so"))
    settings = f'{{"session_options": {{"optimized_model_filepath": "{tmp_path / "model"}"}}}}'
    model.metadata_props.add(key="ORT_CONFIG", value=settings)
    with create_memfd_bundle(model, list(SAMPLES)) as bundle:
        assert probe(bundle).verdict == "pass"
    assert list(tmp_path.iterdir()) == []


def test_a_model_whose_memory_grows_leaks() -> None:
    class Leaking(OnnxModel):
        held: ClassVar[list[bytes]] = []

        def infer(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
            self.held.append(os.urandom(16) * 500_000)
            return super().infer(inputs)

    with create_memfd_bundle(make_scale_model(2.0), list(SAMPLES)) as bundle:
        sound, leaking = OnnxModel.load(bundle.fds, threads=1), Leaking.load(bundle.fds, threads=1)
        questions = list(SAMPLES)
        assert probe_process.measure_growth(sound, questions)[0] < probe_process.MAX_GROWTH_BYTES / 8
        assert probe_process.measure_growth(leaking, questions)[0] > probe_process.MAX_GROWTH_BYTES
    Leaking.held.clear()


def test_refusals_leave_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # temporary files of this process go to a folder of this test, because other tests use /tmp
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def held() -> tuple[int, set[str], set[str]]:
        children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
        files = {path.name for path in Path("/tmp").iterdir() if path.name.startswith(("onnx", "ort"))}
        return len(list(Path("/proc/self/fd").iterdir())), set(children), files | {p.name for p in tmp_path.iterdir()}

    refused = [
        b"not a model",
        hostile.make_nested_model(10_000),
        serialized(hostile.make_models_of_other_contracts()["a sequence"]),
    ]
    with create_memfd_bundle(b"", contract=FOUR) as bundle:
        probe(bundle)
        before = held()
        for data in refused:
            with create_memfd_bundle(data, contract=FOUR) as tried:
                assert probe(tried).verdict == "fail"
        assert held() == before


def test_a_model_with_other_inputs_than_its_manifest_says_fails() -> None:
    with create_memfd_bundle(make_scale_model(2.0)) as bundle:
        renamed = replace(bundle.contract, inputs=(TensorSpec("z", "float32", (4,)),))
        report = run_probe_process(bundle.fds, renamed, HEALTH, threads=1)
        assert (report.verdict, report.reason) == ("fail", "contract-mismatch")
        assert report.detail == "model inputs: found x, expected z"


@pytest.mark.parametrize(
    "model", [hostile.make_hanging_model(), hostile.make_huge_kernel_model()], ids=["loop", "kernel"]
)
def test_a_model_that_does_not_end_is_killed_at_the_deadline(model: onnx.ModelProto, deadline_s: int) -> None:
    size = model.graph.input[0].type.tensor_type.shape.dim[0].dim_value
    with create_memfd_bundle(model) as bundle, add_arbitrary_golden(bundle, size) as bundle_with_golden:
        report = probe(bundle_with_golden, Health(probe_deadline_s=deadline_s))
        assert (report.verdict, report.reason) == ("fail", "probe-timeout")
        assert report.detail == f"not finished within {deadline_s} s, at golden 0"
        assert report.elapsed_s < deadline_s + 30


@pytest.mark.parametrize(
    ("number", "verdict_and_reason"),
    [(signal.SIGSEGV, ("fail", "probe-crashed")), (signal.SIGKILL, ("inconclusive", "probe-killed"))],
)
def test_a_crash_is_the_models_and_a_kill_from_elsewhere_is_not(
    number: signal.Signals, verdict_and_reason: tuple[str, str]
) -> None:
    with (
        create_memfd_bundle(hostile.make_hanging_model()) as bundle,
        add_arbitrary_golden(bundle, 4) as bundle_with_golden,
    ):
        killer = threading.Thread(target=_kill_probe, args=(number,))
        killer.start()
        report = probe(bundle_with_golden, Health(probe_deadline_s=300))
        killer.join()
        assert (report.verdict, report.reason) == verdict_and_reason
        assert report.detail.startswith("at golden 0: probe did not reply to 'probe', it ended by SIG")


def _kill_probe(number: signal.Signals) -> None:
    mine = os.getpid()
    for _ in range(15000):
        threading.Event().wait(0.02)
        for path in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                name_and_rest = path.read_text()
                parent = int(name_and_rest.rpartition(")")[2].split()[1])
                line = path.with_name("cmdline").read_bytes()
                # more processor time than imports and loading take: the worker is in the endless loop
                ticks = int(name_and_rest.rpartition(")")[2].split()[11])
                if parent == mine and b"device_agent.workers.probe" in line and ticks > os.sysconf("SC_CLK_TCK") * 2.5:
                    os.kill(int(path.parent.name), number)
                    return


def test_a_model_that_asks_for_more_memory_than_there_is_fails_and_harms_nobody() -> None:
    with (
        create_memfd_bundle(hostile.make_64_gib_model()) as bundle,
        add_arbitrary_golden(bundle, 1) as bundle_with_golden,
    ):
        report = probe(bundle_with_golden)
        assert report.verdict == "fail"
        assert report.reason in ("inference-failed", "probe-crashed")


def test_a_model_fatter_than_the_running_one_fails() -> None:
    with (
        create_memfd_bundle(make_scale_model(2.0), list(SAMPLES)) as slim,
        create_memfd_bundle(hostile.make_memory_intensive_model(100), list(SAMPLES)) as fat,
    ):
        baseline = probe(slim).baseline()
        report = probe(fat, baseline=baseline)
        assert (report.verdict, report.reason) == ("fail", "too-much-memory")
        assert f"running: {baseline.peak_bytes}" in report.detail if baseline else False


def test_a_model_slower_than_the_running_one_fails_unless_the_processor_was_busy() -> None:
    report = ProbeReport("pass", latency_us=5000, peak_bytes=1)
    baseline = ProbeBaseline(latency_us=1000, peak_bytes=1)
    slow = compare_with_baseline(report, HEALTH, baseline)
    assert (slow.verdict, slow.reason) == ("fail", "too-slow")
    assert slow.detail == "median latency 5000 us, at most 4500 are allowed (running: 1000)"
    busy = compare_with_baseline(report, HEALTH, baseline, cpu_share=0.3)
    assert (busy.verdict, busy.reason) == ("inconclusive", "cpu-contention")
    assert compare_with_baseline(replace(report, latency_us=4500), HEALTH, baseline).verdict == "pass"
    assert compare_with_baseline(report, HEALTH, None).verdict == "pass"


def test_a_candidate_is_too_slow_only_on_equal_inputs() -> None:
    model, large = make_scale_model(2.0, size="n"), np.ones(4_000_000, np.float32)
    with (
        create_memfd_bundle(model, [{"x": floats(1, 2)}]) as running_bundle,
        create_memfd_bundle(model, [{"x": large}]) as candidate_bundle,
    ):

        def variant(digest: str, bundle: MemfdBundle) -> Any:
            models = [SimpleNamespace(name="model", contract=bundle.contract)]
            return SimpleNamespace(digest=digest, models=models, require_model=lambda: models[0], health=HEALTH)

        def unseal(_bundle: object) -> BundleFds:
            fds = running_bundle.fds
            return replace(fds, files={name: os.dup(fd) for name, fd in fds.files.items()})

        workers: Any = SimpleNamespace(patcher=SimpleNamespace(unseal=unseal))
        running: Any = SimpleNamespace(digest="1", variant=variant("1", running_bundle), bundle=None)
        client = ProbeClient(ServeSettings(threads=1), allow_unjailed=False)
        client.probe(running_bundle.fds, running.variant, None, workers)
        small_us = client.latency_us("1")  # type: ignore[arg-type]  # a digest is only a key here
        report = client.probe(candidate_bundle.fds, variant("2", candidate_bundle), running, workers)
        assert report.verdict == "pass", report
        assert small_us is not None
        assert report.latency_us is not None
        assert report.latency_us > 4 * small_us + LATENCY_ALLOWANCE_US, "on its own inputs it would be too slow"


def test_a_slow_model_is_measured_as_slow() -> None:
    with create_memfd_bundle(hostile.make_slow_model(20_000), list(SAMPLES)) as bundle:
        report = probe(bundle, baseline=ProbeBaseline(latency_us=100, peak_bytes=10**9))
        assert report.reason in ("too-slow", "cpu-contention"), report


def test_malformed_golden_vectors_fail_with_their_reason() -> None:
    with create_memfd_bundle(make_scale_model(2.0)) as bundle:
        files = {**bundle.fds.files, "g": create_sealed_memfd("g", b"\xff" * 16)}
        report = run_probe_process(BundleFds(files, bundle.fds.model, "g"), bundle.contract, HEALTH, threads=1)
        assert (report.verdict, report.reason) == ("fail", "candidate-malformed")
        assert report.detail.startswith("malformed: "), report.detail


def test_a_probe_that_can_not_start_says_nothing_about_the_model() -> None:
    with create_memfd_bundle(make_scale_model(2.0)) as bundle:
        report = run_probe_process(bundle.fds, bundle.contract, HEALTH, jail=JailPolicy(open_files=3), threads=1)
        assert report.verdict == "inconclusive"
        assert report.reason in ("worker-crashed", "jail-unavailable", "worker-failed")


def test_several_models_are_probed_together_and_the_first_failure_is_named() -> None:
    with (
        create_memfd_bundle(make_scale_model(2.0), [{"x": floats(1, 2, 3, 4)}]) as first,
        create_memfd_bundle(make_scale_model(3.0), [{"x": floats(1, 2, 3, 4)}]) as second,
    ):
        assert second.fds.golden is not None
        files = {**first.fds.files, "b/model.onnx": second.fds.files[second.fds.model]}
        files |= {"b.bin": second.fds.files[second.fds.golden]}
        contracts = [first.contract, second.contract]
        both = replace(first.fds, files=files, further=(FurtherModel("b", "b/model.onnx", "b.bin"),))
        report = run_probe_process(both, contracts, HEALTH, threads=1)
        assert (report.verdict, report.samples) == ("pass", 2), report
        wrong = replace(both, further=(FurtherModel("b", "b/model.onnx", first.fds.golden),))
        report = run_probe_process(wrong, contracts, HEALTH, threads=1)
        assert (report.verdict, report.reason) == ("fail", "golden-mismatch")
        assert report.detail.startswith("model 'b': golden 0")
