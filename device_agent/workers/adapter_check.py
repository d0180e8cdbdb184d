"""A personal adapter: an ONNX Runtime LoRA file that belongs to the device's user and not to any release.

    adapter/adapter.json    what is known of it; no content
    adapter/<sha256>.sealed the file and its golden answers, sealed under the storage key

Rules:
1. One adapter a family. It is attached to a bundle only where the golden-with-adapter check passed on it: the bundle's
   golden inputs, asked with the adapter, give what they gave when the user attached it, within a tolerance.
2. So an update keeps it, or loses it for as long as that release serves: it stays here and is back after a rollback, or
   with a later release that it fits.
3. The check runs in a jailed child, as every trial does: an adapter is bytes that somebody else wrote.
"""

from dataclasses import replace
from typing import Final

from bundle.errors import Bug, Malformed, Unavailable, Unfit
from bundle.manifest import Variant
from device_agent.errors import AdapterIncompatible, WorkerCrashed
from device_agent.process.channel import Message
from device_agent.process.jail import JailPolicy
from device_agent.process.worker_process import WorkerProcess
from device_agent.runtime.bundle_fds import BundleFds
from device_agent.runtime.probe_runner import PROBE_NICENESS
from device_agent.storage.adapter_store import ADAPTER_DIRECTORY_NAME

PROBE_MODULE: Final = "device_agent.workers.probe"


def with_adapter(fds: BundleFds, adapter_fd: int) -> BundleFds:
    """A bundle that is loaded with an adapter; the descriptor is the bundle's from here on."""
    return replace(fds, files={**fds.files, ADAPTER_DIRECTORY_NAME: adapter_fd}, adapter=ADAPTER_DIRECTORY_NAME)


def record_golden_answers(fds: BundleFds, variant: Variant, *, allow_unjailed: bool) -> int:
    """Ask a bundle's golden questions with its adapter.

    Args:
        fds: of `with_adapter`.

    Returns:
        a descriptor of golden vectors with the adapter's answers; the caller closes it.

    Raises:
        AdapterUnfit: it does not fit the model, or there are no golden questions.
    """
    return _call_probe(fds, variant, (), 0, allow_unjailed).fds[0]


def check_adapter(
    fds: BundleFds, golden_fd: int, tolerance_ppm: int, variant: Variant, *, allow_unjailed: bool
) -> None:
    """Rule 1.

    Args:
        fds: of `with_adapter`.
        golden_fd: of `golden_answers`, from the bundle that the adapter was attached to.

    Raises:
        AdapterUnfit: it does not pass.
        Unavailable: nothing was learned.
    """
    _call_probe(fds, variant, (golden_fd,), tolerance_ppm, allow_unjailed)


def _call_probe(
    fds: BundleFds, variant: Variant, golden: tuple[int, ...], tolerance_ppm: int, allow_unjailed: bool
) -> Message:
    deadline_s = variant.health.probe_deadline_s
    jail = JailPolicy(nice=PROBE_NICENESS, cpu_s=4 * deadline_s + 60, allow_unjailed=allow_unjailed)
    value, files = fds.to_message()
    request = {"bundle": value, "tolerance_ppm": tolerance_ppm}
    try:
        with WorkerProcess.start(PROBE_MODULE, jail) as child:
            return child.call("adapter", request, (*files, *golden), deadline_s=deadline_s)
    except WorkerCrashed as error:
        raise AdapterIncompatible(f"the trial with the adapter died: {error.message}") from error
    except (Bug, Unavailable):
        raise
    except (Unfit, Malformed) as error:
        raise AdapterIncompatible(f"the adapter does not fit this release: {error.message}") from error
