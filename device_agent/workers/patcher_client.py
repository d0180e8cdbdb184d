"""The supervisor's client of the patcher: content keys, patches and sealed files.

Rules:
- Each call passes descriptors: a key, and the files to read and to write. This process reads none of their contents.
- A key in a TPM or token is opened by the key opener first, which returns a descriptor of the plain key.
"""

import logging
import os
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from bundle.files import BundleDigest
from bundle.variant import Variant
from device_agent.config.config import Config
from device_agent.errors import PlainNotAllowed, StoreDamaged
from device_agent.policy.journal_records import BundleRecord
from device_agent.policy.planner import PatchEdge
from device_agent.process.channel import MAX_FDS, Message
from device_agent.process.replies import parse_reply
from device_agent.runtime.bundle_fds import BundleFds
from device_agent.storage.adapter_store import Adapter, AdapterStore
from device_agent.storage.bundle_store import BundleStore, sync_directory
from device_agent.storage.device_directory import (
    CLIENT_KEY_FILE,
    DEVICE_KEY,
    KEY_FILES,
    SIGNING_KEY,
    STORAGE_KEY,
    DeviceDirectory,
)
from device_agent.workers.adapter_check import with_adapter
from device_agent.workers.worker_processes import WorkerProcesses

if TYPE_CHECKING:
    from bundle.device_report import DeviceReport  # these are not in memory at rest
    from bundle.vital import Vital

logger = logging.getLogger(__name__)

PATCH_DEADLINE_S: Final = 3600.0
UNSEAL_DEADLINE_S: Final = 600.0
KEY_OPENER_DEADLINE_S: Final = 120.0  # a discrete TPM takes some 100 ms a command, and may be busy
SERVED_FILE_ROLES: Final = ("model", "external-data", "golden")


class PatcherClient:
    """The calls of one family's patcher.

    Args:
        config: configuration of the family.
        device: device directory of the family.
        store: bundle store of the family.
        processes: the running workers.
    """

    def __init__(self, config: Config, device: DeviceDirectory, store: BundleStore, processes: WorkerProcesses) -> None:
        self._config, self._device, self._store, self._processes = config, device, store, processes

    def load_content_key(self, edge: PatchEdge, envelopes: dict[str, Any]) -> None:
        """Let the patcher open the content key of a patch.

        Args:
            edge: the patch whose key is needed.
            envelopes: fields of the call `unlock` beside those of the release.

        Raises:
            Refused: an envelope does not open, or has another key than the signed one.
        """
        with _OwnedFds() as fds:
            key = fds.own(self._open_key(DEVICE_KEY))
            request = {**_release_fields(edge), **envelopes}
            self._call("unlock", request, (key,), deadline_s=KEY_OPENER_DEADLINE_S)

    def apply_patch(self, edge: PatchEdge) -> int:
        """Apply one patch from the spool into the store, and return the size of the stored bundle in bytes.

        Raises:
            PatchRefused: the patch does not apply.
            StoreDamaged: the base does not open.
            WorkerCrashed: the patcher crashed.
            WorkerTimeout: the patcher did not finish in time.
        """
        with _OwnedFds() as fds:
            key = fds.own(self._open_key(STORAGE_KEY))
            part = fds.own(self._store.open_partial(edge.entry.blob))
            outputs = fds.own_all(self._create_incoming(edge.target, edge.manifest.variant(edge.variant_name)))
            base = () if edge.entry.base is None else fds.own_all(self._store.open_bundle(edge.entry.base))
            request = {**_release_fields(edge), "patch": edge.entry.as_json(), "outputs": len(outputs)}
            reply = self._call("apply", request, (key, part, *outputs, *base), deadline_s=PATCH_DEADLINE_S)
            self._store.commit_incoming(edge.target, outputs)
        with parse_reply("patcher"):
            return int(reply.value["stored_bytes"])

    def store_as_signed(self, bundle: BundleRecord) -> None:
        """Give a stored bundle the form that its release and the device's owner want, if it has the other one.

        Raises:
            StoreDamaged: the bundle is damaged.
            NoSpace: both forms do not fit.
        """
        _, variant = bundle.parse_manifest()
        if self._store.is_plain(bundle.digest) == self._is_plain_wanted(variant):
            return
        self._store.check_space(variant.plain_size)
        with _OwnedFds() as fds:
            key = fds.own(self._open_key(STORAGE_KEY))
            source = fds.own_all(self._store.open_bundle(bundle.digest))
            outputs = fds.own_all(self._create_incoming(bundle.digest, variant))
            request = {"manifest": bundle.manifest, "variant": bundle.variant, "counter_epoch": bundle.counter_epoch}
            request |= {"digest": bundle.digest, "outputs": len(outputs)}
            self._call("convert", request, (key, *outputs, *source), deadline_s=PATCH_DEADLINE_S)
            self._store.commit_incoming(bundle.digest, outputs)
        form = "plain" if self._is_plain_wanted(variant) else "sealed"
        logger.info("bundle stored in another form", extra={"bundle": bundle.digest, "at_rest": form})

    def check_plain(self, bundle: BundleRecord) -> None:
        """Compare the digests of a bundle that is stored plain; a sealed one is checked when it is read.

        Raises:
            PlainNotAllowed: the device's owner does not allow plain files.
            StoreDamaged: a file was changed.
        """
        if self._store.is_plain(bundle.digest):
            paths = [file.path for file in bundle.parse_manifest()[1].files]
            for fd in self._open_checked(bundle, paths).values():
                os.close(fd)

    def unseal(self, bundle: BundleRecord) -> BundleFds:
        """Unseal the files that a model process needs; the caller closes them.

        Raises:
            StoreDamaged: the sealed bundle is missing or damaged.
        """
        _, variant = bundle.parse_manifest()
        with _OwnedFds() as fds:
            key = fds.own(self._open_key(STORAGE_KEY))
            stored = fds.own_all(self._store.open_bundle(bundle.digest))
            request = {"digest": bundle.digest, "roles": SERVED_FILE_ROLES}
            reply = self._call("unseal", request, (key, *stored), deadline_s=UNSEAL_DEADLINE_S)
        with parse_reply("patcher", reply):
            fds_by_path = dict(zip(reply.value["paths"], reply.fds, strict=True))
            return BundleFds.from_models(variant.models, variant.files, fds_by_path, variant.runtime)

    def unseal_files(self, bundle: BundleRecord, paths: Sequence[str]) -> dict[str, int]:
        """Unseal files for an application; the caller closes the descriptors.

        Args:
            bundle: a bundle in the store.
            paths: paths of its files.

        Returns:
            Descriptor by path: of a sealed memfd, or of the read-only file if the bundle is stored plain.

        Raises:
            StoreDamaged: the bundle is missing or damaged.
            PlainNotAllowed: it is stored plain, and the device's owner does not allow that any more.
        """
        if self._store.is_plain(bundle.digest):
            return self._open_checked(bundle, paths)
        with _OwnedFds() as fds:
            key = fds.own(self._open_key(STORAGE_KEY))
            stored = fds.own_all(self._store.open_bundle(bundle.digest))
            found: dict[str, int] = {}
            try:
                for start in range(0, len(paths), MAX_FDS):
                    request = {"digest": bundle.digest, "paths": list(paths[start : start + MAX_FDS])}
                    reply = self._call("unseal", request, (key, *stored), deadline_s=UNSEAL_DEADLINE_S)
                    with parse_reply("patcher", reply):
                        found.update(zip(reply.value["paths"], reply.fds, strict=True))
            except BaseException:
                for fd in found.values():
                    os.close(fd)
                raise
        return found

    def unseal_to_serve(self, bundle: BundleRecord) -> BundleFds:
        """Unseal as `unseal` does, with the personal adapter if one is attached to this bundle.

        An adapter that does not open is left out, so that the model serves without it.

        Raises:
            StoreDamaged: the sealed bundle is missing or damaged.
        """
        adapter = AdapterStore(self._device).find_attached(bundle.digest)
        fds = self.unseal(bundle)
        if adapter is None:
            return fds
        try:
            adapter_fd, golden_fd = self.unseal_adapter(adapter)
        except (StoreDamaged, OSError) as error:
            logger.error("cannot open the adapter, serving without it: %s", error)
            return fds
        except BaseException:
            fds.close()
            raise
        os.close(golden_fd)
        return with_adapter(fds, adapter_fd)

    def seal_adapter(self, adapter_fd: int, golden_fd: int) -> tuple[str, int]:
        """Seal an adapter with its golden outputs into the store, and return its SHA-256 and size in bytes.

        Args:
            adapter_fd: descriptor of the adapter.
            golden_fd: descriptor of the golden vectors with the adapter's outputs.

        Raises:
            TooLarge: the adapter is empty or too large.
        """
        store = AdapterStore(self._device)
        with _OwnedFds() as fds:
            key = fds.own(self._open_key(STORAGE_KEY))
            output = fds.own(os.open(store.incoming_path(), os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600))
            request = {"family": self._config.family}
            given = (key, adapter_fd, golden_fd, output)
            reply = self._call("seal-adapter", request, given, deadline_s=PATCH_DEADLINE_S)
            os.fsync(output)
        with parse_reply("patcher"):
            sha256, size = str(reply.value["sha256"]), int(reply.value["size"])
        store.incoming_path().rename(store.sealed_path(sha256))
        return sha256, size

    def unseal_adapter(self, adapter: Adapter) -> tuple[int, int]:
        """Unseal an adapter and its golden outputs; the caller closes both descriptors.

        Raises:
            StoreDamaged: the sealed file is missing or damaged.
        """
        with _OwnedFds() as fds:
            key = fds.own(self._open_key(STORAGE_KEY))
            try:
                sealed = fds.own(
                    os.open(AdapterStore(self._device).sealed_path(adapter.sha256), os.O_RDONLY | os.O_CLOEXEC)
                )
            except FileNotFoundError as error:
                raise StoreDamaged(f"adapter {adapter.sha256[:16]} is missing") from error
            request = {"family": self._config.family, "sha256": adapter.sha256}
            reply = self._call("unseal-adapter", request, (key, sealed), deadline_s=UNSEAL_DEADLINE_S)
        with parse_reply("patcher", reply):
            adapter_fd, golden_fd = reply.fds
            return adapter_fd, golden_fd

    def seal_client_key(self, plain_fd: int, path: Path) -> None:
        """Seal a TLS client key under the storage key into a file, which is replaced as a whole.

        Args:
            plain_fd: descriptor of the PEM file.
            path: the file.

        Raises:
            TooLarge: the key is empty or too large.
        """
        new = path.with_name(path.name + ".new")
        with _OwnedFds() as fds:
            key = fds.own(self._open_key(STORAGE_KEY))
            output = fds.own(os.open(new, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600))
            self._call("seal-client-key", {}, (key, plain_fd, output), deadline_s=UNSEAL_DEADLINE_S)
            os.fsync(output)
        new.rename(path)
        sync_directory(path.parent)

    def unseal_client_key(self) -> int:
        """Unseal the TLS client key into a sealed memfd; the caller closes the descriptor.

        Raises:
            IdentityInvalid: no key was sealed, or it does not open.
        """
        with _OwnedFds() as fds:
            key = fds.own(self._open_key(STORAGE_KEY))
            sealed = fds.own(self._device.open_key(CLIENT_KEY_FILE))
            reply = self._call("unseal-client-key", {}, (key, sealed), deadline_s=UNSEAL_DEADLINE_S)
        with parse_reply("patcher", reply):
            (fd,) = reply.fds
            return fd

    def read_sealed_header(self, digest: BundleDigest) -> BundleRecord:
        """Read all of a bundle and return the record in its head.

        Raises:
            StoreDamaged: it is missing, or a byte of it is damaged.
        """
        from bundle.manifest import parse_manifest

        with _OwnedFds() as fds:
            key = fds.own(self._open_key(STORAGE_KEY))
            stored = fds.own_all(self._store.open_bundle(digest))
            reply = self._call("describe", {"digest": digest}, (key, *stored), deadline_s=UNSEAL_DEADLINE_S)
        with parse_reply("patcher"):
            manifest = parse_manifest(str(reply.value["manifest"]).encode())
            return BundleRecord.from_manifest(manifest, str(reply.value["variant"]), int(reply.value["counter_epoch"]))

    def sign_lines(self, device_id: str, reports: "Sequence[DeviceReport]", vitals: "Sequence[Vital]") -> list[bytes]:
        """Return the signed lines of reports and vitals, in this order.

        Args:
            device_id: id of the device.
            reports: the reports.
            vitals: the vitals.

        Raises:
            WorkerCrashed, WorkerTimeout: the patcher is gone.
        """
        request = {
            "device_id": device_id,
            "reports": [report.as_json() for report in reports],
            "vitals": [vital.as_json() for vital in vitals],
        }
        with _OwnedFds() as fds:
            key = fds.own(self._open_key(SIGNING_KEY))
            reply = self._call("sign", request, (key,), deadline_s=KEY_OPENER_DEADLINE_S)
        with parse_reply("patcher"):
            return [str(line).encode() for line in reply.value["lines"]]

    def _create_incoming(self, digest: BundleDigest, variant: Variant | None) -> tuple[int, ...]:
        is_plain = variant is not None and self._is_plain_wanted(variant)
        return self._store.create_incoming(digest, len(variant.files) if variant is not None and is_plain else None)

    def _is_plain_wanted(self, variant: Variant) -> bool:
        return variant.at_rest == "plain" and self._config.allows_plain

    def _open_checked(self, bundle: BundleRecord, paths: Sequence[str]) -> dict[str, int]:
        """Open plain files of a bundle after a comparison of their digests; the caller closes the descriptors."""
        if not self._config.allows_plain:
            raise PlainNotAllowed(
                f"release {bundle.version} is stored as plain files, which apps.{bundle.family}.allow_plain forbids",
                hint="set that key to true, or restart the agent, which seals the files",
            )
        names = [file.path for file in bundle.parse_manifest()[1].files]
        with _OwnedFds() as fds:
            key = fds.own(self._open_key(STORAGE_KEY))
            stored = fds.own_all(self._store.open_bundle(bundle.digest))
            request = {"digest": bundle.digest, "paths": list(paths)}
            self._call("check", request, (key, *stored), deadline_s=PATCH_DEADLINE_S)
            return {path: os.dup(fd) for path, fd in zip(names, stored[1:], strict=True) if path in paths}

    def _open_key(self, use: str) -> int:
        """Return a descriptor of a plain key file, which this process never reads."""
        fd = self._device.open_key(KEY_FILES[use])
        if self._config.key_storage == "file":
            return fd
        try:
            return self._processes.call(
                "key_opener", "open", {"use": use}, (fd,), deadline_s=KEY_OPENER_DEADLINE_S
            ).fds[0]
        finally:
            os.close(fd)

    def _call(self, operation: str, request: dict[str, Any], fds: Sequence[int], *, deadline_s: float) -> Message:
        return self._processes.call("patcher", operation, request, fds, deadline_s=deadline_s)


class _OwnedFds(ExitStack):
    def own(self, fd: int) -> int:
        self.callback(os.close, fd)
        return fd

    def own_all(self, fds: tuple[int, ...]) -> tuple[int, ...]:
        for fd in fds:
            self.own(fd)
        return fds


def _release_fields(edge: PatchEdge) -> dict[str, Any]:
    return {
        "manifest": edge.manifest.as_bytes().decode(),
        "variant": edge.variant_name,
        "counter_epoch": edge.counter_epoch,
    }
