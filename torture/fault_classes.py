"""The rows of the table: each is a class of faults, a list of points, and what was wrong after each.

Rules:
1. A row counts points that did something: a case whose process was meant to be killed and was not is not a point.
2. A row that cannot run here says why in `skipped`.
3. `limit` spreads a sample evenly over the points; None takes all.
"""

import fcntl
import os
import shutil
import struct
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from torture.case import CALLS, NEW, Site, boot_only, count_calls, endure, forked, look, spread, update
from torture.in_process import copy_device

ERRORS: Final = ("ENOSPC", "EIO", "EROFS")
EXT4_IOC_SHUTDOWN: Final = 0x8004587D  # linux/ext4.h
NO_LOG_FLUSH, LOG_FLUSH = 2, 1
IMAGE_BYTES: Final = 48 << 20
TMPFS_STEP_BYTES: Final = 4096
FUZZ_RUNS: Final = 20_000


@dataclass(slots=True)
class Row:
    """One row; `bad` is what was found wrong, by point."""

    name: str
    points: int = 0
    seconds: float = 0.0
    skipped: str = ""
    bad: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """For build/torture.json."""
        values = asdict(self)
        bad = values.pop("bad")
        return {"class": values.pop("name"), **values, "bad_end_states": len(bad), "examples": bad[:5]}


def killed(site: Site, limit: int | None, *, fails_live: bool = False, has_children: bool = False) -> Row:
    """The process that decides is killed when it makes a call for the N-th time: with all that its children do at that
    instant, or alone."""
    way = "probation to rollback" if fails_live else "poll to commit"
    row = Row(f"{'supervisor alone' if has_children else 'whole process tree'} killed at a system call, {way}")
    if (why := without_strace()) is not None:
        return replace(row, skipped=why)
    counts = count_calls(site, fails_live=fails_live, has_children=has_children)
    for call, number in spread(every(counts), limit):
        config = site.copy()
        tracer = inject(call, f"signal=KILL:when={number}")
        said = forked(config, update, fails_live=fails_live, has_children=has_children, tracer=tracer)
        if "killed" not in said:
            if "bad" in said:
                row.bad.append(f"{call} {number}: {said['bad']}")
            continue
        row.points += 1
        _note(row, f"{call} {number}", look(config, fails_live=fails_live))
    return row


def refused_calls(site: Site, limit: int | None, *, for_ever: bool) -> Row:
    """The system refuses a call with an error, once or from then on; the daemon serves when it begins."""
    row = Row(f"{', '.join(ERRORS)} at a system call, {'forever' if for_ever else 'once'}")
    if (why := without_strace()) is not None:
        return replace(row, skipped=why)
    counts = count_calls(site)
    points = [(f"{call}:{error}", n + 1) for call in CALLS for error in ERRORS for n in range(counts[call])]
    for point, number in spread(points, limit):
        call, error = point.split(":")
        config = site.copy()
        when = f"error={error}:when={number}{'+' if for_ever else ''}"
        said = forked(config, endure, tracer=inject(call, when), prepare=boot_only)
        row.points += 1
        if "bad" in said or "killed" in said:
            row.bad.append(f"{point} {number}: {said}")
        elif not for_ever and said["served"] != NEW:
            row.bad.append(f"{point} {number}: did not go on: {said}")
        else:
            _note(row, f"{point} {number}", look(config))
    return row


def power_cut(site: Site, limit: int | None, flag: int) -> Row:
    """Killed at a call, then the file system is cut off as by a loss of power, mounted again, and looked at."""
    row = Row(
        f"power cut on ext4, {'metadata flushed, data lost' if flag == LOG_FLUSH else 'nothing unsynced survives'}"
    )
    why = without_strace() or without_loop()
    if why is not None:
        return replace(row, skipped=why)
    counts = count_calls(site)
    points = spread(every(counts), limit)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        gold, image, mount = folder / "gold.img", folder / "case.img", folder / "mount"
        mount.mkdir()
        with gold.open("wb") as file:
            file.truncate(IMAGE_BYTES)
        subprocess.run(["mkfs.ext4", "-q", "-F", gold], check=True, capture_output=True)
        with _mounted(gold, mount):
            copy_device(site.device, mount / "case")
        config = mount / "case" / "config.toml"
        for call, number in points:
            shutil.copyfile(gold, image)
            with _mounted(image, mount):
                said = forked(config, update, tracer=inject(call, f"signal=KILL:when={number}"))
                fd = os.open(mount, os.O_RDONLY)
                fcntl.ioctl(fd, EXT4_IOC_SHUTDOWN, struct.pack("I", flag))
                os.close(fd)
            if "killed" not in said:
                continue
            row.points += 1
            with _mounted(image, mount):
                _note(row, f"{call} {number}", look(config))
    return row


def full_disk(site: Site, limit: int | None) -> Row:
    """A small tmpfs that fills at another place each time; then there is room again."""
    row = Row("a disk that fills during an update")
    if os.geteuid() != 0:
        return replace(row, skipped="only root can mount")
    with tempfile.TemporaryDirectory() as name:
        mount = Path(name)
        used = sum(-(-path.stat().st_size // 4096) * 4096 for path in site.device.rglob("*") if path.is_file())
        for step, _ in spread([(str(n), n) for n in range(2, 200)], limit):
            size = used + int(step) * TMPFS_STEP_BYTES
            with _tmpfs(mount, size + (256 << 10)):
                config = copy_device(site.device, mount / "case")
                filler = mount / "filler"
                facts = os.statvfs(mount)
                filler.write_bytes(bytes(max(0, facts.f_bavail * facts.f_frsize - int(step) * TMPFS_STEP_BYTES)))
                said = forked(config, endure, prepare=boot_only)
                row.points += 1
                if "bad" in said or "killed" in said:
                    row.bad.append(f"{step} blocks: {said}")
                filler.unlink()
                subprocess.run(["mount", "-o", "remount,size=64m", mount], check=True)
                _note(row, f"{step} blocks", look(config))
    return row


def bit_rot(site: Site, limit: int | None) -> Row:
    """A bit flips in each block of what a device keeps: store, journal, trust slots and cache."""
    row = Row("a bit flips in a block of the store, the journal or the trust memory")
    device = site.device / "device"
    kept = [path for path in sorted(device.rglob("*")) if path.is_file() and not path.is_symlink()]
    kept = [path for path in kept if path.parent.name != "identity" and path.name not in ("lock", "root.json")]
    kept += [device / "trust" / "cache" / "tuf" / "root_history" / "1.root.json"]
    points = [
        (str(path.relative_to(site.device)), offset)
        for path in dict.fromkeys(kept)
        for offset in range(0, max(1, path.stat().st_size), 512)
        if path.stat().st_size
    ]
    for name, offset in spread(points, limit):
        config = site.copy()
        path = config.parent / name
        data = bytearray(path.read_bytes())
        data[min(offset + offset // 512 % 512, len(data) - 1)] ^= 0x20
        path.write_bytes(data)
        row.points += 1
        _note(row, f"{name} {offset}", look_after_rot(config))
    return row


def look_after_rot(config: Path) -> str:
    """As `look`, but a store whose one bundle is damaged has nothing to serve until it is fetched again."""
    found = look(config)
    return "" if found.startswith("serves None") and not look(config) else found


def fuzzed_patches(limit: int | None) -> Row:
    """The patch decoder on changed patches whose checksums were mended."""
    from torture.fuzz_patch import fuzz

    row = Row("a changed patch with mended checksums")
    outcome = fuzz(limit or FUZZ_RUNS, seed=0)
    row.points = sum(outcome.values())
    return row


# what the rows work with


def inject(call: str, how: str) -> list[str]:
    """A strace command for one call."""
    return ["strace", "-o", "/dev/null", "-e", f"trace={call}", "-e", "signal=none", "-e", f"inject={call}:{how}"]


def without_strace() -> str | None:
    """Why system calls cannot be injected here, or None."""
    if shutil.which("strace") is None:
        return "strace is not installed"
    done = subprocess.run(["strace", "-o", "/dev/null", "true"], capture_output=True, check=False)
    return None if done.returncode == 0 else "this process may not trace another"


def without_loop() -> str | None:
    """Why there are no power cuts here, or None."""
    if os.geteuid() != 0:
        return "only root can mount"
    missing = [name for name in ("mkfs.ext4", "losetup", "mount") if shutil.which(name) is None]
    if missing:
        return f"{missing[0]} is not installed"
    done = subprocess.run(["losetup", "-f"], capture_output=True, check=False)
    return None if done.returncode == 0 else "there is no loop device"


def every(counts: dict[str, int]) -> list[tuple[str, int]]:
    """(call, number from 1) for each time that a call is made."""
    return [(call, number + 1) for call in CALLS for number in range(counts[call])]


def measured(act: Callable[[], Row]) -> Row:
    """The row with its seconds."""
    started = time.monotonic()
    row = act()
    row.seconds = round(time.monotonic() - started, 1)
    return row


def _note(row: Row, point: str, wrong: str) -> None:
    if wrong:
        row.bad.append(f"{point}: {wrong}")


@contextmanager
def _mounted(image: Path, mount: Path) -> Iterator[None]:
    # with auto_da_alloc, its default, ext4 hides a missing fsync
    done = subprocess.run(["losetup", "-f", "--show", image], check=True, capture_output=True, text=True)
    loop = done.stdout.strip()
    try:
        subprocess.run(["mount", "-o", "noauto_da_alloc", loop, mount], check=True)
        try:
            yield
        finally:
            subprocess.run(["umount", mount], check=True)
    finally:
        subprocess.run(["losetup", "-d", loop], check=True)


@contextmanager
def _tmpfs(mount: Path, size: int) -> Iterator[None]:
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", mount], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", mount], check=True)
