"""Find out which of the owner's execution providers models can run on here (docs/providers.md).

Rules:
- A provider counts if it runs a fixed graph in a jailed process, as it would run a model. So a missing library,
  a missing device node and a provider that crashes are found before anything is downloaded.
- A provider that runs is not tried again by this process; one that does not is tried again at every check.
- The CPU needs no check.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final

from bundle.errors import AirweightsError, Refused, Unavailable, Unfit
from bundle.providers import CPU
from device_agent.errors import AgentStopping, UpdateInterrupted
from device_agent.host.device_facts import runtime_version
from device_agent.policy.planner import DEFAULT_RUNTIME, MISSING_VERSION
from device_agent.process.jail import JailPolicy
from device_agent.process.worker_process import WorkerProcess

logger = logging.getLogger(__name__)

MODULE: Final = "device_agent.workers.probe"
CHECK_DEADLINE_S: Final = 120.0  # a cold SD card, and a provider that compiles kernels at its first run
_running: set[tuple[str, str, tuple[str, ...]]] = set()  # provider, plug-in, device nodes


def check_providers(
    names: Sequence[str], jail: JailPolicy, on_idle: Callable[[], None] | None = None
) -> tuple[tuple[str, str], ...]:
    """Return each provider with what keeps it from running here, or "".

    Args:
        names: the owner's list (bundle.providers).
        jail: policy of a probe process, with plug-ins and device nodes.
        on_idle: called repeatedly meanwhile; an error that it raises is raised.

    Raises:
        UpdateInterrupted, AgentStopping: `on_idle` raised it.
    """
    return tuple((name, "" if name == CPU else _problem_of(name, jail, on_idle)) for name in names)


def _problem_of(name: str, jail: JailPolicy, on_idle: Callable[[], None] | None) -> str:
    if runtime_version() == MISSING_VERSION:
        return "onnxruntime is not installed"
    jail = replace(jail, worker="probe", runtime=DEFAULT_RUNTIME, provider=name, expendable=True, file_bytes=0)
    key = (name, jail.provider_library, jail.devices)
    if key in _running:
        return ""
    try:
        with WorkerProcess.start(MODULE, jail, deadline_s=CHECK_DEADLINE_S, on_idle=on_idle) as worker:
            request = {"provider": name}
            facts = worker.call("provider", request, deadline_s=CHECK_DEADLINE_S, on_idle=on_idle).value
    except (UpdateInterrupted, AgentStopping):
        raise
    except (Refused, Unavailable, Unfit) as error:
        logger.warning("execution provider not usable", extra={"provider": name, "detail": _one_line(error)})
        return _one_line(error)
    logger.info("execution provider usable", extra={"provider": name, "nodes": facts.get("nodes")})
    _running.add(key)
    return ""


def _one_line(error: AirweightsError) -> str:
    return " ".join(error.message.split())[:300]
