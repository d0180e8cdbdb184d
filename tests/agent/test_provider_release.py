"""Releases for an execution provider: with it they are served on it, without it nothing is fetched."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import onnx
import pytest

from bundle.requirements import Runtime
from bundle.variant import Variant
from device_agent.errors import ProviderUnstable
from device_agent.policy.attempt import Outcome
from device_agent.update.probe_client import ProbeClient
from packager.errors import ProviderNotInstalled, ReleaseFileInvalid
from packager.release.release_file import parse_release_file
from packager.release.release_plan import VariantPlan
from packager.release.steps import probe
from tests.support.providers import ABSENT, needs_openvino
from tests.support.publisher import FAMILY, DeviceUnderTest, Publisher, similar_model

SETTINGS = """
channels = ["stable"]
model = "model.onnx"
inputs = "inputs.npz"
golden = 4
[rollout]
percent = 100
"""
CPU_VARIANT = '[variants.cpu]\n[variants.cpu.requires]\nruntime_min = "1.21"\n'  # OpenVINO's builds are older
OPENVINO_VARIANT = '[variants.openvino]\nrequired = true\n[variants.openvino.requires]\nproviders = ["OpenVINO"]\n'


@pytest.fixture(scope="module")
def empty_publisher(tmp_path_factory: pytest.TempPathFactory) -> Publisher:
    """Return a publisher without releases: OpenVINO's builds are too old for those of the other tests."""
    return Publisher(tmp_path_factory.mktemp("providers") / "site")


@pytest.fixture
def publisher(empty_publisher: Publisher, tmp_path: Path) -> Publisher:
    """Return a copy of the publisher that the test may change."""
    return empty_publisher.copy(tmp_path / "site")


def release(publisher: Publisher, version: str, variants: str) -> dict[str, Variant]:
    """Publish a release of given variants, and return them by name."""
    onnx.save(similar_model(len(version)), publisher.folder / "model.onnx")
    text = f'family = "{FAMILY}"\nversion = "{version}"\n{SETTINGS}{variants}'
    (publisher.folder / "release.toml").write_text(text)
    publisher.publish_release_file()
    return dict(publisher.manifest(version).variants)


def listing(device: DeviceUnderTest, variant: str, *providers: str) -> DeviceUnderTest:
    """Return the device with `update.variant` and `serve.providers`."""
    serve = replace(device.config.serve, providers=providers)
    device.config = replace(device.config, serve=serve, update=replace(device.config.update, variant=variant))
    device.write_config()
    text = device.config_path.read_text()
    device.config_path.write_text(text.replace("[serve]\n", f"[serve]\nproviders = {list(providers)}\n"))
    return device


def test_a_variant_for_a_provider_is_made_only_where_the_provider_is(publisher: Publisher) -> None:
    variants = f'[variants.other.requires]\nproviders = ["{ABSENT}"]\n'
    with pytest.raises(ProviderNotInstalled, match=f"has no execution provider {ABSENT}, found"):
        release(publisher, "2.0.0", variants)
    assert publisher.repository.manifest(FAMILY, "2.0.0") is None


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ('requires]\nproviders = ["OpenVINO", "CPU"]', "providers: found 2, expected one execution provider"),
        ("requires]\nproviders = []", "providers: found 0, expected one execution provider"),
        ('requires]\nproviders = ["a/b"]', "providers"),
        ('session]\ncache_dir = "/tmp"', "unknown key 'cache_dir'"),
        ('session]\ngraph_optimization = "fast"', "'graph_optimization' with 'fast', which is none of off, basic"),
        ('session]\n"openvino.precision" = "FP32"', "is for the execution provider OpenVINO, not CPU"),
    ],
)
def test_wrong_providers_and_options_are_refused(publisher: Publisher, table: str, words: str) -> None:
    text = f'family = "{FAMILY}"\nversion = "2.0.0"\n{SETTINGS}[variants.x.{table}\n'
    (publisher.folder / "release.toml").write_text(text)
    with pytest.raises(ReleaseFileInvalid) as caught:
        parse_release_file(publisher.folder / "release.toml")
    assert words in caught.value.message


def test_without_the_provider_nothing_is_fetched_and_auto_takes_the_variant_for_the_cpu(
    device: DeviceUnderTest, publisher: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The release is what a machine would make that has the provider."""
    applied = VariantPlan.apply_runtime

    def as_elsewhere(self: VariantPlan, found: Runtime) -> Runtime:
        runtime = applied(self, found)
        return replace(runtime, providers=(ABSENT,)) if self.name == "other" else runtime

    options = '[variants.cpu.session]\ngraph_optimization = "basic"\ndenormal_as_zero = true\n'
    named = CPU_VARIANT.replace("runtime_min", 'providers = ["CPU"]\nruntime_min')
    with monkeypatch.context() as patched:
        patched.setattr(VariantPlan, "apply_runtime", as_elsewhere)
        patched.setattr(probe, "find_agent", lambda: None)
        variants = release(publisher, "2.0.0", f"{named}{options}[variants.other]\n")
    assert variants["cpu"].runtime.providers == ("CPU",)
    assert variants["cpu"].runtime.options == (("denormal_as_zero", "1"), ("graph_optimization", "basic"))
    for providers, words in (("CPU",), "does not list"), ((ABSENT, "CPU"), "which this device lacks"):
        result = listing(device, "other", *providers).update()
        assert (result.outcome, result.reason) == (Outcome.REFUSED, "provider-missing")
        assert words in result.detail
        downloaded = result.attempt.downloaded
        assert not downloaded.patch + downloaded.full
    result = listing(device, "auto", ABSENT, "CPU").update()
    assert (result.outcome, result.attempt.variant) == (Outcome.STAGED, "cpu")


@pytest.fixture
def on_openvino(device: DeviceUnderTest) -> Iterator[DeviceUnderTest]:
    """Yield a device that lists OpenVINO, with a running daemon."""
    device = listing(device, "auto", "OpenVINO", "CPU")
    device.start()
    yield device
    device.stop()


@needs_openvino
def test_a_device_with_openvino_serves_on_it(on_openvino: DeviceUnderTest, publisher: Publisher) -> None:
    variants = release(publisher, "2.0.0", OPENVINO_VARIANT + CPU_VARIANT)
    found = variants["openvino"]
    assert (found.runtime.providers, found.quantization.stability) == (("OpenVINO",), "as on OpenVINO")
    assert found.quantization.verdict == "pass"
    assert found.requires.memory_bytes > variants["cpu"].requires.memory_bytes
    result = on_openvino.call("update")
    assert (result["outcome"], result["variant"]) == ("updated", "openvino"), result
    shown = on_openvino.command("status").stdout
    assert "serving 2.0.0 on OpenVINO at" in shown
    assert "restrictions" not in shown


@needs_openvino
def test_after_a_failure_of_the_provider_the_variant_for_the_cpu_is_taken(
    device: DeviceUnderTest, publisher: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    release(publisher, "2.0.0", OPENVINO_VARIANT + CPU_VARIANT)
    listing(device, "auto", "OpenVINO", "CPU")

    def fail(*_: object, **__: object) -> None:
        raise ProviderUnstable("3 of 20 runs failed")  # no provider fails at random when a test asks it to

    with monkeypatch.context() as patched:
        patched.setattr(ProbeClient, "probe", fail)
        result = device.update()
        assert (result.outcome, result.reason, result.attempt.variant) == (
            *(Outcome.UNFIT, "provider-unstable"),
            "openvino",
        )
    result = device.update()
    assert (result.outcome, result.attempt.variant) == (Outcome.STAGED, "cpu")


@needs_openvino
def test_a_device_that_does_not_list_it_takes_the_variant_for_the_cpu(
    device: DeviceUnderTest, publisher: Publisher
) -> None:
    release(publisher, "2.0.0", OPENVINO_VARIANT + CPU_VARIANT)
    result = listing(device, "auto", "CPU").update()
    assert (result.outcome, result.attempt.variant) == (Outcome.STAGED, "cpu")
