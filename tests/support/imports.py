"""Read the imports and calls of a file from its syntax tree."""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path


@cache
def imported_names(path: Path) -> tuple[str, ...]:
    """Return the dotted names that a file imports, anywhere in it except under TYPE_CHECKING."""
    return tuple(_imported_names(path))


def _imported_names(path: Path) -> Iterator[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    skipped = {
        id(child)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        for child in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@cache
def calls_of(path: Path) -> tuple[tuple[str, dict[str, str]], ...]:
    """Return the calls in a file: the function as it is written, and the source of its keyword arguments."""
    return tuple(
        (ast.unparse(node.func), {word.arg or "**": ast.unparse(word.value) for word in node.keywords})
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
    )
