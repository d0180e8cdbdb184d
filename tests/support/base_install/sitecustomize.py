"""Hide the packages of the extras from a Python that has this folder in PYTHONPATH."""

import sys
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import Any

HIDDEN = ("numpy", "onnxruntime", "ai_edge_litert", "uvicorn", "httptools", "pcodec", "zstandard", "onnx", "bsdiff4")
_find_spec = PathFinder.find_spec


def find_spec(name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
    return None if name.partition(".")[0] in HIDDEN else _find_spec(name, path, target)


setattr(PathFinder, "find_spec", find_spec)  # noqa: B010  # for this process only
_glob = Path.glob


def glob(self: Path, pattern: Any, **options: Any) -> Any:
    """Also hide the metadata of the packages; `pattern` can be a path since Python 3.13."""
    text = str(pattern)
    return iter(()) if text.endswith(".dist-info") and text.startswith(HIDDEN) else _glob(self, pattern, **options)


setattr(Path, "glob", glob)  # noqa: B010  # for this process only
assert not any(name in sys.modules for name in HIDDEN)
