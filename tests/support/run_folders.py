"""Folders that one process of a test run builds and all of them use: a release takes seconds of processor time.

1. A folder is built once, under a lock, and never changed afterwards: tests copy it.
2. Without pytest (`set_run_folder` was not called), nothing is kept.
"""

import fcntl
import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

_run_folder: Path | None = None


def set_run_folder(factory: pytest.TempPathFactory) -> Path:
    """Keep shared folders in the temporary folder of the run, which is above those of pytest-xdist's processes."""
    global _run_folder
    base = factory.getbasetemp()
    _run_folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "shared"
    _run_folder.mkdir(exist_ok=True)
    return _run_folder


def build_once(run_folder: Path, name: str, build: Callable[[Path], object]) -> Path:
    """Return the folder `name`, which `build` has filled in one process of the run.

    Args:
        run_folder: of `set_run_folder`.
        name: a file name.
        build: gets the new, empty folder.
    """
    folder, done = run_folder / name, run_folder / f"{name}.done"
    with (run_folder / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            shutil.rmtree(folder, ignore_errors=True)  # of a build that failed
            folder.mkdir()
            build(folder)
            done.touch()
    return folder


def change_once(folder: Path, change: Callable[[], object]) -> bool:
    """Change a folder; where a folder of the same content was changed in this run, copy the result.

    Args:
        folder: to change.
        change: changes the folder, and depends on nothing but its content.

    Returns:
        Whether the result was copied, and `change` not called.
    """
    if _run_folder is None:
        change()
        return False
    is_changed = False

    def build(place: Path) -> None:
        nonlocal is_changed
        change()
        is_changed = True
        shutil.copytree(folder, place, symlinks=True, dirs_exist_ok=True)

    place = build_once(_run_folder, f"change-{_digest(folder)}", build)
    if not is_changed:
        _replace_content(folder, place)
    return not is_changed


def _digest(folder: Path) -> str:
    """Return a digest of the names, the modes and the content of all files."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        content = str(path.readlink()).encode() if path.is_symlink() else path.read_bytes() if path.is_file() else b""
        digest.update(f"{path.relative_to(folder)}\0{path.lstat().st_mode}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()[:32]


def _replace_content(folder: Path, new: Path) -> None:
    """Make a folder equal to another; the timestamp, which names all else to a device, comes last."""
    found = sorted(new.rglob("*"), key=lambda path: ("timestamp" in path.name, path))
    for path in found:
        target = folder / path.relative_to(new)
        if path.is_dir() and not path.is_symlink():
            target.mkdir(exist_ok=True)
            shutil.copystat(path, target)
        else:
            copy = target.with_name(f".{target.name}.copy")
            shutil.copy2(path, copy, follow_symlinks=False)
            copy.replace(target)
    kept = {path.relative_to(new) for path in found}
    for path in sorted(folder.rglob("*"), reverse=True):
        if path.relative_to(folder) not in kept:
            path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
