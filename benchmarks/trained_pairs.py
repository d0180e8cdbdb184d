"""Pairs of models that were really trained, made here with PyTorch (the extra `bench`).

    python -m benchmarks.trained_pairs [--only PAIR]... [--out DIR]

A fine-tune of MiniLM, a heavy one, a merged adapter (benchmarks/fine_tunes.py), a CNN two epochs later and one trained
anew (benchmarks/resnet.py), and renamed tensors; in fp32, fp16 and bf16 by cast, and in int8 as onnxruntime's own
dynamic quantizer makes it, a scale for each channel or each tensor. ONNX files, and safetensors where the name says so.
"""

import argparse
import hashlib
import tempfile
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Final

import numpy as np
import onnx
from onnx import TensorProto

from benchmarks import fine_tunes, minilm, resnet
from benchmarks.published_pairs import CACHE, cast_to_bf16, cast_to_fp16, make_safetensors

EPOCHS: Final = 10
APART: Final = 2
Side = Callable[[], bytes]


INPUTS_FOR: Final = "cnn-fp32"  # calibration.npz and held.npz lie beside this pair, for benchmarks.update_aware_table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=tuple(PAIRS))
    parser.add_argument("--out", type=Path, default=CACHE)
    arguments = parser.parse_args()
    make_pairs(arguments.out, tuple(arguments.only or PAIRS))


def make_pairs(out: Path, names: tuple[str, ...] | None = None) -> None:
    """The pairs in `out`, those that are not there yet."""
    for name in names or tuple(PAIRS):
        suffix = "safetensors" if name.endswith("safetensors") else "onnx"
        places = [out / name / f"{side}.{suffix}" for side in ("base", "target")]
        for place, side in zip(places, PAIRS[name], strict=True):
            if not place.exists():
                place.parent.mkdir(parents=True, exist_ok=True)
                unfinished = place.with_suffix(".partial")
                unfinished.write_bytes(side())
                unfinished.rename(place)
        if name == INPUTS_FOR:
            for what, (count, seed) in {"calibration": (1024, 2001), "held": (1000, 2002)}.items():
                pictures, _ = resnet.draw_images(count, seed)
                np.savez(out / name / f"{what}.npz", allow_pickle=False, image=pictures)
        print(f"{name}: {', '.join(f'{place.stat().st_size:,}' for place in places)} bytes", flush=True)


def _make_minilm(run: str, kind: str) -> bytes:
    return _build_with_type(partial(minilm.build_onnx_model, fine_tunes.load_or_train(run)), kind)


def _make_cnn(which: str, kind: str) -> bytes:
    return _build_with_type(partial(resnet.build_onnx_model, _load_or_train_cnn(which)), kind)


def _build_with_type(model: Callable[[int], onnx.ModelProto], kind: str) -> bytes:
    """The file in fp32, fp16, bf16, int8-channel or int8-tensor."""
    floats = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
    built = model(floats.get(kind, TensorProto.FLOAT))
    return _quantize_dynamic(built, kind == "int8-channel") if kind.startswith("int8") else built.SerializeToString()


def _quantize_dynamic(model: onnx.ModelProto, is_per_channel: bool) -> bytes:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with tempfile.TemporaryDirectory() as folder:
        source, made = Path(folder) / "float.onnx", Path(folder) / "int8.onnx"
        onnx.save(model, str(source))
        kind = QuantType.QInt8 if is_per_channel else QuantType.QUInt8
        quantize_dynamic(source, made, per_channel=is_per_channel, weight_type=kind)
        out: bytes = made.read_bytes()
        return out


def _make_checkpoint(run: str, kind: str) -> bytes:
    """The parameters alone, as a safetensors file."""
    return make_safetensors((cast_to_bf16 if kind == "bf16" else cast_to_fp16)(fine_tunes.load_or_train(run)))


def _make_renamed(run: str) -> bytes:
    """Every initializer under a new name and in another order."""
    model = minilm.build_onnx_model(fine_tunes.load_or_train(run))
    names = {tensor.name: f"tensor.{number}" for number, tensor in enumerate(model.graph.initializer)}
    for tensor in model.graph.initializer:
        tensor.name = names[tensor.name]
    for node in model.graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
    mixed = sorted(model.graph.initializer, key=lambda tensor: hashlib.sha256(tensor.name.encode()).digest())
    del model.graph.initializer[:]
    model.graph.initializer.extend(mixed)
    out: bytes = model.SerializeToString()
    return out


@cache
def _load_or_train_cnn(which: str) -> resnet.Weights:
    """`early` and `late` are of one training; `anew` is of another with the same settings and another seed."""
    place = CACHE.parent / "fine-tunes" / f"cnn-{which}.npz"
    if not place.exists():
        place.parent.mkdir(parents=True, exist_ok=True)
        names, seed = (("anew",), 6) if which == "anew" else (("early", "late"), 5)
        kept = resnet.train(EPOCHS, (EPOCHS,) if which == "anew" else (EPOCHS - APART, EPOCHS), seed)
        for name, checkpoint in zip(names, kept, strict=True):
            print(f"cnn-{name}: {checkpoint.accuracy:.3f} of fresh images right", flush=True)
            np.savez(place.with_name(f"cnn-{name}.npz"), allow_pickle=False, **checkpoint.weights)
    with np.load(place) as archive:
        return dict(archive)


def _make_sides(side: Callable[[str, str], bytes], base: str, target: str, kind: str) -> tuple[Side, Side]:
    return partial(side, base, kind), partial(side, target, kind)


KINDS: Final = ("fp32", "fp16", "bf16", "int8-channel", "int8-tensor")
PAIRS: Final[dict[str, tuple[Side, Side]]] = {
    **{f"minilm-fine-tune-{kind}": _make_sides(_make_minilm, "base", "new", kind) for kind in KINDS},
    **{f"minilm-fine-tune-{k}-safetensors": _make_sides(_make_checkpoint, "base", "new", k) for k in ("fp16", "bf16")},
    **{
        f"minilm-lora-{kind}": _make_sides(_make_minilm, "base", "lora", kind)
        for kind in ("fp32", "fp16", "int8-channel")
    },
    **{
        f"minilm-heavy-{kind}": _make_sides(_make_minilm, "base", "heavy", kind)
        for kind in ("fp32", "fp16", "int8-channel")
    },
    "minilm-renamed-fp32": (partial(_make_minilm, "base", "fp32"), partial(_make_renamed, "new")),
    **{
        f"cnn-{kind}": _make_sides(_make_cnn, "early", "late", kind)
        for kind in ("fp32", "fp16", "int8-channel", "int8-tensor")
    },
    **{f"cnn-anew-{kind}": _make_sides(_make_cnn, "late", "anew", kind) for kind in ("fp32", "fp16")},
}


if __name__ == "__main__":
    main()
