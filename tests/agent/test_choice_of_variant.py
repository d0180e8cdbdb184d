"""A device chooses its variant by what it measures, not by what the manifest promises alone."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from bundle.contract import PPM
from bundle.manifest import Manifest
from bundle.strict_json import StrictObject, decode, encode
from device_agent.errors import UpdateInterrupted
from device_agent.policy.attempt import Outcome
from device_agent.policy.planner import PatchEdge
from device_agent.policy.variant_choice import CHEAP_SHARE_PERCENT, MAX_FACTOR_PPM, VariantMeasurements
from device_agent.storage.bundle_store import BundleStore
from device_agent.workers.fetcher_client import DownloadCost, OnProgress
from device_agent.workers.worker_pool import WorkerPool
from packager.release.steps import probe
from tests.support.faulty_http_server import Site, serve_folder
from tests.support.publisher import DeviceUnderTest, Publisher, similar_model

WIDE = 2048  # hidden width of a model with the same outputs that takes longer
REALISTIC_PPM = 30_000


@pytest.fixture
def promise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a file with one line `VARIANT RATIO` for each variant, which the packager takes for measured."""
    return make_promises(tmp_path, monkeypatch)


def make_promises(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the file of promises in a folder, and let the packager read it."""
    promises = folder / "promises"
    program = folder / "device-agent"
    program.write_text(
        "#!/bin/sh\n"
        'name=$(basename "$(dirname "$2")")\n'
        f'ratio=$(grep "^$name " {promises} | cut -d" " -f2)\n'
        'echo "{\\"reference_ratio_ppm\\": $ratio, \\"missing_restrictions\\": []}"\n'
    )
    program.chmod(0o755)
    monkeypatch.setattr(probe, "AGENT_PACKAGE", "no_such_package_here")
    monkeypatch.setenv("PATH", str(folder), prepend=":")
    return promises


def choose_by_itself(device: DeviceUnderTest) -> None:
    """Configure `update.variant = "auto"`."""
    device.config = replace(device.config, update=replace(device.config.update, variant="auto"))
    device.write_config()


def slower_than_promised(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the warnings about variants that take twice as long here as on the build machine."""
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    return [message for message in warnings if "times as long, against the reference graph, as on" in message]


def test_a_first_install_far_beyond_the_promise_is_refused(
    device: DeviceUnderTest, publisher: Publisher, promise: Path
) -> None:
    promise.write_text("fp32 1\n")
    manifest = publisher.release("1.2.0", seed=2)
    assert manifest.variants[0][1].health.first_latency_percent == 1000
    result = device.update()
    assert (result.outcome, result.reason) == (Outcome.UNFIT, "too-slow")
    assert "times as long, against the reference graph, as on" in result.detail


def test_a_variant_that_is_not_faster_here_does_not_hold_back_the_release(
    installed: DeviceUnderTest, publisher: Publisher, promise: Path, caplog: pytest.LogCaptureFixture
) -> None:
    choose_by_itself(installed)
    onnx.save(similar_model(2, WIDE), publisher.folder / "wide.onnx")
    promise.write_text(f"fp32 {REALISTIC_PPM}\nwide 1\n")
    publisher.release("1.2.0", seed=2, extra='[variants.wide]\nmodel = "wide.onnx"\nhealth.first_latency_percent = 9\n')
    assert json.loads(installed.command("plan", "--json").stdout)["chosen"] == "wide"
    result = installed.update()
    assert (result.outcome, result.attempt.variant) == (Outcome.STAGED, "fp32"), result
    assert [message.split(" takes ")[0] for message in slower_than_promised(caplog)] == ["variant wide"]
    text = installed.command("plan", "--explain").stdout
    assert "-> fp32" in text
    assert "measured here" in text
    history = json.loads(installed.command("history", "--json").stdout)
    outcomes = [(row["outcome"], row["reason"], row["variant"]) for row in history["history"]]
    assert ("waiting", "not-faster", "wide") in outcomes
    journal = installed.journal()
    assert not journal.variant_measurements.has_changed
    journal.close()


def test_a_variant_that_is_faster_here_replaces_the_active_one_once(
    installed: DeviceUnderTest, publisher: Publisher, promise: Path, caplog: pytest.LogCaptureFixture
) -> None:
    choose_by_itself(installed)
    onnx.save(similar_model(2), publisher.folder / "narrow.onnx")
    promise.write_text(f"fp32 {20 * REALISTIC_PPM}\nnarrow {8 * REALISTIC_PPM}\n")
    publisher.release("1.2.0", seed=2, size=WIDE, extra='[variants.narrow]\nmodel = "narrow.onnx"\n')
    result = installed.update()
    assert (result.outcome, result.attempt.variant) == (Outcome.STAGED, "narrow"), result
    journal = installed.journal()
    measured = journal.variant_measurements
    journal.close()
    assert measured.has_changed
    assert not slower_than_promised(caplog)
    assert {"fp32", "narrow"} <= set(measured.factors or {})
    assert all(factor < 20 * PPM for factor in (measured.factors or {}).values())


@pytest.fixture(scope="module")
def three_variants(
    first_publisher: Publisher, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Site, Manifest]]:
    """Return the site of a release with the variants fp32, small and medium (parts of its size), and its manifest."""
    folder = tmp_path_factory.mktemp("three")
    publisher = first_publisher.copy(folder / "site")
    for name, size in (("small", 128), ("medium", 512)):
        onnx.save(incompressible_model(size), publisher.folder / f"{name}.onnx")
    others = "".join(f'[variants.{name}]\nmodel = "{name}.onnx"\n' for name in ("small", "medium"))
    with pytest.MonkeyPatch.context() as monkeypatch:
        make_promises(folder, monkeypatch).write_text("fp32 100000\nsmall 200000\nmedium 200000\n")
        manifest = publisher.release("1.2.0", model=incompressible_model(1024), extra=others)
    with serve_folder(publisher.published) as site:
        yield site, manifest


def incompressible_model(size: int) -> onnx.ModelProto:
    """Return a model whose patches grow with its hidden width."""
    model = similar_model(2, size)
    for tensor in model.graph.initializer:
        values = onnx.numpy_helper.to_array(tensor)
        noise = np.random.default_rng(0).standard_normal(values.shape) * 1e-3 * values.std()
        tensor.CopyFrom(onnx.numpy_helper.from_array((values + noise).astype(np.float32), tensor.name))
    return model


def test_another_variant_is_fetched_to_measure_it_if_that_is_cheap_and_the_link_is_not_metered(
    three_variants: tuple[Site, Manifest], first_device: DeviceUnderTest, tmp_path: Path
) -> None:
    site, manifest = three_variants
    sizes = {name: min(patch.size for patch in variant.patches) for name, variant in manifest.variants}
    assert sizes["small"] <= sizes["fp32"] * CHEAP_SHARE_PERCENT // 100 < sizes["medium"] < sizes["fp32"]
    for is_metered, names in ((False, {"fp32", "small"}), (True, {"fp32"})):
        device = first_device.copy(tmp_path / str(is_metered), site.url)
        choose_by_itself(device)
        update = replace(device.config.update, metered=is_metered, prefer="latency")
        result = device.update(update=update)
        assert (result.outcome, result.attempt.variant) == (Outcome.STAGED, "fp32"), result
        journal = device.journal()
        assert set(journal.variant_measurements.factors or {}) == names
        journal.close()


def test_a_pause_while_another_variant_is_measured_ends_the_update(
    three_variants: tuple[Site, Manifest], first_device: DeviceUnderTest, tmp_path: Path
) -> None:
    site, manifest = three_variants
    fetched = [variant.digest for name, variant in manifest.variants if name == "small"]

    class PausedPool(WorkerPool):
        """Raises what a pause raises when the blob of the other variant is fetched."""

        def fetch_blob(
            self, edge: PatchEdge, on_progress: OnProgress | None = None, budget_bytes: int | None = None
        ) -> DownloadCost:
            if edge.target in fetched:
                raise UpdateInterrupted("an operator paused the updates")
            return super().fetch_blob(edge, on_progress, budget_bytes)

    device = first_device.copy(tmp_path / "lab", site.url)
    choose_by_itself(device)
    store = BundleStore(device.directory.root)
    result = device.update(open_workers=lambda: PausedPool(device.config, device.directory, store))
    assert (result.outcome, result.reason) == (Outcome.INTERRUPTED, "update-interrupted"), result


def test_a_measurement_is_stored_whatever_the_model_process_says() -> None:
    for factor, stored in ((2**80, MAX_FACTOR_PPM), (-5, 1), (PPM, PPM)):
        measured = VariantMeasurements("1.23", "cpu").with_factor("fp32", factor)
        body = decode(encode(measured.as_json()), what="record", max_bytes=1000)
        assert VariantMeasurements.parse(StrictObject(body, "record")).factor("fp32") == stored
