"""The names of this package that the supervisor uses at rest."""

from device_agent.runtime.bundle_fds import BundleFds, create_sealed_memfd
from device_agent.runtime.front_counters import RepeatStats, ShadowStats, WindowStats
from device_agent.runtime.front_handle import FrontHandle, ServeConfig
from device_agent.runtime.model_handle import GenerationSpec, ModelProcess, PrestartedProcess

__all__ = [
    "BundleFds",
    "FrontHandle",
    "GenerationSpec",
    "ModelProcess",
    "PrestartedProcess",
    "RepeatStats",
    "ServeConfig",
    "ShadowStats",
    "WindowStats",
    "create_sealed_memfd",
]
