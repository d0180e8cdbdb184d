"""Sessions of ONNX Runtime on the execution provider of a variant (docs/providers.md).

Rules:
1. Nothing falls back silently. ONNX Runtime continues on the CPU if a provider does not load, if its device is missing,
   or if a run of it fails. So its own fallback is off, and a session counts only if the provider is the first of
   `get_providers()` and has at least one node of the model.
2. A provider opens libraries, and asks the system about the processor, when the first session is made. So
   `warm_provider` makes a session of the reference graph before the jail closes, and deletes it, which ends the
   provider's threads, too. Some look for their libraries again when the next session is made: the folders of the
   libraries stay readable in the jail.
3. A plug-in is a library that the device's owner names. It is registered once in a process, under the provider's name.
4. Missing: the provider has no session of the reference graph here. Unused: it has, but takes no node of the model.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import onnxruntime as ort

from bundle.providers import CPU, KNOWN_PROVIDERS, runtime_name, short_name
from bundle.session_options import provider_options, set_session_options
from device_agent.errors import ProviderMissing, ProviderUnused
from device_agent.runtime.loaded_model import one_line

RECORD_ASSIGNMENT: Final = "session.record_ep_graph_assignment_info"
GRAPH_FILE: Final = Path(__file__).with_name("reference.onnx")
DEVICE_TYPE: Final = "openvino.device_type"
PLUGIN_HINT: Final = "install the provider's build of ONNX Runtime, or name its plug-in in serve.provider_libraries"
_registered: set[str] = set()  # providers whose plug-ins this process has registered


def create_session(
    path: str, session_options: Any, provider: str, options: tuple[tuple[str, str], ...], *, threads: int
) -> Any:
    """Create a session on a provider, and check that the provider runs a part of the model (rule 1).

    Args:
        path: the model.
        session_options: options that all sessions have; those of the variant are added.
        provider: name in files, for example "OpenVINO".
        options: the variant's session options, which bundle.session_options allows.
        threads: threads of one run.

    Raises:
        ProviderMissing: the session is not on the provider.
        ProviderUnused: the provider takes no node of the model.
        Exception: an error of ONNX Runtime, if it cannot load the model.
    """
    set_session_options(session_options, ort.GraphOptimizationLevel, dict(options))
    if provider == CPU:
        return ort.InferenceSession(path, session_options, providers=[runtime_name(CPU)], enable_fallback=0)
    name, own_options = runtime_name(provider), provider_options(provider, options, threads)
    session_options.add_session_config_entry(RECORD_ASSIGNMENT, "1")
    if provider in _registered:
        session_options.add_provider_for_devices(_plugin_devices(provider, dict(options)), own_options)
        session = ort.InferenceSession(path, session_options, enable_fallback=0)
    else:
        if name not in ort.get_available_providers():
            raise _missing(provider, f"this build has {', '.join(map(short_name, ort.get_available_providers()))}")
        session = ort.InferenceSession(
            path, session_options, providers=[name], provider_options=[own_options], enable_fallback=0
        )
    taken = session.get_providers()
    if not taken or taken[0] != name:
        raise _missing(provider, f"it loads, but the session is on {', '.join(map(short_name, taken)) or 'none'}")
    if not any(part.ep_name == name and part.get_nodes() for part in session.get_provider_graph_assignment_info()):
        raise ProviderUnused(
            f"the execution provider {provider} takes no node of the model",
            hint="publish this model as a variant for the CPU",
        )
    return session


def warm_provider(provider: str, library: str) -> tuple[str, ...]:
    """Map all libraries of a provider into this process, and return the folders that they are in (rule 2).

    Args:
        provider: name in files.
        library: path of its plug-in, or "" if it is a part of ONNX Runtime.

    Raises:
        ProviderMissing: it has no session of the reference graph on this device.
    """
    if provider == CPU:
        return ()
    before = _mapped_libraries()
    if library and provider not in _registered:
        with _errors_of(provider):
            ort.register_execution_provider_library(provider, library)
        _registered.add(provider)
    try:
        with _errors_of(provider):
            create_session(str(GRAPH_FILE), _quiet_options(), provider, (), threads=1)
    except ProviderUnused as error:
        raise _missing(provider, "it takes no node of the reference graph") from error
    return tuple(sorted({str(Path(path).parent) for path in _mapped_libraries() - before}))


def taken_provider(session: Any) -> str:
    """Return the name in files of the provider that a session is on."""
    return short_name(session.get_providers()[0])


def _mapped_libraries() -> set[str]:
    lines = Path("/proc/self/maps").read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    fields = (line.split(None, 5) for line in lines)
    return {row[5] for row in fields if len(row) == 6 and row[5].startswith("/") and ".so" in row[5]}


def _plugin_devices(provider: str, options: dict[str, str]) -> list[Any]:
    """Return the first device that a plug-in offers, of the type that the options ask for."""
    offered = [device for device in ort.get_ep_devices() if device.ep_name == runtime_name(provider)]
    wanted = options.get(DEVICE_TYPE)
    fitting = [device for device in offered if wanted is None or device.device.type.name == wanted]
    if not fitting:
        kinds = ", ".join(sorted({device.device.type.name for device in offered})) or "none"
        raise _missing(provider, f"its plug-in offers the devices {kinds}" + (f", not {wanted}" if wanted else ""))
    return fitting[:1]


def _quiet_options() -> Any:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return options


@contextmanager
def _errors_of(provider: str) -> Iterator[None]:
    """Translate an error of ONNX Runtime: nothing but the reference graph is loaded here."""
    try:
        yield
    except (ProviderMissing, ProviderUnused):
        raise
    except Exception as error:
        raise _missing(provider, one_line(error)) from error


def _missing(provider: str, why: str) -> ProviderMissing:
    known = "" if provider in KNOWN_PROVIDERS else f"; known ones are {', '.join(KNOWN_PROVIDERS)}"
    return ProviderMissing(
        f"onnxruntime {ort.__version__} does not run on the execution provider {provider}: {why}{known}",
        hint=PLUGIN_HINT,
    )
