"""Suggest the known word that is nearest to a mistyped one: commands, options and keys of files."""

from collections.abc import Iterable
from difflib import get_close_matches
from typing import Final

MIN_SIMILARITY: Final = 0.6  # of difflib's ratio: 'verison' and 'version' have 0.86


def suggest(word: str, known: Iterable[str]) -> str:
    """Return `, did you mean 'NEAREST'?`, or an empty string if no known word is near.

    Args:
        word: the mistyped word.
        known: the valid words.
    """
    nearest = get_close_matches(word, list(known), n=1, cutoff=MIN_SIMILARITY)
    return f", did you mean {nearest[0]!r}?" if nearest else ""
