"""The restrictions that a worker puts on itself before it reads untrusted bytes.

Each worker calls `enter_jail` after its imports. The steps, in this order; each works without the others:
1. Resource limits: no core dump; the policy's limits on memory, processor time, file size and open files; the
   preference of the out-of-memory killer; and locked memory, if the policy asks for it and the kernel allows it.
2. As root: a network namespace of its own (unless the policy allows "inet" sockets), and a user id that no other
   process has. As any user: no capabilities, including those that a service manager granted.
3. `PR_SET_DUMPABLE` 0: another process of the same user cannot read this worker's memory or descriptors. Opening one's
   own `/proc/self/fd/N` still works. This comes after step 2, because a change of user resets it.
4. `PR_SET_NO_NEW_PRIVS`.
5. Landlock: only files below the policy's paths can be opened. A memfd lies on no file system and can still be opened.
6. seccomp: no sockets other than the policy's, no new process or program, no access to other processes' memory, and no
   kernel interface that workers have no use for.
A worker is confined if seccomp is in force and files are closed to it, by Landlock or by a user id of its own. If it
is not confined, `enter_jail` raises, unless the policy sets `allow_unjailed`; the status then says so.

Landlock restricts the calling thread and the threads that it starts later. So `enter_jail` must be called before any
thread is started.
"""

import contextlib
import ctypes
import errno
import os
import resource
import struct
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

from device_agent.errors import JailUnavailable
from device_agent.process import syscalls as sys_
from device_agent.process.memory_lock import lock_memory

SOCKET_KINDS: Final = ("none", "unix", "inet")
MAX_OPEN_FILES: Final = 1024
EXPENDABLE_OOM_SCORE: Final = "1000"  # proc(5): the maximum
# first id that no one assigns (systemd documentation, "UIDS-GIDS"); adding the process id makes it unique
FIRST_WORKER_UID: Final = 1_879_048_192
# systemd's range for dynamic users, if a container maps only 65,536 ids
FALLBACK_UID_RANGE: Final = range(61_184, 65_520)


@dataclass(frozen=True, slots=True)
class JailPolicy:
    """Permissions and limits of a worker.

    Attributes:
        sockets: "none", "unix" (AF_UNIX only) or "inet" (all).
        read, write: files and folders that it can read, or also write. Missing ones are ignored.
        own_user: if the daemon is root, become a user that no other process has. False for workers that write the
            device's files.
        memory_bytes: RLIMIT_AS, or None.
        cpu_s: RLIMIT_CPU in seconds, or None.
        file_bytes: RLIMIT_FSIZE, or None; it limits memfds too.
        open_files: RLIMIT_NOFILE.
        nice: added to the niceness before the worker's imports.
        expendable: if memory runs out, the system ends this worker before any other process.
        lock_memory: keep its memory out of swap, if that is allowed (device_agent.process.memory_lock).
        is_paced: pause between the steps of its imports (device_agent.process.throttle).
        allow_unjailed: continue even if the kernel cannot confine the worker.
    """

    sockets: str = "none"
    read: tuple[str, ...] = ()
    write: tuple[str, ...] = ()
    own_user: bool = True
    memory_bytes: int | None = None
    cpu_s: int | None = None
    file_bytes: int | None = None
    open_files: int = MAX_OPEN_FILES
    nice: int = 0
    expendable: bool = False
    lock_memory: bool = False
    is_paced: bool = False
    allow_unjailed: bool = False

    def as_json(self) -> dict[str, Any]:
        """Return the policy as the worker's first message."""
        return asdict(self)

    @classmethod
    def parse(cls, value: Mapping[str, Any]) -> "JailPolicy":
        """Parse the inverse of `as_json`. The supervisor is trusted."""
        return cls(**{**value, "read": tuple(value["read"]), "write": tuple(value["write"])})


@dataclass(frozen=True, slots=True)
class JailStatus:
    """The restrictions that are in force in a worker.

    Attributes:
        own_uid: the user id that it changed to, or None.
        landlock_abi: version of the kernel's Landlock interface; 0 if there is none.
        seccomp: the filter is installed.
        network_namespace: it has an empty network of its own.
        undumpable: PR_SET_DUMPABLE is 0.
        threads: number of threads when the jail closed; Landlock restricts only the calling one.
        memory_locked: none of its memory can be swapped out.
    """

    own_uid: int | None = None
    landlock_abi: int = 0
    seccomp: bool = False
    network_namespace: bool = False
    undumpable: bool = False
    threads: int = 1
    memory_locked: bool = False

    @property
    def is_confined(self) -> bool:
        """True if files and system calls are closed to the worker."""
        return self.seccomp and (self.own_uid is not None or (self.landlock_abi > 0 and self.threads == 1))

    def as_json(self) -> dict[str, Any]:
        """Return the status as the worker's first reply and for `status`."""
        return {**asdict(self), "confined": self.is_confined}

    @classmethod
    def parse(cls, value: Mapping[str, Any]) -> "JailStatus":
        """Parse the inverse of `as_json`."""
        return cls(**{key: item for key, item in value.items() if key != "confined"})


def detect_jail() -> JailStatus:
    """Return the status that the strictest policy would give on this machine; change nothing."""
    return JailStatus(
        own_uid=_choose_free_uid() if os.geteuid() == 0 else None,
        landlock_abi=_landlock_abi(),
        seccomp=_is_seccomp_offered(),
        network_namespace=os.geteuid() == 0,
        undumpable=True,
    )


def enter_jail(policy: JailPolicy) -> JailStatus:
    """Apply the policy to this process, irrevocably.

    Raises:
        JailUnavailable: this process would not be confined, and the policy does not allow that.
    """
    _set_limits(policy)
    status = JailStatus(threads=sum(1 for _ in Path("/proc/self/task").iterdir()))
    if policy.lock_memory:
        status = replace(status, memory_locked=lock_memory())
    if os.geteuid() == 0:
        if policy.sockets != "inet":
            status = replace(status, network_namespace=_LIBC.unshare(sys_.CLONE_NEWNET) == 0)
        if policy.own_user:
            status = replace(status, own_uid=_become_own_user())
    _drop_capabilities()
    status = replace(status, undumpable=_prctl(sys_.PR_SET_DUMPABLE, 0) and _LIBC.prctl(sys_.PR_GET_DUMPABLE) == 0)
    if _prctl(sys_.PR_SET_NO_NEW_PRIVS, 1):
        status = replace(status, landlock_abi=_restrict_files(policy), seccomp=_install_filter(policy))
    if not status.is_confined and not policy.allow_unjailed:
        raise JailUnavailable(
            f"a worker cannot be confined on this machine (seccomp {'yes' if status.seccomp else 'no'}, Landlock "
            f"{status.landlock_abi or 'no'}, {status.threads} threads, own user {status.own_uid or 'no'})",
            hint="run on a kernel with Landlock (5.13 or later) and seccomp, or start as root, or set allow_unjailed",
        )
    return status


_LIBC: Final = ctypes.CDLL(None, use_errno=True)
_LIBC.syscall.restype = ctypes.c_long


def _syscall(number: int, *arguments: int | bytes | None) -> int:
    # ctypes passes a bare int as 32 bits
    wide = [ctypes.c_long(item) if isinstance(item, int) else item for item in arguments]
    return int(_LIBC.syscall(ctypes.c_long(number), *wide))


def _prctl(option: int, value: int) -> bool:
    return bool(_LIBC.prctl(option, value, 0, 0, 0) == 0)


def _set_limits(policy: JailPolicy) -> None:
    def lower(which: int, value: int) -> None:
        _, hard = resource.getrlimit(which)
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(which, (value, value))

    lower(resource.RLIMIT_CORE, 0)
    lower(resource.RLIMIT_NOFILE, policy.open_files)
    if policy.memory_bytes is not None:
        lower(resource.RLIMIT_AS, policy.memory_bytes)
    if policy.cpu_s is not None:
        lower(resource.RLIMIT_CPU, policy.cpu_s)
    if policy.file_bytes is not None:
        lower(resource.RLIMIT_FSIZE, policy.file_bytes)
    if policy.expendable:
        with contextlib.suppress(OSError):  # no /proc
            Path("/proc/self/oom_score_adj").write_text(EXPENDABLE_OOM_SCORE)


def _choose_free_uid() -> int | None:
    mapped: int = 0
    for line in Path("/proc/self/uid_map").read_text().splitlines():
        inside, _, length = (int(field) for field in line.split())
        mapped = max(mapped, inside + length)
    if mapped > FIRST_WORKER_UID + os.getpid():
        return FIRST_WORKER_UID + os.getpid()
    taken = {path.stat().st_uid for path in Path("/proc").glob("[0-9]*") if path.exists()}
    start = os.getpid() % len(FALLBACK_UID_RANGE)
    candidates = (*FALLBACK_UID_RANGE[start:], *FALLBACK_UID_RANGE[:start])
    return next((uid for uid in candidates if uid not in taken and uid < mapped), None)


def _become_own_user() -> int | None:
    uid = _choose_free_uid()
    if uid is None:
        return None
    try:
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
    except PermissionError:  # root of a container without CAP_SETUID
        return None
    return uid


def _drop_capabilities() -> None:
    _LIBC.prctl(sys_.PR_CAP_AMBIENT, sys_.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
    # effective, permitted and inheritable sets, twice 32 bits each
    _LIBC.capset(struct.pack("=Ii", sys_.CAPABILITY_VERSION_3, 0), bytes(24))


def _landlock_abi() -> int:
    abi = _syscall(sys_.LANDLOCK_CREATE_RULESET, None, 0, sys_.LANDLOCK_CREATE_RULESET_VERSION)
    return max(abi, 0)


def _restrict_files(policy: JailPolicy) -> int:
    abi = _landlock_abi()
    if not abi:
        return 0
    # each version of the interface adds rights; the call fails if it names one that the kernel does not know
    handled = (1 << {1: 13, 2: 14, 3: 15, 4: 15}.get(abi, 16)) - 1
    net = sys_.LANDLOCK_ACCESS_NET_TCP if abi >= 4 and policy.sockets != "inet" else 0
    scopes = sys_.LANDLOCK_SCOPE_FLAGS if abi >= 6 else 0
    size = 8 if abi < 4 else 16 if abi < 6 else 24
    attributes = struct.pack("=QQQ", handled, net, scopes)[:size]
    ruleset = _syscall(sys_.LANDLOCK_CREATE_RULESET, attributes, size, 0)
    if ruleset < 0:
        return 0
    try:
        readable = sys_.READ_FILE | sys_.READ_DIR
        writable = readable | sys_.WRITE_FILE | sys_.REMOVE_DIR | sys_.REMOVE_FILE | sys_.MAKE_DIR | sys_.MAKE_REG
        writable |= sys_.MAKE_SYM  # python-tuf names the newest root of its cache by a link
        writable = (writable | sys_.REFER | sys_.TRUNCATE) & handled
        for paths, rights in ((policy.read, readable), (policy.write, writable)):
            for path in paths:
                _allow_path(ruleset, path, rights)
        return abi if _syscall(sys_.LANDLOCK_RESTRICT_SELF, ruleset, 0) == 0 else 0
    finally:
        os.close(ruleset)


def _allow_path(ruleset: int, path: str, rights: int) -> None:
    try:
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        if not Path(path).is_dir():
            rights &= sys_.READ_FILE | sys_.WRITE_FILE | sys_.TRUNCATE
        rule = struct.pack("=Qi", rights, fd)
        if _syscall(sys_.LANDLOCK_ADD_RULE, ruleset, sys_.LANDLOCK_RULE_PATH_BENEATH, rule, 0):
            raise OSError(ctypes.get_errno(), f"Landlock rule for {path}")
    finally:
        os.close(fd)


def _is_seccomp_offered() -> bool:
    return os.uname().machine in sys_.ARCHITECTURES and "Seccomp:" in Path("/proc/self/status").read_text()


def _install_filter(policy: JailPolicy) -> bool:
    arch = sys_.ARCHITECTURES.get(os.uname().machine)
    if arch is None or struct.calcsize("P") != 8:
        return False
    program = _seccomp_program(arch, policy.sockets)
    code = ctypes.create_string_buffer(program, len(program))
    fprog = struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(code))
    result = _syscall(arch.seccomp, sys_.SECCOMP_SET_MODE_FILTER, sys_.SECCOMP_FILTER_FLAG_TSYNC, fprog)
    return bool(result == 0)


def _seccomp_program(arch: sys_.Architecture, sockets: str) -> bytes:
    """Return the filter in classic BPF; offsets are those of `struct seccomp_data` (linux/seccomp.h)."""
    load, equal, at_least, any_bit, ret = 0x20, 0x15, 0x35, 0x45, 0x06
    denied, unknown = sys_.SECCOMP_RET_ERRNO | errno.EPERM, sys_.SECCOMP_RET_ERRNO | errno.ENOSYS
    lines = [
        (load, 0, 0, 4),
        (equal, 1, 0, arch.audit_arch),
        (ret, 0, 0, sys_.SECCOMP_RET_KILL_PROCESS),
        (load, 0, 0, 0),
    ]
    if os.uname().machine == "x86_64":
        lines += [(at_least, 0, 1, sys_.X32_BIT), (ret, 0, 0, denied)]
    for number in arch.denied_calls:
        lines += [(equal, 0, 1, number), (ret, 0, 0, denied)]
    # ENOSYS for clone3 makes the C library use clone, whose flags a filter can read
    lines += [(equal, 0, 1, arch.clone3), (ret, 0, 0, unknown)]
    lines += [(equal, 0, 4, arch.clone), (load, 0, 0, 16), (any_bit, 1, 0, sys_.CLONE_THREAD), (ret, 0, 0, denied)]
    lines += [(ret, 0, 0, sys_.SECCOMP_RET_ALLOW)]
    if sockets == "none":
        lines += [(equal, 0, 1, arch.socket), (ret, 0, 0, denied)]
    elif sockets == "unix":
        lines += [(equal, 0, 3, arch.socket), (load, 0, 0, 16), (equal, 1, 0, 1), (ret, 0, 0, denied)]
    lines += [(ret, 0, 0, sys_.SECCOMP_RET_ALLOW)]
    return b"".join(struct.pack("=HBBI", *line) for line in lines)
