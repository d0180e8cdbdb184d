"""One repository with two releases, made once by the command line, for the tests that only look at it."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest

from bundle.frames import Secret
from packager.repository.creation import create_repository_with_new_keys
from tests.support import tiny_models
from tests.support.packager_cli import CommandResult, packager

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
class Site:
    """A folder with `repo/`, `keys/`, three models and their release files; those named small-… are quickly made."""

    folder: Path

    def release(self, name: str, *words: object) -> CommandResult:
        """`packager release`, with this site's repository and keys."""
        keys = ("--keys", self.folder / "keys")
        return packager("release", self.folder / name, "--repo", self.folder / "repo", *keys, *words)

    def published(self, pattern: str) -> Path:
        """The one published file that matches."""
        (found,) = (self.folder / "repo" / "published").glob(pattern)
        return found


def make_site(folder: Path, *, encrypted: bool = False) -> Site:
    """Everything but releases; keys without encryption by default, since opening one takes a tenth of a second."""
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
    return Site(folder)


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    """With 1.0.0 and 1.1.0 released."""
    made = make_site(tmp_path_factory.mktemp("site"))
    for version in ("1.0.0", "1.1.0"):
        said = made.release(f"{version}.toml", "--json")
        assert said.code == 0, said.stderr
    return made
