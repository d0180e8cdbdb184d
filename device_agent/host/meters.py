"""Kernel counters: CPU time and memory of a process, energy of the machine.

Files are opened once and then read from their start at every call: a jailed process cannot open files, but can still
read open ones. Energy comes from RAPL (`/sys/class/powercap`) and from sensors (`/sys/class/hwmon`), if the machine has
them and this process may read them. A RAPL counter wraps around to 0 at its maximum.
"""

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

CPU_TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")
PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")
MAX_FILE_BYTES: Final = 4096
SYSFS_CLASS_PATH: Final = Path("/sys/class")


@dataclass(frozen=True, slots=True)
class ProcessMeter:
    """CPU time and memory of one process. The owner calls `close`.

    Attributes:
        statm: descriptor of /proc/PID/statm.
        stat: descriptor of /proc/PID/stat.
    """

    statm: int
    stat: int

    @classmethod
    def open(cls, pid: int | str = "self") -> "ProcessMeter":
        """Open the counters of a process; "self" is the calling one.

        Raises:
            OSError: the process does not exist.
        """
        statm = os.open(f"/proc/{pid}/statm", os.O_RDONLY | os.O_CLOEXEC)
        try:
            return cls(statm, os.open(f"/proc/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC))
        except BaseException:
            os.close(statm)
            raise

    def resident_bytes(self) -> int:
        """Return the resident memory in bytes; 0 after the process has ended."""
        with contextlib.suppress(OSError, ValueError, IndexError):
            return int(os.pread(self.statm, MAX_FILE_BYTES, 0).split()[1]) * PAGE_BYTES
        return 0

    def cpu_s(self) -> float:
        """Return the CPU seconds of all threads; 0 after the process has ended."""
        with contextlib.suppress(OSError, ValueError, IndexError):
            fields = os.pread(self.stat, MAX_FILE_BYTES, 0).rpartition(b")")[2].split()
            return (int(fields[11]) + int(fields[12])) / CPU_TICKS_PER_S
        return 0.0

    def close(self) -> None:
        """Close both descriptors. Call it once."""
        os.close(self.statm)
        os.close(self.stat)


@dataclass(frozen=True, slots=True)
class EnergyMeter:
    """One energy counter of the machine.

    Attributes:
        zone: name of the counter, for example "package-0".
        fd: descriptor of a file that contains microjoules in decimal.
        wraparound_j: joules at which the counter wraps around to 0, or None if it does not.
    """

    zone: str
    fd: int
    wraparound_j: float | None = None

    def read_joules(self) -> float | None:
        """Return the counter in joules, or None if it cannot be read."""
        with contextlib.suppress(OSError, ValueError):
            return int(os.pread(self.fd, MAX_FILE_BYTES, 0)) / 1e6
        return None

    def joules_since(self, before_j: float) -> float:
        """Return the joules since an earlier reading; 0 if the counter cannot be read.

        One wraparound of the counter in between is allowed for.
        """
        now_j = self.read_joules()
        if now_j is None:
            return 0.0
        return (
            now_j - before_j if now_j >= before_j or self.wraparound_j is None else now_j + self.wraparound_j - before_j
        )


def open_energy_meters(sys: Path = SYSFS_CLASS_PATH) -> tuple[EnergyMeter, ...]:
    """Open all readable energy counters: CPU packages, not their parts, and hwmon sensors.

    Args:
        sys: folder that contains `powercap` and `hwmon`; not /sys/class in tests.
    """
    found: list[EnergyMeter] = []
    for zone in sorted((sys / "powercap").glob("*")):
        if zone.name.count(":") == 1:  # "intel-rapl:0" is a package, "intel-rapl:0:0" a part of it
            _add_meter(found, zone / "name", zone / "energy_uj", zone / "max_energy_range_uj")
    for counter in sorted((sys / "hwmon").glob("*/energy*_input")):
        label = counter.with_name(counter.name.replace("_input", "_label"))
        _add_meter(found, label if label.exists() else counter.with_name("name"), counter, None)
    return tuple(found)


def _add_meter(found: list[EnergyMeter], name: Path, counter: Path, full: Path | None) -> None:
    with contextlib.suppress(OSError, ValueError):
        zone = "".join(c for c in name.read_text(encoding="ascii").strip() if c.isalnum() or c in "-_.")
        full_j = None if full is None or not full.exists() else int(full.read_text()) / 1e6
        fd = os.open(counter, os.O_RDONLY | os.O_CLOEXEC)
        found.append(EnergyMeter(zone, fd, full_j))
