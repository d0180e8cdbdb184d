"""Snippets of real files with their kinds, to fine-tune the model of the demo and to judge it.

Rules:
- Files are those of the interpreter and its packages. The suffix of a file's name is its kind.
- A snippet is the middle SNIPPET_LINES lines of a file. Equal snippets count once.
- Files of one folder are similar. All its snippets of a kind are either for training or held out.
"""

import hashlib
import os
import sysconfig
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from packager.demo.file_type_model import FileTypeConfig

SNIPPET_LINES: Final = 6
MIN_FILE_LINES: Final = 12
MIN_SNIPPET_BYTES: Final = 60
MAX_FILE_BYTES: Final = 400_000
SNIPPETS_PER_KIND: Final = 32  # of each kind, half of them for training: seconds of the demo
KINDS: Final = {
    ".bat": "batch",
    ".c": "c",
    ".cc": "cpp",
    ".cfg": "ini",
    ".cpp": "cpp",
    ".css": "css",
    ".csv": "csv",
    ".f": "fortran",
    ".f90": "fortran",
    ".h": "c",
    ".html": "html",
    ".ini": "ini",
    ".js": "javascript",
    ".json": "json",
    ".md": "markdown",
    ".pem": "pem",
    ".proto": "proto",
    ".py": "python",
    ".pyi": "python",
    ".rst": "rst",
    ".sh": "shell",
    ".toml": "toml",
    ".txt": "txt",
    ".xml": "xml",
    ".yaml": "yaml",
    ".yml": "yaml",
}


@dataclass(frozen=True, slots=True)
class LabeledSamples:
    """Samples of the model with their classes.

    Attributes:
        tokens: int32 [samples, tokens].
        classes: int64 [samples], positions in the model's labels.
    """

    tokens: npt.NDArray[np.int32]
    classes: npt.NDArray[np.int64]

    def choose(self, count: int) -> "LabeledSamples":
        """Return at most `count` samples, evenly spread over all."""
        chosen = np.unique(np.linspace(0, len(self.classes) - 1, min(count, len(self.classes))).astype(np.int64))
        return LabeledSamples(self.tokens[chosen], self.classes[chosen])


@dataclass(frozen=True, slots=True)
class SnippetSets:
    """Labeled samples: training and held-out snippets, and the whole files of the training snippets."""

    training: LabeledSamples
    held_out: LabeledSamples
    training_files: LabeledSamples


def read_snippets(config: FileTypeConfig) -> SnippetSets:
    """Return snippets and files, in a fixed order.

    Args:
        config: labels and tokens of the model.
    """
    files: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for folder, name in _files():
        kind = KINDS.get(name[max(0, name.rfind(".")) :])
        if kind in config.labels:
            files[str(kind)].append((folder, name))
    training: list[tuple[bytes, int]] = []
    held_out: list[tuple[bytes, int]] = []
    whole: list[tuple[bytes, int]] = []
    seen: set[bytes] = set()
    for kind, paths in sorted(files.items()):
        label, counts = config.labels.index(kind), [0, 0]
        for folder, name in sorted(paths, key=lambda path: _digest("/".join(path))):
            is_training = _digest(folder)[0] & 1
            if counts[is_training] == SNIPPETS_PER_KIND // 2:
                continue
            path = Path(folder, name)
            snippet = cut_snippet(path)
            if snippet is not None and snippet not in seen:
                seen.add(snippet)
                counts[is_training] += 1
                (training if is_training else held_out).append((snippet, label))
                if is_training:
                    whole.append((path.read_bytes(), label))
    return SnippetSets(_tokenize(config, training), _tokenize(config, held_out), _tokenize(config, whole))


def cut_snippet(path: Path) -> bytes | None:
    """Return the middle lines of a file, or None if it is too short, too large or unreadable."""
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            return None
        lines = path.read_bytes().splitlines(keepends=True)
    except OSError:
        return None
    middle = len(lines) // 2
    snippet = b"".join(lines[middle : middle + SNIPPET_LINES]).strip()
    return snippet if len(lines) >= MIN_FILE_LINES and len(snippet) >= MIN_SNIPPET_BYTES else None


def _files() -> Iterator[tuple[str, str]]:
    """Yield (folder, name) of each file; strings, since there are tens of thousands."""
    roots = [os.path.realpath(sysconfig.get_path(name)) for name in ("stdlib", "purelib", "include")]
    for root in roots:
        for folder, names, files in os.walk(root):
            names[:] = [
                name
                for name in names
                if not name.startswith(".") and name != "__pycache__" and f"{folder}/{name}" not in roots
            ]
            yield from ((folder, name) for name in files)


def _digest(path: str) -> bytes:
    return hashlib.sha256(os.fsencode(path)).digest()


def _tokenize(config: FileTypeConfig, rows: list[tuple[bytes, int]]) -> LabeledSamples:
    width = config.beg_size + config.end_size
    tokens = np.array([config.tokenize(snippet) for snippet, _ in rows], np.int32).reshape(len(rows), width)
    return LabeledSamples(tokens, np.array([label for _, label in rows], np.int64))
