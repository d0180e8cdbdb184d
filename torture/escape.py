"""One way out of a jail, what it aims at, and system calls by name."""

import ctypes
import errno
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Final

from device_agent.process import syscalls as sys_

NAMES_FILE: Final = Path(__file__).with_name("system_call_names.txt")
MACHINE: Final = os.uname().machine


@dataclass(frozen=True, slots=True)
class Target:
    """Files, processes and sockets that the ways out aim at.

    Attributes:
        folder: a folder outside of the policy, with the file `key` (mode 0600), a listening stream socket
            `control.sock` and a datagram socket `datagram.sock`.
        supervisor: process id of the supervisor.
        sibling: process id of another process of the same user.
        key_fd: descriptor of `key`, opened for reading only.
        abstract: name of a listening socket without a path.
    """

    folder: str
    supervisor: int
    sibling: int
    key_fd: int
    abstract: str

    @property
    def key(self) -> str:
        """Path of the file."""
        return f"{self.folder}/key"


@dataclass(frozen=True, slots=True)
class Escape:
    """One way out of a jail: what is tried, and what stops it.

    Attributes:
        group, name: for people; the name is unique.
        attempt: tries it; raises OSError if it is refused.
        stopped_by: restrictions of which each one alone stops it.
        stopped_by_for_unix: the same for workers that may use Unix sockets, if it differs.
        needs_files: possible for a worker that may use any file.
    """

    group: str
    name: str
    attempt: Callable[[Target], object] = field(repr=False)
    stopped_by: tuple[str, ...] = ("seccomp",)
    needs_files: bool = False
    stopped_by_for_unix: tuple[str, ...] = ()

    def result(self, target: Target) -> str:
        """Try it, and return "did" or the name of the error."""
        try:
            self.attempt(target)
        except OSError as error:
            return errno.errorcode.get(error.errno or 0, "OSError")
        except RuntimeError:
            return "EAGAIN"  # Python's error if a thread cannot be started
        except ValueError:
            return "EPERM"  # Python's error if a limit cannot be raised
        return "did"


def call_by_name(name: str, *arguments: Any) -> int:
    """Make a system call; the missing arguments are zeros.

    Args:
        name: of the call.
        arguments: at most six.

    Raises:
        OSError: the call failed.
    """
    number = system_call_numbers()[name]
    padded = (*arguments, *(0,) * (6 - len(arguments)))
    return raw_call(number, *padded)


def raw_call(number: int, *arguments: Any) -> int:
    """Make a system call.

    Args:
        number: of the call.
        arguments: all that it reads.

    Raises:
        OSError: the call failed.
    """
    ctypes.set_errno(0)
    result = sys_.call(number, *arguments)
    if result < 0:
        raise OSError(ctypes.get_errno(), "refused")
    return result


@cache
def system_call_numbers() -> dict[str, int]:
    """Return the numbers of all system calls of this machine, by name."""
    column = 1 if MACHINE == "x86_64" else 2
    return {row[0]: int(row[column]) for row in _read_names() if row[column] != "-"}


def system_call_names() -> tuple[str, ...]:
    """Return the names of the system calls of all machines."""
    return tuple(row[0] for row in _read_names())


def _read_names() -> list[list[str]]:
    lines = NAMES_FILE.read_text(encoding="ascii").splitlines()
    return [line.split() for line in lines if not line.startswith("#")]
