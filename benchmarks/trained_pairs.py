"""Create pairs of trained models with PyTorch (the extra `bench`).

    python -m benchmarks.trained_pairs [--only PAIR]... [--out DIR]

The pairs are a light and a heavy fine-tune of MiniLM and a merged adapter (benchmarks/fine_tunes.py), a CNN two epochs
later and one retrained from scratch (benchmarks/resnet.py), and renamed tensors. Element types are fp32, fp16 and bf16
by cast, and int8 by onnxruntime's dynamic quantizer with a scale per channel or per tensor. Files are ONNX, or
safetensors if the name of the pair says so.
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


INPUTS_FOR: Final = "cnn-fp32"  # this pair has calibration.npz and held_out.npz, for benchmarks.update_aware_table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=tuple(PAIRS))
    parser.add_argument("--out", type=Path, default=CACHE)
    arguments = parser.parse_args()
    make_pairs(arguments.out, tuple(arguments.only or PAIRS))


def make_pairs(out: Path, names: tuple[str, ...] | None = None) -> None:
    """Create the pairs that `out` does not contain yet.

    Args:
        out: directory of the pairs.
        names: keys of PAIRS; all if None.
    """
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
            for split, (count, seed) in {"calibration": (1024, 2001), "held_out": (1000, 2002)}.items():
                pictures, _ = resnet.draw_images(count, seed)
                np.savez(out / name / f"{split}.npz", allow_pickle=False, image=pictures)
        print(f"{name}: {', '.join(f'{place.stat().st_size:,}' for place in places)} bytes", flush=True)


def _make_minilm(run: str, kind: str) -> bytes:
    return _build_with_type(partial(minilm.build_onnx_model, fine_tunes.load_or_train(run)), kind)


def _make_cnn(which: str, kind: str) -> bytes:
    return _build_with_type(partial(resnet.build_onnx_model, _load_or_train_cnn(which)), kind)


def _build_with_type(model: Callable[[int], onnx.ModelProto], kind: str) -> bytes:
    """Return the file in fp32, fp16, bf16, int8-channel or int8-tensor."""
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
    """Return the parameters of a run as a safetensors file."""
    return make_safetensors((cast_to_bf16 if kind == "bf16" else cast_to_fp16)(fine_tunes.load_or_train(run)))


def _make_renamed(run: str) -> bytes:
    """Return the model of a run with all initializers renamed and in another order."""
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
    """Return a checkpoint: `early` and `late` are of one training, `anew` of another one with another seed."""
    place = CACHE.parent / "fine-tunes" / f"cnn-{which}.npz"
    if not place.exists():
        place.parent.mkdir(parents=True, exist_ok=True)
        names, seed = (("anew",), 6) if which == "anew" else (("early", "late"), 5)
        checkpoints = resnet.train(EPOCHS, (EPOCHS,) if which == "anew" else (EPOCHS - APART, EPOCHS), seed)
        for name, checkpoint in zip(names, checkpoints, strict=True):
            print(f"cnn-{name}: {checkpoint.accuracy:.3f} of new images correct", flush=True)
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
