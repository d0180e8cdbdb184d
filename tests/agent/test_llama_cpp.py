"""llama.cpp runs a lent GGUF model as an unchanged program, and judges releases: installed, patched, rolled back."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.app_lab import app_lab
from tests.support.publisher import FAMILY, DeviceUnderTest, Publisher

pytest.importorskip("gguf", reason="the package gguf is absent (extra test-llama)")
pytest.importorskip("xllamacpp", reason="llama.cpp is absent (extra test-llama)")
from tests.support.tiny_llama import write_llama

EXAMPLE = Path(__file__).parents[2] / "examples/llama.py"
COMPLETE = ["files", "exec", "--", sys.executable, str(EXAMPLE), "{model}", "hello"]
SETTINGS = """
family = "{family}"
version = "{version}"
channels = ["stable"]
runtime = "app"
[[files]]
path = "model.gguf"
role = "model"
[variants.f16]
[rollout]
percent = 100
"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Publisher, DeviceUnderTest]]:
    """Yield a publisher and a running device on which llama.cpp judges releases."""
    with app_lab(tmp_path_factory.mktemp("llama")) as (publisher, device):
        judge = f"health_command = {json.dumps([sys.executable, '-m', 'device_agent', *COMPLETE])}"
        settings = device.config_path.read_text()
        device.config_path.write_text(settings.replace('judges = ["user:root"]', judge))
        device.start()
        yield publisher, device


def test_llama_cpp_completes_with_a_lent_model_and_rejects_one_that_it_cannot_load(
    lab: tuple[Publisher, DeviceUnderTest],
) -> None:
    publisher, device = lab
    texts = set()
    for version, tuning in (("2.0.0", 0.0), ("2.1.0", 0.003)):
        size = _publish(publisher, version, tuning)
        result = device.call("update")
        assert result["outcome"] == "updated", result
        if tuning:
            assert result["probation"]["verdict"] == "passed"  # by llama.cpp
            assert result["downloaded"]["patch"] < 0.7 * size
        texts.add(device.command(*COMPLETE).stdout)
    assert len(texts) == 2  # the fine-tuned weights answer otherwise
    assert all(text.strip() for text in texts)

    _publish(publisher, "2.2.0", 0.003, cut=True)
    result = device.call("update")
    assert result["outcome"] == "rolled-back", result
    assert "health_command judges it unhealthy: exit status 1" in result["detail"]
    assert device.command(*COMPLETE).stdout in texts


def _publish(publisher: Publisher, version: str, tuning: float, *, cut: bool = False) -> int:
    """Publish a release of one GGUF file, cut in half if `cut`, and return its size in bytes."""
    model = publisher.folder / "model.gguf"
    write_llama(model, tuning)
    if cut:
        model.write_bytes(model.read_bytes()[: model.stat().st_size // 2])
    (publisher.folder / "release.toml").write_text(SETTINGS.format(family=FAMILY, version=version))
    publisher.publish_release_file()
    return model.stat().st_size
