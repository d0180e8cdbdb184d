"""Checks of a personal adapter, an ONNX Runtime LoRA file of the user that is part of no release.

Rules:
- A family has one adapter. It is attached to a bundle only if its check passed there: with the adapter, the bundle's
  golden inputs produce the outputs that they produced when the user attached it, within a tolerance.
- A release that the adapter does not fit serves without it. The adapter stays stored, and is attached again after a
  rollback, or with a later release that it fits.
- The check runs in a jailed probe process, because the adapter is an untrusted file.
"""

from dataclasses import replace
from typing import Final

from bundle.errors import Bug, Malformed, Unavailable, Unfit
from bundle.variant import Variant
from device_agent.errors import AdapterIncompatible, WorkerCrashed
from device_agent.process.channel import Message
from device_agent.process.jail import JailPolicy
from device_agent.process.worker_process import WorkerProcess
from device_agent.runtime.bundle_fds import BundleFds
from device_agent.storage.adapter_store import ADAPTER_DIRECTORY_NAME

PROBE_MODULE: Final = "device_agent.workers.probe"


def with_adapter(fds: BundleFds, adapter_fd: int) -> BundleFds:
    """Return the bundle with an adapter, which closes the descriptor with its other ones.

    Args:
        fds: the bundle's unsealed files.
        adapter_fd: descriptor of the adapter.
    """
    return replace(fds, files={**fds.files, ADAPTER_DIRECTORY_NAME: adapter_fd}, adapter=ADAPTER_DIRECTORY_NAME)


def record_golden_outputs(fds: BundleFds, variant: Variant, jail: JailPolicy) -> int:
    """Run a bundle's golden inputs with its adapter.

    Args:
        fds: result of `with_adapter`.
        variant: the bundle's variant, with its health contract.
        jail: policy of a probe process.

    Returns:
        A descriptor of golden vectors with the adapter's outputs; the caller closes it.

    Raises:
        AdapterIncompatible: the adapter does not fit the model, or the release has no golden inputs.
        Unavailable: the probe process could not be started or timed out.
    """
    return _call_probe(fds, variant, (), 0, jail).fds[0]


def check_adapter(fds: BundleFds, golden_fd: int, tolerance_ppm: int, variant: Variant, jail: JailPolicy) -> None:
    """Compare the golden outputs with the adapter with those of the time when it was attached.

    Args:
        fds: result of `with_adapter`.
        golden_fd: result of `record_golden_outputs` for the bundle that the adapter was attached to.
        tolerance_ppm: allowed relative RMS error, in parts per million.
        variant: the bundle's variant, with its health contract.
        jail: policy of a probe process.

    Raises:
        AdapterIncompatible: the outputs differ by more, or the model does not load with the adapter.
        Unavailable: the probe process could not be started or timed out.
    """
    _call_probe(fds, variant, (golden_fd,), tolerance_ppm, jail)


def _call_probe(
    fds: BundleFds, variant: Variant, golden: tuple[int, ...], tolerance_ppm: int, jail: JailPolicy
) -> Message:
    deadline_s = variant.health.probe_deadline_s
    jail = replace(jail, worker="probe", provider=fds.provider, cpu_s=4 * deadline_s + 60)
    value, files = fds.to_message()
    request = {"bundle": value, "tolerance_ppm": tolerance_ppm}
    try:
        with WorkerProcess.start(PROBE_MODULE, jail) as probe:
            return probe.call("adapter", request, (*files, *golden), deadline_s=deadline_s)
    except WorkerCrashed as error:
        raise AdapterIncompatible(f"the check with the adapter crashed: {error.message}") from error
    except (Bug, Unavailable):
        raise
    except (Unfit, Malformed) as error:
        raise AdapterIncompatible(f"the adapter does not fit this release: {error.message}") from error
