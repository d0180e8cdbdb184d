"""Write small model files of every format that the packager supports, from arrays."""

import io
import json
import struct
from typing import Any

import numpy as np
import numpy.typing as npt

Arrays = dict[str, npt.NDArray[Any]]

SAFETENSORS = {"float32": "F32", "float16": "F16", "int8": "I8", "uint8": "U8", "int64": "I64", "float64": "F64"}
GGUF = {"float32": 0, "float16": 1, "int8": 24, "int64": 27, "float64": 28}
TFLITE = {"float32": 0, "float16": 1, "int32": 2, "uint8": 3, "int64": 4, "int8": 9}


def to_safetensors(arrays: Arrays) -> bytes:
    """Return a safetensors file with the arrays in their order."""
    header: dict[str, Any] = {"__metadata__": {"format": "np"}}
    offset = 0
    for name, array in arrays.items():
        offsets = [offset, offset + array.nbytes]
        header[name] = {"dtype": SAFETENSORS[array.dtype.name], "shape": list(array.shape), "data_offsets": offsets}
        offset += array.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + b"".join(array.tobytes() for array in arrays.values())


def to_gguf(arrays: Arrays) -> bytes:
    """Return a GGUF file of version 3 with three metadata keys."""

    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value)) + value.encode()

    head = b"GGUF" + struct.pack("<IQQ", 3, len(arrays), 3)
    head += text("general.name") + struct.pack("<I", 8) + text("test")
    head += text("general.alignment") + struct.pack("<II", 4, 64)
    head += text("tokens") + struct.pack("<IIQ", 9, 8, 2) + text("a") + text("bc")
    infos, data = b"", b""
    for name, array in arrays.items():
        data += bytes(-len(data) % 64)
        infos += (
            text(name) + struct.pack("<I", array.ndim) + b"".join(struct.pack("<Q", n) for n in reversed(array.shape))
        )
        infos += struct.pack("<IQ", GGUF[array.dtype.name], len(data))
        data += array.tobytes()
    head += infos
    return head + bytes(-len(head) % 64) + data


def to_q4_0(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    """Quantize as llama.cpp does: blocks of 32 values, each a half-precision scale and 32 levels of four bits.

    Args:
        values: a matrix whose rows have a multiple of 32 columns.

    Returns:
        The blocks, uint8 [values.size / 32, 18].
    """
    blocks = values.reshape(-1, 32)
    extreme = np.take_along_axis(blocks, np.abs(blocks).argmax(axis=1, keepdims=True), axis=1)
    scales = extreme / np.float32(-8)
    inverse = np.divide(1, scales, out=np.zeros_like(scales), where=scales != 0)
    levels = np.clip(np.trunc(blocks * inverse + np.float32(8.5)), 0, 15).astype(np.uint8)
    packed = levels[:, :16] | (levels[:, 16:] << 4)
    return np.concatenate([scales.astype(np.float16).view(np.uint8), packed], axis=1)


def to_q4_0_gguf(arrays: dict[str, npt.NDArray[np.float32]]) -> bytes:
    """Return a GGUF file of version 3 whose matrices are quantized to Q4_0."""
    infos, data = b"", b""
    for name, array in arrays.items():
        infos += struct.pack("<Q", len(name)) + name.encode() + struct.pack("<IQQ", 2, *reversed(array.shape))
        infos += struct.pack("<IQ", 2, len(data))
        data += to_q4_0(array).tobytes()
        data += bytes(-len(data) % 32)
    head = b"GGUF" + struct.pack("<IQQ", 3, len(arrays), 0) + infos
    return head + bytes(-len(head) % 32) + data


def to_npz(arrays: Arrays) -> bytes:
    """Return an uncompressed `.npz` file."""
    out = io.BytesIO()
    np.savez(out, **arrays)  # type: ignore[arg-type] # the stub takes the arrays for other parameters
    return out.getvalue()


def to_tflite(arrays: Arrays) -> bytes:
    """Return a TFLite model with one subgraph whose tensors are `arrays`."""
    import flatbuffers

    b = flatbuffers.Builder(1024)

    def vector(offsets: list[int]) -> int:
        b.StartVector(4, len(offsets), 4)
        for offset in reversed(offsets):
            b.PrependUOffsetTRelative(offset)
        return int(b.EndVector())

    def table(slots: dict[int, tuple[str, Any]]) -> int:
        b.StartObject(8)
        for slot, (kind, value) in slots.items():
            if kind == "offset":
                b.PrependUOffsetTRelativeSlot(slot, value, 0)
            elif kind == "byte":
                b.PrependUint8Slot(slot, value, 255)
            else:
                b.PrependUint32Slot(slot, value, 0)
        return int(b.EndObject())

    buffers = [table({})]
    tensors = []
    for i, (name, array) in enumerate(arrays.items()):
        data = b.CreateByteVector(array.tobytes())
        buffers.append(table({0: ("offset", data)}))
        label = b.CreateString(name)
        shape = b.CreateNumpyVector(np.array(array.shape, np.int32))
        tensors.append(
            table(
                {
                    0: ("offset", shape),
                    1: ("byte", TFLITE[array.dtype.name]),
                    2: ("uint", i + 1),
                    3: ("offset", label),
                }
            )
        )
    graph = table({0: ("offset", vector(tensors))})
    model = table({2: ("offset", vector([graph])), 4: ("offset", vector(buffers))})
    b.Finish(model, b"TFL3")
    return bytes(b.Output())


def to_onnx(arrays: Arrays) -> bytes:
    """Return an ONNX model whose initializers are `arrays`."""
    from onnx import TensorProto, helper, numpy_helper

    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    return bytes(helper.make_model(graph).SerializeToString())


FORMATS = {"safetensors": to_safetensors, "gguf": to_gguf, "npz": to_npz, "tflite": to_tflite, "onnx": to_onnx}


def make_weights(seed: int, scale: float = 0.05) -> Arrays:
    """Return the weights of a small network, in several element types."""
    rng = np.random.default_rng(seed)
    return {
        "embedding": rng.normal(0, scale, (600, 48)).astype(np.float32),
        "dense": rng.normal(0, scale, (256, 96)).astype(np.float32),
        "half": rng.normal(0, scale, (64, 300)).astype(np.float16),
        "levels": np.clip(np.rint(rng.normal(0, 30, (80, 256))), -127, 127).astype(np.int8),
        "bias": rng.normal(0, 1, 96).astype(np.float32),
        "shape": np.arange(20, dtype=np.int64),
    }


def fine_tune(arrays: Arrays, seed: int) -> Arrays:
    """Return the network after some training steps: a low-rank update, scaled rows, and rows without changes."""
    rng = np.random.default_rng(seed)
    out = dict(arrays)
    embedding = arrays["embedding"].copy()
    embedding[::7] += rng.normal(0, 1e-3, embedding[::7].shape).astype(np.float32)
    out["embedding"] = embedding
    update = rng.normal(0, 1e-2, (256, 3)) @ rng.normal(0, 1e-1, (3, 96))
    out["dense"] = (arrays["dense"] + update).astype(np.float32)
    out["half"] = (arrays["half"].astype(np.float64) * rng.uniform(0.9, 1.1, (64, 1))).astype(np.float16)
    moved = rng.random((80, 256)) < 0.1
    out["levels"] = np.clip(arrays["levels"].astype(np.int16) + moved, -127, 127).astype(np.int8)
    out["bias"] = (arrays["bias"] + rng.normal(0, 1e-3, 96)).astype(np.float32)
    return out


def make_tiny_file(seed: int) -> bytes:
    """Return a safetensors file of about 1.5 KB; seeds differ in small amounts."""
    rng = np.random.default_rng(7)
    base = rng.normal(0, 0.05, (24, 12)).astype(np.float32)
    step = np.random.default_rng(seed).normal(0, 1e-4, base.shape).astype(np.float32)
    return to_safetensors({"w": base + step, "i": np.arange(seed, 90 + seed, dtype=np.int8)})
