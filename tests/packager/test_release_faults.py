"""A release that fails at any write leaves the published files unchanged, and the next attempt completes."""

import errno
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import pytest

from bundle.envelope import check_commitment
from keys.signers import load_folder_signers
from packager.errors import PublishConflict
from packager.release.pipeline import run_release
from packager.release.release_file import parse_release_file
from packager.repository.creation import create_repository_with_new_keys
from packager.repository.repository import Repository
from packager.repository.workspace import Workspace
from tests.support import tiny_models
from tests.support.packager_cli import read_all_files

RELEASE = """
family = "kws"
version = "1.0.0"
channels = ["stable"]
model = "model.onnx"
inputs = "inputs.npz"
golden = 0
[variants.fp32]
[rollout]
"""

WRITES = ("put_blob", "put_shard", "stage_manifest", "stage_rollout", "sign", "publish")


class FaultyRepository:
    """A repository whose n-th write fails, either before or after the write."""

    def __init__(self, real: Repository, number: int, *, is_done_first: bool) -> None:
        self._real, self._left, self._is_done_first = real, number, is_done_first
        self.failed = ""

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._real, name)
        if name not in WRITES:
            return found

        def write(*arguments: object) -> object:
            self._left -= 1
            if self._left:
                return found(*arguments)
            self.failed = name
            if self._is_done_first:
                found(*arguments)
            raise OSError(errno.ENOSPC, "No space left on device")

        return write


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    """Return a repository with unencrypted keys beside it."""
    onnx.save(tiny_models.mlp(), tmp_path / "model.onnx")
    np.savez(tmp_path / "inputs.npz", x=np.ones((1, 1, 64), np.float32))
    (tmp_path / "release.toml").write_text(RELEASE)
    return create_repository_with_new_keys(
        tmp_path / "repo", tmp_path / "keys", None, families=["kws"], cohort="default", insecure_plaintext=True
    )


@pytest.mark.parametrize("is_done_first", [False, True], ids=["before", "after"])
def test_every_write_may_fail(repository: Repository, tmp_path: Path, is_done_first: bool) -> None:
    plan = parse_release_file(tmp_path / "release.toml")
    signers = load_folder_signers(tmp_path / "keys", None)
    before = read_all_files(repository.published / "metadata")
    number = 0
    while True:
        number += 1
        faulty = FaultyRepository(repository, number, is_done_first=is_done_first)
        try:
            report = run_release(plan, cast(Repository, faulty), signers)
        except OSError:
            if is_done_first and faulty.failed == "publish":
                break  # it was published before the fault: a release of that version is out
            assert read_all_files(repository.published / "metadata") == before
            assert repository.is_staging_empty
            assert not list((repository.root / "private").glob(".building-*"))
        else:
            assert report.is_published
            break
    assert number >= len(WRITES)
    released = repository.manifest("kws", "1.0.0")
    assert released is not None
    assert repository.releases("kws") == (released,)


def test_an_interrupt_in_the_middle_leaves_nothing_staged(repository: Repository, tmp_path: Path) -> None:
    class Interrupted(FaultyRepository):
        def __getattr__(self, name: str) -> Any:
            if name == "sign":
                raise KeyboardInterrupt
            return super().__getattr__(name)

    before = read_all_files(repository.published / "metadata")
    interrupted = cast(Repository, Interrupted(repository, 100, is_done_first=False))
    with pytest.raises(KeyboardInterrupt):
        run_release(parse_release_file(tmp_path / "release.toml"), interrupted, [])
    assert read_all_files(repository.published / "metadata") == before
    assert repository.is_staging_empty


def test_what_somebody_else_had_staged_is_not_thrown_away(repository: Repository, tmp_path: Path) -> None:
    repository.stage_fleet(replace(repository.fleet(), devices=7))
    faulty = FaultyRepository(repository, 3, is_done_first=True)
    with pytest.raises(OSError, match="No space"):
        run_release(parse_release_file(tmp_path / "release.toml"), cast(Repository, faulty), [])
    assert not repository.is_staging_empty


def test_of_two_releases_at_once_the_second_is_told_and_changes_nothing(repository: Repository, tmp_path: Path) -> None:
    plan, signers = parse_release_file(tmp_path / "release.toml"), load_folder_signers(tmp_path / "keys", None)

    class Overtaken(FaultyRepository):
        """A repository with a second release that starts while the first one stores its blob."""

        def __getattr__(self, name: str) -> Any:
            if name == "put_blob":
                with pytest.raises(PublishConflict, match="another process is creating a release"):
                    run_release(plan, self._real, signers)
                run_release(plan, self._real, signers, until="diff")  # a dry run is in nobody's way
            return super().__getattr__(name)

    report = run_release(plan, cast(Repository, Overtaken(repository, -1, is_done_first=False)), signers)
    assert report.is_published
    stored = Workspace(repository.root).find_variant("kws", report.counter, "fp32")
    assert stored is not None
    assert report.manifest is not None
    check_commitment(stored.content_key, report.manifest.variants[0][1].key_commitment)
