"""The runtimes that an agent can run models with, behind one protocol.

Rules:
- A backend is the object BACKEND of its module. The module and its runtime are imported when a model needs them, so a
  device needs the runtimes of its models only.
- In a worker, `warm_process` runs before the jail closes: afterwards, a runtime can read nothing of the system.
"""

import importlib.util
from importlib import import_module
from typing import Final, Protocol, cast

from bundle.providers import CPU
from device_agent.errors import RuntimeMissing
from device_agent.runtime.bundle_fds import BundleFds
from device_agent.runtime.loaded_model import LoadedModel

# runtime of a manifest -> the module of its backend, and what has to be installed
BACKEND_MODULES: Final = {
    "onnxruntime": ("device_agent.runtime.session", "onnxruntime"),
    "litert": ("device_agent.runtime.litert_model", "ai_edge_litert"),
}


class Backend(Protocol):
    """A runtime that loads models.

    Attributes:
        name: its name in manifests (bundle.requirements.AGENT_RUNTIMES).
    """

    name: str

    def warm_process(self, provider: str = CPU, library: str = "") -> tuple[str, ...]:
        """Do what the runtime cannot do in the jail, without leaving a thread behind.

        Args:
            provider: the execution provider that the models are for.
            library: path of the provider's plug-in, or "".

        Returns:
            The folders of libraries that it opens again in the jail.

        Raises:
            ProviderMissing: this device lacks the provider.
        """
        ...

    def load(self, bundle: BundleFds, *, threads: int = 0) -> LoadedModel:
        """Load a bundle's model.

        Args:
            bundle: the model's files; the caller still owns them and can close them afterwards.
            threads: threads of one run; 0 for one per processor, at most 4.

        Raises:
            Unfit: the model does not load, or has an input or output that is not a tensor.
        """
        ...


def backend_of(name: str) -> Backend:
    """Return the backend of a runtime, and import the runtime.

    Raises:
        RuntimeMissing: it is not installed.
    """
    module, package = BACKEND_MODULES[name]
    if importlib.util.find_spec(package) is None:
        raise RuntimeMissing(
            f"the runtime {name} is not installed", hint=f"install {package.replace('_', '-')} beside the agent"
        )
    return cast("Backend", import_module(module).BACKEND)


def load_model(bundle: BundleFds, *, threads: int = 0) -> LoadedModel:
    """Load a bundle's model with its runtime (`Backend.load`).

    Args:
        bundle: the model's files; the caller still owns them and can close them afterwards.
        threads: threads of one run; 0 for one per processor, at most 4.

    Raises:
        RuntimeMissing: the runtime is not installed.
        Unfit: the model does not load, or has an input or output that is not a tensor.
    """
    return backend_of(bundle.runtime).load(bundle, threads=threads)
