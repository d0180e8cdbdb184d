"""Namespaces of a worker: a network, IPC objects and a view of the file system of its own.

Rules:
1. Root enters the namespaces directly. Another user first enters a user namespace, in which only that user exists; this
   takes away all rights over anything outside. Some systems forbid it (user.max_user_namespaces, AppArmor).
2. The view of the file system is an empty, read-only tmpfs. It contains the policy's paths at their usual places, and
   `/proc/self/fd`, through which libraries open files that came as descriptors. Landlock restricts what can be opened;
   the view also hides which other files exist, their sizes and their owners. It makes folders reachable whose parents
   are closed to the worker's user.
3. Every step can fail without harm: then that restriction is missing, and the status says so.
"""

import contextlib
import ctypes
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

from device_agent.process import syscalls as sys_

# empty folders that every system has; what was there before is out of sight afterwards
MOUNT_POINTS: Final = ("/mnt", "/run", "/dev", "/sys")
VIEW_OPTIONS: Final = b"size=64k,nr_inodes=1024,mode=755"
OWN_DESCRIPTORS: Final = "/proc/self/fd"


class Namespaces(NamedTuple):
    """The namespaces that a worker has for itself.

    Attributes:
        user, network, ipc: it has its own.
        files: it sees only the files of its policy.
    """

    user: bool = False
    network: bool = False
    ipc: bool = False
    files: bool = False


def enter_namespaces(paths: Iterable[str], *, network: bool) -> Namespaces:
    """Enter the namespaces that the kernel and the user's rights allow.

    Args:
        paths: files and folders that stay visible, absolute; missing ones are ignored. With "/" all files do.
        network: whether to leave the network, too.
    """
    paths = tuple(paths)
    network_flag = sys_.CLONE_NEWNET if network else 0
    if os.geteuid() == 0:
        has_network = network and _unshare(sys_.CLONE_NEWNET)
        has_ipc = _unshare(sys_.CLONE_NEWIPC)
        return Namespaces(False, has_network, has_ipc, "/" not in paths and _unshare_files() and _hide_files(paths))
    uid, gid = os.geteuid(), os.getegid()
    if not _unshare(sys_.CLONE_NEWUSER | sys_.CLONE_NEWNS | sys_.CLONE_NEWIPC | network_flag):
        return Namespaces()
    with contextlib.suppress(OSError):  # without the maps, the worker's ids are unmapped; that is no loss
        Path("/proc/self/setgroups").write_text("deny", encoding="ascii")
        Path("/proc/self/uid_map").write_text(f"{uid} {uid} 1", encoding="ascii")
        Path("/proc/self/gid_map").write_text(f"{gid} {gid} 1", encoding="ascii")
    return Namespaces(True, network, True, "/" not in paths and _hide_files(paths))


def _unshare(flags: int) -> bool:
    return bool(sys_.LIBC.unshare(flags) == 0)


def _unshare_files() -> bool:
    return _unshare(sys_.CLONE_NEWNS)


def _hide_files(paths: tuple[str, ...]) -> bool:
    """Replace the root of the file system; return False, with the old one, if that is not allowed."""
    if not _mount(None, "/", sys_.MS_REC | sys_.MS_PRIVATE):
        return False
    flags = sys_.MS_NOSUID | sys_.MS_NODEV | sys_.MS_NOEXEC
    with contextlib.ExitStack() as stack:
        stack.callback(os.umask, os.umask(0o022))  # the worker becomes another user afterwards
        # opened before a mount point hides them
        sources = [source for path in (OWN_DESCRIPTORS, *paths) for source in _open_path(path, stack)]
        for base in MOUNT_POINTS:
            if Path(base).is_dir() and _mount("tmpfs", base, flags, b"tmpfs", VIEW_OPTIONS):
                break
        else:
            return False
        # the bytes of a path stay the same: symbolic links in it become folders
        done = all(_show(fd, path, base) for fd, path in sources) and _change_root(base)
        if not done:
            sys_.LIBC.umount2(os.fsencode(base), sys_.MNT_DETACH)
            return False
    return _mount(None, "/", sys_.MS_REMOUNT | sys_.MS_BIND | sys_.MS_RDONLY | flags)


def _open_path(path: str, stack: contextlib.ExitStack) -> Iterator[tuple[int, str]]:
    with contextlib.suppress(FileNotFoundError, NotADirectoryError, PermissionError):
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
        stack.callback(os.close, fd)
        yield fd, path


def _show(fd: int, path: str, base: str) -> bool:
    target = Path(base + path)
    try:
        if Path(f"{OWN_DESCRIPTORS}/{fd}").is_dir():
            target.mkdir(mode=0o755, parents=True, exist_ok=True)
        elif target.exists():  # it lies in a folder that is already there
            return True
        else:
            target.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            target.touch()
    except OSError:
        return False
    return _mount(f"{OWN_DESCRIPTORS}/{fd}", str(target), sys_.MS_BIND | sys_.MS_REC)


def _change_root(base: str) -> bool:
    os.chdir(base)
    number = sys_.ARCHITECTURES[os.uname().machine].pivot_root if os.uname().machine in sys_.ARCHITECTURES else -1
    # pivot_root(2): with the same folder twice, the old root lies on the new one and can be taken off
    done = number >= 0 and sys_.call(number, b".", b".") == 0 and sys_.LIBC.umount2(b".", sys_.MNT_DETACH) == 0
    os.chdir("/")
    return done


def _mount(source: str | None, target: str, flags: int, kind: bytes | None = None, data: bytes | None = None) -> bool:
    encoded = None if source is None else os.fsencode(source)
    return bool(sys_.LIBC.mount(encoded, os.fsencode(target), kind, ctypes.c_ulong(flags), data) == 0)
