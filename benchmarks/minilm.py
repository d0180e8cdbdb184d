"""MiniLM with a classification head: forward pass in PyTorch, fine-tuning, and ONNX export.

Parameters are a dict of float32 arrays by their published names. The weight of a linear layer is [outputs, inputs] in
this dict, and [inputs, outputs] in the ONNX file, as exporters write it.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import onnx
from onnx import TensorProto, helper

from benchmarks.onnx_graphs import GraphBuilder
from benchmarks.texts import Part

if TYPE_CHECKING:
    import torch

    Tensors = dict[str, "torch.Tensor"]

LAYERS: Final = 6
HEADS: Final = 12
WIDTH: Final = 384
EPSILON: Final = 1e-12
TRAINED_LENGTH: Final = 32  # word pieces per text in training; twice as fast as all 64
OPSET: Final = 17
LORA_TARGETS: Final = ("query.weight", "value.weight")
LORA_ALPHA: Final = 2.0  # factor of the low-rank product
BATCH: Final = 16

Arrays = dict[str, np.ndarray[Any, Any]]


def forward(weights: "Mapping[str, torch.Tensor]", tokens: "Mapping[str, torch.Tensor]") -> "torch.Tensor":
    """Return the logits float32 [texts, classes], computed from the mean of each text's word-piece vectors.

    Args:
        weights: parameters by name.
        tokens: int64 [texts, length] by model input.
    """
    import torch
    import torch.nn.functional as fn

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return fn.layer_norm(x, (WIDTH,), weights[f"{name}.weight"], weights[f"{name}.bias"], EPSILON)

    def linear(x: torch.Tensor, name: str) -> torch.Tensor:
        return fn.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])

    ids, mask = tokens["input_ids"], tokens["attention_mask"]
    texts, length = ids.shape
    x = weights["embeddings.word_embeddings.weight"][ids] + weights["embeddings.position_embeddings.weight"][:length]
    x = norm(x + weights["embeddings.token_type_embeddings.weight"][tokens["token_type_ids"]], "embeddings.LayerNorm")
    for number in range(LAYERS):
        layer = f"encoder.layer.{number}"
        q, k, v = (
            linear(x, f"{layer}.attention.self.{part}").view(texts, length, HEADS, -1).transpose(1, 2)
            for part in ("query", "key", "value")
        )
        seen = fn.scaled_dot_product_attention(q, k, v, mask[:, None, None, :].bool())
        seen = linear(seen.transpose(1, 2).reshape(texts, length, WIDTH), f"{layer}.attention.output.dense")
        x = norm(x + seen, f"{layer}.attention.output.LayerNorm")
        inner = fn.gelu(linear(x, f"{layer}.intermediate.dense"))
        x = norm(x + linear(inner, f"{layer}.output.dense"), f"{layer}.output.LayerNorm")
    weight = mask[:, :, None].to(x.dtype)
    return linear((x * weight).sum(1) / weight.sum(1), "classifier")


def add_head(published: Arrays, classes: int, seed: int) -> Arrays:
    """Return the encoder's parameters and a new random head, without the pooler, which classification does not use."""
    parameters = {n: a for n, a in published.items() if a.dtype == np.float32 and not n.startswith("pooler")}
    rng = np.random.default_rng(seed)
    parameters["classifier.weight"] = rng.normal(0, 0.02, (classes, WIDTH)).astype(np.float32)
    parameters["classifier.bias"] = np.zeros(classes, np.float32)
    return parameters


def fine_tune(start: Arrays, texts: Part, steps: int, rate: float, seed: int, head_rate: float | None = None) -> Arrays:
    """Train all parameters with AdamW, linear warm-up and linear decay, and return them.

    Args:
        start: the parameters to start from.
        texts: the training texts.
        steps: optimizer steps of BATCH texts.
        rate: peak learning rate.
        seed: of the batch order.
        head_rate: peak learning rate of the head; `rate` if None.
    """
    import torch

    torch.manual_seed(seed)
    weights = {name: torch.tensor(array, requires_grad=True) for name, array in start.items()}
    groups = [
        {"params": [w for n, w in weights.items() if not n.startswith("classifier")], "lr": rate},
        {"params": [w for n, w in weights.items() if n.startswith("classifier")], "lr": head_rate or rate},
    ]
    _train(weights, groups, texts, steps, seed, lambda: weights)
    return {name: weight.detach().numpy() for name, weight in weights.items()}


def fine_tune_lora(start: Arrays, texts: Part, steps: int, rate: float, seed: int, rank: int) -> Arrays:
    """Train a LoRA adapter of rank `rank` on queries and values, and return the parameters with it merged, float32."""
    import torch

    torch.manual_seed(seed)
    weights = {name: torch.tensor(array) for name, array in start.items()}
    targets = [name for name in weights if name.endswith(LORA_TARGETS)]
    down = {n: (torch.randn(rank, weights[n].shape[1]) / rank).requires_grad_() for n in targets}
    up = {n: torch.zeros(weights[n].shape[0], rank, requires_grad=True) for n in targets}

    def merged() -> "Tensors":
        return weights | {n: weights[n] + LORA_ALPHA * (up[n] @ down[n]) for n in targets}

    _train(weights, [{"params": [*down.values(), *up.values()], "lr": rate}], texts, steps, seed, merged)
    return {name: weight.detach().numpy() for name, weight in merged().items()}


def _train(weights: "Tensors", groups: list[dict[str, Any]], texts: Part, steps: int, seed: int, current: Any) -> None:
    import torch

    optimizer = torch.optim.AdamW(groups, weight_decay=0.01)
    warm = max(1, steps // 10)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warm, (steps - step) / max(1, steps - warm))
    )
    order = np.random.default_rng(seed).permutation(len(texts.labels))
    for step in range(steps):
        rows = np.take(order, range(step * BATCH, (step + 1) * BATCH), mode="wrap")
        logits = forward(current(), {n: torch.from_numpy(a[rows, :TRAINED_LENGTH]) for n, a in texts.tokens.items()})
        loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(texts.labels[rows]))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_([p for group in groups for p in group["params"]], 1.0)
        optimizer.step()
        schedule.step()


def classify(weights: Arrays, texts: Part) -> np.ndarray[Any, Any]:
    """Return the logits float32 [texts, classes]."""
    import torch

    with torch.no_grad():
        tensors = {n: torch.tensor(a) for n, a in weights.items()}
        chunks = range(0, len(texts.labels), 64)
        tokens = [{n: torch.from_numpy(a[at : at + 64]) for n, a in texts.tokens.items()} for at in chunks]
        logits: np.ndarray[Any, Any] = torch.cat([forward(tensors, chunk) for chunk in tokens]).numpy()
    return logits


def build_onnx_model(weights: Arrays, dtype: int = TensorProto.FLOAT) -> onnx.ModelProto:
    """Return the classifier as an ONNX graph of opset 17 with dynamic batch and sequence.

    Args:
        weights: parameters by name.
        dtype: ONNX type of weights and logits.
    """
    graph = GraphBuilder(dtype)
    classes = weights["classifier.bias"].size
    _add_nodes(graph, weights)
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "sequence"])
        for name in ("input_ids", "attention_mask", "token_type_ids")
    ]
    outputs = [helper.make_tensor_value_info("logits", dtype, ["batch", classes])]
    return graph.build("minilm", inputs, outputs, OPSET)


def _add_nodes(graph: GraphBuilder, weights: Arrays) -> None:
    op = graph.add_node

    def parameter(name: str) -> str:
        return graph.add_constant(name, weights[name])

    def linear(x: str, name: str) -> str:
        product = op("MatMul", x, graph.add_constant(f"{name}.weight", weights[f"{name}.weight"].T))
        return op("Add", product, parameter(f"{name}.bias"))

    def norm(x: str, name: str) -> str:
        return op("LayerNormalization", x, parameter(f"{name}.weight"), parameter(f"{name}.bias"), epsilon=EPSILON)

    whole = {name: graph.add_integers(name, value) for name, value in INTEGERS.items()}
    words = op("Gather", parameter("embeddings.word_embeddings.weight"), "input_ids")
    types = op("Gather", parameter("embeddings.token_type_embeddings.weight"), "token_type_ids")
    length = op("Shape", "input_ids", start=1, end=2)
    places = op("Slice", parameter("embeddings.position_embeddings.weight"), whole["zero"], length, whole["zero"])
    x = norm(op("Add", op("Add", words, types), places), "embeddings.LayerNorm")
    seen = op("Cast", "attention_mask", to=graph.dtype)
    hidden = op("Sub", graph.add_scalar("one", 1.0), op("Unsqueeze", seen, whole["heads_axes"]))
    bias = op("Mul", hidden, graph.add_scalar("masked", -10000.0))
    for number in range(LAYERS):
        layer = f"encoder.layer.{number}"
        q, k, v = (
            op("Transpose", op("Reshape", linear(x, f"{layer}.attention.self.{part}"), whole["split"]), perm=perm)
            for part, perm in (("query", (0, 2, 1, 3)), ("key", (0, 2, 3, 1)), ("value", (0, 2, 1, 3)))
        )
        scores = op("Div", op("MatMul", q, k), graph.add_scalar("scale", (WIDTH / HEADS) ** 0.5))
        mixed = op("MatMul", op("Softmax", op("Add", scores, bias), axis=-1), v)
        mixed = op("Reshape", op("Transpose", mixed, perm=(0, 2, 1, 3)), whole["join"])
        x = norm(op("Add", x, linear(mixed, f"{layer}.attention.output.dense")), f"{layer}.attention.output.LayerNorm")
        inner = linear(x, f"{layer}.intermediate.dense")
        curve = op("Add", op("Erf", op("Div", inner, graph.add_scalar("root2", 2**0.5))), graph.add_scalar("one", 1.0))
        inner = op("Mul", op("Mul", inner, curve), graph.add_scalar("half", 0.5))
        x = norm(op("Add", x, linear(inner, f"{layer}.output.dense")), f"{layer}.output.LayerNorm")
    spread = op("Unsqueeze", seen, whole["last"])
    total = op("ReduceSum", op("Mul", x, spread), whole["one_axis"], keepdims=0)
    pooled = op("Div", total, op("ReduceSum", spread, whole["one_axis"], keepdims=0))
    head = (parameter("classifier.weight"), parameter("classifier.bias"))
    op("Gemm", pooled, *head, transB=1, output="logits")


INTEGERS: Final = {
    "zero": [0],
    "last": [-1],
    "one_axis": [1],
    "heads_axes": [1, 2],
    "split": [0, 0, HEADS, WIDTH // HEADS],
    "join": [0, 0, WIDTH],
}
