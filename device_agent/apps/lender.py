"""Lend the files of the active bundle: sealed memory files that clients share, or plain files.

Rules:
- Files are unsealed when a client first asks for them. They stay in memory while a connection that
  borrowed them is open, and KEEP_S after the last one: unsealing starts a process, and a client that opens and closes
  in a loop must not keep a processor busy. Another bundle that is borrowed ends that at once.
- Each client gets open file descriptions of its own, read-only: descriptors that share one would share an offset too.
  The memory is sealed against writing, growing, shrinking and further seals.
- A client process holds at most MAX_GENERATIONS generations of a family; what it borrows beyond is refused until it
  closes a connection. Its memory is counted per process (`held_bytes`).
- A bundle that is stored plain is lent from disk: its digests are compared before each lend, and nothing is kept.
- The memory of a borrowed file is freed when the agent and all clients have closed it: a client that keeps a
  descriptor open keeps its memory, too.
"""

import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from bundle.files import BundleDigest, BundleFile
from device_agent.errors import LendLimitReached
from device_agent.policy.journal_records import BundleRecord

MAX_GENERATIONS: Final = 2
KEEP_S: Final = 5.0

Unseal = Callable[[BundleRecord, Sequence[str]], dict[str, int]]


@dataclass(slots=True)
class _Held:
    """The unsealed files of one bundle, the clients that borrowed them, and since when there is none."""

    fds: dict[str, int] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    borrowers: dict[int, int] = field(default_factory=dict)  # id of a connection to the process id of its client
    unused_since: float | None = None


class FileLender:
    """The lent files of one family. Any thread may call it.

    Args:
        unseal: unseals files of a bundle by path and returns descriptors of sealed memory files, or of plain files,
            which it has checked.
        is_plain: returns whether a bundle is stored plain.
        keep_s: seconds that files without a borrower stay in memory.
    """

    def __init__(
        self,
        unseal: Unseal,
        is_plain: Callable[[BundleDigest], bool] = lambda _digest: False,
        keep_s: float = KEEP_S,
    ) -> None:
        self._unseal, self._is_plain, self._keep_s = unseal, is_plain, keep_s
        self._lock = threading.Lock()
        self._timer: threading.Timer | None = None  # runs while files without a borrower are in memory
        self._held: dict[BundleDigest, _Held] = {}

    def borrow(self, bundle: BundleRecord, files: Sequence[BundleFile], connection: int, pid: int) -> list[int]:
        """Return a fresh read-only descriptor of each file, in order; the caller closes them.

        Args:
            bundle: record of a bundle in the store.
            files: files of the bundle.
            connection: a number that identifies the client's connection, for `give_back`.
            pid: id of the client's process.

        Raises:
            LendLimitReached: the process holds MAX_GENERATIONS other generations.
            StoreDamaged: the sealed bundle is missing or damaged.
            Unavailable: the files cannot be unsealed now.
        """
        with self._lock:
            generations = {digest for digest, held in self._held.items() if pid in held.borrowers.values()}
            if len(generations - {bundle.digest}) >= MAX_GENERATIONS:
                raise LendLimitReached(
                    f"process {pid} holds files of {len(generations)} releases, at most {MAX_GENERATIONS} are lent",
                    hint="close the connections that borrowed files of older releases",
                )
            for digest in [other for other, held in self._held.items() if not held.borrowers]:
                if digest != bundle.digest:
                    self._drop(digest)
            held = self._held.setdefault(bundle.digest, _Held())
            held.borrowers[connection], held.unused_since = pid, None
            try:
                if self._is_plain(bundle.digest):
                    opened = self._unseal(bundle, [file.path for file in files])
                    return [opened[file.path] for file in files]
                missing = [file.path for file in files if file.path not in held.fds]
                if missing:
                    held.fds.update(self._unseal(bundle, missing))
                    held.sizes.update((file.path, file.size) for file in files)
                return _reopen([held.fds[file.path] for file in files])
            except BaseException:
                self._forget(bundle.digest, connection)
                raise

    def give_back(self, connection: int) -> None:
        """Forget what a closed connection borrowed; files without a borrower are closed after a while."""
        with self._lock:
            for digest in list(self._held):
                self._forget(digest, connection)

    def held_bytes(self) -> dict[int, int]:
        """Return the bytes of the files that are lent, by process id of the client."""
        with self._lock:
            out: dict[int, int] = {}
            for held in self._held.values():
                for pid in set(held.borrowers.values()):
                    out[pid] = out.get(pid, 0) + sum(held.sizes[path] for path in held.fds)
            return out

    def close(self) -> None:
        """Close all files of the agent; borrowed descriptors stay valid."""
        with self._lock:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            for digest in list(self._held):
                self._drop(digest)

    def _forget(self, digest: BundleDigest, connection: int) -> None:
        held = self._held[digest]
        held.borrowers.pop(connection, None)
        if held.borrowers:
            return
        if not held.fds or not self._keep_s:
            self._drop(digest)
        elif held.unused_since is None:
            held.unused_since = time.monotonic()
            if self._timer is None:
                self._start_timer(self._keep_s)

    def _start_timer(self, seconds: float) -> None:
        self._timer = threading.Timer(seconds, self._drop_unused)
        self._timer.daemon = True
        self._timer.start()

    def _drop_unused(self) -> None:
        with self._lock:
            self._timer, now = None, time.monotonic()
            left = {
                digest: held.unused_since + self._keep_s - now
                for digest, held in self._held.items()
                if held.unused_since is not None
            }
            for digest, seconds in left.items():
                if seconds <= 0:
                    self._drop(digest)
            waiting = [seconds for seconds in left.values() if seconds > 0]
            if waiting:
                self._start_timer(min(waiting))

    def _drop(self, digest: BundleDigest) -> None:
        for fd in self._held.pop(digest).fds.values():
            os.close(fd)


def _reopen(fds: Sequence[int]) -> list[int]:
    """Return a new read-only open file description of each memory file."""
    out: list[int] = []
    try:
        out.extend(os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC) for fd in fds)
    except BaseException:
        for fd in out:
            os.close(fd)
        raise
    return out
