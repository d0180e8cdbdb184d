"""Record the system calls that each worker makes in its jail, for the table of the filters.

    python -m tools.record_system_calls OUTPUT COMMAND...

runs the command (such as a part of the test suite) under strace(1) as root and writes one line for each worker and call
to OUTPUT: worker, call with the arguments that the filters check, and how often. A call counts if the worker made it
after it installed its filter. device_agent/process/system_calls.txt says what to do with a call that is new.
"""

import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Final

LINE: Final = re.compile(r"^(\d+) +(?:<\.\.\. )?([a-z_0-9]+)(?: resumed>|\()(.*)$")
WORKER: Final = re.compile(r'"-m", "(?:device_agent|tests)\.(?:[a-z_]+\.)*([a-z_]+)", "--channel"')
# calls whose arguments are recorded, with the number of leading arguments that matter
ARGUMENTS: Final = {
    **{"ioctl": 2, "fcntl": 2, "prctl": 1, "prlimit64": 2, "sched_setaffinity": 1, "sched_getaffinity": 1},
    **{"socket": 3, "socketpair": 3, "setsockopt": 3, "getsockopt": 3},
}
DESCRIPTOR_CALLS: Final = {"ioctl", "fcntl", "setsockopt", "getsockopt"}  # their first argument says nothing


class Recorder:
    """Reads the lines of strace and counts the calls of each worker."""

    def __init__(self) -> None:
        self.counts: Counter[tuple[str, str]] = Counter()
        self._worker: dict[int, str] = {}  # by process
        self._jailed: set[int] = set()
        self._process: dict[int, int] = {}  # thread to process

    def read_line(self, line: str) -> None:
        """Count the call of one line."""
        found = LINE.match(line)
        if found is None:
            return
        thread, call, rest = int(found[1]), found[2], found[3]
        process = self._process.setdefault(thread, _process_of(thread))
        if "resumed>" in line:
            if call in ("clone", "clone3") and (child := re.search(r"= (\d+)$", rest)) and "CLONE_THREAD" in rest:
                self._process[int(child[1])] = process
            if call == "seccomp" and process in self._worker:
                self._jailed.add(process)
            return
        if call == "execve" and process not in self._jailed:
            self._process[thread] = thread
            if (worker := WORKER.search(rest)) is not None:
                self._worker[thread] = worker[1]
            else:
                self._worker.pop(thread, None)
            return
        if process in self._jailed and process in self._worker:
            self.counts[self._worker[process], _describe(call, rest)] += 1
        if call in ("clone", "clone3") and "CLONE_THREAD" in rest and (child := re.search(r"= (\d+)$", rest)):
            self._process[int(child[1])] = process
        if call == "seccomp" and "FILTER" in rest and process in self._worker and "unfinished" not in rest:
            self._jailed.add(process)


def _process_of(thread: int) -> int:
    try:
        status = Path(f"/proc/{thread}/status").read_text()
    except OSError:
        return thread
    return int(re.search(r"^Tgid:\s*(\d+)", status, re.MULTILINE)[1])  # type: ignore[index]


def _describe(call: str, rest: str) -> str:
    count = ARGUMENTS.get(call)
    if count is None:
        return call
    words = [word.strip(" )") for word in rest.partition(") = ")[0].replace("<unfinished ...>", "").split(", ")][:count]
    if call in DESCRIPTOR_CALLS:
        words = words[1:]
    return f"{call}({', '.join(words)})"


def main() -> None:
    """Run strace with this program as its reader, or read its lines."""
    output, *command = sys.argv[1:]
    if command == ["--read"]:
        recorder = Recorder()
        for line in sys.stdin:
            recorder.read_line(line)
        lines = [f"{worker}\t{call}\t{count}\n" for (worker, call), count in sorted(recorder.counts.items())]
        Path(output).write_text("".join(lines), encoding="utf-8")
        return
    reader = f"|{sys.executable} {Path(__file__).resolve()} {output} --read"
    raise SystemExit(subprocess.call(["strace", "-f", "-q", "-s", "48", "-e", "signal=none", "-o", reader, *command]))


if __name__ == "__main__":
    main()
