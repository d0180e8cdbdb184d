"""What the supervisor works with: bundles in memfds, model processes, the front, the probe."""

from device_agent.runtime.bundle_fds import BundleFds, sealed_memfd
from device_agent.runtime.front_handle import Front, ServeConfig, ShadowStats, WindowStats
from device_agent.runtime.model_handle import GenerationSpec, ModelProcess, Standby
from device_agent.runtime.probe_runner import ProbeBaseline, ProbeReport, probe

__all__ = [
    "BundleFds",
    "Front",
    "GenerationSpec",
    "ModelProcess",
    "ProbeBaseline",
    "ProbeReport",
    "ServeConfig",
    "ShadowStats",
    "Standby",
    "WindowStats",
    "probe",
    "sealed_memfd",
]
