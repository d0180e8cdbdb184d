"""Facts about this device for the planner: CPU, available memory, runtime, patch features."""

import importlib.util
import os
import sys
from functools import cache
from pathlib import Path
from typing import Final

from bundle.cpu_features import read_cpu_features, read_cpu_name
from device_agent.policy.planner import MISSING_VERSION, DeviceFacts

# patch features of this version's decoder beyond the base set (bundle.patch.container.FEATURES)
DECODERS: Final = frozenset({"delta", "repeat", "stream"})
# feature to the module that decodes it
OPTIONAL_DECODERS: Final = {
    "edit": "numpy",
    "lzma": "_lzma",
    "pcodec": "pcodec",
    "typed": "numpy",
}
# runtime of a manifest to its distribution
OTHER_RUNTIMES: Final = {"litert": "ai_edge_litert"}
ENDPOINT_MODULES: Final = ("uvicorn", "httptools")  # of the extra `serve`
RUNTIME_DISTRIBUTIONS: Final = ("onnxruntime", "onnxruntime_gpu", "onnxruntime_openvino", "onnxruntime_qnn")


def device_facts() -> DeviceFacts:
    """Read the facts that the planner needs. The available memory changes from call to call."""
    decoders = DECODERS | {name for name, module in OPTIONAL_DECODERS.items() if importlib.util.find_spec(module)}
    return DeviceFacts(
        os.uname().machine,
        read_cpu_features(),
        runtime_version() if has_endpoint() else MISSING_VERSION,
        available_memory_bytes(),
        decoders,
        other_runtimes() if has_endpoint() else {},
        read_cpu_name(),
    )


@cache
def has_endpoint() -> bool:
    """Return whether the packages of the endpoint are installed; without them, the agent runs no models."""
    return all(importlib.util.find_spec(name) is not None for name in ENDPOINT_MODULES)


@cache
def runtime_version() -> str:
    """Return the version of ONNX Runtime, or "0" if it is not installed.

    The version is read from the name of the metadata folder, since importlib.metadata needs 3 MB of memory. It is read
    once: a runtime that is upgraded under a running agent takes effect at the agent's next start.
    """
    return _distribution_version(RUNTIME_DISTRIBUTIONS) or MISSING_VERSION


@cache
def other_runtimes() -> dict[str, str]:
    """Return the versions of the installed runtimes other than ONNX Runtime, by their names in manifests."""
    found = {name: _distribution_version((distribution,)) for name, distribution in OTHER_RUNTIMES.items()}
    return {name: version for name, version in found.items() if version is not None}


def _distribution_version(names: tuple[str, ...]) -> str | None:
    for folder in map(Path, sys.path):
        for name in names:
            for found in folder.glob(f"{name}-[0-9]*.dist-info"):
                return found.name.removesuffix(".dist-info").partition("-")[2]
    return None


def available_memory_bytes() -> int:
    """Return the available memory in bytes.

    It is MemAvailable, or the free memory of the control group if that is less.
    """
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
    # the control group counts the page cache as used, but the kernel reclaims it before it kills a process
    try:
        lines = (group / "memory.stat").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) for line in lines if line.startswith(("inactive_file ", "active_file ")))
