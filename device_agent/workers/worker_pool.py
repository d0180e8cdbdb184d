"""The workers of one family's update: check, fetch, open content keys, read and raise the TPM counter.

Rules:
- The processes are those of worker_processes: started at the first call, stopped when the pool is closed.
- Each worker gets only what it needs: the fetcher the network and two descriptors, the verifier the directory of the
  trust state, the patcher descriptors of keys, blob and bundles. The supervisor reads none of their contents.
- fetcher_client and patcher_client make the calls of these two workers; here is what needs several of them.
- Downloads and patches need a `VerifiedRelease` or a patch path made from one.
- If a mirror fails or sends wrong bytes, the next one is tried; the one that worked is tried first from then on. No
  mirror is trusted; signatures and digests decide.
"""

import logging
import math
import os
import time
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar

from bundle.acceptance import VerifiedRelease
from bundle.errors import AirweightsError, NotFound, Refused, Unavailable
from bundle.fleet import Cohort
from bundle.repository_paths import cohort_shard_path, content_shard_path, envelope_name
from bundle.version import VERSION
from device_agent.config.config import Config
from device_agent.errors import AgentStopping, EnvelopeMissing, NotEnrolled, UpdateInterrupted
from device_agent.host.system_clock import clock_facts
from device_agent.policy.download_bytes import DownloadKind
from device_agent.policy.journal_records import BundleRecord, PersistentState
from device_agent.policy.planner import PatchEdge
from device_agent.process.channel import Message
from device_agent.process.replies import parse_reply
from device_agent.storage.bundle_store import BundleStore
from device_agent.storage.cohort_envelopes import CohortEnvelopes
from device_agent.storage.device_directory import DeviceDirectory
from device_agent.workers.fetcher_client import DownloadCost, FetcherClient, OnProgress
from device_agent.workers.patcher_client import KEY_OPENER_DEADLINE_S, PatcherClient
from device_agent.workers.worker_processes import WorkerProcesses

logger = logging.getLogger(__name__)

CHECK_DEADLINE_S: Final = 900.0  # enough for years of root versions over a slow connection
CHECKED_S: Final = 300.0  # a round of polls without updates takes seconds
MAX_REACHED_BYTES: Final = 64 * 1024
MAX_NAMED_COHORTS: Final = 8
T = TypeVar("T")


class WorkerPool:
    """The workers of one family's update. Use it as a context manager, from one thread at a time.

    Args:
        config: configuration of the family.
        device: device directory of the family.
        store: bundle store of the family.
        on_idle: called repeatedly while a worker runs, to handle messages that cannot wait for it.
        processes: the workers; None for processes of its own.
        checked_sources: URL of a repository or mirror → when a family of this device checked it, in seconds of the
            monotonic clock. Within CHECKED_S its timestamp is not requested again; None for no other family.

    Attributes:
        patcher: applies patches, and seals and unseals files.
        received: all bytes that were received, by kind.
        response_sizes: sizes of the last responses.
    """

    def __init__(
        self,
        config: Config,
        device: DeviceDirectory,
        store: BundleStore,
        on_idle: Callable[[], None] | None = None,
        processes: WorkerProcesses | None = None,
        checked_sources: dict[str, float] | None = None,
    ) -> None:
        self._config, self._device, self._store = config, device, store
        self._processes = processes or WorkerProcesses(config, device.trust_directory, on_idle)
        self.patcher = PatcherClient(config, device, store, self._processes)
        self._fetcher = FetcherClient(config, self._processes, self.patcher.unseal_client_key)
        self.received = self._fetcher.received
        self.response_sizes = self._fetcher.response_sizes
        self._checked_sources = {} if checked_sources is None else checked_sources
        self._cohort_envelopes: dict[tuple[str, str], str] = {}  # by mirror and path
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
        self,
        persistent_state: PersistentState,
        bundles: Sequence[BundleRecord],
        *,
        walk_root: bool = False,
        new_device: str = "",
    ) -> VerifiedRelease:
        """Return the verified release that the channel runs now.

        Args:
            persistent_state: content of the family's journal; used if the trust state is lost.
            bundles: recorded bundles; used if the trust state is lost.
            walk_root: look for a new root even if the timestamp is unchanged.
            new_device: id of the device if nothing is installed, which may take a fallback; else "".

        Raises:
            Refused: signed metadata is wrong, or the release is not admitted (bundle.trust.check.check).
            Unavailable: no mirror could be reached, or the metadata expired.
        """
        return self._try_mirrors(
            lambda source: self.check_source(
                source, persistent_state, bundles, walk_root=walk_root, new_device=new_device
            )
        )

    def check_source(
        self,
        source: str,
        persistent_state: PersistentState,
        bundles: Sequence[BundleRecord],
        *,
        walk_root: bool = False,
        new_device: str = "",
    ) -> VerifiedRelease:
        """Return the verified release that the channel runs now, from one URL.

        Args:
            source: URL of the repository or of a mirror.
            persistent_state: as of `check_channel`.
            bundles: as of `check_channel`.
            walk_root: as of `check_channel`.
            new_device: as of `check_channel`.

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
            "cohort": config.cohort,
            "clock": clock_facts(),
            "agent_version": VERSION,
            "known": _known_releases(config.family, persistent_state, bundles),
            "walk_root": walk_root,
            "new_device": new_device,
            "has_timestamp": not walk_root and self._is_checked(source),
        }
        reply = self._processes.call(
            "verifier", "check", request, deadline_s=CHECK_DEADLINE_S, on_request=self._answer_request
        )
        with parse_reply("verifier"):
            release = VerifiedRelease.from_verifier(reply.value["release"])
        self._checked_sources.setdefault(source, time.monotonic())
        return release

    def _is_checked(self, source: str) -> bool:
        return time.monotonic() - self._checked_sources.get(source, -math.inf) < CHECKED_S

    def send_lines(self, url: str, device_id: str, data: bytes, max_bytes: int) -> bytes:
        """Send lines to the collector, and return its answer.

        Args:
            url: URL of the collector, or of the MQTT broker that it takes lines from.
            device_id: id of the device.
            data: the lines.
            max_bytes: limit of the answer.

        Raises:
            Unavailable: the transfer failed.
            TooLarge: the answer is longer than its limit.
        """
        return self._fetcher.send_lines(url, device_id, data, max_bytes)

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
            part = self._store.open_partial(edge.entry.blob)
            try:
                return self._fetcher.fetch_blob(source, edge, part, on_progress, left)
            finally:
                os.close(part)

        return self._try_mirrors(fetch)

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
        self._fetcher.fetch_document(url, MAX_REACHED_BYTES, DownloadKind.METADATA).close()

    def _fetch_cohort_envelope(self, source: str, release: VerifiedRelease, x_wing_public: bytes) -> str:
        name = self._config.cohort
        cohort = release.fleet.cohort(name)
        if cohort is None:
            names = ", ".join(one.name for one in release.fleet.cohorts[:MAX_NAMED_COHORTS])
            raise EnvelopeMissing(
                f"the fleet document has no cohort {name!r}", hint=f"check `cohort`; the first cohorts are: {names}"
            )
        own_name = envelope_name(x_wing_public, cohort.epoch)
        kept = CohortEnvelopes(self._device.root).read(name, own_name)
        if kept is not None:
            return kept.hex()
        path = cohort_shard_path(name, cohort.epoch, cohort.shards, own_name)
        try:
            if (source, path) not in self._cohort_envelopes:
                self._cohort_envelopes[source, path] = self._fetcher.fetch_envelope(source, path, own_name)
            return self._cohort_envelopes[source, path]
        except NotFound as error:
            raise NotEnrolled(
                f"this device is not enrolled in cohort {name!r} (epoch {cohort.epoch})",
                hint="run `device-agent enroll` and send its request to the release team, "
                "who run `packager device enroll`",
            ) from error

    def _load_content_key(
        self, source: str, release: VerifiedRelease, edge: PatchEdge, x_wing_public: bytes, *, use_copy: bool = True
    ) -> None:
        cohort_envelope = self._fetch_cohort_envelope(source, release, x_wing_public)
        name, manifest = self._config.cohort, edge.manifest
        cohort = release.fleet.cohort(name)
        assert cohort is not None  # _fetch_cohort_envelope raises otherwise
        is_copy = manifest.counter == release.manifest.counter and bool(release.content_envelope)
        if is_copy and use_copy:
            content_envelope = release.content_envelope
        else:
            is_copy = False
            content_envelope = self._fetch_content_envelope(source, edge, cohort)
        fields = {
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
            self.patcher.load_content_key(edge, fields)
        except Refused:
            if not is_kept and not is_copy:
                raise
            envelopes.delete(name, own_name)  # it may be damaged: download both again
            self._load_content_key(source, release, edge, x_wing_public, use_copy=False)
            return
        if not is_kept:
            envelopes.keep(name, own_name, bytes.fromhex(cohort_envelope))

    def _fetch_content_envelope(self, source: str, edge: PatchEdge, cohort: Cohort) -> str:
        manifest = edge.manifest
        path = content_shard_path(manifest.family, manifest.counter)
        try:
            return self._fetcher.fetch_envelope(source, path, envelope_name(cohort.public_key, cohort.epoch))
        except NotFound as error:
            raise EnvelopeMissing(
                f"release {manifest.version} is not sealed to {cohort.name!r}", hint="seal the release to its cohort"
            ) from error

    def read_tpm_counter(self) -> int | None:
        """Return the TPM counter behind the rollback floor, or None if the keys are in no TPM.

        Raises:
            TpmUnavailable: the TPM does not respond.
        """
        if not self._config.key_storage.startswith("tpm:"):
            return None
        return self._call_counter("counter", {})

    def raise_tpm_counter(self, value: int) -> int | None:
        """Raise the TPM counter to at least `value`, and return it.

        Raises:
            TpmUnavailable: the TPM does not respond.
        """
        return self._call_counter("raise", {"value": value})

    def _call_counter(self, operation: str, request: dict[str, Any]) -> int | None:
        reply = self._processes.call("key_opener", operation, request, deadline_s=KEY_OPENER_DEADLINE_S)
        value = reply.value["value"]
        return None if value is None else int(value)

    def _try_mirrors(self, act: Callable[[str], T]) -> T:
        """Try all mirrors in order; if all fail, raise the error of the first."""
        errors: list[AirweightsError] = []
        for source in list(self._mirrors):
            try:
                done = act(source)
            except (AgentStopping, UpdateInterrupted):
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
        url, max_bytes = str(value["url"]), int(value["max_bytes"])
        document = self._fetcher.fetch_document(url, max_bytes, DownloadKind.METADATA, validators)
        return document.value, document.fds


def _known_releases(family: str, persistent_state: PersistentState, bundles: Sequence[BundleRecord]) -> dict[str, Any]:
    own = [bundle for bundle in bundles if bundle.family == family]
    # a journal that was used for another family until now has the floor of that one
    is_own_floor = bool(own) or not bundles
    return {
        "floor_epoch": persistent_state.floor_epoch if is_own_floor else 0,
        "floor_counter": persistent_state.floor_counter if is_own_floor else 0,
        "releases": [{"epoch": h.counter_epoch, "counter": h.counter, "identity": h.release_digest()} for h in own],
    }
