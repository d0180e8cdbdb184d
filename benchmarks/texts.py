"""Labeled texts that every machine has: pieces of Python's standard library, labeled by module.

A piece is a number of whole lines of one module, about 64 word pieces long; pieces do not overlap. They are shuffled
with a fixed seed and split; held-out and calibration texts are never used in training. The texts come from the running
Python, so figures differ slightly between Python versions.
"""

import random
import string
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np

LABELS: Final = (
    *("_pydecimal", "_pyio", "argparse", "asyncio", "difflib", "doctest", "email", "enum", "http", "importlib"),
    *("inspect", "ipaddress", "logging", "mailbox", "multiprocessing", "pickletools", "pydoc", "subprocess"),
    *("tarfile", "typing", "unittest", "urllib", "xml", "zipfile"),
)
PIECE_CHARACTERS: Final = 230  # about 64 word pieces of code
HELD_OUT: Final = 1000
CALIBRATION: Final = 512
FIRST_SHARE: Final = 0.5  # share of the training texts for the base; the rest is for its updates
LONGEST_WORD: Final = 100

Tokens = dict[str, np.ndarray[Any, Any]]


@dataclass(frozen=True, slots=True)
class Part:
    """Texts of one split.

    Attributes:
        tokens: int64 [texts, length] by model input.
        labels: int64 [texts].
    """

    tokens: Tokens
    labels: np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class Splits:
    """Disjoint parts of the texts."""

    first: Part
    later: Part
    calibration: Part
    held_out: Part


def split_texts(vocabulary: Sequence[str], length: int, seed: int) -> Splits:
    """Tokenize all texts and split them.

    Args:
        vocabulary: word pieces; the index is the token.
        length: tokens per text.
        seed: of the shuffle.
    """
    texts = [(piece, label) for label, name in enumerate(LABELS) for piece in _read_pieces(name)]
    random.Random(seed).shuffle(texts)
    tokenizer = WordPiece(tuple(vocabulary))
    tokens, labels = tokenizer.tokenize([text for text, _ in texts], length), np.array([label for _, label in texts])
    edges = [HELD_OUT, HELD_OUT + CALIBRATION]
    edges.append(edges[-1] + int((len(texts) - edges[-1]) * FIRST_SHARE))
    cuts = [slice(*cut) for cut in zip([0, *edges], [*edges, len(texts)], strict=True)]
    held_out, calibration, first, later = (Part({n: a[c] for n, a in tokens.items()}, labels[c]) for c in cuts)
    return Splits(first, later, calibration, held_out)


def _read_pieces(name: str) -> Iterator[str]:
    library = Path(sysconfig.get_path("stdlib"))
    single = library / f"{name}.py"
    files = [single] if single.exists() else sorted((library / name).rglob("*.py"))
    if not files:
        sys.exit(f"the standard library in {library} has no {name}; install the complete standard library")
    for file in files:
        piece = ""
        for line in file.read_text("utf-8", "replace").splitlines():
            piece += line.strip() + "\n"
            if len(piece) >= PIECE_CHARACTERS:
                yield piece
                piece = ""


@dataclass(frozen=True)
class WordPiece:
    """The uncased BERT tokenizer: splits at spaces and punctuation, then into the longest known pieces."""

    vocabulary: tuple[str, ...]

    @cached_property
    def _ids(self) -> dict[str, int]:
        return {piece: number for number, piece in enumerate(self.vocabulary)}

    @cached_property
    def _cached_words(self) -> dict[str, list[int]]:
        return {}

    def tokenize(self, texts: Sequence[str], length: int) -> Tokens:
        """Return the three model inputs, int64 [texts, length], padded with zeros."""
        ids, mask = (np.zeros((len(texts), length), np.int64) for _ in range(2))
        for row, text in enumerate(texts):
            pieces = [self._ids["[CLS]"], *self._tokenize_text(text)[: length - 2], self._ids["[SEP]"]]
            ids[row, : len(pieces)] = pieces
            mask[row, : len(pieces)] = 1
        return {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}

    def _tokenize_text(self, text: str) -> list[int]:
        spaced = "".join(f" {letter} " if letter in string.punctuation else letter for letter in text.lower())
        return [number for word in spaced.split() for number in self._tokenize_word(word)]

    def _tokenize_word(self, word: str) -> list[int]:
        if word not in self._cached_words:
            self._cached_words[word] = self._match_longest(word)
        return self._cached_words[word]

    def _match_longest(self, word: str) -> list[int]:
        unknown = [self._ids["[UNK]"]]
        if len(word) > LONGEST_WORD:
            return unknown
        out: list[int] = []
        start = 0
        while start < len(word):
            for end in range(len(word), start, -1):
                piece = self._ids.get(("##" if start else "") + word[start:end])
                if piece is not None:
                    out.append(piece)
                    start = end
                    break
            else:
                return unknown
        return out
