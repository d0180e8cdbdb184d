"""Landlock: a thread can open only the files below paths that it names (landlock(7)).

It restricts the calling thread and the threads that it starts later. A memfd lies on no file system and can still be
opened. Each version of the interface adds rights; a call fails if it names one that the kernel does not know.
"""

import ctypes
import os
import struct
from collections.abc import Iterable
from pathlib import Path

from device_agent.process import syscalls as sys_


def landlock_abi() -> int:
    """Return the version of the kernel's interface, or 0 if there is none."""
    abi = sys_.call(sys_.LANDLOCK_CREATE_RULESET, None, 0, sys_.LANDLOCK_CREATE_RULESET_VERSION)
    return max(abi, 0)


def restrict_files(
    abi: int, read: Iterable[str], write: Iterable[str], devices: Iterable[str], *, forbids_tcp: bool
) -> int:
    """Close all other files to this thread, and return the version that is in force, or 0.

    Args:
        abi: version of the interface to use; 0 for none.
        read: paths below which files can be read.
        write: paths below which files can be changed.
        devices: device nodes that can be read, written and controlled.
        forbids_tcp: no TCP connection, as far as the version allows that.

    Raises:
        OSError: a rule is refused.
    """
    if not abi:
        return 0
    handled = (1 << {1: 13, 2: 14, 3: 15, 4: 15}.get(abi, 16)) - 1
    net = sys_.LANDLOCK_ACCESS_NET_TCP if abi >= 4 and forbids_tcp else 0
    scopes = sys_.LANDLOCK_SCOPE_FLAGS if abi >= 6 else 0
    size = 8 if abi < 4 else 16 if abi < 6 else 24
    attributes = struct.pack("=QQQ", handled, net, scopes)[:size]
    ruleset = sys_.call(sys_.LANDLOCK_CREATE_RULESET, attributes, size, 0)
    if ruleset < 0:
        return 0
    try:
        readable = sys_.READ_FILE | sys_.READ_DIR
        writable = readable | sys_.WRITE_FILE | sys_.REMOVE_DIR | sys_.REMOVE_FILE | sys_.MAKE_DIR | sys_.MAKE_REG
        writable |= sys_.MAKE_SYM  # python-tuf names the newest root of its cache by a link
        writable = (writable | sys_.REFER | sys_.TRUNCATE) & handled
        controllable = (sys_.READ_FILE | sys_.WRITE_FILE | sys_.IOCTL_DEV) & handled
        for paths, rights in ((read, readable), (write, writable), (devices, controllable)):
            for path in paths:
                _allow_path(ruleset, path, rights)
        return abi if sys_.call(sys_.LANDLOCK_RESTRICT_SELF, ruleset, 0) == 0 else 0
    finally:
        os.close(ruleset)


def _allow_path(ruleset: int, path: str, rights: int) -> None:
    try:
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        if not Path(path).is_dir():
            rights &= sys_.READ_FILE | sys_.WRITE_FILE | sys_.TRUNCATE | sys_.IOCTL_DEV
        rule = struct.pack("=Qi", rights, fd)
        if sys_.call(sys_.LANDLOCK_ADD_RULE, ruleset, sys_.LANDLOCK_RULE_PATH_BENEATH, rule, 0):
            raise OSError(ctypes.get_errno(), f"Landlock rule for {path}")
    finally:
        os.close(fd)
