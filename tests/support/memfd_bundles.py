"""Create decrypted bundles in memfds from models that tests build, and front processes to serve them."""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper

from bundle.contract import Contract, TensorSpec
from bundle.golden.golden_file import GoldenSample, write_golden
from device_agent.runtime.bundle_fds import BundleFds, create_sealed_memfd
from device_agent.runtime.handles import FrontHandle, GenerationSpec, ModelProcess, ServeConfig
from device_agent.runtime.session import OnnxModel
from device_agent.runtime.tensors import Array

DTYPES: dict[int, str] = {
    TensorProto.FLOAT: "float32",
    TensorProto.DOUBLE: "float64",
    TensorProto.FLOAT16: "float16",
    TensorProto.INT64: "int64",
    TensorProto.INT32: "int32",
    TensorProto.INT16: "int16",
    TensorProto.INT8: "int8",
    TensorProto.UINT64: "uint64",
    TensorProto.UINT32: "uint32",
    TensorProto.UINT16: "uint16",
    TensorProto.UINT8: "uint8",
    TensorProto.BOOL: "bool",
    TensorProto.STRING: "string",
}
ENUMS = {name: number for number, name in DTYPES.items()}


@dataclass(frozen=True, slots=True)
class MemfdBundle:
    """A bundle in memfds and the contract from its manifest."""

    fds: BundleFds
    contract: Contract

    def make_spec(self, generation: int, *, family: str = "toy", version: str | None = None) -> GenerationSpec:
        """Return the spec of a generation; the default version is "1.0.GENERATION"."""
        return GenerationSpec(family, generation, version or f"1.0.{generation}", "fp32", self.contract, threads=1)

    def start_process(self, generation: int, *, family: str = "toy") -> ModelProcess:
        """Start a model process with this bundle."""
        return ModelProcess.start(self.fds, self.make_spec(generation, family=family))


def read_contract(model: onnx.ModelProto) -> Contract:
    """Return the contract of a model's graph."""
    constants = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in constants]
    return Contract(tuple(map(_read_tensor_spec, inputs)), tuple(map(_read_tensor_spec, model.graph.output)))


@contextmanager
def create_memfd_bundle(
    model: onnx.ModelProto | bytes,
    samples: list[Mapping[str, Array]] | None = None,
    *,
    contract: Contract | None = None,
    external: Mapping[str, bytes] | None = None,
    damage: Callable[[dict[str, Array]], None] | None = None,
) -> Iterator[MemfdBundle]:
    """Yield a bundle of a model.

    Args:
        model: the model or its bytes.
        samples: inputs of golden vectors; the outputs are the model's own.
        contract: the contract; required if `model` is bytes.
        external: external-data files by name.
        damage: changes the golden outputs of each sample in place.
    """
    data = model if isinstance(model, bytes) else model.SerializeToString()
    if contract is None:
        assert isinstance(model, onnx.ModelProto)
        contract = read_contract(model)
    files = {"toy/fp32/model.onnx": create_sealed_memfd("model", data)}
    for name, content in (external or {}).items():
        files[f"toy/fp32/{name}"] = create_sealed_memfd("external", content)
    bundle = BundleFds(files, "toy/fp32/model.onnx", None, tuple(f"toy/fp32/{name}" for name in external or {}))
    if samples:
        loaded = OnnxModel.load(bundle, threads=1)
        goldens = [GoldenSample(dict(sample), loaded.run(sample)) for sample in samples]
        for golden in goldens:
            if damage is not None:
                damage(golden.outputs)
        files["golden.bin"] = create_sealed_memfd("golden", write_golden(tuple(goldens)))
        bundle = BundleFds(files, bundle.model, "golden.bin", bundle.external_data)
    try:
        yield MemfdBundle(bundle, contract)
    finally:
        bundle.close()


@contextmanager
def add_arbitrary_golden(bundle: MemfdBundle, size: int) -> Iterator[MemfdBundle]:
    """Yield the bundle with one golden sample of ones, for a model that cannot be run to compute its outputs.

    Args:
        bundle: a bundle without golden vectors; still the caller's.
        size: number of elements of the input `x`.
    """
    shape = tuple(n for n in bundle.contract.outputs[0].shape if isinstance(n, int))
    sample = GoldenSample({"x": np.ones(size, np.float32)}, {"y": np.ones(shape, np.float32)})
    fd = create_sealed_memfd("golden", write_golden((sample,)))
    try:
        yield MemfdBundle(BundleFds({**bundle.fds.files, "golden": fd}, bundle.fds.model, "golden"), bundle.contract)
    finally:
        os.close(fd)


@contextmanager
def start_front(**settings: object) -> Iterator[FrontHandle]:
    """Start a front on a free loopback port; stop it when the block ends."""
    patient = {"listen": "tcp:127.0.0.1:0", "wait_s": 60.0}  # a busy machine starts the next process late
    started = FrontHandle.start(ServeConfig(**{**patient, **settings}))  # type: ignore[arg-type]
    try:
        yield started
    finally:
        started.stop()


def make_scale_model(factor: float, *, size: int | str = 4, dtype: str = "float32", opset: int = 17) -> onnx.ModelProto:
    """Return a model x [size] -> y [size] = factor * x, so that outputs identify the generation."""
    enum = ENUMS[dtype]
    constant = helper.make_tensor("factor", enum, [], [factor])
    node = helper.make_node("Mul", ["x", "factor"], ["y"])
    return make_graph_model([node], [("x", dtype, [size])], [("y", dtype, [size])], [constant], opset)


def make_graph_model(
    nodes: list[onnx.NodeProto],
    inputs: list[tuple[str, str, list[int | str]]],
    outputs: list[tuple[str, str, list[int | str]]],
    constants: list[TensorProto] | None = None,
    opset: int = 17,
) -> onnx.ModelProto:
    """Return a model of one graph; inputs and outputs are (name, dtype, shape)."""
    body = helper.make_graph(
        nodes,
        "toy",
        [helper.make_tensor_value_info(name, ENUMS[dtype], shape) for name, dtype, shape in inputs],
        [helper.make_tensor_value_info(name, ENUMS[dtype], shape) for name, dtype, shape in outputs],
        constants or [],
    )
    return helper.make_model(body, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)


def floats(*values: float) -> Array:
    """Return the values as float32 [n]."""
    return np.array(values, np.float32)


def _read_tensor_spec(value: onnx.ValueInfoProto) -> TensorSpec:
    tensor = value.type.tensor_type
    shape = tuple(dim.dim_param or int(dim.dim_value) for dim in tensor.shape.dim)
    return TensorSpec(value.name, DTYPES[tensor.elem_type], shape)
