"""The models of the fleet demo: small ones, so that a dozen devices need little time.

Variant `fast` needs a feature of the processor, and is the smaller one. Variant `basic` computes the same and runs
everywhere. The `basic` of the bad release returns NaN for inputs that its samples do not have.
"""

from pathlib import Path
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

Weights: TypeAlias = npt.NDArray[np.float32]

INPUT: Final = "x"
SIZE: Final = 16
HIDDEN: Final = 32
PADDING: Final = 64  # hidden units of `basic` that do nothing
CLASSES: Final = 8
LIVE_SCALE: Final = 4.0  # live inputs are larger than samples
NAN_ABOVE: Final = 2.0


def write_models(folder: Path, seed: int, *, is_bad: bool) -> None:
    """Write `fast.onnx`, `basic.onnx` and `inputs.npz` of a release.

    Args:
        folder: an existing folder.
        seed: seed of the weights' change from the first release.
        is_bad: whether `basic` returns NaN for live inputs.
    """
    rng = np.random.default_rng(7)
    first = (rng.standard_normal((SIZE, HIDDEN)) / 4).astype(np.float32)
    second = (rng.standard_normal((HIDDEN, CLASSES)) / 6 + 0.001 * seed).astype(np.float32)
    padded = np.pad(first, ((0, 0), (0, PADDING))), np.pad(second, ((0, PADDING), (0, 0)))
    onnx.save(_network(first, second, is_bad=False), folder / "fast.onnx")
    onnx.save(_network(*padded, is_bad=is_bad), folder / "basic.onnx")
    np.savez(folder / "inputs.npz", x=rng.uniform(-1, 1, (64, 1, SIZE)).astype(np.float32))  # named as INPUT


def live_input(number: int) -> dict[str, Weights]:
    """Return a live request's input; different numbers have different inputs."""
    rng = np.random.default_rng(number)
    return {INPUT: (LIVE_SCALE * rng.uniform(0.6, 1, (1, SIZE))).astype(np.float32)}


def _network(first: Weights, second: Weights, *, is_bad: bool) -> onnx.ModelProto:
    nodes = [
        helper.make_node("MatMul", [INPUT, "first"], ["a"]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("MatMul", ["b", "second"], ["c" if is_bad else "y"]),
    ]
    weights = [numpy_helper.from_array(first, "first"), numpy_helper.from_array(second, "second")]
    if is_bad:
        nodes += [
            helper.make_node("ReduceMax", [INPUT], ["m"], keepdims=1),
            helper.make_node("Greater", ["m", "limit"], ["is_large"]),
            helper.make_node("Where", ["is_large", "nan", "c"], ["y"]),
        ]
        weights.append(numpy_helper.from_array(np.array([[NAN_ABOVE]], np.float32), "limit"))
        weights.append(numpy_helper.from_array(np.array([[np.nan]], np.float32), "nan"))
    graph = helper.make_graph(
        nodes,
        "fleet",
        [helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, [1, SIZE])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, CLASSES])],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
