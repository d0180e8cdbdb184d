"""Execution providers: what is missing is found before a download, and nothing falls back to the CPU."""

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import onnx
import pytest

from bundle.golden.relative_error import relative_rms
from bundle.providers import runtime_name
from device_agent.errors import ModelDoesNotLoad, ProviderMissing, ProviderUnused
from device_agent.process.jail import JailPolicy
from device_agent.process.worker_process import WorkerProcess
from device_agent.runtime import execution_provider
from device_agent.runtime.session import OnnxModel
from device_agent.update.provider_check import check_providers
from tests.support import tiny_models
from tests.support.memfd_bundles import create_memfd_bundle
from tests.support.providers import ABSENT, needs_openvino
from tests.support.worker_fixtures import start_jail_probe

PROBE = "device_agent.workers.probe"


@pytest.mark.parametrize(
    ("library", "words"),
    [
        ("", "this build has CPU|this build has .*CPU"),
        ("/no/such/plugin.so", "plugin.so"),
        ("/etc/hostname", "hostname"),
    ],
)
def test_a_provider_that_the_device_lacks_is_missing(library: str, words: str) -> None:
    jail = JailPolicy("probe", provider=ABSENT, provider_libraries=((ABSENT, library),) if library else ())
    with pytest.raises(ProviderMissing, match=words) as caught:
        WorkerProcess.start(PROBE, jail)
    assert f"does not run on the execution provider {ABSENT}" in caught.value.message
    assert caught.value.hint is not None


def test_the_check_says_what_is_missing_and_does_not_start_a_process_for_the_cpu() -> None:
    assert check_providers(("CPU",), JailPolicy(landlock_abi=-1)) == (("CPU", ""),)
    (found, problem), cpu = check_providers((ABSENT, "CPU"), JailPolicy())
    assert (found, cpu) == (ABSENT, ("CPU", ""))
    assert f"execution provider {ABSENT}" in problem


def test_an_unknown_name_is_answered_with_the_known_ones() -> None:
    with pytest.raises(ProviderMissing, match=r"OpenWino: .*known ones are CPU, OpenVINO"):
        execution_provider.warm_provider("OpenWino", "")


def test_device_nodes_are_open_only_to_a_worker_on_another_provider() -> None:
    policy = JailPolicy("probe", devices=("/dev/null",))
    with start_jail_probe(policy) as child:
        assert child.call("device", {"path": "/dev/null"}, deadline_s=30).value["open"] in ("EPERM", "EACCES", "ENOENT")
    with start_jail_probe(replace(policy, provider="OpenVINO")) as child:
        assert child.jail.is_confined
        # ENOTTY comes from the device: the filter lets the call through
        assert child.call("device", {"path": "/dev/null"}, deadline_s=30).value == {"open": "", "ioctl": "ENOTTY"}
        other = child.call("device", {"path": "/dev/zero"}, deadline_s=30).value
        assert other["open"] in ("EPERM", "EACCES", "ENOENT")


def test_folders_are_listed_only_by_a_worker_on_another_provider(tmp_path_factory: pytest.TempPathFactory) -> None:
    for provider, expected in (("CPU", "PermissionError"), ("OpenVINO", "did: ")):
        with start_jail_probe(JailPolicy("probe", provider=provider, read=("/usr/lib",))) as child:
            assert child.call("list", {"path": "/usr/lib"}, deadline_s=30).value["listed"].startswith(expected)
            assert not child.call("list", {"path": "/etc"}, deadline_s=30).value["listed"].startswith("did")


@pytest.fixture(scope="module")
def openvino() -> Iterator[WorkerProcess]:
    """Yield a probe process that has prepared OpenVINO."""
    with WorkerProcess.start(PROBE, JailPolicy("probe", provider="OpenVINO")) as worker:
        yield worker


@needs_openvino
def test_openvino_runs_in_the_whole_jail(openvino: WorkerProcess) -> None:
    assert openvino.jail.is_confined
    assert openvino.jail.threads == 1
    facts = openvino.call("provider", {"provider": "OpenVINO"}, deadline_s=60).value
    assert facts["provider"] == "OpenVINO"
    assert facts["nodes"][runtime_name("OpenVINO")] > 0


@needs_openvino
@pytest.mark.parametrize("kind", ["GPU", "NPU"])
def test_a_device_that_openvino_lacks_is_not_replaced_by_the_cpu(kind: str) -> None:
    with create_memfd_bundle(tiny_models.mlp()) as bundle:
        fds = replace(bundle.fds, provider="OpenVINO", options=(("openvino.device_type", kind),))
        with pytest.raises(ProviderMissing, match="the session is on CPU"):
            OnnxModel.load(fds, threads=1)


@needs_openvino
def test_openvino_agrees_with_the_cpu() -> None:
    sample = {"x": np.random.default_rng(1).standard_normal((1, 64)).astype(np.float32)}
    with create_memfd_bundle(tiny_models.mlp()) as bundle:
        on_cpu = OnnxModel.load(bundle.fds, threads=1)
        options = (("graph_optimization", "basic"), ("openvino.precision", "FP32"))
        model = OnnxModel.load(replace(bundle.fds, provider="OpenVINO", options=options), threads=1)
        assert (on_cpu.process_facts()["provider"], model.process_facts()["provider"]) == ("CPU", "OpenVINO")
        for name, array in on_cpu.run(sample).items():
            assert relative_rms(model.run(sample)[name], array) < 1e-4


@needs_openvino
@pytest.mark.parametrize("kind", [tiny_models.recurrent, tiny_models.einsum])
def test_a_model_of_which_the_provider_takes_nothing_is_refused(kind: Callable[[], onnx.ModelProto]) -> None:
    with create_memfd_bundle(kind()) as bundle:
        with pytest.raises(ProviderUnused, match="OpenVINO takes no node of the model"):
            OnnxModel.load(replace(bundle.fds, provider="OpenVINO"), threads=1)


@needs_openvino
def test_a_model_that_the_provider_cannot_load_does_not_go_to_the_cpu() -> None:
    with create_memfd_bundle(tiny_models.looping()) as bundle:
        with pytest.raises(ModelDoesNotLoad, match="cannot load"):
            OnnxModel.load(replace(bundle.fds, provider="OpenVINO"), threads=1)
