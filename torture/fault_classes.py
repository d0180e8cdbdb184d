"""The rows of faults in one process: kills, failing system calls, power cuts, full disks, bit rot.

Rules:
1. A row counts only points at which the fault happened: a process that was not killed is not a point.
2. A row that cannot run on this machine says why in `skipped`.
3. `limit` takes a sample, spread evenly over the points; None takes all points.
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

from torture.case import (
    NEW,
    TRACED_CALLS,
    Site,
    check_after_restart,
    count_calls,
    retry_updates,
    run_in_fork,
    spread,
    start_only,
    update,
)
from torture.in_process import copy_device

ERRORS: Final = ("ENOSPC", "EIO", "EROFS")
EXT4_IOC_SHUTDOWN: Final = 0x8004587D  # linux/ext4.h
NO_LOG_FLUSH, LOG_FLUSH = 2, 1
IMAGE_BYTES: Final = 48 << 20
TMPFS_STEP_BYTES: Final = 4096


@dataclass(slots=True)
class Row:
    """One row of the table; `bad` lists the points that ended in a bad state, and why."""

    name: str
    points: int = 0
    seconds: float = 0.0
    skipped: str = ""
    bad: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """Return the row of build/torture.json."""
        values = asdict(self)
        bad = values.pop("bad")
        return {"class": values.pop("name"), **values, "bad_end_states": len(bad), "examples": bad[:5]}


def killed_row(site: Site, limit: int | None, *, fails_live: bool = False, has_real_workers: bool = False) -> Row:
    """Kill the agent at the N-th call of each kind: with its workers' handlers inside, or the supervisor alone."""
    way = "probation to rollback" if fails_live else "poll to commit"
    row = Row(f"{'supervisor alone' if has_real_workers else 'process tree'} killed at a system call, {way}")
    if (why := reason_without_strace()) is not None:
        return replace(row, skipped=why)
    counts = count_calls(site, fails_live=fails_live, has_real_workers=has_real_workers)
    for call, number in spread(all_points(counts), limit):
        config = site.copy()
        tracer = strace_command(call, f"signal=KILL:when={number}")
        result = run_in_fork(config, update, fails_live=fails_live, has_real_workers=has_real_workers, tracer=tracer)
        if "killed" not in result:
            if "bad" in result:
                row.bad.append(f"{call} {number}: {result['bad']}")
            continue
        row.points += 1
        _note(row, f"{call} {number}", check_after_restart(config, fails_live=fails_live))
    return row


def failing_calls_row(site: Site, limit: int | None, *, is_permanent: bool) -> Row:
    """Let a system call fail, once or from then on, in an agent that already serves."""
    row = Row(f"{', '.join(ERRORS)} at a system call, {'permanently' if is_permanent else 'once'}")
    if (why := reason_without_strace()) is not None:
        return replace(row, skipped=why)
    counts = count_calls(site)
    points = [(f"{call}:{error}", n + 1) for call in TRACED_CALLS for error in ERRORS for n in range(counts[call])]
    for point, number in spread(points, limit):
        call, error = point.split(":")
        config = site.copy()
        when = f"error={error}:when={number}{'+' if is_permanent else ''}"
        result = run_in_fork(config, retry_updates, tracer=strace_command(call, when), prepare=start_only)
        row.points += 1
        if "bad" in result or "killed" in result:
            row.bad.append(f"{point} {number}: {result}")
        elif not is_permanent and result["served"] != NEW:
            row.bad.append(f"{point} {number}: did not continue: {result}")
        else:
            _note(row, f"{point} {number}", check_after_restart(config))
    return row


def power_cut_row(site: Site, limit: int | None, flag: int) -> Row:
    """Kill the agent at a call, cut the file system off as a power loss does, mount it again, and check."""
    row = Row(f"power cut on ext4, {'metadata flushed, data lost' if flag == LOG_FLUSH else 'all unsynced data lost'}")
    why = reason_without_strace() or reason_without_loop_device()
    if why is not None:
        return replace(row, skipped=why)
    counts = count_calls(site)
    points = spread(all_points(counts), limit)
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
                result = run_in_fork(config, update, tracer=strace_command(call, f"signal=KILL:when={number}"))
                fd = os.open(mount, os.O_RDONLY)
                fcntl.ioctl(fd, EXT4_IOC_SHUTDOWN, struct.pack("I", flag))
                os.close(fd)
            if "killed" not in result:
                continue
            row.points += 1
            with _mounted(image, mount):
                _note(row, f"{call} {number}", check_after_restart(config))
    return row


def full_disk_row(site: Site, limit: int | None) -> Row:
    """Fill a small tmpfs at a different point each time, then make space again."""
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
                result = run_in_fork(config, retry_updates, prepare=start_only)
                row.points += 1
                if "bad" in result or "killed" in result:
                    row.bad.append(f"{step} blocks: {result}")
                filler.unlink()
                subprocess.run(["mount", "-o", "remount,size=64m", mount], check=True)
                _note(row, f"{step} blocks", check_after_restart(config))
    return row


def bit_rot_row(site: Site, limit: int | None) -> Row:
    """Flip a bit in each block of the store, the journal, the trust state and the metadata cache."""
    row = Row("a bit flips in a block of the store, the journal or the trust state")
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
        _note(row, f"{name} {offset}", check_after_bit_rot(config))
    return row


def check_after_bit_rot(config: Path) -> str:
    """As `look`, but a store whose one bundle is damaged has nothing to serve until it is fetched again."""
    found = check_after_restart(config)
    return "" if found.startswith("serves None") and not check_after_restart(config) else found


# helpers of the rows


def strace_command(call: str, how: str) -> list[str]:
    """Return an strace command that injects a fault into one system call."""
    return ["strace", "-o", "/dev/null", "-e", f"trace={call}", "-e", "signal=none", "-e", f"inject={call}:{how}"]


def reason_without_strace() -> str | None:
    """Return why faults cannot be injected into system calls on this machine, or None."""
    if shutil.which("strace") is None:
        return "strace is not installed"
    done = subprocess.run(["strace", "-o", "/dev/null", "true"], capture_output=True, check=False)
    return None if done.returncode == 0 else "this process may not trace others"


def reason_without_loop_device() -> str | None:
    """Return why power cuts cannot be simulated on this machine, or None."""
    if os.geteuid() != 0:
        return "only root can mount"
    missing = [name for name in ("mkfs.ext4", "losetup", "mount") if shutil.which(name) is None]
    if missing:
        return f"{missing[0]} is not installed"
    done = subprocess.run(["losetup", "-f"], capture_output=True, check=False)
    return None if done.returncode == 0 else "there is no loop device"


def all_points(counts: dict[str, int]) -> list[tuple[str, int]]:
    """Return (call, number from 1) for each time that a call is made."""
    return [(call, number + 1) for call in TRACED_CALLS for number in range(counts[call])]


def timed(act: Callable[[], Row]) -> Row:
    """Run a row and record its duration."""
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
