"""A folder with a repository, its keys, three models and their release files, for tests of `packager release`."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from bundle.frames import Secret
from packager.repository.creation import create_repository_with_new_keys
from tests.support import tiny_models
from tests.support.packager_cli import CommandResult, run_packager

PASSPHRASE = "only for tests"

RELEASE = """
family = "kws"
version = "{version}"
channels = ["stable"]
model = "{model}"
inputs = "inputs.npz"
golden = 4
[[files]]
path = "labels.txt"
role = "labels"
[variants.fp32]
[variants.int8]
scheme = "int8"
[rollout]
percent = 10
"""


@dataclass(frozen=True, slots=True)
class ReleaseSite:
    """A folder with `repo/`, `keys/`, three models and their release files; those named small-… are fast to build."""

    folder: Path

    def release(self, name: str, *words: object) -> CommandResult:
        """Run `packager release` with this folder's repository and keys."""
        keys = ("--keys", self.folder / "keys")
        return run_packager("release", self.folder / name, "--repo", self.folder / "repo", *keys, *words)

    def published(self, pattern: str) -> Path:
        """Return the only published file that matches."""
        (found,) = (self.folder / "repo" / "published").glob(pattern)
        return found


def create_site(folder: Path, *, encrypted: bool = False) -> ReleaseSite:
    """Create the folder without releases; its keys are not encrypted by default, since opening one takes 0.1 s."""
    create_repository_with_new_keys(
        folder / "repo",
        folder / "keys",
        Secret(PASSPHRASE.encode()) if encrypted else None,
        families=["kws"],
        cohort="default",
        insecure_plaintext=not encrypted,
    )
    (folder / "labels.txt").write_text("a\nb\n")
    samples = np.random.default_rng(1).standard_normal((16, 1, 64)).astype(np.float32)
    np.savez(folder / "inputs.npz", x=samples)
    for seed, version in enumerate(("1.0.0", "1.1.0", "1.2.0")):
        onnx.save(tiny_models.mlp(seed), folder / f"{version}.onnx")
        text = RELEASE.format(version=version, model=f"{version}.onnx")
        (folder / f"{version}.toml").write_text(text)
        (folder / f"small-{version}.toml").write_text(
            text.replace('[variants.int8]\nscheme = "int8"\n', "").replace("golden = 4", "golden = 0")
        )
    return ReleaseSite(folder)
