"""What this device is: read from the system, handed to the planner as a value."""

import importlib.util
import os
import sys
from functools import cache
from pathlib import Path
from typing import Final

from device_agent.policy.planner import DeviceFacts

# features that a decoder of this version has beyond the base set (bundle.patch.container, which needs numpy to load)
DECODERS: Final = frozenset({"delta", "edit", "stream", "typed"})
OPTIONAL_DECODERS: Final = {"lzma": "_lzma", "pcodec": "pcodec"}  # feature → the module that it needs
RUNTIME_DISTRIBUTIONS: Final = ("onnxruntime", "onnxruntime_gpu", "onnxruntime_openvino", "onnxruntime_qnn")


def device_facts() -> DeviceFacts:
    """As it is now; memory changes."""
    decoders = DECODERS | {name for name, module in OPTIONAL_DECODERS.items() if importlib.util.find_spec(module)}
    return DeviceFacts(os.uname().machine, cpu_features(), runtime_version(), available_memory_bytes(), decoders)


@cache
def runtime_version() -> str:
    """onnxruntime's version, from the name of its metadata folder: importlib.metadata would cost 3 MB of memory.

    Read once: another runtime under a running agent takes effect when it starts again.
    """
    for folder in map(Path, sys.path):
        for name in RUNTIME_DISTRIBUTIONS:
            for found in folder.glob(f"{name}-[0-9]*.dist-info"):
                return found.name.removesuffix(".dist-info").partition("-")[2]
    return "0"


def providers() -> tuple[str, ...]:
    """Execution providers that models run on here. The agent asks for no other than the processor's: a variant is
    probed, measured and compared on what it will serve on."""
    return ("CPUExecutionProvider",)


def cpu_features() -> frozenset[str]:
    """Flags of the first processor ("Features" on ARM)."""
    with Path("/proc/cpuinfo").open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            name, _, value = line.partition(":")
            if name.strip() in ("flags", "Features"):
                return frozenset(value.split())
    return frozenset()


def available_memory_bytes() -> int:
    """MemAvailable, or what the control group leaves of it."""
    available = 0
    with Path("/proc/meminfo").open(encoding="ascii") as lines:
        for line in lines:
            if line.startswith("MemAvailable:"):
                available = int(line.split()[1]) * 1024
    group = Path("/sys/fs/cgroup")
    limit, used = group / "memory.max", group / "memory.current"
    if limit.exists() and used.exists() and (text := limit.read_text().strip()).isdecimal():
        available = min(available, max(0, int(text) - int(used.read_text()) + _reclaimable_bytes(group)))
    return available


def _reclaimable_bytes(group: Path) -> int:
    # the page cache counts as used, though the kernel gives it up before it kills anybody
    try:
        lines = (group / "memory.stat").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) for line in lines if line.startswith(("inactive_file ", "active_file ")))
