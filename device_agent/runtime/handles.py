"""The names of this package that the supervisor uses."""

from device_agent.runtime.bundle_fds import BundleFds, create_sealed_memfd
from device_agent.runtime.front_handle import FrontHandle, RepeatStats, ServeConfig, ShadowStats, WindowStats
from device_agent.runtime.model_handle import GenerationSpec, ModelProcess, PrestartedProcess
from device_agent.runtime.probe_runner import ProbeBaseline, ProbeReport, run_probe_process

__all__ = [
    "BundleFds",
    "FrontHandle",
    "GenerationSpec",
    "ModelProcess",
    "PrestartedProcess",
    "ProbeBaseline",
    "ProbeReport",
    "RepeatStats",
    "ServeConfig",
    "ShadowStats",
    "WindowStats",
    "create_sealed_memfd",
    "run_probe_process",
]
