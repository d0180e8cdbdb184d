"""Make two small models to practice with: they classify sounds.

An input has 256 samples of silence, a low tone, a high tone or noise.

    python make_models.py FOLDER

Writes model-1.onnx, model-2.onnx (fitted to more samples), inputs.npz and labels.txt. The features are a fixed spectrum
and the last layer is fitted by least squares, so this needs only numpy and onnx and takes a second.
"""

import sys
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

LABELS = ("silence", "low tone", "high tone", "noise")
WINDOW = 256  # samples at 8 kHz
BANDS = 64
RATE_HZ = 8000


def sounds(label: int, count: int, seed: int) -> np.ndarray:
    """Return random windows of one kind of sound.

    Args:
        label: index in LABELS.
        count: number of windows.
        seed: of the random numbers.

    Returns:
        float32 [count, 1, WINDOW].
    """
    rng = np.random.default_rng(seed)
    time = np.arange(WINDOW) / RATE_HZ
    hiss = 0.01 * rng.standard_normal((count, WINDOW))
    if label == 0:
        out = hiss
    elif label == 3:
        out = hiss + 0.3 * rng.standard_normal((count, WINDOW))
    else:
        low, high = ((200, 800), (1500, 3500))[label - 1]
        frequency = rng.uniform(low, high, (count, 1))
        out = hiss + rng.uniform(0.1, 1.0, (count, 1)) * np.sin(
            2 * np.pi * frequency * time + rng.uniform(0, 6, (count, 1))
        )
    return out[:, None].astype(np.float32)


def spectrum() -> np.ndarray:
    """Return the windowed Fourier basis, cosines before sines: float32 [WINDOW, 2 * BANDS]."""
    phase = 2 * np.pi * np.outer(np.arange(WINDOW), np.arange(BANDS) * 0.5 / BANDS)
    window = np.hanning(WINDOW)[:, None] / np.sqrt(WINDOW)
    return np.concatenate([np.cos(phase) * window, np.sin(phase) * window], axis=1).astype(np.float32)


def features(windows: np.ndarray) -> np.ndarray:
    """Return what the graph computes before its last layer: float [count, BANDS]."""
    bands = windows.reshape(-1, WINDOW) @ spectrum()
    return np.asarray(np.log(bands[:, :BANDS] ** 2 + bands[:, BANDS:] ** 2 + 1e-3))


def fit_last_layer(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Fit the last layer to random windows by least squares.

    Args:
        count: windows of each kind.
        seed: of the random numbers.

    Returns:
        Weights, float32 [BANDS, 4], and bias, float32 [4].
    """
    rows = np.concatenate([features(sounds(label, count, seed + label)) for label in range(len(LABELS))])
    target = np.repeat(6.0 * np.eye(len(LABELS)), count, axis=0)
    padded = np.concatenate([rows, np.ones((len(rows), 1))], axis=1)
    solved = np.linalg.solve(padded.T @ padded + 0.1 * np.eye(BANDS + 1), padded.T @ target)
    return solved[:-1].astype(np.float32), solved[-1].astype(np.float32)


def model(count: int, seed: int) -> onnx.ModelProto:
    """Create the model: sound, float32 [1, WINDOW], to scores, float32 [1, 4], which sum to 1.

    Args:
        count: windows of each kind to fit to.
        seed: of the random numbers.
    """
    weights, bias = fit_last_layer(count, seed)
    constants = {
        "spectrum": spectrum(),
        "floor": np.float32(1e-3),
        "halves": np.array([BANDS, BANDS], np.int64),
        "weights": weights,
        "bias": bias,
    }
    nodes = [
        helper.make_node("MatMul", ["sound", "spectrum"], ["bands"]),
        helper.make_node("Split", ["bands", "halves"], ["real", "imaginary"], axis=1),
        helper.make_node("Mul", ["real", "real"], ["real_power"]),
        helper.make_node("Mul", ["imaginary", "imaginary"], ["imaginary_power"]),
        helper.make_node("Add", ["real_power", "imaginary_power"], ["power"]),
        helper.make_node("Add", ["power", "floor"], ["raised"]),
        helper.make_node("Log", ["raised"], ["loudness"]),
        helper.make_node("Gemm", ["loudness", "weights", "bias"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["scores"], axis=-1),
    ]
    graph = helper.make_graph(
        nodes,
        "sounds",
        [helper.make_tensor_value_info("sound", TensorProto.FLOAT, [1, WINDOW])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, [1, len(LABELS)])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    created = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(created)
    return created


def main(folder: Path) -> None:
    """Write the four files into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(model(40, seed=0), folder / "model-1.onnx")
    onnx.save(model(400, seed=10), folder / "model-2.onnx")
    kinds = [sounds(label, 12, seed=100 + label) for label in range(len(LABELS))]
    np.savez(folder / "inputs.npz", sound=np.stack(kinds, axis=1).reshape(-1, 1, WINDOW))
    (folder / "labels.txt").write_text("\n".join(LABELS) + "\n")
    print(f"wrote model-1.onnx, model-2.onnx, inputs.npz and labels.txt to {folder}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "."))
