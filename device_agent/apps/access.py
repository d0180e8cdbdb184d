"""Access of applications: who may borrow files of a family, and who may judge its releases.

Rules:
- A client process is known by the credentials that the kernel attests (SO_PEERCRED): its user, its groups, and the
  systemd unit in whose control group it is.
- A unit is only known on Linux 6.5 and later: before, the id of an ended process could be another one's.
- Root and the agent's own user may always read. Only a listed client may judge: a verdict can end a probation.
- Reading and judging are separate rights: `apps.FAMILY.readers` and `apps.FAMILY.judges`.
"""

import os
import select
import socket
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from device_agent.policy.app_verdicts import HEALTH_COMMAND
from device_agent.process.unix_socket import peer_credentials

SO_PEERGROUPS: Final = 59  # asm-generic/socket.h, Linux 4.13
SO_PEERPIDFD: Final = 77  # asm-generic/socket.h, Linux 6.5
MAX_GROUPS: Final = 256  # getsockopt of Python returns at most 1,024 bytes
_GROUP: Final = struct.Struct("=I")


@dataclass(frozen=True, slots=True)
class ClientProcess:
    """The process of an application, at the other end of the socket.

    Attributes:
        pid: id of the process.
        uid: its user.
        groups: its groups when it connected.
        unit: the systemd unit of its control group, or None if it has none or has ended.
    """

    pid: int
    uid: int
    groups: frozenset[int]
    unit: str | None = None

    @classmethod
    def of(cls, connection: socket.socket) -> "ClientProcess":
        """Return the process that connected a Unix socket."""
        pid, uid, gid = peer_credentials(connection)
        return cls(pid, uid, frozenset((gid, *_peer_groups(connection))), _unit_of(pid, connection))

    def matches(self, principal: str) -> bool:
        """Return whether a principal of the configuration names this process.

        Args:
            principal: "user:NAME", "group:NAME" or "unit:NAME"; a user or group may be a number.
        """
        kind, _, name = principal.partition(":")
        match kind:
            case "user":
                return self.uid == _user_id(name)
            case "group":
                return _group_id(name) in self.groups
            case _:
                return self.unit == name


@dataclass(frozen=True, slots=True)
class FamilyAccess:
    """The rights on one family.

    Attributes:
        readers: principals that may borrow files.
        judges: principals whose verdicts count.
        has_health_command: whether a command of the configuration judges, too.
    """

    readers: tuple[str, ...] = ()
    judges: tuple[str, ...] = ()
    has_health_command: bool = False

    def expected_judges(self) -> tuple[str, ...]:
        """Return the names of all whose verdicts a probation waits for."""
        return (*self.judges, HEALTH_COMMAND) if self.has_health_command else self.judges

    def may_read(self, client: ClientProcess) -> bool:
        """Return whether a process may borrow files."""
        return client.uid in (0, os.geteuid()) or any(client.matches(one) for one in (*self.readers, *self.judges))

    def judge_of(self, client: ClientProcess) -> str | None:
        """Return the first principal of `judges` that names a process, or None."""
        return next((one for one in self.judges if client.matches(one)), None)


def _user_id(name: str) -> int | None:
    if name.isdecimal():
        return int(name)
    import pwd  # not in memory at rest

    try:
        return pwd.getpwnam(name).pw_uid
    except KeyError:
        return None


def _group_id(name: str) -> int | None:
    if name.isdecimal():
        return int(name)
    import grp  # not in memory at rest

    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        return None


def _peer_groups(connection: socket.socket) -> tuple[int, ...]:
    """Return the supplementary groups that the process had when it connected.

    A process of more than MAX_GROUPS groups has none here.
    """
    try:
        data = connection.getsockopt(socket.SOL_SOCKET, SO_PEERGROUPS, MAX_GROUPS * _GROUP.size)
    except OSError:
        return ()
    return tuple(group for (group,) in _GROUP.iter_unpack(data))


def _unit_of(pid: int, connection: socket.socket) -> str | None:
    """Return the systemd unit of a process; None if another process may have its id by now."""
    try:
        lines = Path(f"/proc/{pid}/cgroup").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    if _has_ended(connection):
        return None
    for line in lines:
        hierarchy, _, path = line.split(":", 2)
        if hierarchy == "0":
            return next((part for part in reversed(path.split("/")) if part.endswith((".service", ".scope"))), None)
    return None


def _has_ended(connection: socket.socket) -> bool:
    """Return whether the process that connected has ended; True on kernels before 6.5, which do not say."""
    try:
        pidfd = connection.getsockopt(socket.SOL_SOCKET, SO_PEERPIDFD)
    except OSError:
        return True
    try:
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        return bool(poll.poll(0))
    finally:
        os.close(pidfd)
