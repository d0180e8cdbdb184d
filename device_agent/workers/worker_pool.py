"""The supervisor's client of its short-lived workers: check, fetch, patch, unseal, TPM counter.

Rules:
- The processes are those of worker_processes: started at the first call, stopped when the pool is closed.
- Each worker gets only what it needs: the fetcher the network and two descriptors, the verifier the directory of the
  trust state, the patcher descriptors of keys, blob and bundles. The supervisor reads none of their contents.
- Downloads and patches need a `VerifiedRelease` or a patch path made from one.
- If a mirror fails or sends wrong bytes, the next one is tried; the one that worked is tried first from then on. No
  mirror is trusted; signatures and digests decide.
"""

import logging
import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

from bundle.acceptance import VerifiedRelease
from bundle.errors import AirweightsError, NotFound, Refused, Unavailable
from bundle.files import BundleDigest
from bundle.repository_paths import blob_path, cohort_envelope_path, content_envelope_path, envelope_name
from bundle.version import VERSION
from device_agent.config.config import Config
from device_agent.errors import (
    AgentStopping,
    EnvelopeMissing,
    NotEnrolled,
    ProxyAuthRequired,
    RepositoryAuthRequired,
    StoreDamaged,
)
from device_agent.host.system_clock import clock_facts
from device_agent.policy.download_bytes import DownloadKind, ReceivedCount
from device_agent.policy.journal_records import BundleRecord, PersistentState
from device_agent.policy.planner import PatchEdge
from device_agent.process.channel import MAX_FDS, Message
from device_agent.process.worker_process import parse_reply
from device_agent.runtime.bundle_fds import BundleFds
from device_agent.storage.adapter_store import Adapter, AdapterStore
from device_agent.storage.bundle_store import BundleStore, sync_directory
from device_agent.storage.cohort_envelopes import MAX_ENVELOPE_BYTES, CohortEnvelopes
from device_agent.storage.device_directory import (
    CLIENT_KEY_FILE,
    DEVICE_KEY,
    KEY_FILES,
    STORAGE_KEY,
    DeviceDirectory,
)
from device_agent.workers.adapter_check import with_adapter
from device_agent.workers.repository_access import RepositoryAccess
from device_agent.workers.worker_processes import WorkerProcesses

logger = logging.getLogger(__name__)

CHECK_DEADLINE_S: Final = 900.0  # enough for years of root versions over a slow connection
DOCUMENT_DEADLINE_S: Final = 900.0  # the fetcher's watchdog ends a stalled transfer long before
CONFIGURE_DEADLINE_S: Final = 60.0
BLOB_DEADLINE_S: Final = 7 * 86400.0  # likewise
PATCH_DEADLINE_S: Final = 3600.0
UNSEAL_DEADLINE_S: Final = 600.0
KEY_OPENER_DEADLINE_S: Final = 120.0  # a discrete TPM takes some 100 ms a command, and may be busy
MAX_REACHED_BYTES: Final = 64 * 1024
BACKOFF_MS: Final = 500
SERVED_FILE_ROLES: Final = ("model", "external-data", "golden")
OnProgress = Callable[[int, int], None]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class DownloadCost:
    """The cost of one download.

    Attributes:
        received_bytes: bytes received over the network.
        resumed_at_bytes: bytes that the spool already contained.
    """

    received_bytes: int
    resumed_at_bytes: int


class WorkerPool:
    """The workers of one family's update. Use it as a context manager, from one thread at a time.

    Args:
        config: configuration of the family.
        device: device directory of the family.
        store: bundle store of the family.
        on_idle: called repeatedly while a worker runs, to handle messages that cannot wait for it.

    Attributes:
        received: all bytes that were received, by kind.
    """

    def __init__(
        self, config: Config, device: DeviceDirectory, store: BundleStore, on_idle: Callable[[], None] | None = None
    ) -> None:
        self._config, self._device, self._store = config, device, store
        self._processes = WorkerProcesses(config, device.trust_directory, on_idle)
        self._access = RepositoryAccess(config)
        self._cohort_envelopes: dict[tuple[str, str], str] = {}  # by mirror and path
        self.received = ReceivedCount()
        self._mirrors = [config.repository_url, *config.mirrors]

    def __enter__(self) -> "WorkerPool":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop all worker processes."""
        self._processes.close()

    def interrupt(self) -> None:
        """Kill all workers, from another thread: the running call and all later calls raise AgentStopping."""
        self._processes.interrupt()

    def check_channel(
        self, persistent_state: PersistentState, bundles: Sequence[BundleRecord], *, walk_root: bool = False
    ) -> VerifiedRelease:
        """Return the verified release that the channel runs now.

        Args:
            persistent_state: content of the family's journal; used if the trust state is lost.
            bundles: recorded bundles; used if the trust state is lost.
            walk_root: look for a new root even if the timestamp is unchanged.

        Raises:
            Refused: signed metadata is wrong, or the release is not admitted (bundle.trust.check.check).
            Unavailable: no mirror could be reached, or the metadata expired.
        """
        return self._try_mirrors(
            lambda source: self.check_source(source, persistent_state, bundles, walk_root=walk_root)
        )

    def check_source(
        self,
        source: str,
        persistent_state: PersistentState,
        bundles: Sequence[BundleRecord],
        *,
        walk_root: bool = False,
    ) -> VerifiedRelease:
        """Return the verified release that the channel runs now, from one URL.

        Args:
            source: URL of the repository or of a mirror.
            persistent_state: as of `check_channel`.
            bundles: as of `check_channel`.
            walk_root: as of `check_channel`.

        Raises:
            Refused: signed metadata is wrong, or the release is not admitted.
            Unavailable: the URL could not be reached, or the metadata expired.
        """
        config = self._config
        request = {
            "trust_dir": str(self._device.trust_directory),
            "repository_url": source,
            "family": config.family,
            "channel": config.channel,
            "clock": clock_facts(),
            "agent_version": VERSION,
            "known": _known_releases(config.family, persistent_state, bundles),
            "walk_root": walk_root,
        }
        reply = self._call("verifier", "check", request, deadline_s=CHECK_DEADLINE_S, on_request=self._answer_request)
        with parse_reply("verifier"):
            return VerifiedRelease.from_verifier(reply.value["release"])

    def fetch_blob(
        self, edge: PatchEdge, on_progress: OnProgress | None = None, budget_bytes: int | None = None
    ) -> DownloadCost:
        """Download a blob into the spool, from where it stopped.

        Args:
            edge: the patch with the blob.
            on_progress: called with (bytes done, bytes in all).
            budget_bytes: bytes that may be received, from all mirrors together; None for no limit.

        Raises:
            DigestMismatch: the bytes do not have the signed digest.
            MeteredLimitExceeded: the budget is used up.
            Unavailable: no mirror could send it.
        """
        before = self.received.total

        def fetch(source: str) -> DownloadCost:
            left = None if budget_bytes is None else max(budget_bytes - (self.received.total - before), 0)
            return self._fetch_blob(source, edge, on_progress, left)

        return self._try_mirrors(fetch)

    def _fetch_blob(
        self, source: str, edge: PatchEdge, on_progress: OnProgress | None, budget_bytes: int | None
    ) -> DownloadCost:
        update = self._config.update
        entry = edge.entry
        request = {
            "url": f"{source}/{blob_path(entry.blob)}",
            "sha256": entry.blob,
            "size": entry.size,
            "min_rate_bytes_s": update.min_rate_bytes_s,
            "max_rate_bytes_s": update.max_rate_bytes_s,
            "backoff_ms": BACKOFF_MS,
            "budget_bytes": budget_bytes,
        }
        with _OwnedFds() as fds:
            part = fds.own(self._store.open_partial(entry.blob))
            kind = DownloadKind.FULL if entry.base is None else DownloadKind.PATCH
            reply = self._call_fetcher(
                "blob", request, kind, (part,), deadline_s=BLOB_DEADLINE_S, on_progress=on_progress
            )
        with parse_reply("fetcher"):
            return DownloadCost(int(reply.value["received"]), int(reply.value["resumed_at"]))

    def load_content_key(self, release: VerifiedRelease, edge: PatchEdge, x_wing_public: bytes) -> None:
        """Download the envelopes of a patch and let the patcher open its content key.

        Args:
            release: the verified release with the fleet document.
            edge: the patch whose key is needed.
            x_wing_public: public key of the device, which names its envelope.

        Raises:
            EnvelopeMissing: no envelope for this device or cohort is published.
            Refused: an envelope does not open, or has another key than the signed one.
        """
        self._try_mirrors(lambda source: self._load_content_key(source, release, edge, x_wing_public))

    def check_enrollment(self, release: VerifiedRelease, x_wing_public: bytes) -> None:
        """Check that an envelope for this device is published, before anything larger is downloaded.

        Args:
            release: the verified release with the fleet document.
            x_wing_public: public key of the device, which names its envelope.

        Raises:
            NotEnrolled: none is published.
            EnvelopeMissing: the fleet document has no such cohort.
            Unavailable: no mirror could be reached.
        """
        self._try_mirrors(lambda source: self.check_enrollment_at(source, release, x_wing_public))

    def check_enrollment_at(self, source: str, release: VerifiedRelease, x_wing_public: bytes) -> None:
        """Check as `check_enrollment` does, at one URL.

        Args:
            source: URL of the repository or of a mirror.
            release: as of `check_enrollment`.
            x_wing_public: as of `check_enrollment`.

        Raises:
            NotEnrolled, EnvelopeMissing, Unavailable: as `check_enrollment`.
        """
        self._fetch_cohort_envelope(source, release, x_wing_public)

    def reach(self, source: str) -> None:
        """Fetch a file from a URL of the repository, which does not verify anything.

        Args:
            source: URL of the repository or of a mirror.

        Raises:
            Unavailable: the URL could not be reached.
            ConfigInvalid: a credential file is not usable.
        """
        url = f"{source}/metadata/timestamp.json"
        self._fetch_document(url, MAX_REACHED_BYTES, DownloadKind.METADATA).close()

    def _fetch_cohort_envelope(self, source: str, release: VerifiedRelease, x_wing_public: bytes) -> str:
        name = self._config.cohort
        cohort = release.fleet.cohort(name)
        if cohort is None:
            raise EnvelopeMissing(f"the fleet document has no cohort {name!r}", hint="check `cohort`")
        own_name = envelope_name(x_wing_public, cohort.epoch)
        kept = CohortEnvelopes(self._device.root).read(name, own_name)
        if kept is not None:
            return kept.hex()
        path = cohort_envelope_path(name, cohort.epoch, own_name)
        try:
            if (source, path) not in self._cohort_envelopes:
                self._cohort_envelopes[source, path] = self._fetch_envelope(source, path)
            return self._cohort_envelopes[source, path]
        except NotFound as error:
            raise NotEnrolled(
                f"this device is not enrolled in cohort {name!r} (epoch {cohort.epoch})",
                hint="run `device-agent enroll` and send its request to the release team, "
                "who run `packager device enroll`",
            ) from error

    def _load_content_key(self, source: str, release: VerifiedRelease, edge: PatchEdge, x_wing_public: bytes) -> None:
        cohort_envelope = self._fetch_cohort_envelope(source, release, x_wing_public)
        name, manifest = self._config.cohort, edge.manifest
        cohort = release.fleet.cohort(name)
        assert cohort is not None  # _fetch_cohort_envelope raises otherwise
        path = content_envelope_path(
            manifest.family, manifest.counter, edge.variant_name, envelope_name(cohort.public_key, cohort.epoch)
        )
        try:
            content_envelope = self._fetch_envelope(source, path)
        except NotFound as error:
            raise EnvelopeMissing(
                f"release {manifest.version} is not sealed to {name!r}", hint="seal the release to its cohort"
            ) from error
        request = {
            **_release_fields(edge),
            "repository": release.repository_id,
            "cohort": name,
            "epoch": cohort.epoch,
            "cohort_public_key": cohort.public_key.hex(),
            "cohort_envelope": cohort_envelope,
            "content_envelope": content_envelope,
        }
        envelopes, own_name = CohortEnvelopes(self._device.root), envelope_name(x_wing_public, cohort.epoch)
        is_kept = envelopes.read(name, own_name) is not None
        try:
            with _OwnedFds() as fds:
                key = fds.own(self._open_key(DEVICE_KEY))
                self._call("patcher", "unlock", request, (key,), deadline_s=KEY_OPENER_DEADLINE_S)
        except Refused:
            if not is_kept:
                raise
            envelopes.delete(name, own_name)  # it may be damaged: download both again
            self._load_content_key(source, release, edge, x_wing_public)
            return
        if not is_kept:
            envelopes.keep(name, own_name, bytes.fromhex(cohort_envelope))

    def apply_patch(self, edge: PatchEdge) -> int:
        """Apply one patch from the spool into the store, and return the size of the sealed bundle in bytes.

        Raises:
            PatchRefused: the patch does not apply.
            StoreDamaged: the base does not open.
            WorkerCrashed: the patcher crashed.
            WorkerTimeout: the patcher did not finish in time.
        """
        with _OwnedFds() as fds:
            key = fds.own(self._open_key(STORAGE_KEY))
            part = fds.own(self._store.open_partial(edge.entry.blob))
            output = fds.own(self._store.create_incoming(edge.target))
            base = () if edge.entry.base is None else (fds.own(self._store.open_bundle(edge.entry.base)),)
            request = {**_release_fields(edge), "patch": edge.entry.as_json()}
            reply = self._call("patcher", "apply", request, (key, part, output, *base), deadline_s=PATCH_DEADLINE_S)
            self._store.commit_incoming(edge.target, output)
        with parse_reply("patcher"):
            return int(reply.value["sealed_bytes"])

    def unseal(self, bundle: BundleRecord) -> BundleFds:
        """Unseal the files that a model process needs; the caller closes them.

        Raises:
            StoreDamaged: the sealed bundle is missing or damaged.
        """
        _, variant = bundle.parse_manifest()
        with _OwnedFds() as fds:
            key = fds.own(self._open_key(STORAGE_KEY))
            sealed = fds.own(self._store.open_bundle(bundle.digest))
            request = {"digest": bundle.digest, "roles": SERVED_FILE_ROLES}
            reply = self._call("patcher", "unseal", request, (key, sealed), deadline_s=UNSEAL_DEADLINE_S)
        with parse_reply("patcher"):
            return BundleFds.from_files(variant.files, dict(zip(reply.value["paths"], reply.fds, strict=True)))

    def unseal_files(self, bundle: BundleRecord, paths: Sequence[str]) -> dict[str, int]:
        """Unseal files for an application; the caller closes the descriptors.

        Args:
            bundle: a bundle in the store.
            paths: paths of its files.

        Returns:
            Descriptor of a sealed memfd, by path.

        Raises:
            StoreDamaged: the sealed bundle is missing or damaged.
        """
        with _OwnedFds() as fds:
            key = fds.own(self._open_key(STORAGE_KEY))
            sealed = fds.own(self._store.open_bundle(bundle.digest))
            found: dict[str, int] = {}
            try:
                for start in range(0, len(paths), MAX_FDS):
                    request = {"digest": bundle.digest, "paths": list(paths[start : start + MAX_FDS])}
                    reply = self._call("patcher", "unseal", request, (key, sealed), deadline_s=UNSEAL_DEADLINE_S)
                    with parse_reply("patcher"):
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
        fds = self.unseal(bundle)
        adapter = AdapterStore(self._device).find_attached(bundle.digest)
        if adapter is None:
            return fds
        try:
            adapter_fd, golden_fd = self.unseal_adapter(adapter)
        except (StoreDamaged, OSError) as error:
            logger.error("cannot open the adapter, serving without it: %s", error)
            return fds
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
            reply = self._call("patcher", "seal-adapter", request, given, deadline_s=PATCH_DEADLINE_S)
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
            reply = self._call("patcher", "unseal-adapter", request, (key, sealed), deadline_s=UNSEAL_DEADLINE_S)
        with parse_reply("patcher"):
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
            self._call("patcher", "seal-client-key", {}, (key, plain_fd, output), deadline_s=UNSEAL_DEADLINE_S)
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
            reply = self._call("patcher", "unseal-client-key", {}, (key, sealed), deadline_s=UNSEAL_DEADLINE_S)
        with parse_reply("patcher"):
            (fd,) = reply.fds
            return fd

    def read_sealed_header(self, digest: BundleDigest) -> BundleRecord:
        """Read all of a sealed bundle and return the record in its head.

        Raises:
            StoreDamaged: it is missing, or a byte of it is damaged.
        """
        from bundle.manifest import parse_manifest

        with _OwnedFds() as fds:
            key = fds.own(self._open_key(STORAGE_KEY))
            sealed = fds.own(self._store.open_bundle(digest))
            reply = self._call("patcher", "describe", {"digest": digest}, (key, sealed), deadline_s=UNSEAL_DEADLINE_S)
        with parse_reply("patcher"):
            manifest = parse_manifest(str(reply.value["manifest"]).encode())
            return BundleRecord.from_manifest(manifest, str(reply.value["variant"]), int(reply.value["counter_epoch"]))

    def read_tpm_counter(self) -> int | None:
        """Return the TPM counter behind the rollback floor, or None if the keys are in no TPM.

        Raises:
            TpmUnavailable: the TPM does not respond.
        """
        if not self._config.key_storage.startswith("tpm:"):
            return None
        return _optional_integer(self._call("key_opener", "counter", {}, deadline_s=KEY_OPENER_DEADLINE_S))

    def raise_tpm_counter(self, value: int) -> int | None:
        """Raise the TPM counter to at least `value`, and return it.

        Raises:
            TpmUnavailable: the TPM does not respond.
        """
        return _optional_integer(self._call("key_opener", "raise", {"value": value}, deadline_s=KEY_OPENER_DEADLINE_S))

    def _open_key(self, use: str) -> int:
        """Return a descriptor of a plain key file, which this process never reads."""
        fd = self._device.open_key(KEY_FILES[use])
        if self._config.key_storage == "file":
            return fd
        try:
            return self._call("key_opener", "open", {"use": use}, (fd,), deadline_s=KEY_OPENER_DEADLINE_S).fds[0]
        finally:
            os.close(fd)

    def _try_mirrors(self, act: Callable[[str], T]) -> T:
        """Try all mirrors in order; if all fail, raise the error of the first."""
        errors: list[AirweightsError] = []
        for source in list(self._mirrors):
            try:
                done = act(source)
            except AgentStopping:
                raise
            except (Refused, Unavailable) as error:
                errors.append(error)
                if len(self._mirrors) > 1:
                    logger.warning("mirror failed", extra={"mirror": source, "reason": error.reason})
                continue
            self._mirrors.sort(key=lambda each: each != source)
            return done
        raise errors[0]

    def _answer_request(self, request: Message) -> tuple[dict[str, Any], Sequence[int]]:
        request.close()
        value = request.value
        validators = (str(value["etag"]), str(value["last_modified"]))
        document = self._fetch_document(str(value["url"]), int(value["max_bytes"]), DownloadKind.METADATA, validators)
        return document.value, document.fds

    def _fetch_document(
        self, url: str, max_bytes: int, kind: DownloadKind, validators: tuple[str, str] = ("", "")
    ) -> Message:
        request = {"url": url, "max_bytes": max_bytes, "etag": validators[0], "last_modified": validators[1]}
        return self._call_fetcher("get", request, kind, deadline_s=DOCUMENT_DEADLINE_S)

    def _call_fetcher(
        self,
        operation: str,
        request: dict[str, Any],
        kind: DownloadKind,
        fds: Sequence[int] = (),
        *,
        deadline_s: float,
        on_progress: OnProgress | None = None,
    ) -> Message:
        """Call the fetcher, and add the bytes that it reports to `received`, also if the call fails."""

        def handle_event(event: dict[str, Any]) -> None:
            if "received" in event:
                wasted = int(event["wasted"])
                self.received.add(kind, int(event["received"]) - wasted)
                self.received.add(DownloadKind.WASTED, wasted)
            elif on_progress is not None:
                on_progress(int(event["done"]), int(event["total"]))

        def call() -> Message:
            return self._call("fetcher", operation, request, fds, deadline_s=deadline_s, on_event=handle_event)

        self._configure_fetcher()
        try:
            return call()
        except (RepositoryAuthRequired, ProxyAuthRequired):
            # a token can expire while it is used: if its file was renewed meanwhile, the request is sent once more
            if self._config.repository_url.startswith("file:") or not self._access.is_changed():
                raise
            self._configure_fetcher()
            return call()

    def _configure_fetcher(self) -> None:
        if self._config.repository_url.startswith("file:"):
            return
        if not self._is_running("fetcher"):
            self._access.forget()
        self._access.send_if_changed(
            lambda request, fds: self._call("fetcher", "configure", request, fds, deadline_s=CONFIGURE_DEADLINE_S),
            self.unseal_client_key,
        )

    def _fetch_envelope(self, source: str, path: str) -> str:
        document = self._fetch_document(f"{source}/{path}", MAX_ENVELOPE_BYTES, DownloadKind.ENVELOPE)
        try:
            with parse_reply("fetcher"):
                return os.pread(document.fds[0], MAX_ENVELOPE_BYTES, 0).hex()
        finally:
            document.close()

    def _is_running(self, worker: str) -> bool:
        return self._processes.is_running(worker)

    def _call(
        self, worker: str, operation: str, request: dict[str, Any], fds: Sequence[int] = (), **options: Any
    ) -> Message:
        return self._processes.call(worker, operation, request, fds, **options)


class _OwnedFds(ExitStack):
    def own(self, fd: int) -> int:
        self.callback(os.close, fd)
        return fd


def _known_releases(family: str, persistent_state: PersistentState, bundles: Sequence[BundleRecord]) -> dict[str, Any]:
    own = [bundle for bundle in bundles if bundle.family == family]
    # a journal that was used for another family until now has the floor of that one
    is_own_floor = bool(own) or not bundles
    return {
        "floor_epoch": persistent_state.floor_epoch if is_own_floor else 0,
        "floor_counter": persistent_state.floor_counter if is_own_floor else 0,
        "releases": [{"epoch": h.counter_epoch, "counter": h.counter, "identity": h.release_digest()} for h in own],
    }


def _optional_integer(message: Message) -> int | None:
    value = message.value["value"]
    return None if value is None else int(value)


def _release_fields(edge: PatchEdge) -> dict[str, Any]:
    return {
        "manifest": edge.manifest.as_bytes().decode(),
        "variant": edge.variant_name,
        "counter_epoch": edge.counter_epoch,
    }
