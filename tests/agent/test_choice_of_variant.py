"""A device chooses its variant by what it measures, not by what the manifest promises alone."""

import json
from dataclasses import replace
from pathlib import Path

import onnx
import pytest

from bundle.contract import PPM
from bundle.strict_json import StrictObject, decode, encode
from device_agent.errors import UpdateInterrupted
from device_agent.policy.attempt import Outcome
from device_agent.policy.planner import PatchEdge
from device_agent.policy.variant_choice import MAX_FACTOR_PPM, VariantMeasurements
from device_agent.storage.bundle_store import BundleStore
from device_agent.update import variant_trials
from device_agent.workers.fetcher_client import DownloadCost, OnProgress
from device_agent.workers.worker_pool import WorkerPool
from packager.release.steps import probe
from tests.support.publisher import DeviceUnderTest, Publisher, similar_model

WIDE = 2048  # hidden width of a model with the same outputs that takes longer
REALISTIC_PPM = 30_000


@pytest.fixture
def promise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a file with one line `VARIANT RATIO` for each variant, which the packager takes for measured."""
    promises = tmp_path / "promises"
    program = tmp_path / "device-agent"
    program.write_text(
        "#!/bin/sh\n"
        'name=$(basename "$(dirname "$2")")\n'
        f'ratio=$(grep "^$name " {promises} | cut -d" " -f2)\n'
        'echo "{\\"reference_ratio_ppm\\": $ratio, \\"missing_restrictions\\": []}"\n'
    )
    program.chmod(0o755)
    monkeypatch.setattr(probe, "AGENT_PACKAGE", "no_such_package_here")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    return promises


def choose_by_itself(device: DeviceUnderTest) -> None:
    """Configure `update.variant = "auto"`."""
    device.config = replace(device.config, update=replace(device.config.update, variant="auto"))
    device.write_config()


def test_a_first_install_far_beyond_the_promise_is_refused(
    device: DeviceUnderTest, publisher: Publisher, promise: Path
) -> None:
    promise.write_text("fp32 1\n")
    manifest = publisher.release("1.2.0", seed=2)
    assert manifest.variants[0][1].health.first_latency_percent == 1000
    result = device.update()
    assert (result.outcome, result.reason) == (Outcome.UNFIT, "too-slow")
    assert "times as long, against the reference graph, as on" in result.detail


def test_a_variant_that_is_not_faster_here_is_not_taken_twice(
    installed: DeviceUnderTest, publisher: Publisher, promise: Path
) -> None:
    choose_by_itself(installed)
    onnx.save(similar_model(2, WIDE), publisher.folder / "wide.onnx")
    promise.write_text(f"fp32 {REALISTIC_PPM}\nwide 1\n")
    publisher.release("1.2.0", seed=2, extra='[variants.wide]\nmodel = "wide.onnx"\nhealth.first_latency_percent = 9\n')
    assert json.loads(installed.command("plan", "--json").stdout)["chosen"] == "wide"
    result = installed.update()
    assert (result.outcome, result.reason) == (Outcome.WAITING, "not-faster"), result
    text = installed.command("plan", "--explain").stdout
    assert "-> fp32" in text
    assert "measured here" in text
    result = installed.update()
    assert (result.outcome, result.attempt.variant) == (Outcome.STAGED, "fp32"), result
    journal = installed.journal()
    assert not journal.variant_measurements.has_changed
    journal.close()


def test_a_variant_that_is_faster_here_replaces_the_active_one_once(
    installed: DeviceUnderTest, publisher: Publisher, promise: Path
) -> None:
    choose_by_itself(installed)
    onnx.save(similar_model(2), publisher.folder / "narrow.onnx")
    promise.write_text(f"fp32 {20 * REALISTIC_PPM}\nnarrow {REALISTIC_PPM}\n")
    publisher.release("1.2.0", seed=2, size=WIDE, extra='[variants.narrow]\nmodel = "narrow.onnx"\n')
    result = installed.update()
    assert (result.outcome, result.attempt.variant) == (Outcome.STAGED, "narrow"), result
    journal = installed.journal()
    measured = journal.variant_measurements
    journal.close()
    assert measured.has_changed
    assert {"fp32", "narrow"} <= set(measured.factors or {})
    assert all(factor < 20 * PPM for factor in (measured.factors or {}).values())


def test_a_pause_while_another_variant_is_measured_ends_the_update(
    installed: DeviceUnderTest, publisher: Publisher, promise: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(variant_trials, "CHEAP_SHARE_PERCENT", 10_000)  # the update is a small patch

    class PausedPool(WorkerPool):
        """Raises what a pause raises when the blob of the other variant is fetched."""

        def fetch_blob(
            self, edge: PatchEdge, on_progress: OnProgress | None = None, budget_bytes: int | None = None
        ) -> DownloadCost:
            if edge.target == manifest.variants[1][1].digest:
                raise UpdateInterrupted("an operator paused the updates")
            return super().fetch_blob(edge, on_progress, budget_bytes)

    choose_by_itself(installed)
    onnx.save(similar_model(2), publisher.folder / "narrow.onnx")
    promise.write_text(f"fp32 1\nnarrow {20 * REALISTIC_PPM}\n")
    manifest = publisher.release("1.2.0", seed=2, size=WIDE, extra='[variants.narrow]\nmodel = "narrow.onnx"\n')
    assert [name for name, _ in manifest.variants] == ["fp32", "narrow"]
    store = BundleStore(installed.directory.root)
    result = installed.update(open_workers=lambda: PausedPool(installed.config, installed.directory, store))
    assert (result.outcome, result.reason) == (Outcome.INTERRUPTED, "update-interrupted"), result


def test_a_measurement_is_stored_whatever_the_model_process_says() -> None:
    for factor, stored in ((2**80, MAX_FACTOR_PPM), (-5, 1), (PPM, PPM)):
        measured = VariantMeasurements("1.23", "cpu").with_factor("fp32", factor)
        body = decode(encode(measured.as_json()), what="record", max_bytes=1000)
        assert VariantMeasurements.parse(StrictObject(body, "record")).factor("fp32") == stored
