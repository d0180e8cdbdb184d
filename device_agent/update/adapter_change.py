"""Attaches and detaches the personal adapter (device_agent.workers.adapter_check) at its user's word."""

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from bundle.errors import Bug
from device_agent.errors import AdapterUnfit, ConfigInvalid, NoAdapter
from device_agent.policy.journal_records import Holding
from device_agent.update.context import Agent
from device_agent.workers.adapter_check import (
    DEFAULT_TOLERANCE_PPM,
    MAX_ADAPTER_BYTES,
    Adapter,
    AdapterShelf,
    check_adapter,
    golden_answers,
    with_adapter,
)
from device_agent.workers.worker_pool import Errands


def change_adapter(agent: Agent, command: str, fields: Mapping[str, Any]) -> None:
    """Do what an operator asked for.

    Args:
        command: "adapter-attach", with `file`, a path, or None for the one that is held, and `tolerance_ppm` or None;
            or "adapter-detach".

    Raises:
        ConfigInvalid: there is no such file.
        NoAdapter: none is held, or no release that it could be attached to.
        AdapterUnfit: it does not fit the active release. Nothing has changed then.
    """
    if command == "adapter-detach":
        AdapterShelf(agent.device).detach()
        return
    if command != "adapter-attach":
        raise Bug(f"unknown word {command!r}")
    active = agent.journal.holding(agent.journal.pointers.active)
    if active is None:
        raise NoAdapter("no release is active that an adapter could be attached to", remedy="`device-agent update`")
    with agent.errands() as errands:
        if fields.get("file") is None:
            _attach_again(agent, errands, active)
        else:
            _attach(agent, errands, active, Path(str(fields["file"])), fields.get("tolerance_ppm"))


def _attach(agent: Agent, errands: Errands, active: Holding, path: Path, tolerance_ppm: int | None) -> None:
    source = _in_memory(path)
    fds = errands.unseal(active)
    try:
        both = with_adapter(fds, source)
        golden = golden_answers(both, active.parsed()[1], allow_unjailed=agent.config.allow_unjailed)
        try:
            sha256, size = errands.seal_adapter(source, golden)
        finally:
            os.close(golden)
    finally:
        fds.close()
        os.close(source)
    tolerance = DEFAULT_TOLERANCE_PPM if tolerance_ppm is None else tolerance_ppm
    AdapterShelf(agent.device).write(Adapter(path.name[:256], sha256, size, tolerance, True, {active.digest: True}))


def _in_memory(path: Path) -> int:
    # a jailed child can not open a file again by its descriptor, as onnxruntime does, but a memfd it can
    try:
        source = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            size = os.fstat(source).st_size
            if not 0 < size <= MAX_ADAPTER_BYTES:
                raise ConfigInvalid(f"{path} has {size} bytes, expected 1 to {MAX_ADAPTER_BYTES}")
            memory = os.memfd_create("adapter", os.MFD_CLOEXEC)
            offset = 0
            while offset < size and (sent := os.sendfile(memory, source, offset, size - offset)):
                offset += sent
            return memory
        finally:
            os.close(source)
    except OSError as error:
        raise ConfigInvalid(f"{path}: {error.strerror}") from error


def _attach_again(agent: Agent, errands: Errands, active: Holding) -> None:
    shelf = AdapterShelf(agent.device)
    adapter = shelf.read()
    if adapter is None:
        raise NoAdapter("no adapter is held", remedy="name a file")
    fds = errands.unseal(active)
    try:
        adapter_fd, golden_fd = errands.unseal_adapter(adapter)
        try:
            both, unjailed = with_adapter(fds, adapter_fd), agent.config.allow_unjailed
            check_adapter(both, golden_fd, adapter.tolerance_ppm, active.parsed()[1], allow_unjailed=unjailed)
        except AdapterUnfit:
            shelf.write(adapter.checked(active.digest, fits=False))
            raise
        finally:
            os.close(adapter_fd)
            os.close(golden_fd)
    finally:
        fds.close()
    shelf.write(replace(adapter.checked(active.digest, fits=True), is_wanted=True))
