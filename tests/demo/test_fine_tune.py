"""The demo's fine-tune changes the last layer alone, and is better on files that it has not seen."""

from pathlib import Path

import numpy as np
import onnx
import pytest

from packager.demo import demo_models
from packager.demo.demo_models import DemoModels, load_demo_models, load_local_models
from packager.demo.head_refit import MARGIN, count_correct, find_head, head_step
from packager.demo.published_model import PublishedModelUnavailable
from packager.demo.snippets import SNIPPET_LINES, cut_snippet
from packager.demo.update_sizes import other_ways, size_lines
from packager.errors import ModelUnreadable
from tests.support import tiny_models


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> DemoModels:
    return load_local_models(tmp_path_factory.mktemp("demo"))


def test_the_fine_tune_is_better_on_held_out_snippets(local: DemoModels) -> None:
    assert local.held_out is not None
    before, after = (
        count_correct(onnx.load(str(model)), local.held_out) for model in (local.old_model, local.new_model)
    )
    assert after > before
    assert after > len(local.held_out.classes) / 3


def test_all_layers_but_the_last_keep_their_bits(local: DemoModels) -> None:
    old, new = (onnx.load(str(model)) for model in (local.old_model, local.new_model))
    head = find_head(old)
    changed = [a.name for a, b in zip(old.graph.initializer, new.graph.initializer, strict=True) if a != b]
    assert set(changed) == {head.weight, head.bias}


def test_no_held_out_snippet_is_in_the_inputs_of_a_release(local: DemoModels) -> None:
    assert local.held_out is not None
    with np.load(local.build_inputs) as built:
        seen = {row.tobytes() for row in built["bytes"]}
    assert not any(tokens.tobytes() in seen for tokens in local.held_out.tokens)


def test_a_step_leaves_classes_alone_that_lead_by_the_margin() -> None:
    rng = np.random.default_rng(1)
    features, logits = rng.standard_normal((20, 8)), rng.standard_normal((20, 5))
    classes = logits.argmax(axis=1)
    logits[np.arange(20), classes] += MARGIN
    assert not head_step(features, logits, classes).any()
    logits[3, classes[3]] -= 2 * MARGIN
    step = head_step(features, logits, classes)
    assert (step != 0).any(axis=0).tolist() == [label == classes[3] for label in range(5)]
    assert features[3] @ step[:-1, classes[3]] + step[-1, classes[3]] > 0


def test_a_model_without_a_last_linear_layer_is_refused() -> None:
    proto = tiny_models.mlp(1)
    kept = [node for node in proto.graph.node if node.op_type not in ("MatMul", "Gemm")]
    del proto.graph.node[:]
    proto.graph.node.extend(kept)
    with pytest.raises(ModelUnreadable, match="found no last MatMul"):
        find_head(proto)


def test_a_snippet_is_the_middle_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "x.py"
    path.write_text("".join(f"line {number:03} of a file\n" for number in range(40)))
    snippet = cut_snippet(path)
    assert snippet is not None
    assert snippet.splitlines()[0] == b"line 020 of a file"
    assert len(snippet.splitlines()) == SNIPPET_LINES
    path.write_text("short\n")
    assert cut_snippet(path) is None
    assert cut_snippet(tmp_path / "gone") is None


def test_without_a_network_a_small_model_takes_the_place_of_the_published_one(
    tmp_path: Path, local: DemoModels, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unavailable(_folder: Path) -> DemoModels:
        raise PublishedModelUnavailable("cannot download x==1: no network")

    monkeypatch.setattr(demo_models, "load_published_models", unavailable)
    monkeypatch.setattr(demo_models, "load_local_models", lambda _folder: local)
    lines: list[str] = []
    assert load_demo_models(tmp_path, lines.append) is local
    assert lines[-1] == "cannot download x==1: no network; using a small model that is created on this machine"


def test_sizes_of_other_ways_are_those_of_the_files(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    old, new = tmp_path / "old", tmp_path / "new"
    data = bytearray(rng.integers(0, 256, 50_000, np.uint8).tobytes())
    old.write_bytes(data)
    data[100:200] = bytes(100)
    new.write_bytes(data)
    sizes = other_ways(old, new)
    assert sizes["bsdiff4"] < 1_000
    assert 49_000 < sizes["gzip"] < 51_000
    assert size_lines({}) == []
    assert size_lines({**sizes, "patch": 1, "downloaded": 2, "full": 3})[1] == "Bytes of the update to 1.1.0"
