"""The log of a daemon, read while it runs.

A thread reads it from the start, because a full pipe would block the daemon. It copies each line to file descriptor 2,
which pytest captures: a test that fails shows the logs of its daemons.
"""

import json
import os
import threading
from collections.abc import Callable
from typing import IO, Any, Final

FOREIGN: Final = "foreign"  # level of a line that is not the daemon's own
_END_S: Final = 120.0  # until the processes that write to a log must have ended


class DaemonLog:
    """The records of a log, JSON lines, in the order in which they were written.

    Attributes:
        lines: the lines so far.
    """

    def __init__(self, pipe: IO[bytes]) -> None:
        self.lines: list[bytes] = []
        self._pipe = pipe
        self._records: list[dict[str, Any]] = []
        self._read = 0  # records before this one were waited for
        self._changed = threading.Condition()
        self._is_at_end = False
        self._thread = threading.Thread(target=self._run, name="daemon log", daemon=True)
        self._thread.start()

    def wait_for(self, is_it: Callable[[dict[str, Any]], bool], seconds: float = 120) -> dict[str, Any] | None:
        """Return the next record for which `is_it` is true; None if the log ends before.

        Args:
            is_it: called with each record, in order.
            seconds: fail if it takes longer.
        """
        with self._changed:
            while True:
                while self._read < len(self._records):
                    self._read += 1
                    record = self._records[self._read - 1]
                    if is_it(record):
                        return record
                if self._is_at_end:
                    return None
                assert self._changed.wait_for(self._has_news, seconds), f"no such record after {seconds} s"

    def close(self) -> list[dict[str, Any]]:
        """Wait for the end of the log; return the records after the last one that was waited for."""
        self._thread.join(_END_S)
        assert not self._thread.is_alive(), "a process still has the log of a daemon that ended"
        self._pipe.close()
        return self._records[self._read :]

    def _has_news(self) -> bool:
        return self._is_at_end or self._read < len(self._records)

    def _run(self) -> None:
        for line in iter(self._pipe.readline, b""):
            os.write(2, line)
            with self._changed:
                self.lines.append(line)
                self._records.append(_parse(line))
                self._changed.notify_all()
        with self._changed:
            self._is_at_end = True
            self._changed.notify_all()


def _parse(line: bytes) -> dict[str, Any]:
    """Return the record of a line; one of level FOREIGN if it is no JSON object."""
    try:
        found = json.loads(line)
    except ValueError:
        found = None
    return found if isinstance(found, dict) else {"level": FOREIGN, "message": line.decode(errors="replace")}
