"""No file on the device contains a decrypted model, after an update or during one."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.endpoint_client import infer
from tests.support.plaintext_search import WINDOW_BYTES, contains_any, distinctive_windows
from tests.support.publisher import DeviceUnderTest, Publisher, similar_model


def list_files(*folders: Path) -> Iterator[Path]:
    """Yield regular files, also hidden ones; skip those that disappear meanwhile."""
    for folder in folders:
        for path in folder.rglob("*"):
            if path.is_file() and not path.is_symlink():
                yield path


@pytest.fixture
def windows() -> set[bytes]:
    found = set().union(*(distinctive_windows(similar_model(seed).SerializeToString()) for seed in (0, 1)))
    assert len(found) > 100
    return found


def test_no_file_of_the_device_or_of_the_temporary_folder_holds_a_piece_of_the_model(
    installed: DeviceUnderTest, publisher: Publisher, windows: set[bytes], tmp_path: Path
) -> None:
    scratch = tmp_path / "tmp"
    scratch.mkdir()
    publisher.offer("1.1.0")
    installed.start(environment={"TMPDIR": str(scratch)})
    assert installed.call("update")["outcome"] == "updated"
    assert infer(installed)["model_version"] == "1.1.0"
    searched = list(list_files(installed.directory.root, scratch))
    assert len(searched) > 10
    assert [path for path in searched if contains_any(path.read_bytes(), windows)] == []


def test_a_planted_piece_is_found(windows: set[bytes], tmp_path: Path) -> None:
    model = similar_model(0).SerializeToString()
    piece = model[len(model) // 2 : len(model) // 2 + 3 * WINDOW_BYTES]
    (tmp_path / "planted").write_bytes(os.urandom(1001) + piece + os.urandom(77))
    assert [path.name for path in list_files(tmp_path) if contains_any(path.read_bytes(), windows)] == ["planted"]


def test_no_model_process_leaves_a_core(installed: DeviceUnderTest) -> None:
    installed.start()
    pid = installed.call("status")["serving"]["pid"]
    limits = Path(f"/proc/{pid}/limits").read_text()
    (core,) = (line for line in limits.splitlines() if line.startswith("Max core file size"))
    assert core.split()[4:6] == ["0", "0"]
