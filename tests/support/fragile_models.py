"""Models that fail on inputs that a client chooses: NaN, an error, a crash or a long run, by one element of x."""

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

SIZE = 64
KINDS = ("nan", "error", "crash", "slow")
# value of the element of x that makes a model of this kind fail
TRIGGERS = {"nan": -9.0, "error": 500.0, "crash": 77.0, "slow": 50_000.0}


def make_fragile_model(seed: int, kinds: tuple[str, ...] = KINDS) -> onnx.ModelProto:
    """x: float32 [1, 64] -> y: float32 [1, 8]; fails if element i of x is the trigger of `KINDS[i]`, for given kinds.

    Args:
        seed: of the weights.
        kinds: ways in which the model fails.
    """
    rng = np.random.default_rng(seed)
    constants: dict[str, Any] = {
        "w": rng.standard_normal((SIZE, 8)).astype(np.float32) / 8,
        "low": np.array(-4, np.float32),
        "high": np.array(4, np.float32),
        "five": np.array(5, np.float32),
        "nothing": np.array(0, np.float32),
        "table": np.zeros(100, np.float32),
        "odd": np.array(78, np.int32),
        "lowest": np.array(-(2**31), np.int32),
        "true": np.array(True),
        **{f"index{i}": np.array([i], np.int64) for i in range(len(KINDS))},
    }
    nodes = [
        helper.make_node("Clip", ["x", "low", "high"], ["safe"]),
        helper.make_node("MatMul", ["safe", "w"], ["y0"]),
    ]
    for index, kind in enumerate(KINDS):
        source = "x" if kind in kinds else "safe"
        nodes += [
            helper.make_node("Gather", [source, f"index{index}"], [f"{kind}_column"], axis=1),
            helper.make_node("Squeeze", [f"{kind}_column"], [f"{kind}_value"]),
            *_parts(kind),
            helper.make_node("Mul", [f"{kind}_part", "nothing"], [f"{kind}_zero"]),
            helper.make_node("Add", [f"y{index}", f"{kind}_zero"], [f"y{index + 1}"]),
        ]
    nodes.append(helper.make_node("Identity", [f"y{len(KINDS)}"], ["y"]))
    graph = helper.make_graph(
        nodes,
        "fragile",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, SIZE])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 8])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def make_inputs(kind: str = "", number: int = 0) -> list[float]:
    """Return the elements of x that make a model of `kind` fail; numbers give distinct inputs."""
    values = [0.25 + 0.001 * (number % 1000)] * SIZE
    if kind:
        values[KINDS.index(kind)] = TRIGGERS[kind]
    return values


def _parts(kind: str) -> list[onnx.NodeProto]:
    value, part = f"{kind}_value", f"{kind}_part"
    match kind:
        case "nan":
            return [
                helper.make_node("Add", [value, "five"], ["nan_sum"]),
                helper.make_node("Sqrt", ["nan_sum"], [part]),
            ]
        case "error":
            return [
                helper.make_node("Abs", [value], ["error_abs"]),
                helper.make_node("Cast", ["error_abs"], ["error_index"], to=TensorProto.INT64),
                helper.make_node("Gather", ["table", "error_index"], [part]),
            ]
        case "crash":  # -2^31 / -1 overflows, and the processor ends the process
            return [
                helper.make_node("Cast", [value], ["crash_integer"], to=TensorProto.INT32),
                helper.make_node("Sub", ["crash_integer", "odd"], ["crash_divisor"]),
                helper.make_node("Div", ["lowest", "crash_divisor"], ["crash_quotient"]),
                helper.make_node("Cast", ["crash_quotient"], [part], to=TensorProto.FLOAT),
            ]
    body = helper.make_graph(
        [helper.make_node("Identity", ["go_in"], ["go_out"]), helper.make_node("Tanh", ["v_in"], ["v_out"])],
        "body",
        [
            helper.make_tensor_value_info("turn", TensorProto.INT64, []),
            helper.make_tensor_value_info("go_in", TensorProto.BOOL, []),
            helper.make_tensor_value_info("v_in", TensorProto.FLOAT, []),
        ],
        [
            helper.make_tensor_value_info("go_out", TensorProto.BOOL, []),
            helper.make_tensor_value_info("v_out", TensorProto.FLOAT, []),
        ],
    )
    return [
        helper.make_node("Abs", [value], ["slow_abs"]),
        helper.make_node("Cast", ["slow_abs"], ["turns"], to=TensorProto.INT64),
        helper.make_node("Loop", ["turns", "true", "nothing"], [part], body=body),
    ]
