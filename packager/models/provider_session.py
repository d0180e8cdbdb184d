"""Sessions on the execution provider of a variant (docs/providers.md).

Rules:
1. What is recorded for a variant (gate, golden vectors, memory) comes from its provider, with its session options.
2. Nothing falls back: a session that is not on the provider, or has no node there, is an error.

It imports neither onnx nor numpy, since packager.models.trial_run measures what is imported.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from bundle.providers import CPU, runtime_name, short_name
from bundle.session_options import provider_options, set_session_options
from packager.errors import ModelDoesNotRun, ProviderNotInstalled

if TYPE_CHECKING:
    from bundle.requirements import Runtime

RECORD_ASSIGNMENT: Final = "session.record_ep_graph_assignment_info"


@dataclass(frozen=True, slots=True)
class Provider:
    """The execution provider and the session options of a variant.

    Attributes:
        name: name of the provider (bundle.providers).
        options: session options (bundle.session_options).
    """

    name: str = CPU
    options: tuple[tuple[str, str], ...] = ()

    @classmethod
    def of_runtime(cls, runtime: "Runtime") -> "Provider":
        """Return the provider of a variant's runtime."""
        return cls(runtime.provider, runtime.options)

    @classmethod
    def from_json(cls, text: str) -> "Provider":
        """Parse what `to_json` returned, in a subprocess of this program."""
        name, options = json.loads(text)
        return cls(name, tuple((key, value) for key, value in options))

    def to_json(self) -> str:
        """Return the value as an argument of a subprocess."""
        return json.dumps([self.name, self.options])


ON_CPU: Final = Provider()


def require_provider(name: str) -> None:
    """Check that this machine's ONNX Runtime has a provider.

    Raises:
        ProviderNotInstalled: it has not.
    """
    import onnxruntime

    available = onnxruntime.get_available_providers()
    if runtime_name(name) not in available:
        raise ProviderNotInstalled(
            f"onnxruntime {onnxruntime.__version__} here has no execution provider {name}, "
            f"found {', '.join(map(short_name, available))}",
            hint="make the release where the provider is installed: gate and golden vectors have to run on it",
        )


def create_session(model: str | bytes, session_options: Any, provider: Provider) -> Any:
    """Create a session on a provider.

    Args:
        model: path or bytes of an ONNX file.
        session_options: an `onnxruntime.SessionOptions`; the provider's are added.
        provider: provider and options.

    Raises:
        ProviderNotInstalled: the session is not on the provider.
        ModelDoesNotRun: the provider takes no node of the model.
        Exception: an error of ONNX Runtime.
    """
    import onnxruntime

    set_session_options(session_options, onnxruntime.GraphOptimizationLevel, dict(provider.options))
    if provider.name == CPU:
        return onnxruntime.InferenceSession(model, session_options, providers=[runtime_name(CPU)])
    require_provider(provider.name)
    name = runtime_name(provider.name)
    session_options.add_session_config_entry(RECORD_ASSIGNMENT, "1")
    own = provider_options(provider.name, provider.options, session_options.intra_op_num_threads)
    session = onnxruntime.InferenceSession(
        model, session_options, providers=[name], provider_options=[own], enable_fallback=0
    )
    if session.get_providers()[:1] != [name]:
        raise ProviderNotInstalled(
            f"the execution provider {provider.name} does not start here: the session is on "
            f"{', '.join(map(short_name, session.get_providers())) or 'none'}",
            hint="check the provider's device and its session options",
        )
    if not _has_node(session.get_provider_graph_assignment_info(), name):
        raise ModelDoesNotRun(
            f"the execution provider {provider.name} takes no node of the model",
            hint="release this model as a variant for the CPU",
        )
    return session


def _has_node(parts: Sequence[Any], name: str) -> bool:
    return any(part.ep_name == name and part.get_nodes() for part in parts)
