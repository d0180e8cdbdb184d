"""Attach, detach and check the personal adapter (device_agent.workers.adapter_check)."""

import logging
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from bundle.errors import Bug
from bundle.local_files import check_regular_file
from device_agent.errors import AdapterIncompatible, AdapterMissing, ConfigInvalid, StoreDamaged, WorkerTimeout
from device_agent.policy.journal_records import BundleRecord
from device_agent.runtime.bundle_fds import BundleFds
from device_agent.storage.adapter_store import DEFAULT_TOLERANCE_PPM, MAX_ADAPTER_BYTES, Adapter, AdapterStore
from device_agent.update.context import UpdateContext
from device_agent.workers.adapter_check import check_adapter, record_golden_outputs, with_adapter
from device_agent.workers.worker_pool import WorkerPool

logger = logging.getLogger(__name__)


def change_adapter(context: UpdateContext, command: str, fields: Mapping[str, Any]) -> None:
    """Attach or detach the adapter. After an error nothing has changed.

    Args:
        context: configuration, stores and workers of the family.
        command: "adapter-attach" or "adapter-detach".
        fields: for "adapter-attach": `file` (path, or None for the stored adapter), `tolerance_ppm` (or None).

    Raises:
        ConfigInvalid: the file is missing, empty or too large.
        AdapterMissing: no adapter is stored, or no release is active.
        AdapterIncompatible: the adapter does not fit the active release.
    """
    if command == "adapter-detach":
        AdapterStore(context.device).detach()
        return
    if command != "adapter-attach":
        raise Bug(f"unknown command {command!r}")
    active = context.journal.bundle(context.journal.pointers.active)
    if active is None:
        raise AdapterMissing("no release is active", hint="run `device-agent update` first")
    models = len(active.parse_manifest()[1].models)
    if models != 1:
        raise AdapterIncompatible(f"release {active.version} has {models} models, an adapter is for a release with one")
    with context.open_workers() as workers:
        if fields.get("file") is None:
            _reattach(context, workers, active)
        else:
            _attach(context, workers, active, Path(str(fields["file"])), fields.get("tolerance_ppm"))


def _attach(
    context: UpdateContext, workers: WorkerPool, active: BundleRecord, path: Path, tolerance_ppm: int | None
) -> None:
    source = _copy_to_memfd(path)
    fds = workers.patcher.unseal(active)
    try:
        both = with_adapter(fds, source)
        golden = record_golden_outputs(both, active.parse_manifest()[1], context.probe_client.jail)
        try:
            sha256, size = workers.patcher.seal_adapter(source, golden)
        finally:
            os.close(golden)
    finally:
        fds.close()
        os.close(source)
    tolerance = DEFAULT_TOLERANCE_PPM if tolerance_ppm is None else tolerance_ppm
    AdapterStore(context.device).write(Adapter(path.name[:256], sha256, size, tolerance, True, {active.digest: True}))


def _copy_to_memfd(path: Path) -> int:
    # onnxruntime opens a file by its path: in the jail /proc/self/fd/N works for a memfd, not for the user's file
    try:
        check_regular_file(path)
        source = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
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


def _reattach(context: UpdateContext, workers: WorkerPool, active: BundleRecord) -> None:
    store = AdapterStore(context.device)
    adapter = store.read()
    if adapter is None:
        raise AdapterMissing("no adapter is stored", hint="name the file of an adapter")
    fds = workers.patcher.unseal(active)
    try:
        adapter_fd, golden_fd = workers.patcher.unseal_adapter(adapter)
        try:
            both, variant = with_adapter(fds, adapter_fd), active.parse_manifest()[1]
            check_adapter(both, golden_fd, adapter.tolerance_ppm, variant, context.probe_client.jail)
        except AdapterIncompatible:
            store.write(adapter.with_check_result(active.digest, is_compatible=False))
            raise
        finally:
            os.close(adapter_fd)
            os.close(golden_fd)
    finally:
        fds.close()
    store.write(replace(adapter.with_check_result(active.digest, is_compatible=True), is_enabled=True))


def check_with_candidate(
    context: UpdateContext, workers: WorkerPool, adapter: Adapter, fds: BundleFds, bundle: BundleRecord
) -> None:
    """Record whether the adapter is compatible with a candidate; if not, the candidate serves without it.

    Args:
        context: configuration and stores of the family.
        workers: unseal the adapter.
        adapter: the stored adapter, which is enabled.
        fds: files of the candidate.
        bundle: the candidate.
    """
    is_compatible = False
    try:
        adapter_fd, golden_fd = workers.patcher.unseal_adapter(adapter)
        try:
            both, variant = with_adapter(fds, adapter_fd), bundle.parse_manifest()[1]
            check_adapter(both, golden_fd, adapter.tolerance_ppm, variant, context.probe_client.jail)
            is_compatible = True
        finally:
            os.close(adapter_fd)
            os.close(golden_fd)
    except (AdapterIncompatible, StoreDamaged, WorkerTimeout) as error:
        logger.warning("release %s serves without the adapter: %s", bundle.version, error.message)
    AdapterStore(context.device).write(adapter.with_check_result(bundle.digest, is_compatible=is_compatible))
