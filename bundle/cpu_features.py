"""The name of this machine's processor, and its feature flags, as variants require them.

Flags are those of /proc/cpuinfo. Features that several flags grant under different names have an alias of their own
(ALIASES), because a variant requires all features that it names and cannot name alternatives.
"""

import os
from pathlib import Path
from typing import Final

CPUINFO_VARIABLE: Final = "AIRWEIGHTS_CPUINFO"
MAX_NAME_CHARACTERS: Final = 128  # of a processor (bundle.variant.Measured)
# feature -> flags, of which one is enough
ALIASES: Final = {"vnni": ("avx512_vnni", "avx_vnni")}


def read_cpu_name(path: Path = Path("/proc/cpuinfo")) -> str:
    """Return the model name of the first processor, or the architecture if the kernel does not name it.

    Args:
        path: the file with the processors.
    """
    with path.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            name, _, value = line.partition(":")
            if name.strip() in ("model name", "Model"):
                return "".join(c for c in value.strip() if c.isprintable())[:MAX_NAME_CHARACTERS]
    return os.uname().machine


def read_cpu_features(path: Path | None = None) -> frozenset[str]:
    """Return the flags of the first processor, and the aliases that they grant.

    Their line is named "flags", on ARM "Features".

    Args:
        path: the file with the processors; None for that of the environment variable CPUINFO_VARIABLE, else the
            system's. With the variable, one machine can stand for several kinds of devices.
    """
    path = path or Path(os.environ.get(CPUINFO_VARIABLE) or "/proc/cpuinfo")
    with path.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            name, _, value = line.partition(":")
            if name.strip() in ("flags", "Features"):
                flags = frozenset(value.split())
                return flags | {alias for alias, known in ALIASES.items() if flags.intersection(known)}
    return frozenset()


# class of a processor by architecture: name, flag that it needs; the first that fits
_CLASSES: Final = {
    "x86_64": (("amx", "amx_int8"), ("vnni", "vnni"), ("avx512", "avx512f"), ("avx2", "avx2"), ("sse4", "sse4_2")),
    "aarch64": (("i8mm", "i8mm"), ("sve", "sve"), ("dotprod", "asimddp"), ("asimd", "asimd")),
}


def cpu_class(machine: str, features: frozenset[str]) -> str:
    """Return the class of a processor, such as "x86_64-avx2": coarse, so that it names no device.

    Args:
        machine: the architecture, as `uname -m` prints it.
        features: result of `read_cpu_features`.
    """
    for name, flag in _CLASSES.get(machine, ()):
        if flag in features:
            return f"{machine}-{name}"
    plain = "".join(c if c.isascii() and c.isalnum() else "_" for c in machine.lower()).strip("_")
    return plain[:64] or "unknown"
