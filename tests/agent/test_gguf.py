"""A GGUF model that an application runs: released, installed, updated by a patch, rolled back by its verdict."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from device_agent.apps.client import AppClient
from tests.support.app_lab import app_lab, socket_path
from tests.support.model_formats import to_q4_0_gguf
from tests.support.publisher import FAMILY, DeviceUnderTest, Publisher

SETTINGS = """
family = "{family}"
version = "{version}"
channels = ["stable"]
runtime = "app"
at_rest = "plain"
[[files]]
path = "model.gguf"
role = "model"
[variants.q4_0]
[rollout]
percent = 100
"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Publisher, DeviceUnderTest]]:
    """Yield a publisher and a running device whose owner allows plain files."""
    with app_lab(tmp_path_factory.mktemp("gguf")) as lab:
        config = lab[1].config_path
        config.write_text(config.read_text().replace(f"[apps.{FAMILY}]", f"[apps.{FAMILY}]\nallow_plain = true"))
        lab[1].start()
        yield lab


def test_a_gguf_model_is_updated_by_a_patch_and_a_bad_one_is_rolled_back(
    lab: tuple[Publisher, DeviceUnderTest],
) -> None:
    publisher, device = lab
    weights = np.random.default_rng(2).normal(0, 0.02, (3000, 128)).astype(np.float32)
    for minor, is_healthy in enumerate((True, True, False)):
        tuned = weights + np.random.default_rng(minor).normal(0, 2e-4 * minor, weights.shape).astype(np.float32)
        version, model = f"2.{minor}.0", _publish(publisher, f"2.{minor}.0", tuned)
        with AppClient(socket_path(device)) as client, ThreadPoolExecutor(1) as pool:
            events = client.watch(FAMILY)
            update = pool.submit(device.call, "update")
            serving = next(found for found in events if found is not None and found.release == version)
            with AppClient(socket_path(device)) as judge, judge.open(FAMILY) as bundle:
                (fd,) = bundle.fds.values()
                assert Path(f"/proc/self/fd/{fd}").readlink().is_relative_to(device.folder)  # not in memory
                assert (bundle.release, bundle.read("model")) == (serving, model)
                if minor:  # a first install has no release to return to
                    judge.send_verdict(bundle, is_healthy=is_healthy, reason="" if is_healthy else "repeats itself")
            result = update.result(120)
        assert result["outcome"] == ("updated" if is_healthy else "rolled-back"), result
        if minor:
            assert result["downloaded"]["patch"] < 0.2 * len(model)
    with AppClient(socket_path(device)) as client, client.open(FAMILY) as bundle:
        assert bundle.release.release == "2.1.0"


def _publish(publisher: Publisher, version: str, weights: npt.NDArray[np.float32]) -> bytes:
    """Publish a release of one GGUF file, and return the file."""
    model = to_q4_0_gguf({"blk.0.attn_q.weight": weights, "blk.0.attn_k.weight": weights[::-1]})
    (publisher.folder / "model.gguf").write_bytes(model)
    (publisher.folder / "release.toml").write_text(SETTINGS.format(family=FAMILY, version=version))
    publisher.publish_release_file()
    return model
