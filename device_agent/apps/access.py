"""Access of applications: who may borrow files of a family, and who may judge its releases.

Rules:
- A peer is known by the credentials that the kernel attests (SO_PEERCRED): process, user, groups of the user, and the
  systemd unit in whose control group the process is.
- Root and the agent's own user may always read. Only a listed peer may judge: a verdict can end a probation.
- Reading and judging are separate rights: `apps.FAMILY.readers` and `apps.FAMILY.judges`.
"""

import os
import socket
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_CREDENTIALS: Final = struct.Struct("3i")


@dataclass(frozen=True, slots=True)
class Peer:
    """The process at the other end of a Unix socket.

    Attributes:
        pid: id of the process.
        uid: its user.
        gid: its primary group.
    """

    pid: int
    uid: int
    gid: int

    @classmethod
    def of(cls, connection: socket.socket) -> "Peer":
        """Return the process that connected a Unix socket."""
        data = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        return cls(*_CREDENTIALS.unpack(data))

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
                group = _group_id(name)
                return group is not None and group in _groups_of(self)
            case _:
                return _unit_of(self.pid) == name


@dataclass(frozen=True, slots=True)
class FamilyAccess:
    """The rights on one family.

    Attributes:
        readers: principals that may borrow files.
        judges: principals whose verdicts count.
    """

    readers: tuple[str, ...] = ()
    judges: tuple[str, ...] = ()

    def may_read(self, peer: Peer) -> bool:
        """Return whether a process may borrow files."""
        return peer.uid in (0, os.geteuid()) or any(peer.matches(one) for one in (*self.readers, *self.judges))

    def judge_of(self, peer: Peer) -> str | None:
        """Return the first principal of `judges` that names a process, or None."""
        return next((one for one in self.judges if peer.matches(one)), None)


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


def _groups_of(peer: Peer) -> frozenset[int]:
    """Return the groups of a process: its primary group, and the supplementary ones of the process."""
    groups = {peer.gid}
    try:
        for line in Path(f"/proc/{peer.pid}/status").read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("Groups:"):
                groups.update(map(int, line.split()[1:]))
    except OSError:
        pass  # the process has ended
    return frozenset(groups)


def _unit_of(pid: int) -> str | None:
    try:
        lines = Path(f"/proc/{pid}/cgroup").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    for line in lines:
        hierarchy, _, path = line.split(":", 2)
        if hierarchy == "0":
            return next((part for part in reversed(path.split("/")) if part.endswith((".service", ".scope"))), None)
    return None
