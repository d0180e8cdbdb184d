"""The restrictions that a worker puts on itself before it reads untrusted bytes.

Each worker calls `enter_jail` after its imports. The steps, in this order; each works without the others:
1. Resource limits: the policy's limits on memory, processor time, file size and open files. Locked memory, if the
   policy asks for it and the kernel allows it. The preference of the out-of-memory killer.
2. Namespaces of its own: network (unless the policy allows "inet" sockets), IPC, and a view of the file system that has
   only the policy's paths (device_agent.process.namespaces).
3. As root: a user id that no other process has (device_agent.process.user_ids). As any user: no capabilities, including
   those that a service manager granted. Then a limit on threads, which the kernel counts by user and user namespace.
4. `PR_SET_DUMPABLE` 0 and no core dump: another process of the same user cannot read this worker's memory or
   descriptors. Opening one's own `/proc/self/fd/N` still works. A change of user resets it, so it comes after step 3.
   Then `PR_SET_NO_NEW_PRIVS`.
5. Landlock: only files below the policy's paths can be opened. A memfd lies on no file system and can still be opened.
6. seccomp: only the system calls that are listed for the worker, with checked arguments
   (device_agent.process.system_call_filter). It also covers what older versions of Landlock do not restrict: signals to
   other processes, and opening a file that is to be read with O_TRUNC.
A worker is confined if seccomp is in force and files are closed to it: by Landlock, by a view of its own, or by a user
id of its own. If it is not confined, `enter_jail` raises, unless the policy sets `allow_unjailed`; the status then says
so. It also names every single restriction that is missing.

Landlock restricts the calling thread and the threads that it starts later. So `enter_jail` must be called before any
thread is started.
"""

import contextlib
import ctypes
import os
import re
import resource
import struct
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

from bundle.providers import CPU
from device_agent.errors import JailUnavailable
from device_agent.process import syscalls as sys_
from device_agent.process.landlock import landlock_abi, restrict_files
from device_agent.process.memory_lock import lock_memory
from device_agent.process.user_ids import choose_fixed_uid, choose_free_uid

PROBE_NICENESS: Final = 10  # of processes that try a model
MAX_OPEN_FILES: Final = 1024
EXPENDABLE_OOM_SCORE: Final = "1000"  # proc(5): the maximum
MAX_THREADS: Final = 64  # beside those that a model is configured to use
# the kernel counts threads by user: those of all agents and families of the machine, if their workers' user is the same
MAX_THREADS_OF_FIXED_USER: Final = 2048
USER_NAMESPACES_COUNT_THREADS: Final = (5, 14)  # the release of Linux
CAPABILITIES: Final = {"read-any": sys_.CAP_DAC_READ_SEARCH, "access-any": sys_.CAP_DAC_OVERRIDE}


@dataclass(frozen=True, slots=True)
class JailPolicy:
    """Permissions and limits of a worker.

    Attributes:
        worker: the column of the table of system calls that applies (device_agent.process.system_call_filter).
        sockets: "none", "unix" (AF_UNIX streams only) or "inet" (TCP and UDP only).
        read, write: files and folders that it can read, or also write. Missing ones are ignored.
        own_user: if the daemon is root, become a user that no other process has.
        fixed_user: its user id is the same at every start. Files below `write` are given to it, unless it has a
            capability.
        capability: what it keeps for files of other users if it becomes another user: "read-any", "access-any" or "".
        threads: bound on its threads; MAX_THREADS_OF_FIXED_USER if it becomes the user that `fixed_user` asks for.
        runtime: runtime of models that it imports and prepares before the jail closes, or "".
        provider: execution provider that it prepares too (bundle.providers).
        applies_patches: it imports the decoder of patches before the jail closes.
        provider_libraries: plug-ins of execution providers, (name of the provider, path).
        devices: device nodes that it can open and control, if the provider is not the CPU.
        memory_bytes: RLIMIT_AS, or None.
        cpu_s: RLIMIT_CPU in seconds, or None.
        file_bytes: RLIMIT_FSIZE, or None; it limits memfds too.
        open_files: RLIMIT_NOFILE.
        nice: added to the niceness before the worker's imports.
        expendable: if memory runs out, the system ends this worker before any other process.
        lock_memory: keep its memory out of swap, if that is allowed (device_agent.process.memory_lock).
        is_paced: pause between the steps of its imports (device_agent.process.throttle).
        allow_unjailed: continue even if the kernel cannot confine the worker.
        landlock_abi, use_namespaces: behave as on a kernel that offers less, for tests.
    """

    worker: str = "model_process"
    sockets: str = "none"
    read: tuple[str, ...] = ()
    write: tuple[str, ...] = ()
    own_user: bool = True
    fixed_user: bool = False
    capability: str = ""
    threads: int = MAX_THREADS
    runtime: str = ""
    provider: str = CPU
    applies_patches: bool = False
    provider_libraries: tuple[tuple[str, str], ...] = ()
    devices: tuple[str, ...] = ()
    memory_bytes: int | None = None
    cpu_s: int | None = None
    file_bytes: int | None = None
    open_files: int = MAX_OPEN_FILES
    nice: int = 0
    expendable: bool = False
    lock_memory: bool = False
    is_paced: bool = False
    allow_unjailed: bool = False
    landlock_abi: int = 99
    use_namespaces: bool = True

    @property
    def provider_library(self) -> str:
        """Path of the plug-in of its provider, or ""."""
        return dict(self.provider_libraries).get(self.provider, "")

    @property
    def features(self) -> frozenset[str]:
        """The features that the table of system calls names (system_call_filter.FEATURES)."""
        return frozenset({"provider"} if self.provider != CPU else ()) | ({"devices"} if self.open_devices else set())

    @property
    def open_devices(self) -> tuple[str, ...]:
        """The device nodes that it can open: none if its models run on the CPU."""
        return () if self.provider == CPU else self.devices

    def as_json(self) -> dict[str, Any]:
        """Return the policy as the worker's first message."""
        return asdict(self)

    @classmethod
    def parse(cls, value: Mapping[str, Any]) -> "JailPolicy":
        """Parse the inverse of `as_json`. The supervisor is trusted."""
        lists = {name: tuple(value[name]) for name in ("read", "write", "devices")}
        libraries = tuple((name, path) for name, path in value["provider_libraries"])
        return cls(**{**value, **lists, "provider_libraries": libraries})


@dataclass(frozen=True, slots=True)
class JailStatus:
    """The restrictions that are in force in a worker.

    Attributes:
        own_uid: the user id that it changed to, or None.
        landlock_abi: version of the kernel's Landlock interface; 0 if there is none.
        seccomp: the filter is installed.
        capability: the capability for files of other users that it kept, or "".
        user_namespace: it is in a user namespace of its own.
        network_namespace: it has an empty network of its own, or its policy allows the machine's.
        ipc_namespace: it has IPC objects of its own.
        own_files: it sees only the files of its policy.
        threads_limited: the number of its threads is bounded.
        undumpable: PR_SET_DUMPABLE is 0.
        threads: number of threads when the jail closed; Landlock restricts only the calling one.
        memory_locked: none of its memory can be swapped out.
    """

    own_uid: int | None = None
    landlock_abi: int = 0
    seccomp: bool = False
    capability: str = ""
    user_namespace: bool = False
    network_namespace: bool = False
    ipc_namespace: bool = False
    own_files: bool = False
    threads_limited: bool = False
    undumpable: bool = False
    threads: int = 1
    memory_locked: bool = False

    @property
    def is_confined(self) -> bool:
        """True if files and system calls are closed to the worker."""
        has_own_uid = self.own_uid is not None and not self.capability
        return self.seccomp and (has_own_uid or self.own_files or (self.landlock_abi > 0 and self.threads == 1))

    @property
    def missing(self) -> tuple[str, ...]:
        """The restrictions that are not in force, by name."""
        walls = {
            "seccomp": self.seccomp,
            "landlock": self.landlock_abi > 0 and self.threads == 1,
            "own-user": self.own_uid is not None or self.user_namespace,
            "own-files": self.own_files,
            "network-namespace": self.network_namespace,
            "ipc-namespace": self.ipc_namespace,
            "thread-limit": self.threads_limited,
            "undumpable": self.undumpable,
        }
        return tuple(name for name, in_force in walls.items() if not in_force)

    def as_json(self) -> dict[str, Any]:
        """Return the status as the worker's first reply and for `status`."""
        return {**asdict(self), "confined": self.is_confined, "missing": self.missing}

    @classmethod
    def parse(cls, value: Mapping[str, Any]) -> "JailStatus":
        """Parse the inverse of `as_json`."""
        return cls(**{key: item for key, item in value.items() if key not in ("confined", "missing")})


def detect_jail() -> JailStatus:
    """Return the status that the strictest policy would give on this machine; change nothing."""
    return JailStatus(
        own_uid=choose_free_uid() if os.geteuid() == 0 else None,
        landlock_abi=landlock_abi(),
        seccomp=_is_seccomp_offered(),
        network_namespace=os.geteuid() == 0,
        undumpable=True,
    )


def close_memory() -> bool:
    """Disable core dumps, and tracing of this process by other processes of its user.

    Returns:
        Whether the kernel did it.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    return _prctl(sys_.PR_SET_DUMPABLE, 0) and sys_.LIBC.prctl(sys_.PR_GET_DUMPABLE) == 0


def enter_jail(policy: JailPolicy) -> JailStatus:
    """Apply the policy to this process, irrevocably.

    Raises:
        JailUnavailable: this process would not be confined, and the policy does not allow that.
    """
    # not at the top: the supervisor imports this module, and needs neither
    from device_agent.process.namespaces import Namespaces, enter_namespaces
    from device_agent.process.system_call_filter import create_filter, install_filter

    program = create_filter(policy.worker, policy.sockets, policy.features)
    _set_limits(policy)
    status = JailStatus(threads=sum(1 for _ in Path("/proc/self/task").iterdir()))
    if policy.lock_memory:
        status = replace(status, memory_locked=lock_memory())
    if policy.expendable:
        with contextlib.suppress(OSError):  # no /proc
            Path("/proc/self/oom_score_adj").write_text(EXPENDABLE_OOM_SCORE)
    uid = _choose_uid(policy)
    own = Namespaces()
    if policy.use_namespaces:
        own = enter_namespaces((*policy.read, *policy.write, *policy.open_devices), network=policy.sockets != "inet")
    status = replace(
        status,
        user_namespace=own.user,
        network_namespace=own.network or policy.sockets == "inet",
        ipc_namespace=own.ipc,
        own_files=own.files or "/" in policy.read,
    )
    # without a view of its own, the parents of its folders can be closed to another user
    if uid is not None and (own.files or policy.capability or not policy.fixed_user) and _become_user(uid, policy):
        status = replace(status, own_uid=uid, capability=policy.capability)
    else:
        _drop_capabilities()
    status = replace(status, threads_limited=_limit_threads(policy, status), undumpable=close_memory())
    if _prctl(sys_.PR_SET_NO_NEW_PRIVS, 1):
        status = replace(status, landlock_abi=_restrict_files(policy), seccomp=install_filter(program))
    if not status.is_confined and not policy.allow_unjailed:
        raise JailUnavailable(
            f"a worker cannot be confined on this machine (seccomp {'yes' if status.seccomp else 'no'}, Landlock "
            f"{status.landlock_abi or 'no'}, {status.threads} threads, own user {status.own_uid or 'no'})",
            hint="run on a kernel with Landlock (5.13 or later) and seccomp, or start as root, or set allow_unjailed",
        )
    return status


def _prctl(option: int, value: int) -> bool:
    return bool(sys_.LIBC.prctl(option, value, 0, 0, 0) == 0)


def _set_limits(policy: JailPolicy) -> None:
    def lower(which: int, value: int) -> None:
        _, hard = resource.getrlimit(which)
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(which, (value, value))

    lower(resource.RLIMIT_NOFILE, policy.open_files)
    if policy.memory_bytes is not None:
        lower(resource.RLIMIT_AS, policy.memory_bytes)
    if policy.cpu_s is not None:
        lower(resource.RLIMIT_CPU, policy.cpu_s)
    if policy.file_bytes is not None:
        lower(resource.RLIMIT_FSIZE, policy.file_bytes)


def _choose_uid(policy: JailPolicy) -> int | None:
    if os.geteuid() != 0 or not policy.own_user:
        return None
    return choose_fixed_uid(policy.worker) if policy.fixed_user else choose_free_uid()


def _become_user(uid: int, policy: JailPolicy) -> bool:
    kept = 1 << CAPABILITIES[policy.capability] if policy.capability else 0
    try:
        if kept & ~_permitted_capabilities():
            return False
        if policy.fixed_user and not policy.capability:
            for path in policy.write:
                _give_files(Path(path), uid)
        if kept and not _prctl(sys_.PR_SET_KEEPCAPS, 1):
            return False
        os.setgroups(_groups_of(policy.open_devices))
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
    except PermissionError:  # root of a container without CAP_SETUID or CAP_CHOWN
        return False
    _drop_capabilities(kept)
    return True


def _give_files(folder: Path, uid: int) -> None:
    """Change the owner of a folder and of everything below it; links are not followed."""
    for path in (folder, *folder.rglob("*")):
        with contextlib.suppress(FileNotFoundError):
            if path.lstat().st_uid != uid:
                os.chown(path, uid, uid, follow_symlinks=False)


def _groups_of(devices: tuple[str, ...]) -> list[int]:
    """Return the groups that device nodes belong to, without root's."""
    groups = set()
    for path in devices:
        with contextlib.suppress(OSError):
            groups.add(Path(path).stat().st_gid)
    return sorted(groups - {0})


def _permitted_capabilities() -> int:
    data = ctypes.create_string_buffer(24)
    sys_.LIBC.capget(struct.pack("=Ii", sys_.CAPABILITY_VERSION_3, 0), data)
    return int(struct.unpack("=6I", data.raw)[1])


def _drop_capabilities(kept: int = 0) -> None:
    sys_.LIBC.prctl(sys_.PR_CAP_AMBIENT, sys_.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
    # effective, permitted and inheritable sets, first their lower halves
    sets = struct.pack("=6I", kept, kept, 0, 0, 0, 0)
    sys_.LIBC.capset(struct.pack("=Ii", sys_.CAPABILITY_VERSION_3, 0), sets)


def _limit_threads(policy: JailPolicy, status: JailStatus) -> bool:
    """Limit the number of threads, if the kernel counts no other process's threads with them."""
    release = tuple(int(part) for part in re.findall(r"\d+", os.uname().release)[:2])
    if status.own_uid is None and not (status.user_namespace and release >= USER_NAMESPACES_COUNT_THREADS):
        return False
    _, hard = resource.getrlimit(resource.RLIMIT_NPROC)
    wanted = MAX_THREADS_OF_FIXED_USER if policy.fixed_user and status.own_uid is not None else policy.threads
    limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    # tried out: the kernel does not limit the machine's root, which can have another id in a user namespace
    resource.setrlimit(resource.RLIMIT_NPROC, (1, limit))
    trial = threading.Thread(target=lambda: None)
    try:
        trial.start()
    except RuntimeError:
        return True
    else:
        trial.join()
        return False
    finally:
        resource.setrlimit(resource.RLIMIT_NPROC, (limit, limit))


def _restrict_files(policy: JailPolicy) -> int:
    abi = min(landlock_abi(), policy.landlock_abi)
    forbids_tcp = policy.sockets != "inet"
    return restrict_files(abi, policy.read, policy.write, policy.open_devices, forbids_tcp=forbids_tcp)


def _is_seccomp_offered() -> bool:
    return os.uname().machine in sys_.ARCHITECTURES and "Seccomp:" in Path("/proc/self/status").read_text()
