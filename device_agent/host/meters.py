"""What the kernel counts: processor time and memory of a process, energy of the machine.

Files are opened once and read at their start again and again: in a jail nothing can be opened any more, and these still
can be read. Energy comes from RAPL (`/sys/class/powercap`) and from sensors (`/sys/class/hwmon`), where there are any
and this process may read them; a RAPL counter starts again at 0 when it is full.
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
    """Descriptors of /proc/PID/statm and /proc/PID/stat, its owner's to close."""

    statm: int
    stat: int

    @classmethod
    def open(cls, pid: int | str = "self") -> "ProcessMeter":
        """Raises OSError: there is no such process."""
        statm = os.open(f"/proc/{pid}/statm", os.O_RDONLY | os.O_CLOEXEC)
        try:
            return cls(statm, os.open(f"/proc/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC))
        except BaseException:
            os.close(statm)
            raise

    def resident_bytes(self) -> int:
        """0 once the process has ended."""
        with contextlib.suppress(OSError, ValueError, IndexError):
            return int(os.pread(self.statm, MAX_FILE_BYTES, 0).split()[1]) * PAGE_BYTES
        return 0

    def cpu_s(self) -> float:
        """Processor seconds of all its threads; 0 once it has ended."""
        with contextlib.suppress(OSError, ValueError, IndexError):
            fields = os.pread(self.stat, MAX_FILE_BYTES, 0).rpartition(b")")[2].split()
            return (int(fields[11]) + int(fields[12])) / CPU_TICKS_PER_S
        return 0.0

    def close(self) -> None:
        """Once."""
        os.close(self.statm)
        os.close(self.stat)


@dataclass(frozen=True, slots=True)
class EnergyMeter:
    """One counter of energy.

    Attributes:
        zone: its name, for example "package-0".
        fd: of a file that holds microjoules.
        full_j: joules at which it starts again, or None.
    """

    zone: str
    fd: int
    wraparound_j: float | None = None

    def read_joules(self) -> float | None:
        """So far; None where the sensor does not answer."""
        with contextlib.suppress(OSError, ValueError):
            return int(os.pread(self.fd, MAX_FILE_BYTES, 0)) / 1e6
        return None

    def joules_since(self, before_j: float) -> float:
        """Joules since an earlier reading, across one restart of the counter."""
        now_j = self.read_joules()
        if now_j is None:
            return 0.0
        return (
            now_j - before_j if now_j >= before_j or self.wraparound_j is None else now_j + self.wraparound_j - before_j
        )


def open_energy_meters(sys: Path = SYSFS_CLASS_PATH) -> tuple[EnergyMeter, ...]:
    """All that can be read: whole packages and what is beside them, no parts of a package.

    Args:
        sys: where `powercap` and `hwmon` are.
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
