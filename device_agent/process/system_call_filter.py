"""The seccomp filter of a worker: allow what system_calls.txt lists, refuse everything else.

Rules:
1. A call that the table does not allow fails; it never ends the process. Calls that were added to Linux since 5.1
   (number 424 or more, clone3 among them) fail with ENOSYS, so that the C library uses the older call whose arguments
   the filter can read. All others fail with EPERM.
2. Calls of another architecture or of x32 fail with ENOSYS.
3. A filter sees numbers, not what a pointer points to. So a path or an address cannot be checked, but the type of a
   socket, the command of an ioctl and the process that a call names can.
4. A call with several rows is allowed if one of them allows it; a row allows it if all of its conditions hold.

Theory: a filter is a program for the kernel's classic BPF machine, which has one accumulator and forward jumps
(linux/filter.h). It returns ALLOW or an error number. The input is `struct seccomp_data`: the call's number, the
architecture, and six arguments of 64 bits. The conditions are on `int` arguments, of which the kernel reads the low
32 bits, and so does the filter.
"""

import ctypes
import errno
import os
import re
import struct
from pathlib import Path
from typing import Final, NamedTuple

from device_agent.process import syscalls as sys_

TABLE_FILE: Final = Path(__file__).with_name("system_calls.txt")
FIRST_COMMON_CALL: Final = 424  # since Linux 5.1, new calls have the same number on every architecture
CONDITION: Final = re.compile(r"(?P<index>[0-5])(?: & (?P<not>~?)(?P<mask>[\w|]+))? in (?P<values>[\w| ]+)")
# names of the table's conditions; the numbers are the same on all three architectures
CONSTANTS: Final = {
    # CLONE_VM, FS, FILES, SIGHAND, THREAD, SYSVSEM, SETTLS, PARENT_SETTID, CHILD_CLEARTID; musl adds CLONE_DETACHED
    **{"THREAD_OF_GLIBC": 0x3D0F00, "THREAD_OF_MUSL": 0x7D0F00},
    **{"O_RDONLY": 0, "O_WRONLY": 1, "O_RDWR": 2, "O_CREAT": 0o100, "O_TRUNC": 0o1000},
    **{"O_PATH": 0o10000000, "O_TMPFILE": 0o20000000},
    **{"F_DUPFD": 0, "F_GETFD": 1, "F_SETFD": 2, "F_GETFL": 3, "F_SETFL": 4, "F_GETLK": 5, "F_SETLK": 6, "F_SETLKW": 7},
    **{"F_OFD_GETLK": 36, "F_OFD_SETLK": 37, "F_OFD_SETLKW": 38},
    **{"F_DUPFD_CLOEXEC": 1030, "F_ADD_SEALS": 1033, "F_GET_SEALS": 1034},
    **{"TCGETS": 0x5401, "FIONREAD": 0x541B, "FIONBIO": 0x5421, "FIONCLEX": 0x5450, "FIOCLEX": 0x5451},
    **{"MFD_CLOEXEC": 1, "MFD_ALLOW_SEALING": 2, "MFD_NOEXEC_SEAL": 8},
    **{"PR_GET_DUMPABLE": 3, "PR_SET_NAME": 15, "PR_GET_NAME": 16, "PR_SET_VMA": 0x53564D41},
    **{"AF_UNIX": 1, "AF_INET": 2, "AF_INET6": 10, "SOCK_STREAM": 1, "SOCK_DGRAM": 2, "SOCK_SEQPACKET": 5},
    **{"SOCK_TYPE_MASK": 15, "IPPROTO_IP": 0, "IPPROTO_TCP": 6, "IPPROTO_UDP": 17, "IPPROTO_IPV6": 41, "SOL_SOCKET": 1},
    **{"SO_REUSEADDR": 2, "SO_SNDBUF": 7, "SO_RCVBUF": 8, "SO_KEEPALIVE": 9, "SO_LINGER": 13},
    **{"SO_RCVTIMEO": 20, "SO_SNDTIMEO": 21, "IP_RECVERR": 11, "IPV6_RECVERR": 25, "IPV6_V6ONLY": 26},
    **{"TCP_NODELAY": 1, "TCP_KEEPIDLE": 4, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 6, "TCP_USER_TIMEOUT": 18},
}
# conditions on socket(2): family, type without its flags, and protocol
SOCKET_CONDITIONS: Final = {
    "unix": "0 in AF_UNIX; 1 & SOCK_TYPE_MASK in SOCK_STREAM; 2 in 0",
    "inet": "0 in AF_INET AF_INET6; 1 & SOCK_TYPE_MASK in SOCK_STREAM SOCK_DGRAM; 2 in 0 IPPROTO_TCP IPPROTO_UDP",
}

FEATURES: Final = ("provider", "devices")  # of a policy, as of `JailPolicy.features`

# instructions of classic BPF: load 32 bits, bitwise and, jump if equal, jump if at least, jump, return
_LOAD, _AND, _EQUAL, _AT_LEAST, _JUMP, _RETURN = 0x20, 0x54, 0x15, 0x35, 0x05, 0x06
_NUMBER_OFFSET, _ARCHITECTURE_OFFSET, _ARGUMENTS_OFFSET = 0, 4, 16  # struct seccomp_data (linux/seccomp.h)
_EPERM: Final = sys_.SECCOMP_RET_ERRNO | errno.EPERM
_ENOSYS: Final = sys_.SECCOMP_RET_ERRNO | errno.ENOSYS

Instruction = tuple[int, int, int, int]  # code, jump if true, jump if false, operand


class Condition(NamedTuple):  # not a dataclass: every worker would generate its methods at its start
    """A condition on one argument: `argument & mask` is one of the values.

    Attributes:
        argument: number of the argument, 0 to 5.
        mask: bits that are compared.
        values: the allowed values.
    """

    argument: int
    mask: int
    values: tuple[int, ...]

    def holds(self, arguments: tuple[int, ...]) -> bool:
        """Return whether the condition holds for the arguments of a call."""
        return arguments[self.argument] & self.mask in self.values


class Row(NamedTuple):
    """One row of the table.

    Attributes:
        call: name of the call.
        numbers: its number by architecture, without the architectures that lack it.
        workers: the workers that may make it, with "r" (recorded) or "l" (another C library makes it).
        conditions: on its arguments, as text; empty for none. The first one can be "sockets", or one of FEATURES: then
            the row holds only for policies that have it.
    """

    call: str
    numbers: dict[str, int]
    workers: dict[str, str]
    conditions: str


def parse_table() -> tuple[Row, ...]:
    """Return the rows of the table."""
    text = TABLE_FILE.read_text(encoding="ascii")
    header, *lines = (line for line in text.splitlines() if not line.startswith("#"))
    workers = header.split()[3:-1]
    rows = []
    for line in lines:
        call, amd64, arm64, *rest = line.split(None, 3 + len(workers))
        cells, conditions = rest[: len(workers)], rest[len(workers)]
        numbers = {"x86_64": amd64, "aarch64": arm64, "riscv64": arm64}
        if call.startswith("riscv_"):
            numbers = {"riscv64": arm64}
        rows.append(
            Row(
                call,
                {arch: int(number) for arch, number in numbers.items() if number != "-"},
                {worker: cell for worker, cell in zip(workers, cells, strict=True) if cell != "."},
                "" if conditions == "-" else conditions,
            )
        )
    return tuple(rows)


def allowed_calls(
    worker: str, machine: str, sockets: str, pid: int, features: frozenset[str] = frozenset()
) -> dict[int, list[tuple[Condition, ...]]]:
    """Return the calls that a worker may make: by number, the alternatives of conditions.

    All conditions of one alternative must hold; an empty one always does.

    Args:
        worker: a column of the table.
        machine: architecture, as of uname(2).
        sockets: "none", "unix" or "inet".
        pid: process id that `self` stands for.
        features: those of FEATURES that the policy has.
    """
    calls: dict[int, list[tuple[Condition, ...]]] = {}
    for row in parse_table():
        text = row.conditions
        if worker not in row.workers or machine not in row.numbers:
            continue
        if text.startswith("sockets"):
            if sockets == "none":
                continue
            text = SOCKET_CONDITIONS[sockets] if row.call == "socket" else text.removeprefix("sockets").lstrip("; ")
        feature, _, others = text.partition("; ")
        if feature in FEATURES:
            if feature not in features:
                continue
            text = others
        calls.setdefault(row.numbers[machine], []).append(parse_conditions(text, pid))
    return calls


def parse_conditions(text: str, pid: int) -> tuple[Condition, ...]:
    """Parse conditions such as `0 in 0 self; 1 & O_TRUNC in 0`.

    Args:
        text: conditions, joined by semicolons; empty for none.
        pid: value of `self`.
    """

    def value(names: str) -> int:
        result = 0
        for name in names.split("|"):
            result |= int(name) if name.isdecimal() else pid if name == "self" else CONSTANTS[name]
        return result

    conditions = []
    for part in filter(None, text.split("; ")):
        found = CONDITION.fullmatch(part)
        if found is None:
            raise ValueError(f"system call table: condition {part!r}")
        mask = value(found["mask"]) if found["mask"] else 0xFFFFFFFF
        mask = mask ^ 0xFFFFFFFF if found["not"] else mask
        conditions.append(Condition(int(found["index"]), mask, tuple(value(n) for n in found["values"].split())))
    return tuple(conditions)


def compile_filter(
    worker: str, machine: str, sockets: str, pid: int, features: frozenset[str] = frozenset()
) -> list[Instruction]:
    """Return the program of a worker's filter.

    Args:
        worker, machine, sockets, pid, features: as of `allowed_calls`.
    """
    calls = allowed_calls(worker, machine, sockets, pid, features)
    free = [number for number, alternatives in calls.items() if () in alternatives]
    program: list[Instruction] = [
        (_LOAD, 0, 0, _ARCHITECTURE_OFFSET),
        (_EQUAL, 1, 0, sys_.ARCHITECTURES[machine].audit_arch),
        (_RETURN, 0, 0, _ENOSYS),
        (_LOAD, 0, 0, _NUMBER_OFFSET),
    ]
    # one comparison for each call without conditions, in the order of the table, all to the same ALLOW
    program += [(_EQUAL, len(free) - index, 0, number) for index, number in enumerate(free)]
    program += [(_JUMP, 0, 0, 1), (_RETURN, 0, 0, sys_.SECCOMP_RET_ALLOW)]
    for number, alternatives in calls.items():
        if () not in alternatives:
            block = [instruction for one in alternatives for instruction in _compile_alternative(one)]
            block.append((_RETURN, 0, 0, _EPERM if number < FIRST_COMMON_CALL else _ENOSYS))
            program += [(_EQUAL, 1, 0, number), (_JUMP, 0, 0, len(block)), *block]
    program += [(_AT_LEAST, 0, 1, FIRST_COMMON_CALL), (_RETURN, 0, 0, _ENOSYS), (_RETURN, 0, 0, _EPERM)]
    return program


def _compile_alternative(conditions: tuple[Condition, ...]) -> list[Instruction]:
    """Return instructions that allow the call, or continue behind themselves."""
    code: list[Instruction] = [(_RETURN, 0, 0, sys_.SECCOMP_RET_ALLOW)]
    for condition in reversed(conditions):
        test: list[Instruction] = [(_LOAD, 0, 0, _ARGUMENTS_OFFSET + 8 * condition.argument)]
        if condition.mask != 0xFFFFFFFF:
            test.append((_AND, 0, 0, condition.mask))
        count = len(condition.values)
        test += [(_EQUAL, count - index, 0, value) for index, value in enumerate(condition.values)]
        code = [*test, (_JUMP, 0, 0, len(code)), *code]
    return code


def create_filter(worker: str, sockets: str, features: frozenset[str] = frozenset()) -> bytes:
    """Return the filter's program for this machine and process; empty if the architecture is unknown.

    It reads the table, so call it before files are closed.

    Args:
        worker: a column of the table.
        sockets: "none", "unix" or "inet".
        features: those of FEATURES that the policy has.
    """
    machine = os.uname().machine
    if machine not in sys_.ARCHITECTURES or struct.calcsize("P") != 8:
        return b""
    instructions = compile_filter(worker, machine, sockets, os.getpid(), features)
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in instructions)


def install_filter(program: bytes) -> bool:
    """Install a filter for all threads; return False if it is empty or the kernel refuses it.

    Args:
        program: of `create_filter`.
    """
    if not program:
        return False
    code = ctypes.create_string_buffer(program, len(program))
    fprog = struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(code))
    number = sys_.ARCHITECTURES[os.uname().machine].seccomp
    return sys_.call(number, sys_.SECCOMP_SET_MODE_FILTER, sys_.SECCOMP_FILTER_FLAG_TSYNC, fprog) == 0
