"""Measure the peak memory of applying patches: `python -m tests.support.patch_peak FOLDER`, or `measure`.

FOLDER has `base/` and patches `*.patch`. Prints a JSON object: name → [reason or null, peak bytes above the start].
"""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

from bundle.errors import PatchRefused
from bundle.patch.apply import apply_patch
from tests.support.memory_bundles import MemoryBase, MemoryTarget


class _HashingTarget(MemoryTarget):
    """A target that keeps no bytes."""

    def write(self, data: bytes | memoryview) -> None:
        hashlib.sha256(data)

    def pread(self, _index: int, _offset: int, length: int) -> bytes:
        return bytes(length)


def measure(folder: Path, base: dict[str, bytes], patches: dict[str, bytes]) -> dict[str, tuple[str | None, int]]:
    """Apply each patch in another process and return (reason or None, peak bytes above the start) by name.

    Args:
        folder: an empty folder for the files.
        base: files of the base bundle.
        patches: patches by name.
    """
    (folder / "base").mkdir(parents=True)
    for name, data in base.items():
        (folder / "base" / name).write_bytes(data)
    for name, data in patches.items():
        (folder / f"{name}.patch").write_bytes(data)
    words = [sys.executable, "-m", "tests.support.patch_peak", str(folder)]
    found = json.loads(subprocess.run(words, check=True, capture_output=True, text=True).stdout)
    return {name: (reason, peak) for name, (reason, peak) in found.items()}


def _status_bytes(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(field))


def _apply_all(folder: Path) -> dict[str, tuple[str | None, int]]:
    import pcodec  # noqa: F401  # before the measurement, like the patcher

    base = MemoryBase({path.name: path.read_bytes() for path in (folder / "base").iterdir()})
    found: dict[str, tuple[str | None, int]] = {}
    for path in sorted(folder.glob("*.patch")):
        Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
        before, reason = _status_bytes("VmRSS"), None
        with path.open("rb") as stream:
            try:
                apply_patch(stream, base, _HashingTarget())
            except PatchRefused as error:
                reason = error.reason
        found[path.stem] = (reason, _status_bytes("VmHWM") - before)
    return found


if __name__ == "__main__":
    print(json.dumps(_apply_all(Path(sys.argv[1]))))
