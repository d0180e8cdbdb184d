"""The models that benchmarks train are exported for onnxruntime, and their data splits are disjoint."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto

from benchmarks import minilm, resnet, texts

CLASSES = 3


def make_small_encoder() -> minilm.Arrays:
    """Return random parameters of MiniLM's shapes with a vocabulary of 40 word pieces."""
    rng = np.random.default_rng(3)
    wide, inner = minilm.WIDTH, 1536
    shapes = {
        "embeddings.word_embeddings.weight": (40, wide),
        "embeddings.position_embeddings.weight": (64, wide),
        "embeddings.token_type_embeddings.weight": (2, wide),
        "classifier.weight": (CLASSES, wide),
        "classifier.bias": (CLASSES,),
    }
    for number in range(minilm.LAYERS):
        layer = f"encoder.layer.{number}"
        parts = {f"attention.self.{part}": (wide, wide) for part in ("query", "key", "value")}
        parts |= {
            "attention.output.dense": (wide, wide),
            "intermediate.dense": (inner, wide),
            "output.dense": (wide, inner),
        }
        for part, shape in parts.items():
            shapes[f"{layer}.{part}.weight"], shapes[f"{layer}.{part}.bias"] = shape, (shape[0],)
    out = {name: rng.normal(0, 0.05, shape).astype(np.float32) for name, shape in shapes.items()}
    norms = [
        "embeddings",
        *(f"encoder.layer.{n}.{p}" for n in range(minilm.LAYERS) for p in ("attention.output", "output")),
    ]
    for name in norms:
        out[f"{name}.LayerNorm.weight"] = np.ones(wide, np.float32)
        out[f"{name}.LayerNorm.bias"] = np.zeros(wide, np.float32)
    return out


def make_tokens(count: int, length: int) -> texts.Tokens:
    rng = np.random.default_rng(4)
    ids = rng.integers(0, 40, (count, length))
    mask = (np.arange(length) < rng.integers(2, length + 1, (count, 1))).astype(np.int64)
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}


def run_logits(model: onnx.ModelProto, feed: dict[str, np.ndarray]) -> np.ndarray:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    found: np.ndarray = session.run(None, feed)[0]
    return found


def test_what_lies_behind_the_mask_does_not_count() -> None:
    model = minilm.build_onnx_model(make_small_encoder())
    onnx.checker.check_model(model)
    feed = make_tokens(2, 12)
    feed["attention_mask"][:, 7:] = 0
    whole, cut = run_logits(model, feed), run_logits(model, {name: array[:, :7] for name, array in feed.items()})
    np.testing.assert_allclose(whole, cut, atol=1e-5)
    assert np.abs(whole[0] - whole[1]).max() > 1e-4


@pytest.mark.parametrize("dtype", [TensorProto.FLOAT16, TensorProto.BFLOAT16])
def test_half_precision_files_are_valid(dtype: int) -> None:
    model = minilm.build_onnx_model(make_small_encoder(), dtype)
    onnx.checker.check_model(model)
    assert {tensor.data_type for tensor in model.graph.initializer} == {dtype, TensorProto.INT64}


def test_the_graph_says_what_the_trained_network_says() -> None:
    pytest.importorskip("torch", reason="PyTorch is absent (pip install -e '.[train]')")
    feed = make_tokens(5, 9)
    expected = minilm.classify(make_small_encoder(), texts.Part(feed, np.zeros(5, np.int64)))
    np.testing.assert_allclose(run_logits(minilm.build_onnx_model(make_small_encoder()), feed), expected, atol=1e-4)


def test_folded_normalization_says_what_the_network_says() -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is absent (pip install -e '.[train]')")
    torch.manual_seed(0)
    network = resnet.build_network()
    images = resnet.draw_images(8, 1)[0]
    with torch.no_grad():
        network(torch.from_numpy(images))  # moves the running statistics
        expected = network.eval()(torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(
        run_logits(resnet.build_onnx_model(resnet.fold_normalization(network)), {"image": images}), expected, atol=1e-4
    )


def test_words_are_cut_into_the_longest_pieces() -> None:
    vocabulary = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "un", "##aff", "##able", "##a", "run", ".")
    made = texts.WordPiece(vocabulary).tokenize(["Unaffable run.", "?"], 8)
    assert made["input_ids"].tolist() == [[2, 4, 5, 6, 8, 9, 3, 0], [2, 1, 3, 0, 0, 0, 0, 0]]
    assert made["attention_mask"].sum(1).tolist() == [7, 3]


def test_splits_share_no_text_and_repeat(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(texts, "LABELS", ("asyncio", "email"))  # enough for two splits, and quick
    vocabulary = (
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        *(chr(c) for c in range(33, 127)),
        *(f"##{chr(c)}" for c in range(33, 127)),
    )
    once, again = (texts.split_texts(vocabulary, 200, 1) for _ in range(2))
    assert len(once.held_out.labels) == texts.HELD_OUT
    assert len(once.calibration.labels) == texts.CALIBRATION
    parts = [
        {row.tobytes() for row in part.tokens["input_ids"]}
        for part in (once.first, once.later, once.calibration, once.held_out)
    ]
    seen = sum(len(part) for part in parts)
    assert len(set().union(*parts)) >= 0.99 * seen  # a few pieces of the library repeat word for word
    np.testing.assert_array_equal(once.held_out.tokens["input_ids"], again.held_out.tokens["input_ids"])
