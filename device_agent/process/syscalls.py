"""Constants of the Linux kernel's interface that the jail needs and Python does not define.

Sources: asm/unistd_64.h (x86-64), asm-generic/unistd.h (aarch64, riscv64), linux/{audit,landlock,prctl,seccomp}.h. The
interface is stable: a number never changes its meaning.
"""

from dataclasses import dataclass
from typing import Final

PR_SET_DUMPABLE: Final = 4
PR_GET_DUMPABLE: Final = 3
PR_SET_NO_NEW_PRIVS: Final = 38
PR_CAP_AMBIENT: Final = 47
PR_CAP_AMBIENT_CLEAR_ALL: Final = 4
CAPABILITY_VERSION_3: Final = 0x20080522
CLONE_NEWNET: Final = 0x40000000
CLONE_THREAD: Final = 0x00010000
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

SECCOMP_SET_MODE_FILTER: Final = 1
SECCOMP_FILTER_FLAG_TSYNC: Final = 1
SECCOMP_RET_KILL_PROCESS: Final = 0x80000000
SECCOMP_RET_ERRNO: Final = 0x00050000
SECCOMP_RET_ALLOW: Final = 0x7FFF0000
X32_BIT: Final = 0x40000000  # x86-64 kernels have a second table with the same calls, x32


@dataclass(frozen=True, slots=True)
class Architecture:
    """System call numbers of one processor architecture.

    Attributes:
        audit_arch: AUDIT_ARCH_*, as a seccomp filter sees it.
        seccomp, socket, clone, clone3: numbers of calls that the filter handles separately.
        denied_calls: numbers of calls that no worker needs: new programs, other processes' memory, kernel keys,
            mounts, namespaces, modules, clocks, and ways around a filter or a path (io_uring, file handles).
    """

    audit_arch: int
    seccomp: int
    socket: int
    clone: int
    clone3: int
    denied_calls: tuple[int, ...]


# open_tree … fsmount, pidfd_getfd, process_madvise, mount_setattr, io_uring_setup: the same on every processor
_COMMON_DENIED_CALLS: Final = (425, 428, 429, 430, 431, 432, 433, 438, 440, 442)
_GENERIC_DENIED_CALLS: Final = (
    *(221, 281, 117, 270, 271, 272),  # execve, execveat, ptrace, process_vm_readv, process_vm_writev, kcmp
    *(280, 241, 217, 218, 219),  # bpf, perf_event_open, add_key, request_key, keyctl
    *(40, 39, 41, 51, 97, 268),  # mount, umount2, pivot_root, chroot, unshare, setns
    *(104, 294, 105, 273, 106),  # kexec_load, kexec_file_load, init_module, finit_module, delete_module
    *(282, 264, 265),  # userfaultfd, name_to_handle_at, open_by_handle_at
    *(
        60,
        142,
        224,
        225,
        89,
        170,
        112,
        171,
        266,
        116,
        161,
    ),  # quotactl, reboot, swap*, acct, clocks, syslog, sethostname
    *_COMMON_DENIED_CALLS,
)
ARCHITECTURES: Final[dict[str, Architecture]] = {
    "x86_64": Architecture(
        audit_arch=0xC000003E,
        seccomp=317,
        socket=41,
        clone=56,
        clone3=435,
        denied_calls=(
            *(59, 322, 101, 310, 311, 312),  # execve, execveat, ptrace, process_vm_readv, process_vm_writev, kcmp
            *(57, 58),  # fork, vfork
            *(321, 298, 248, 249, 250),  # bpf, perf_event_open, add_key, request_key, keyctl
            *(165, 166, 155, 161, 272, 308),  # mount, umount2, pivot_root, chroot, unshare, setns
            *(246, 320, 175, 313, 176),  # kexec_load, kexec_file_load, init_module, finit_module, delete_module
            *(323, 303, 304),  # userfaultfd, name_to_handle_at, open_by_handle_at
            *(179, 169, 167, 168, 163, 164, 227, 159, 305, 103, 170, 172, 173),  # as below, and iopl, ioperm
            *_COMMON_DENIED_CALLS,
        ),
    ),
    "aarch64": Architecture(0xC00000B7, 277, 198, 220, 435, _GENERIC_DENIED_CALLS),
    "riscv64": Architecture(0xC00000F3, 277, 198, 220, 435, _GENERIC_DENIED_CALLS),
}
