"""Ways out of a jail: what a worker that is under an attacker's control could try.

`torture.escape_worker` tries every way in each jail. `docs/jail.md` is generated from this list.

Rules:
1. A way is "refused" if it raises OSError. What it would do if it succeeded is harmless: signals are signal 0, limits
   are set to what they are, and files are those of the test.
2. `stopped_by` names restrictions (JailStatus.missing) of which each one alone stops the way. It must be refused if one
   of them is in force, unless PERMITTED says that the worker needs it.
3. Every system call that the worker's column does not list is a way, too: it is made with zeros as arguments.
"""

import errno
import fcntl
import os
import resource
import socket
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from typing import Any, Final

from device_agent.process.system_call_filter import FEATURES, parse_table
from torture.escape import Escape, Target, call_by_name, raw_call, system_call_names, system_call_numbers

PATHS: Final = ("own-files", "landlock")  # either hides or closes a path
CALLS: Final = ("seccomp",)
Attempt = Callable[[Target], object]
SOCKET_FAMILIES: Final = range(46)  # AF_UNSPEC to AF_MCTP
SOCKET_TYPES: Final = {"stream": 1, "datagram": 2, "raw": 3, "seqpacket": 5}
NAMESPACE_FLAGS: Final = {
    **{"mount": 0x00020000, "cgroup": 0x02000000, "uts": 0x04000000, "ipc": 0x08000000},
    **{"user": 0x10000000, "pid": 0x20000000, "network": 0x40000000, "time": 0x80},
}
PRCTL_OPTIONS: Final = {
    **{"PR_SET_PDEATHSIG": 1, "PR_SET_DUMPABLE": 4, "PR_SET_KEEPCAPS": 8, "PR_SET_SECCOMP": 22},
    **{"PR_CAPBSET_DROP": 24, "PR_SET_SECUREBITS": 28, "PR_SET_TIMERSLACK": 29, "PR_MCE_KILL": 33, "PR_SET_MM": 35},
    **{"PR_SET_CHILD_SUBREAPER": 36, "PR_SET_NO_NEW_PRIVS": 38, "PR_SET_THP_DISABLE": 41, "PR_CAP_AMBIENT": 47},
    **{"PR_SET_SPECULATION_CTRL": 53, "PR_SET_IO_FLUSHER": 57, "PR_SET_SYSCALL_USER_DISPATCH": 59},
    **{"PR_SCHED_CORE": 62, "PR_SET_MDWE": 65, "PR_SET_PTRACER": 0x59616D61},
}
IOCTLS: Final = {
    **{"TIOCSTI": 0x5412, "TIOCLINUX": 0x541C, "TIOCCONS": 0x541D, "TIOCSCTTY": 0x540E, "TIOCSETD": 0x5423},
    **{"FIOASYNC": 0x5452, "FIOSETOWN": 0x8901, "SIOCSPGRP": 0x8902, "SIOCGIFCONF": 0x8912, "SIOCSIFFLAGS": 0x8914},
    **{"FS_IOC_SETFLAGS": 0x40086602, "FIFREEZE": 0xC0045877, "FICLONE": 0x40049409, "BLKRRPART": 0x125F},
    **{"NS_GET_PARENT": 0xB702, "SECCOMP_IOCTL_NOTIF_ADDFD": 0x40182103},
}
FCNTLS: Final = {
    **{"F_SETOWN": 8, "F_SETSIG": 10, "F_SETOWN_EX": 15, "F_SETLEASE": 1024, "F_NOTIFY": 1026, "F_SETPIPE_SZ": 1031},
    **{"F_SET_RW_HINT": 1036},
}
OUTSIDE_FILES: Final = (
    *("/etc/passwd", "/etc/shadow", "/etc/ssl/openssl.cnf", "/proc/self/environ", "/proc/self/maps", "/proc/self/mem"),
    *("/proc/self/status", "/proc/self/mountinfo", "/proc/self/root", "/proc/self/cwd/etc/passwd"),
    *("/proc/1/cmdline", "/proc/1/environ", "/proc/cpuinfo", "/proc/kallsyms", "/proc/net/unix", "/proc/net/tcp"),
    *("/proc/sys/kernel/hostname", "/proc/thread-self/fd/0/../../environ", "/sys/kernel/notes", "/sys/class/net"),
    *("/dev/mem", "/dev/kmsg", "/dev/random", "/dev/tpm0", "/dev/shm", "/run", "/root", "/home", "/boot", "/var/lib"),
)
# of another process
SECRETS_OF_PROCESSES: Final = (
    *("environ", "maps", "mem", "stat", "cmdline", "fd", "fdinfo", "root", "cwd", "task", "ns/net"),
)


# the ways that a worker's task needs, by the kind of jail (torture.escape_run.KINDS)
INTERNET: Final = {f"socket: family {family}, {kind}" for family in (2, 10) for kind in ("stream", "datagram")}
PERMITTED: Final[dict[str, set[str]]] = {
    "fetcher": INTERNET,
    "key opener (TPM socket)": {"socket: family 1, stream"},
    # the daemon of a card reader has a socket; the control socket refuses the requests of workers
    "key opener (PKCS#11)": {"socket: family 1, stream", "socket: connect to the machine's stream socket"},
}
OPEN_FILES: Final = "key opener (PKCS#11)"  # the library of a token opens files that we do not know


def stopping_restrictions(kind: str, escape: Escape) -> tuple[str, ...]:
    """Return the restrictions of which each one alone stops a way out.

    Args:
        kind: kind of the jail.
        escape: the way out.
    """
    uses_unix_sockets = "socket: family 1, stream" in PERMITTED.get(kind, ())
    return escape.stopped_by_for_unix if uses_unix_sockets and escape.stopped_by_for_unix else escape.stopped_by


def is_permitted(kind: str, escape: Escape) -> bool:
    """Return whether the task of a worker needs what could be a way out.

    Args:
        kind: kind of its jail.
        escape: the way out.
    """
    return escape.name in PERMITTED.get(kind, ()) or (escape.needs_files and kind == OPEN_FILES)


def escapes() -> tuple[Escape, ...]:
    """Return all ways out beside the system calls that are not listed."""
    return (*_files(), *_descriptors(), *_processes(), *_sockets(), *_kernel(), *_limits())


def refused_calls(worker: str) -> tuple[Escape, ...]:
    """Return a way out for each system call of this machine that a worker's column does not list.

    Args:
        worker: a column of the table.
    """
    refused = unlisted_calls(worker)
    return tuple(
        Escape("system calls", f"call: {name}", _calling(name)) for name in system_call_numbers() if name in refused
    )


def unlisted_calls(worker: str) -> set[str]:
    """Return the names of the system calls of any machine that a worker's column does not list for every policy.

    Args:
        worker: a column of the table.
    """
    rows = (row for row in parse_table() if row.conditions.partition("; ")[0] not in FEATURES)
    return set(system_call_names()) - {row.call for row in rows if worker in row.workers}


def ways_out(worker: str) -> tuple[Escape, ...]:
    """Return all ways out of the jail of a worker: a column of the table of system calls."""
    return (*escapes(), *refused_calls(worker))


def listed_workers() -> tuple[str, ...]:
    """Return the columns of the table of system calls."""
    return tuple(sorted({worker for row in parse_table() for worker in row.workers}))


def _files() -> Iterator[Escape]:
    def way(name: str, attempt: Attempt, *stopped_by: str) -> Escape:
        # the filters of the two workers that write files leave what only paths restrict
        return Escape("files", f"file: {name}", attempt, stopped_by or PATHS, stopped_by != CALLS)

    yield way("read a key", _opening("{t.folder}/key", os.O_RDONLY), *PATHS)
    yield way("write a key", _opening("{t.folder}/key", os.O_WRONLY))
    yield way("read and write a key", _opening("{t.folder}/key", os.O_RDWR))
    yield way("append to a key", _opening("{t.folder}/key", os.O_WRONLY | os.O_APPEND))
    yield way("open a key for reading with O_TRUNC", _opening("{t.folder}/key", os.O_RDONLY | os.O_TRUNC), *CALLS)
    yield way("open a key with O_PATH", _opening("{t.folder}/key", os.O_PATH), *CALLS)
    yield way("create a file", lambda t: os.open(f"{t.folder}/new", os.O_CREAT | os.O_WRONLY, 0o666))
    yield way("create an unnamed file", lambda t: os.open(t.folder, os.O_TMPFILE | os.O_WRONLY), *CALLS)
    yield way("truncate a key", lambda t: os.truncate(t.key, 0), *CALLS)
    yield way("change the mode of a key", lambda t: os.chmod(t.key, 0o666), *CALLS)
    yield way("change the owner of a key", lambda t: os.chown(t.key, -1, os.getgid()), *CALLS)
    yield way("change the times of a key", lambda t: os.utime(t.key, (1, 1)), *CALLS)
    yield way("set an attribute of a key", lambda t: os.setxattr(t.key, "user.x", b"1"), *CALLS)
    yield way("list the attributes of a key", lambda t: os.listxattr(t.key), *CALLS)
    yield way("remove a key", lambda t: os.unlink(t.key), *PATHS)
    yield way("rename a key", lambda t: os.rename(t.key, t.key + ".old"), *PATHS)
    yield way("link a key", lambda t: os.link(t.key, t.folder + "/link"), *CALLS)
    yield way("create a symbolic link", lambda t: os.symlink(t.key, t.folder + "/symlink"), *PATHS)
    yield way("create a folder", lambda t: os.mkdir(t.folder + "/folder"), *PATHS)
    yield way("create a FIFO", lambda t: os.mkfifo(t.folder + "/fifo"), *CALLS)
    yield way("create a device", lambda t: os.mknod(t.folder + "/null", 0o20666, os.makedev(1, 3)), *CALLS)
    yield way("list a folder", lambda t: os.listdir(t.folder), *PATHS)
    yield way("see a key's size and owner", lambda t: os.stat(t.key), "own-files")
    yield way("see whether a key exists", lambda t: call_by_name("faccessat", -100, t.key.encode()), "own-files")
    yield way("see a link's target", lambda _: os.readlink("/proc/self/exe"), "own-files")
    yield way("list the root folder", lambda _: os.listdir("/"), "landlock")
    yield way("list all processes", lambda _: os.listdir("/proc"), "landlock")
    yield way("see the size of the file system", lambda t: os.statvfs(t.folder), *CALLS)
    yield way("enter a folder", lambda t: os.chdir(t.folder), *CALLS)
    yield way("change the root", lambda t: os.chroot(t.folder), *CALLS)
    for path in OUTSIDE_FILES:
        yield way(f"open {path}", _opening(path), *PATHS)
    for name in SECRETS_OF_PROCESSES:
        yield way(f"open /proc/SUPERVISOR/{name}", _opening(f"/proc/{{t.supervisor}}/{name}"), *PATHS)
        yield way(f"open /proc/SIBLING/{name}", _opening(f"/proc/{{t.sibling}}/{name}"), *PATHS)


def _opening(path: str, flags: int = os.O_RDONLY) -> Attempt:
    """Return an attempt to open a path, in which `{t.FIELD}` is a field of the target."""
    return lambda t: os.close(os.open(path.format(t=t), flags))


def _calling(name: str, *arguments: Any) -> Attempt:
    """Return an attempt to make a system call."""
    return lambda _: call_by_name(name, *arguments)


def _descriptors() -> Iterator[Escape]:
    def way(name: str, attempt: Attempt, *stopped_by: str) -> Escape:
        needs_files = name.startswith("open it again")
        return Escape("descriptors", f"descriptor: {name}", attempt, stopped_by or CALLS, needs_files)

    yield way("write to a file that was opened for reading", lambda t: os.write(t.key_fd, b"x"), "always")
    yield way("truncate it", lambda t: os.ftruncate(t.key_fd, 0), "always")
    yield way("map it for writing", lambda t: call_by_name("mmap", 0, 4096, 3, 1, t.key_fd, 0), "always")
    for flags in (os.O_WRONLY, os.O_RDWR, os.O_RDONLY | os.O_TRUNC):
        yield way(
            f"open it again with flags {flags:#o}",
            _opening("/proc/self/fd/{t.key_fd}", flags),
            "landlock",
        )
    yield way("open the folder above it", lambda t: os.open("..", os.O_RDONLY, dir_fd=t.key_fd), "always")
    yield way("change its mode", lambda t: os.fchmod(t.key_fd, 0o666))
    yield way("change its owner", lambda t: os.fchown(t.key_fd, -1, os.getgid()))
    yield way("change its times", lambda t: os.utime(t.key_fd, (1, 1)))
    yield way("set an attribute of it", lambda t: os.setxattr(t.key_fd, "user.x", b"1"))
    yield way(
        "give it a name", lambda t: call_by_name("linkat", t.key_fd, b"", -100, t.folder.encode() + b"/again", 0x1000)
    )
    yield way("lease it", lambda t: fcntl.fcntl(t.key_fd, 1024, 0))
    for name, command in FCNTLS.items():
        yield way(f"fcntl {name}", _controlling("fcntl", command))
    for name, command in IOCTLS.items():
        yield way(f"ioctl {name}", _controlling("ioctl", command))


def _controlling(call: str, command: int) -> Attempt:
    return lambda t: call_by_name(call, t.key_fd, command, t.supervisor)


def _processes() -> Iterator[Escape]:
    def way(name: str, attempt: Attempt, *stopped_by: str) -> Escape:
        return Escape("processes", f"process: {name}", attempt, stopped_by or CALLS)

    yield way("signal all processes", lambda _: os.kill(-1, 0))
    yield way("signal its process group", lambda _: os.kill(0, 0))
    yield way("signal init", lambda _: os.kill(1, 0))
    for way_to_other in (*_other_process("the supervisor", _supervisor), *_other_process("a sibling", _sibling)):
        yield way(*way_to_other)
    yield way("be traced", lambda _: call_by_name("ptrace", 0))
    yield way("start a process with fork", lambda _: os.fork())
    yield way("start a process with clone", lambda _: call_by_name("clone", 17))
    yield way("start a process with clone3", lambda _: call_by_name("clone3", bytes(88), 88))
    yield way("start a program", lambda _: os.execv("/bin/true", ["true"]))
    yield way("start a program from a descriptor", lambda t: call_by_name("execveat", t.key_fd, b"", 0, 0, 0x1000))
    yield way("leave its process group", lambda _: os.setpgid(0, 0))
    yield way("leave its session", lambda _: os.setsid())
    for name, flag in NAMESPACE_FLAGS.items():
        yield way(f"enter a {name} namespace", _calling("unshare", flag))
        yield way(f"start a thread in a {name} namespace", _calling("clone", 0x3D0F00 | flag))
    yield way("start 3,000 threads", _start_threads, "thread-limit")


def _other_process(who: str, pid: Callable[[Target], int]) -> Iterator[tuple[str, Attempt]]:
    yield f"signal {who}", lambda t: os.kill(pid(t), 0)
    yield f"signal a thread of {who}", lambda t: call_by_name("tgkill", pid(t), pid(t), 0)
    yield f"signal {who} by thread id", lambda t: call_by_name("tkill", pid(t), 0)
    yield f"queue a signal to {who}", lambda t: call_by_name("rt_sigqueueinfo", pid(t), 0, bytes(128))
    yield f"open {who} as a descriptor", lambda t: call_by_name("pidfd_open", pid(t))
    yield f"attach to {who}", lambda t: call_by_name("ptrace", 16, pid(t))
    yield f"seize {who}", lambda t: call_by_name("ptrace", 0x4206, pid(t))
    yield f"read the memory of {who}", lambda t: call_by_name("process_vm_readv", pid(t))
    yield f"write the memory of {who}", lambda t: call_by_name("process_vm_writev", pid(t))
    yield f"compare descriptors with {who}", lambda t: call_by_name("kcmp", os.getpid(), pid(t))
    yield f"read the locks of {who}", lambda t: call_by_name("get_robust_list", pid(t))
    yield f"move {who} to a processor", lambda t: os.sched_setaffinity(pid(t), {0})
    yield f"see the processors of {who}", lambda t: os.sched_getaffinity(pid(t))
    yield f"change the scheduler of {who}", lambda t: call_by_name("sched_setattr", pid(t), bytes(56))
    yield f"see the scheduler of {who}", lambda t: os.sched_getscheduler(pid(t))
    yield f"change the priority of {who}", lambda t: os.setpriority(os.PRIO_PROCESS, pid(t), 19)
    yield f"see the priority of {who}", lambda t: os.getpriority(os.PRIO_PROCESS, pid(t))
    yield f"change the I/O priority of {who}", lambda t: call_by_name("ioprio_set", 1, pid(t), 0x6000)
    yield f"see the process group of {who}", lambda t: os.getpgid(pid(t))
    yield f"see the session of {who}", lambda t: os.getsid(pid(t))
    yield f"move the memory of {who}", lambda t: call_by_name("migrate_pages", pid(t))
    yield f"sample {who}", lambda t: call_by_name("perf_event_open", bytes(128), pid(t), -1, -1, 0)
    for limit in range(16):
        yield f"read limit {limit} of {who}", partial(_read_limit, pid, limit)


def _read_limit(pid: Callable[[Target], int], limit: int, target: Target) -> None:
    call_by_name("prlimit64", pid(target), limit)


def _supervisor(target: Target) -> int:
    return target.supervisor


def _sibling(target: Target) -> int:
    return target.sibling


def _start_threads(_target: Target) -> None:
    end = threading.Event()
    started = []
    try:
        for _ in range(3000):
            thread = threading.Thread(target=end.wait, daemon=True)
            thread.start()
            started.append(thread)
    finally:
        end.set()
        for thread in started:
            thread.join()
        time.sleep(0.01)  # the kernel counts a thread a little longer than Python does


def _sockets() -> Iterator[Escape]:
    def way(name: str, attempt: Attempt, *for_unix: str) -> Escape:
        return Escape("sockets", name, attempt, stopped_by_for_unix=for_unix)

    for family, (kind, number) in product(SOCKET_FAMILIES, SOCKET_TYPES.items()):
        yield way(f"socket: family {family}, {kind}", _calling("socket", family, number))
    for family, (kind, number) in product((1, 2, 30, 40), SOCKET_TYPES.items()):
        if (family, kind) not in ((1, "stream"), (1, "seqpacket")):
            yield way(f"socket pair: family {family}, {kind}", _calling("socketpair", family, number, 0, bytes(8)))
    yield way(
        "socket: connect to the machine's stream socket",
        lambda t: _connect(socket.SOCK_STREAM, f"{t.folder}/control.sock"),
        "own-files",
    )
    yield way(
        "socket: connect to the machine's datagram socket",
        lambda t: _connect(socket.SOCK_DGRAM, f"{t.folder}/datagram.sock"),
    )
    yield way("socket: send to the machine's datagram socket", _send_datagram)
    yield way(
        "socket: connect to a socket without a path",
        lambda t: _connect(socket.SOCK_STREAM, "\0" + t.abstract),
        "network-namespace",
    )
    yield way("socket: listen on a path", lambda t: _listen(f"{t.folder}/mine.sock"), *PATHS)
    yield way("socket: raw ICMP", lambda _: os.close(call_by_name("socket", 2, 2, 1)))
    yield way("socket: MPTCP", lambda _: os.close(call_by_name("socket", 2, 1, 262)))


def _connect(kind: int, address: str) -> None:
    with socket.socket(socket.AF_UNIX, kind) as channel:
        channel.settimeout(2)
        channel.connect(address)


def _listen(path: str) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as channel:
        channel.bind(path)


def _send_datagram(target: Target) -> None:
    first, second = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with first, second:
        first.sendto(b"x", f"{target.folder}/datagram.sock")


def _kernel() -> Iterator[Escape]:
    def way(name: str, attempt: Attempt) -> Escape:
        return Escape("kernel interfaces", name, attempt)

    for name, option in PRCTL_OPTIONS.items():
        yield way(f"prctl: {name}", _calling("prctl", option, 1))
    yield way("memory: memfd with huge pages", lambda _: call_by_name("memfd_create", b"x", 4))
    yield way("memory: executable memfd", lambda _: call_by_name("memfd_create", b"x", 16))
    yield way("call: of x32", lambda _: raw_call(0x40000000 | 39))
    yield way("call: a number that no kernel has", lambda _: raw_call(1000))


def _limits() -> Iterator[Escape]:
    def raise_limit(which: int) -> Attempt:
        def attempt(_: Target) -> None:
            hard = resource.getrlimit(which)[1]
            if hard == resource.RLIM_INFINITY:
                raise OSError(errno.EPERM, "there is no limit to raise")
            resource.setrlimit(which, (hard + 1, hard + 1))

        return attempt

    for name in ("CORE", "NOFILE", "NPROC", "AS", "CPU", "FSIZE"):
        yield Escape(
            "limits", f"limit: raise RLIMIT_{name}", raise_limit(getattr(resource, f"RLIMIT_{name}")), ("always",)
        )
