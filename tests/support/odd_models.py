"""Models that are unusual in one way each, valid ones and refused ones."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

FLOAT: Final = TensorProto.FLOAT
INT64: Final = TensorProto.INT64
WIDTH: Final = 48
Sample = dict[str, np.ndarray]


@dataclass(frozen=True, slots=True)
class OddModel:
    """A model and the inputs of one sample, by a function of a random generator."""

    model: onnx.ModelProto
    draw: Callable[[np.random.Generator], Sample]

    def samples(self, count: int = 24) -> list[Sample]:
        """Return samples of the model's inputs, one for each seed from 0."""
        return [self.draw(np.random.default_rng(seed)) for seed in range(count)]


def weights(*shape: int, seed: int = 0, dtype: Any = np.float32) -> np.ndarray:
    """Return random weights whose products keep their size.

    Args:
        shape: sizes of the axes.
        seed: seed of the random numbers.
        dtype: numpy's type.
    """
    scale = 1 / np.sqrt(max(shape[-2] if len(shape) > 1 else 1, 1))
    return np.asarray(np.random.default_rng(seed).standard_normal(shape) * scale, dtype)


def build(
    nodes: list[onnx.NodeProto],
    values: Mapping[str, object],
    *,
    opset: int = 17,
    ir: int = 8,
    inputs: list[Any] | None = None,
    outputs: list[Any] | None = None,
    domains: tuple[str, ...] = (),
) -> onnx.ModelProto:
    """Return a model; without `inputs` and `outputs` it maps x [n, WIDTH] to y [n, WIDTH].

    Args:
        nodes: nodes of the graph.
        values: initializers by name.
        opset: version of the standard operator set.
        ir: version of the file format.
        inputs, outputs: (name, type, shape) of each.
        domains: further operator domains, at version 1.
    """
    ends = [inputs or [("x", FLOAT, ["n", WIDTH])], outputs or [("y", FLOAT, ["n", WIDTH])]]
    infos = [[helper.make_tensor_value_info(*end) for end in side] for side in ends]
    tensors = [numpy_helper.from_array(np.asarray(value), name) for name, value in values.items()]
    if ir < 4:  # initializers had to be inputs
        infos[0] += [helper.make_tensor_value_info(t.name, t.data_type, list(t.dims)) for t in tensors]
    graph = helper.make_graph(nodes, "g", infos[0], infos[1], tensors)
    sets = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in domains)]
    made = helper.make_model(graph, opset_imports=sets)
    made.ir_version = ir
    return made


def _draw(rng: np.random.Generator) -> Sample:
    return {"x": rng.standard_normal((2, WIDTH)).astype(np.float32)}


def two_layers(x: str = "x", y: str = "y", w: str = "w", **options: Any) -> onnx.ModelProto:
    """Return two MatMul with a Relu between them.

    Args:
        x: name of the input.
        y: name of the output.
        w: name of the first weight.
        options: passed to `build`.
    """
    nodes = [
        helper.make_node("MatMul", [x, w], ["a"]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("MatMul", ["b", "v"], [y]),
    ]
    values = {w: weights(WIDTH, WIDTH), "v": weights(WIDTH, WIDTH, seed=1)}
    ends = {"inputs": [(x, FLOAT, ["n", WIDTH])], "outputs": [(y, FLOAT, ["n", WIDTH])]}
    return build(nodes, values, **{**ends, **options})


def _names(name: str) -> OddModel:
    made = two_layers(name, f"{name} out", f"{name} weight")
    return OddModel(made, lambda rng: {name: rng.standard_normal((2, WIDTH)).astype(np.float32)})


def _of_operator_set(version: int) -> OddModel:
    return _plain(two_layers(opset=version, ir=3 if version < 9 else 8))


def _with_function() -> onnx.ModelProto:
    body = [helper.make_node("MatMul", ["p", "q"], ["m"]), helper.make_node("Relu", ["m"], ["r"])]
    function = helper.make_function("own", "Layer", ["p", "q"], ["r"], body, [helper.make_opsetid("", 17)])
    nodes = [
        helper.make_node("Layer", ["x", "w"], ["a"], domain="own"),
        helper.make_node("Layer", ["a", "v"], ["y"], domain="own"),
    ]
    values = {"w": weights(WIDTH, WIDTH), "v": weights(WIDTH, WIDTH, seed=1)}
    made = build(nodes, values, domains=("own",))
    made.functions.append(function)
    return made


def _with_sparse_initializer() -> onnx.ModelProto:
    made = two_layers()
    dense = np.zeros((WIDTH, WIDTH), np.float32)
    places = np.arange(0, WIDTH * WIDTH, 7)
    dense.reshape(-1)[places] = weights(len(places), 1)[:, 0]
    kept = [tensor for tensor in made.graph.initializer if tensor.name != "v"]
    del made.graph.initializer[:]
    made.graph.initializer.extend(kept)
    sparse = made.graph.sparse_initializer.add()
    sparse.values.CopyFrom(numpy_helper.from_array(dense.reshape(-1)[places], "v"))
    sparse.indices.CopyFrom(numpy_helper.from_array(places.astype(np.int64), "v_indices"))
    sparse.dims.extend(dense.shape)
    return made


def _with_capture() -> onnx.ModelProto:
    """Return an If whose branches read a weight and a value of the outer graph, and have one of their own."""
    own = numpy_helper.from_array(weights(WIDTH, WIDTH, seed=2), "own")
    then = helper.make_graph(
        [helper.make_node("MatMul", ["a", "w"], ["t"])], "then", [], [helper.make_tensor_value_info("t", FLOAT, None)]
    )
    other = helper.make_graph(
        [helper.make_node("MatMul", ["a", "own"], ["e"])],
        "else",
        [],
        [helper.make_tensor_value_info("e", FLOAT, None)],
        [own],
    )
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("ReduceSum", ["x"], ["sum"], keepdims=0),
        helper.make_node("Greater", ["sum", "zero"], ["is_positive"]),
        helper.make_node("If", ["is_positive"], ["y"], then_branch=then, else_branch=other),
    ]
    return build(nodes, {"w": weights(WIDTH, WIDTH), "zero": np.float32(0)})


def _with_loop() -> onnx.ModelProto:
    info = helper.make_tensor_value_info
    body = helper.make_graph(
        [
            helper.make_node("MatMul", ["state", "inner"], ["m"]),
            helper.make_node("Tanh", ["m"], ["next"]),
            helper.make_node("Identity", ["going"], ["still"]),
        ],
        "body",
        [info("i", INT64, []), info("going", TensorProto.BOOL, []), info("state", FLOAT, None)],
        [info("still", TensorProto.BOOL, []), info("next", FLOAT, None)],
        [numpy_helper.from_array(weights(WIDTH, WIDTH), "inner")],
    )
    nodes = [
        helper.make_node("Loop", ["times", "yes", "x"], ["last"], body=body),
        helper.make_node("MatMul", ["last", "w"], ["y"]),
    ]
    values = {"times": np.int64(3), "yes": np.bool_(True), "w": weights(WIDTH, WIDTH, seed=1)}
    return build(nodes, values)


def _with_empty_and_scalar_tensors() -> onnx.ModelProto:
    nodes = [
        helper.make_node("Concat", ["x", "empty"], ["c"], axis=0),
        helper.make_node("MatMul", ["c", "w"], ["a"]),
        helper.make_node("Mul", ["a", "factor"], ["y"]),
    ]
    values = {"empty": np.zeros((0, WIDTH), np.float32), "w": weights(WIDTH, WIDTH), "factor": np.float32(1.5)}
    return build(nodes, values)


def _with_stored_half(dtype: Any = np.float16) -> onnx.ModelProto:
    nodes = [
        helper.make_node("Cast", ["h"], ["w"], to=FLOAT),
        helper.make_node("Constant", [], ["k"], value_floats=[1.0] * WIDTH),
        helper.make_node("MatMul", ["x", "w"], ["m"]),
        helper.make_node("Add", ["m", "k"], ["y"]),
    ]
    made = build(nodes, {"h": weights(WIDTH, WIDTH, dtype=np.float16)})
    if dtype is None:
        bits = (weights(WIDTH, WIDTH).view(np.uint32) >> 16).astype(np.uint16)
        tensor = made.graph.initializer[0]
        tensor.data_type, tensor.raw_data = TensorProto.BFLOAT16, bits.tobytes()
    return made


def _strings() -> OddModel:
    """Return a model that looks a word up: StringNormalizer-like text inputs of scikit-learn exports."""
    nodes = [
        helper.make_node(
            "LabelEncoder",
            ["word"],
            ["index"],
            domain="ai.onnx.ml",
            keys_strings=["a", "b", "c"],
            values_int64s=[0, 1, 2],
            default_int64=3,
        ),
        helper.make_node("Gather", ["table", "index"], ["row"]),
        helper.make_node("MatMul", ["row", "w"], ["y"]),
    ]
    made = build(
        nodes,
        {"table": weights(64, WIDTH), "w": weights(WIDTH, WIDTH, seed=1)},
        inputs=[("word", TensorProto.STRING, ["n"])],
        domains=(),
    )
    made.opset_import.append(helper.make_opsetid("ai.onnx.ml", 2))
    return OddModel(made, lambda rng: {"word": np.asarray(rng.choice(["a", "b", "c", "d"], 2), object)})


def _missing_values() -> OddModel:
    nodes = [
        helper.make_node("IsNaN", ["x"], ["is_missing"]),
        helper.make_node("Where", ["is_missing", "typical", "x"], ["f"]),
        helper.make_node("MatMul", ["f", "w"], ["y"]),
    ]
    made = build(nodes, {"typical": weights(WIDTH, 1)[:, 0], "w": weights(WIDTH, WIDTH)})

    def draw(rng: np.random.Generator) -> Sample:
        x = rng.standard_normal((2, WIDTH)).astype(np.float32)
        return {"x": np.where(rng.random(x.shape) < 0.1, np.float32(np.nan), x)}

    return OddModel(made, draw)


def _tied_embedding() -> OddModel:
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["e"]),
        helper.make_node("Transpose", ["table"], ["head"], perm=[1, 0]),
        helper.make_node("MatMul", ["e", "head"], ["y"]),
    ]
    made = build(
        nodes,
        {"table": weights(300, WIDTH)},
        inputs=[("ids", INT64, ["n"])],
        outputs=[("y", FLOAT, ["n", 300])],
    )
    return OddModel(made, lambda rng: {"ids": rng.integers(0, 300, 6)})


def _batched_weight() -> OddModel:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    made = build(
        nodes,
        {"w": weights(4, WIDTH, WIDTH)},
        inputs=[("x", FLOAT, [4, 2, WIDTH])],
        outputs=[("y", FLOAT, [4, 2, WIDTH])],
    )
    return OddModel(made, lambda rng: {"x": rng.standard_normal((4, 2, WIDTH)).astype(np.float32)})


def _plain(made: onnx.ModelProto) -> OddModel:
    return OddModel(made, _draw)


ODD_MODELS: Final[dict[str, Callable[[], OddModel]]] = {
    **{f"operator set {v}": partial(_of_operator_set, v) for v in range(7, 22)},
    "file format 3": lambda: _plain(two_layers(opset=8, ir=3)),
    "a function": lambda: _plain(_with_function()),
    "a sparse initializer": lambda: _plain(_with_sparse_initializer()),
    "a branch with captures": lambda: _plain(_with_capture()),
    "a loop": lambda: _plain(_with_loop()),
    "empty and scalar tensors": lambda: _plain(_with_empty_and_scalar_tensors()),
    "half-precision weights": lambda: _plain(_with_stored_half()),
    "bfloat16 weights": lambda: _plain(_with_stored_half(None)),
    "a name of 200 characters": lambda: _names("x" * 200),
    "a name in Greek": lambda: _names("είσοδος"),
    "a name in Arabic": lambda: _names("مدخل"),
    "a name in Chinese": lambda: _names("输入:0"),
    "a name with slashes and spaces": lambda: _names("/model/in put"),
    "strings": _strings,
    "missing values": _missing_values,
    "a tied embedding": _tied_embedding,
    "a weight of three axes": _batched_weight,
}


def random_outputs() -> onnx.ModelProto:
    """Return a model whose outputs differ from run to run."""
    nodes = [
        helper.make_node("RandomNormalLike", ["x"], ["r"]),
        helper.make_node("Add", ["x", "r"], ["a"]),
        helper.make_node("MatMul", ["a", "w"], ["y"]),
    ]
    return build(nodes, {"w": weights(WIDTH, WIDTH)})


def custom_domain() -> onnx.ModelProto:
    """Return a model with an operator that no runtime has."""
    return build(
        [helper.make_node("Frobnicate", ["x", "w"], ["y"], domain="acme")],
        {"w": weights(WIDTH, WIDTH)},
        domains=("acme",),
    )


def huge_declared_size() -> onnx.ModelProto:
    """Return a model whose weight declares more elements than it has."""
    made = two_layers()
    made.graph.initializer[0].dims[:] = [2**40, 2**40]
    return made


def negative_size() -> onnx.ModelProto:
    """Return a model whose weight declares a negative size."""
    made = two_layers()
    made.graph.initializer[0].dims[:] = [-1, WIDTH]
    return made


def unknown_rank() -> onnx.ModelProto:
    """Return a model whose input does not declare its number of axes."""
    return two_layers(inputs=[("x", FLOAT, None)])


def of_type(kind: int) -> onnx.ModelProto:
    """Return a model with an input of another type, cast to float32.

    Args:
        kind: TensorProto.DataType.
    """
    nodes = [helper.make_node("Cast", ["x"], ["f"], to=FLOAT), helper.make_node("MatMul", ["f", "w"], ["y"])]
    return build(nodes, {"w": weights(WIDTH, WIDTH)}, inputs=[("x", kind, ["n", WIDTH])], opset=21)


REFUSED_MODELS: Final[dict[str, Callable[[], onnx.ModelProto]]] = {
    "an operator of another domain": custom_domain,
    "a huge declared size": huge_declared_size,
    "a negative size": negative_size,
    "a bfloat16 input": lambda: of_type(TensorProto.BFLOAT16),
    "a name of 308 characters": lambda: two_layers("serving_" + "x" * 300),
}
