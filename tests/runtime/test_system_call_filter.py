"""The filters of system calls: what is not in the table is refused, on every architecture, and never by a kill."""

import errno
import re
from itertools import product
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_agent.process.syscalls import ARCHITECTURES, SECCOMP_RET_ALLOW, SECCOMP_RET_ERRNO
from device_agent.process.system_call_filter import (
    FIRST_COMMON_CALL,
    SOCKET_CONDITIONS,
    Condition,
    allowed_calls,
    compile_filter,
    parse_conditions,
    parse_table,
)
from tests.support.bpf import run_filter

WORKERS = sorted({worker for row in parse_table() for worker in row.workers})
MACHINES = sorted(ARCHITECTURES)
PID = 4242
MAX_INSTRUCTIONS = 4096  # BPF_MAXINSNS
HEADERS = {
    "x86_64": Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"),
    "aarch64": Path("/usr/include/asm-generic/unistd.h"),
}
# calls by which a process reaches files, processes, devices or kernel interfaces beyond those that it was given
NEVER_ALLOWED = frozenset(
    """
    execve execveat fork vfork clone3 ptrace process_vm_readv process_vm_writev process_madvise kcmp pidfd_open
    pidfd_getfd pidfd_send_signal kill rt_sigqueueinfo rt_tgsigqueueinfo bpf perf_event_open add_key request_key
    keyctl userfaultfd io_uring_setup io_setup mount umount2 pivot_root chroot unshare setns open_tree move_mount
    fsopen mount_setattr name_to_handle_at open_by_handle_at openat2 truncate chmod fchmod fchmodat chown fchown
    fchownat utimensat setxattr lsetxattr fsetxattr removexattr link linkat mknod mknodat inotify_init
    inotify_init1 fanotify_init memfd_secret vmsplice tee splice modify_ldt personality shmget shmat shmctl msgget
    msgsnd semget semop mq_open setuid setgid setreuid setresuid setgroups capset setpriority sched_setscheduler
    sched_setaffinity sched_setattr ioprio_set setrlimit init_module finit_module delete_module kexec_load reboot
    swapon acct quotactl settimeofday clock_settime adjtimex sethostname syslog iopl ioperm timer_create
    timerfd_create signalfd4 setsid setpgid chdir fchdir umask get_robust_list move_pages migrate_pages mbind
    set_mempolicy seccomp landlock_create_ruleset landlock_restrict_self
    """.split()  # noqa: SIM905
)


@pytest.mark.parametrize(("machine", "worker"), list(product(MACHINES, WORKERS)))
def test_a_filter_decides_as_the_table_says(machine: str, worker: str) -> None:
    arch = ARCHITECTURES[machine].audit_arch
    for sockets in ("none", *SOCKET_CONDITIONS):
        program, calls = compile_filter(worker, machine, sockets, PID), allowed_calls(worker, machine, sockets, PID)
        assert len(program) < MAX_INSTRUCTIONS
        assert all(0 <= jump < 256 for _, if_true, if_false, _ in program for jump in (if_true, if_false))
        for number in (*range(600), 2**30, 2**30 + 59, 2**32 - 1):
            for arguments in _interesting_arguments(calls.get(number, [])):
                expected = any(all(one.holds(arguments) for one in row) for row in calls.get(number, []))
                assert run_filter(program, arch, number, *arguments) == (
                    SECCOMP_RET_ALLOW if expected else _refusal(number)
                ), (number, arguments)


def _refusal(number: int) -> int:
    return SECCOMP_RET_ERRNO | (errno.EPERM if number < FIRST_COMMON_CALL else errno.ENOSYS)


def _interesting_arguments(rows: list[tuple[Condition, ...]]) -> list[tuple[int, ...]]:
    """Return arguments that meet a row, that miss one of its conditions, and that have nothing to do with it."""
    found: list[tuple[int, ...]] = [(0,) * 6, (2**32 - 1,) * 6]
    for row in rows:
        met = [0] * 6
        for condition in row:
            met[condition.argument] = condition.values[-1]
        found.append(tuple(met))
        for condition in row:
            for value in (*condition.values, PID + 1, *(1 << bit for bit in range(32))):
                found.append(tuple(value if index == condition.argument else item for index, item in enumerate(met)))
    return found


@given(st.sampled_from(WORKERS), st.integers(0, 2**32 - 1), st.integers(0, 470), st.tuples(*[st.integers(0, 7)] * 6))
def test_calls_of_another_architecture_do_not_exist(
    worker: str, arch: int, number: int, arguments: tuple[int, ...]
) -> None:
    for machine in MACHINES:
        if arch != ARCHITECTURES[machine].audit_arch:
            program = compile_filter(worker, machine, "inet", PID)
            assert run_filter(program, arch, number, *arguments) == SECCOMP_RET_ERRNO | errno.ENOSYS


def test_no_worker_may_leave_what_it_was_given() -> None:
    calls = {row.call for row in parse_table()}
    assert calls.isdisjoint(NEVER_ALLOWED)
    for worker in WORKERS:
        mine = {row.call for row in parse_table() if worker in row.workers}
        assert len(mine) < 115, worker
    file_calls = {"unlink", "rename", "mkdir", "symlink", "rmdir", "unlinkat", "renameat2", "mkdirat", "symlinkat"}
    for row in parse_table():
        if row.call in file_calls:
            assert set(row.workers) <= {"verifier", "token_opener"}, row.call


def test_conditions_name_what_they_check() -> None:
    assert parse_conditions("0 in 0 self", 7) == (Condition(0, 0xFFFFFFFF, (0, 7)),)
    (access,) = parse_conditions("2 & O_WRONLY|O_RDWR in O_RDONLY", 7)
    assert (access.mask, access.values) == (3, (0,))
    assert parse_conditions("1 & ~MFD_CLOEXEC in 0", 7)[0].mask == 0xFFFFFFFE
    with pytest.raises(ValueError, match="condition '7 in 0'"):
        parse_conditions("7 in 0", 7)
    with pytest.raises(KeyError):
        parse_conditions("0 in NO_SUCH_NAME", 7)


@pytest.mark.parametrize("machine", HEADERS)
def test_the_numbers_are_those_of_the_kernel(machine: str) -> None:
    if not HEADERS[machine].exists():
        pytest.skip(f"the kernel's headers are not installed: {HEADERS[machine]}")
    text = HEADERS[machine].read_text()
    numbers = {name: int(number) for name, number in re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)$", text, re.M)}
    numbers |= {"newfstatat": 79, "fstat": 80} if machine == "aarch64" else {}  # the header calls them otherwise
    wrong = [
        row.call
        for row in parse_table()
        if not row.call.startswith("riscv_") and row.numbers.get(machine) != numbers.get(row.call)
    ]
    assert wrong == []
