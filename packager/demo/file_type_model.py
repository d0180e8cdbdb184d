"""Pre- and postprocessing of the file-type model, and real files as samples.

Rules, from the model's configuration in its bundle:
- Tokens are the first `beg_size` bytes of the file after leading white space, and the last `end_size` bytes before
  trailing white space, read from blocks of `block_size`. Short ones are padded with `padding_token`.
- The label is the class with the highest score, or "unknown" if the score is below the class's threshold (default
  `medium_confidence_threshold`). `overwrite_map` renames classes.
"""

import json
import os
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from packager.errors import SamplesUnreadable

INPUT_NAME: Final = "bytes"
MAX_FILES_PER_SUFFIX: Final = 6  # few of each kind, so that samples are varied
DEFAULT_SAMPLE_FILES: Final = 96
SKIPPED_FOLDERS: Final = frozenset({"__pycache__", "build", "corpus", "vectors"})  # generated files
REPOSITORY_ROOT: Final = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, slots=True)
class FileTypeConfig:
    """The used part of the model's configuration file.

    Attributes:
        labels: class names in the order of the model's output.
        thresholds: minimum score of each label, 0 to 1.
        threshold: threshold of every other label.
        label_names: label → shown name.
        beg_size, end_size, block_size: in bytes.
        padding_token: larger than every byte.
    """

    labels: tuple[str, ...]
    thresholds: dict[str, float]
    threshold: float
    label_names: dict[str, str]
    beg_size: int
    end_size: int
    block_size: int
    padding_token: int

    @classmethod
    def read(cls, path: Path) -> "FileTypeConfig":
        """Read the `config.json` of the bundle.

        Raises:
            SamplesUnreadable: the file is not such a configuration.
        """
        try:
            raw = json.loads(path.read_text("utf-8"))
            return cls(
                labels=tuple(raw["target_labels_space"]),
                thresholds={str(name): float(value) for name, value in raw["thresholds"].items()},
                threshold=float(raw["medium_confidence_threshold"]),
                label_names={str(name): str(value) for name, value in raw["overwrite_map"].items()},
                beg_size=int(raw["beg_size"]),
                end_size=int(raw["end_size"]),
                block_size=int(raw["block_size"]),
                padding_token=int(raw["padding_token"]),
            )
        except (KeyError, ValueError, TypeError, AttributeError) as error:
            raise SamplesUnreadable(f"{path} is not a file-type configuration: {error!r}") from error

    def tokenize(self, content: bytes) -> npt.NDArray[np.int32]:
        """Return the tokens of a file's contents, int32 [beg_size + end_size]."""
        out = np.full(self.beg_size + self.end_size, self.padding_token, np.int32)
        start = np.frombuffer(content[: self.block_size].lstrip()[: self.beg_size], np.uint8)
        end = np.frombuffer(content[-self.block_size :].rstrip()[-self.end_size :], np.uint8)
        out[: len(start)] = start
        if len(end):
            out[-len(end) :] = end
        return out

    def top_label(self, scores: npt.NDArray[np.float32]) -> tuple[str, float]:
        """Return label and score of `scores`, float32 [classes]."""
        best = int(scores.argmax())
        name, score = self.labels[best], float(scores[best])
        if score < self.thresholds.get(name, self.threshold):
            return "unknown", score
        return self.label_names.get(name, name), score


def repository_files() -> tuple[Path, ...]:
    """Return files of this repository, at most two per suffix."""
    return tuple(_vary_suffixes([REPOSITORY_ROOT], per_suffix=2, count=12))


def sample_files(count: int = DEFAULT_SAMPLE_FILES) -> tuple[Path, ...]:
    """Return `count` files of many kinds: of this repository, of the interpreter and its packages."""
    roots = [REPOSITORY_ROOT]
    roots += [Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib")]
    return tuple(_vary_suffixes(roots, per_suffix=MAX_FILES_PER_SUFFIX, count=count))


def token_samples(kinds: FileTypeConfig, files: tuple[Path, ...]) -> dict[str, npt.NDArray[np.int32]]:
    """Return the arrays of an `.npz`: "bytes", int32 [files, 1, beg_size + end_size].

    Each sample is a batch of one.

    Args:
        kinds: configuration of the model.
        files: files to tokenize.
    """
    return {INPUT_NAME: np.stack([kinds.tokenize(path.read_bytes())[None] for path in files])}


def _vary_suffixes(roots: list[Path], *, per_suffix: int, count: int) -> Iterator[Path]:
    seen: dict[str, int] = {}
    taken = 0
    for root in roots:
        for path in map(Path, _list_files(root)):
            if taken == count:
                return
            suffix = path.suffix or path.name
            if seen.get(suffix, 0) == per_suffix or path.is_symlink() or not path.is_file():
                continue
            if 64 <= path.stat().st_size <= 4_000_000:
                seen[suffix] = seen.get(suffix, 0) + 1
                taken += 1
                yield path


def _list_files(root: Path) -> list[str]:
    """Return paths of files; those near the root first, since they change least."""

    def is_used(name: str) -> bool:
        return not name.startswith(".") and name not in SKIPPED_FOLDERS and "egg-info" not in name

    found = []
    for folder, names, files in os.walk(root):
        names[:] = filter(is_used, names)
        found += [f"{folder}/{name}" for name in filter(is_used, files)]
    return sorted(found, key=lambda path: (path.count("/"), path.split("/")))
