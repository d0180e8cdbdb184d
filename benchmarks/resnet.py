"""Train a small residual network on drawn figures in PyTorch, and export it with normalization folded into Conv.

Images are float32 [images, 1, 20, 20] of ten classes. A class is a fixed set of strokes, drawn rotated, shifted, scaled
and with noise. Checkpoints of late epochs differ as real ones do: the weights by small amounts, the folded running
statistics by one factor per channel.
"""

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import onnx
from onnx import TensorProto, helper

from benchmarks.onnx_graphs import GraphBuilder

if TYPE_CHECKING:
    import torch

SIDE: Final = 20
CLASSES: Final = 10
STROKES: Final = 4
WIDTHS: Final = (32, 64, 128, 256)
BLOCKS: Final = 2  # per width
OPSET: Final = 17
IMAGES: Final = 1200
BATCH: Final = 32
RATE: Final = 0.05
PEAK_NOISE: Final = 0.25

Array = np.ndarray[Any, Any]
Weights = dict[str, Array]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """State after an epoch: float32 weights with folded normalization, and accuracy on images not used in training."""

    epoch: int
    weights: Weights
    accuracy: float


def draw_images(count: int, seed: int) -> tuple[Array, Array]:
    """Return images float32 [count, 1, 20, 20] and labels int64 [count].

    The strokes of a class do not depend on `seed`.
    """
    ends = np.random.default_rng(77).uniform(-0.8, 0.8, (CLASSES, STROKES, 2, 2))
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, count)
    turn, scale = rng.uniform(-0.6, 0.6, count), rng.uniform(0.7, 1.1, count)
    cos, sin = np.cos(turn) * scale, np.sin(turn) * scale
    rotation = np.stack([np.stack([cos, -sin], 1), np.stack([sin, cos], 1)], 1)
    placed = np.einsum("nij,nsej->nsei", rotation, ends[labels]) + rng.uniform(-0.2, 0.2, (count, 1, 1, 2))
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, SIDE)] * 2, indexing="ij"), -1).reshape(-1, 2)
    out = np.zeros((count, SIDE * SIDE), np.float32)
    for stroke in range(STROKES):
        start, way = placed[:, stroke, 0], placed[:, stroke, 1] - placed[:, stroke, 0]
        along = np.einsum("npj,nj->np", grid[None] - start[:, None], way) / (way**2).sum(1)[:, None]
        nearest = start[:, None] + np.clip(along, 0, 1)[:, :, None] * way[:, None]
        out = np.maximum(out, np.exp(-((grid[None] - nearest) ** 2).sum(-1) / 0.006))
    out += rng.normal(0, PEAK_NOISE, out.shape)
    return out.astype(np.float32).reshape(count, 1, SIDE, SIDE), labels


def train(epochs: int, keep: tuple[int, ...], seed: int) -> list[Checkpoint]:
    """Train with SGD with momentum, the rate falling as a cosine to zero.

    Args:
        epochs: number of epochs.
        keep: epochs after which a checkpoint is returned.
        seed: of initial weights, images and batch order.
    """
    import torch

    torch.set_num_threads(1)  # a fixed order of sums, on every machine
    torch.manual_seed(seed)
    network = build_network()
    pictures, labels = (torch.from_numpy(a) for a in draw_images(IMAGES, seed))
    test_images, test_labels = (torch.from_numpy(a) for a in draw_images(500, seed + 1000))
    optimizer = torch.optim.SGD(network.parameters(), RATE, momentum=0.9, weight_decay=5e-4, nesterov=True)
    steps = epochs * (IMAGES // BATCH)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    checkpoints = []
    for epoch in range(1, epochs + 1):
        network.train()
        for rows in torch.randperm(IMAGES)[: IMAGES // BATCH * BATCH].view(-1, BATCH):
            loss = torch.nn.functional.cross_entropy(network(pictures[rows]), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        if epoch in keep:
            network.eval()
            with torch.no_grad():
                right = float((network(test_images).argmax(1) == test_labels).float().mean())
            checkpoints.append(Checkpoint(epoch, fold_normalization(copy.deepcopy(network)), right))
    return checkpoints


def build_network() -> Any:
    import torch
    from torch import nn

    class Block(nn.Module):  # type: ignore[misc] # torch is optional: its types are not there
        def __init__(self, inputs: int, outputs: int, stride: int) -> None:
            super().__init__()
            self.first = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
            self.first_norm = nn.BatchNorm2d(outputs)
            self.second = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
            self.second_norm = nn.BatchNorm2d(outputs)
            self.has_way = stride > 1
            if self.has_way:
                self.way = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
                self.way_norm = nn.BatchNorm2d(outputs)

        def forward(self, x: "torch.Tensor") -> "torch.Tensor":
            inner = torch.relu(self.first_norm(self.first(x)))
            inner = self.second_norm(self.second(inner))
            return torch.relu(inner + (self.way_norm(self.way(x)) if self.has_way else x))

    class Network(nn.Module):  # type: ignore[misc] # as above
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(1, WIDTHS[0], 3, 2, 1, bias=False)
            self.stem_norm = nn.BatchNorm2d(WIDTHS[0])
            pairs = zip((WIDTHS[0], *WIDTHS), WIDTHS, strict=False)
            shapes = [
                (a if first else b, b, 1 + (first and a != b)) for a, b in pairs for first in _first_block_flags()
            ]
            self.blocks = nn.Sequential(*[Block(*shape) for shape in shapes])
            self.head = nn.Linear(WIDTHS[-1], CLASSES)

        def forward(self, x: "torch.Tensor") -> "torch.Tensor":
            x = self.blocks(torch.relu(self.stem_norm(self.stem(x))))
            return self.head(x.mean((2, 3)))

    return Network()


def _first_block_flags() -> tuple[bool, ...]:
    return (True, *[False] * (BLOCKS - 1))


def fold_normalization(network: Any) -> Weights:
    """Return weights and biases by module name, each BatchNorm folded into the convolution before it."""
    state = {name: tensor.detach().double().numpy() for name, tensor in network.state_dict().items()}
    out: Weights = {}
    for name in [n.removesuffix(".weight") for n in state if n.endswith(".weight") and state[n].ndim == 4]:
        norm = f"{name}_norm"
        gain = state[f"{norm}.weight"] / np.sqrt(state[f"{norm}.running_var"] + 1e-5)
        out[f"{name}.weight"] = state[f"{name}.weight"] * gain[:, None, None, None]
        out[f"{name}.bias"] = state[f"{norm}.bias"] - state[f"{norm}.running_mean"] * gain
    out |= {name: state[name] for name in ("head.weight", "head.bias")}
    return {name: array.astype(np.float32) for name, array in out.items()}


def build_onnx_model(weights: Weights, dtype: int = TensorProto.FLOAT) -> onnx.ModelProto:
    """Return the network as a graph of opset 17: `image` [batch, 1, 20, 20] -> `logits` [batch, 10]."""
    graph = GraphBuilder(dtype)

    def conv(x: str, name: str, stride: int = 1) -> str:
        kernel = weights[f"{name}.weight"]
        pad = kernel.shape[2] // 2
        parameters = [graph.add_constant(f"{name}.{part}", weights[f"{name}.{part}"]) for part in ("weight", "bias")]
        return graph.add_node(
            "Conv", x, *parameters, strides=[stride] * 2, pads=[pad] * 4, kernel_shape=kernel.shape[2:]
        )

    x = graph.add_node("Relu", conv("image", "stem", 2))
    for number in range(len(WIDTHS) * BLOCKS):
        block = f"blocks.{number}"
        stride = 2 if f"{block}.way.weight" in weights else 1
        inner = conv(graph.add_node("Relu", conv(x, f"{block}.first", stride)), f"{block}.second")
        x = graph.add_node("Relu", graph.add_node("Add", inner, conv(x, f"{block}.way", stride) if stride > 1 else x))
    flat = graph.add_node("Flatten", graph.add_node("GlobalAveragePool", x), axis=1)
    head = [graph.add_constant(name, weights[name]) for name in ("head.weight", "head.bias")]
    graph.add_node("Gemm", flat, *head, transB=1, output="logits")
    image = helper.make_tensor_value_info("image", dtype, ["batch", 1, SIDE, SIDE])
    logits = helper.make_tensor_value_info("logits", dtype, ["batch", CLASSES])
    return graph.build("resnet", [image], [logits], OPSET)
