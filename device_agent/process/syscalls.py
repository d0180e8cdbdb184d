"""System calls, and constants of the Linux kernel's interface that Python does not define.

Sources: asm/unistd_64.h (x86-64), asm-generic/unistd.h (aarch64, riscv64), linux/{audit,landlock,prctl,seccomp}.h. The
interface is stable: a number never changes its meaning.
"""

import ctypes
from dataclasses import dataclass
from typing import Final

PR_SET_DUMPABLE: Final = 4
PR_GET_DUMPABLE: Final = 3
PR_SET_NO_NEW_PRIVS: Final = 38
PR_CAP_AMBIENT: Final = 47
PR_CAP_AMBIENT_CLEAR_ALL: Final = 4
CAPABILITY_VERSION_3: Final = 0x20080522
PR_SET_KEEPCAPS: Final = 8
CAP_DAC_OVERRIDE: Final = 1
CAP_DAC_READ_SEARCH: Final = 2
CLONE_NEWNS: Final = 0x00020000
CLONE_NEWIPC: Final = 0x08000000
CLONE_NEWUSER: Final = 0x10000000
CLONE_NEWNET: Final = 0x40000000
MS_RDONLY: Final = 1
MS_NOSUID: Final = 2
MS_NODEV: Final = 4
MS_NOEXEC: Final = 8
MS_REMOUNT: Final = 32
MS_BIND: Final = 0x1000
MS_REC: Final = 0x4000
MS_PRIVATE: Final = 1 << 18
MNT_DETACH: Final = 2
LANDLOCK_CREATE_RULESET: Final = 444
LANDLOCK_ADD_RULE: Final = 445
LANDLOCK_RESTRICT_SELF: Final = 446
LANDLOCK_CREATE_RULESET_VERSION: Final = 1
LANDLOCK_RULE_PATH_BENEATH: Final = 1
LANDLOCK_ACCESS_NET_TCP: Final = 0b11  # bind, connect
LANDLOCK_SCOPE_FLAGS: Final = 0b11  # abstract Unix sockets, signals

WRITE_FILE: Final = 1 << 1
READ_FILE: Final = 1 << 2
READ_DIR: Final = 1 << 3
REMOVE_DIR: Final = 1 << 4
REMOVE_FILE: Final = 1 << 5
MAKE_DIR: Final = 1 << 7
MAKE_REG: Final = 1 << 8
MAKE_SYM: Final = 1 << 12
REFER: Final = 1 << 13
TRUNCATE: Final = 1 << 14
IOCTL_DEV: Final = 1 << 15

SECCOMP_SET_MODE_FILTER: Final = 1
SECCOMP_FILTER_FLAG_TSYNC: Final = 1
SECCOMP_RET_ERRNO: Final = 0x00050000
SECCOMP_RET_ALLOW: Final = 0x7FFF0000


@dataclass(frozen=True, slots=True)
class Architecture:
    """Numbers that a filter and its installation need of a processor architecture.

    Attributes:
        audit_arch: AUDIT_ARCH_*, as a seccomp filter sees it.
        seccomp, pivot_root: numbers of these calls, for which the C library has no function.
    """

    audit_arch: int
    seccomp: int
    pivot_root: int


ARCHITECTURES: Final[dict[str, Architecture]] = {
    "x86_64": Architecture(audit_arch=0xC000003E, seccomp=317, pivot_root=155),
    "aarch64": Architecture(audit_arch=0xC00000B7, seccomp=277, pivot_root=41),
    "riscv64": Architecture(audit_arch=0xC00000F3, seccomp=277, pivot_root=41),
}
LIBC: Final = ctypes.CDLL(None, use_errno=True)
LIBC.syscall.restype = ctypes.c_long


def call(number: int, *arguments: int | bytes | None) -> int:
    """Make a system call; return its result, or -1 with the error in ctypes.get_errno().

    Args:
        number: of the call.
        arguments: integers of at most 64 bits, or buffers.
    """
    # ctypes passes a bare int as 32 bits
    wide = [ctypes.c_long(item) if isinstance(item, int) else item for item in arguments]
    return int(LIBC.syscall(ctypes.c_long(number), *wide))
