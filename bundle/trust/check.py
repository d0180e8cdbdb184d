"""One trust check: from a repository's URL to a `VerifiedRelease`, or to an error with the cause.

Theory of operation. A check answers one question: which release may this device install for one family and channel?
Symbols:
    t           the time that expiry is judged by, Unix seconds (`bundle.trust.clock.current_time`)
    T           the time floor: the latest time that signed metadata proved to have passed, Unix seconds
    V[r]        the newest verified version of role r, with the digest of its signed part and the keys that signed it
    F           the rollback floor of the family, a pair (counter epoch, counter)
    K           the known releases of the family: (counter epoch, counter) -> digest of the manifest without patches
T, V, F and K are the trust state. The device stores it durably (`bundle.trust.trust_state`), because tuf's own cache is
not synced to the disk, and accepts older metadata after both timestamp and snapshot were damaged.

1. Lock. Only one check at a time uses a cache directory.
2. Walk. tuf loads root, timestamp, snapshot and targets, in this order. Each must be signed by the threshold of its
   role's keys and must not have expired at t. Root is walked one version at a time from the shipped root; t is read
   after this walk, because a root with new timestamp keys resets T.
3. Offline packs. Timestamp, snapshot and rollout of an offline pack (field `x-pack`) are accepted only from a `file:`
   URL, and only if they are valid for at most the number of days that root sets (`x-pack-max-days`).
4. Memory of versions. A role r may not be older than V[r], nor have the same version with other content. For roles
   other than root this binds only while the stored document still has a threshold of signatures by the role's current
   keys: an attacker who published a huge version number with a stolen key is overcome by replacing the key.
5. Delegations. Targets lists no files itself. It delegates to `rollout-<family>` (which release a channel runs),
   `release-<family>` (manifests) and `fleet` (cohort keys). A file counts only if the role that owns its kind lists it.
6. Time floor. T rises to the signing time of the timestamp role (`x-issued-at`) if root, targets and the release role
   are unexpired at that time. It never follows the system clock.
7. Persist. T and V are stored as soon as the metadata is verified, even if the release is refused afterwards. F and K
   are stored only after the release was accepted.
8. Acceptance. `bundle.acceptance.accept` compares rollout and manifest with each other, with F and K and with the plan
   that the release role lists for the channel, and raises F. The time for which a rollout of the release was seen grows
   by the device's own clock (bundle.trust.sightings).
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from tuf.api.metadata import Root, Signed, Timestamp

from bundle.acceptance import CheckContext, VerifiedRelease, accept
from bundle.errors import (
    Malformed,
    ReleaseWithdrawn,
    TrustStateLost,
    UntrustedMetadata,
)
from bundle.fleet import Fleet
from bundle.manifest import Manifest
from bundle.plan import Plan
from bundle.rollout import Rollout
from bundle.strict_json import SHA256_HEX_PATTERN
from bundle.trust.cache_lock import lock_cache
from bundle.trust.check_request import CheckRequest as CheckRequest
from bundle.trust.clock import ISSUED_AT_FIELD, TimeFloor, current_time, parse_time, raise_floor
from bundle.trust.content_shard import read_content_envelope
from bundle.trust.document_source import DocumentSource, run_with_copies
from bundle.trust.fallback_release import find_covered_fallback
from bundle.trust.offline_pack import check_pack_role, is_file_url
from bundle.trust.other_repository import check_same_repository
from bundle.trust.repository_id import repository_id_of
from bundle.trust.role_names import (
    COUNTER_EPOCH_FIELD,
    FLEET_ROLE,
    REPOSITORY_ID_FIELD,
    release_role,
    rollout_role,
)
from bundle.trust.role_versions import (
    check_not_older,
    family_unknown,
    find_delegation,
    is_still_signed,
    role_version,
)
from bundle.trust.sightings import update_sightings
from bundle.trust.signed_documents import SignedDocuments
from bundle.trust.trust_state import TrustState, TrustStateStore
from bundle.trust.updater import Fetch, TrustedUpdater, translate_errors
from bundle.trust.validators import FetchIfChanged


@dataclass(frozen=True, slots=True)
class SignedTimes:
    """Times from verified metadata, in Unix seconds.

    Attributes:
        issued_at_s: when the timestamp role was signed, or None if it does not say so.
        floor_limits_s: expiries of root, targets and the release role; the time floor stays below all of them.
        expires_at_s: the earliest expiry of all metadata that the release rests on.
    """

    issued_at_s: int | None
    floor_limits_s: tuple[int, ...]
    expires_at_s: int


def check(
    request: CheckRequest, fetch: Fetch, store: TrustStateStore, fetch_if_changed: FetchIfChanged | None = None
) -> VerifiedRelease:
    """Run one whole check and return the release that the channel runs now.

    Args:
        request: family, channel, URLs and clock of the check.
        fetch: the transport.
        store: the durable trust state; written during the check.
        fetch_if_changed: the transport of conditional requests; None to download each single file.

    Raises:
        CheckInProgress: another check uses the same cache directory.
        AnotherRepository: the metadata is that of another repository.
        Refused: signed bytes are wrong, older than stored ones, or not allowed; `TrustSession` lists the classes.
        Unavailable: the repository cannot be reached, its metadata has expired, or it has no such rollout.
        OSError: the cache or the trust state cannot be written.
    """
    source = DocumentSource(
        cache_dir=request.cache_dir,
        metadata_url=request.metadata_url,
        targets_url=request.targets_url,
        family=request.family,
        clock=request.clock,
        fetch_file=fetch,
        fetch_if_changed=fetch_if_changed,
        walk_root=request.walk_root,
        has_timestamp=request.has_timestamp,
        cohort=request.cohort,
    )
    with lock_cache(request.cache_dir):
        return run_with_copies(source, lambda source: _check_documents(request, source, store))


def _check_documents(request: CheckRequest, source: DocumentSource, store: TrustStateStore) -> VerifiedRelease:
    session = TrustSession(request, source.fetch, store, source.open_archive)
    try:
        session.refresh()
    except UntrustedMetadata:
        if not source.has_used_copy:
            check_same_repository(request.metadata_url, session.expected_repository_id, source.fetch_file)
        raise
    source.save()
    release = session.verify_release()
    envelope = read_content_envelope(
        request.cache_dir / "documents", source.shards, release.manifest, release.fleet, request.cohort
    )
    source.save(session.snapshot_version)
    return replace(release, content_envelope=envelope)


class TrustSession:
    """One check in separate steps: `refresh`, then `verify_release`. Use each session only once.

    Args:
        request: family, channel, URLs and clock of the check.
        fetch: the transport.
        store: the durable trust state.
        on_timestamp: called with the verified timestamp, before the snapshot is loaded.

    Raises:
        Malformed: the shipped root is not TUF metadata.
        UntrustedMetadata: the shipped root is not signed by its own keys.
    """

    def __init__(
        self,
        request: CheckRequest,
        fetch: Fetch,
        store: TrustStateStore,
        on_timestamp: Callable[[Timestamp], None] = lambda _timestamp: None,
    ) -> None:
        self._request = request
        self._store = store
        stored = store.load()
        self._is_trust_state_lost = stored is None and store.is_lost
        self.trust_state = (
            request.rebuilt_state if stored is None else stored.with_missing_families(request.rebuilt_state)
        )
        self._updater = TrustedUpdater(
            request.cache_dir / "tuf",
            request.bootstrap_root,
            request.metadata_url,
            request.targets_url,
            fetch,
            self._current_time,
            on_timestamp,
        )
        self._documents = SignedDocuments(self._updater, request)
        self._repository_id = ""
        self._time_floor = self.trust_state.time_floor

    def refresh(self) -> None:
        """Verify root, timestamp, snapshot and targets, and store their versions (steps 2 to 4 of the module).

        Raises:
            DigestMismatch: a file is not the one that the metadata above it names.
            DownloadFailed: a file cannot be fetched.
            Malformed: a file is not TUF metadata.
            MetadataExpired: a role has expired at the time of the check.
            OfflinePackRefused: metadata of an offline pack came from a server, or is valid for too long.
            RollbackRefused: a role is older than the stored version, or has the same version with other content.
            TooLarge: a file is longer than its limit.
            TrustStateLost: both stored copies are lost, and the repository is an offline pack.
            UntrustedMetadata: too few keys signed a role, targets lists files itself, or root names another repository.
            OSError: the trust state cannot be written.
        """
        with translate_errors(self._updater):
            self._updater.refresh()
        self._repository_id = self._read_repository_id()
        self._check_offline_pack()
        targets = self._updater.targets
        if targets.targets:
            raise UntrustedMetadata("targets lists files itself, expected delegations only")
        self._save_metadata(("root", "timestamp", "snapshot", "targets"))

    def verify_release(self) -> VerifiedRelease:
        """Verify the release that the configured channel runs now. Call `refresh` first.

        Steps: 1 require the delegations; 2 read the rollout, find the manifest, read the fleet document; 3 raise the
        time floor from signed times only; 4 store what verified, even if the release is refused below; 5 apply the
        acceptance rules (bundle.acceptance) and store the new rollback floor; 6 for a device with nothing installed,
        take a fallback of the plan if the ramp of the release does not cover it (bundle.trust.fallback_release).

        Raises:
            AgentTooOld: the release needs a newer agent.
            CounterReused: the release's counter is known for a release with other content.
            DigestMismatch: a file is not the one that the metadata above it names.
            DownloadFailed: a file cannot be fetched.
            Malformed: rollout, manifest, fleet document or delegation do not follow their schema.
            MetadataExpired: a delegated role has expired at the time of the check.
            NoRollout: the repository has no such family or channel, or no fleet document.
            OfflinePackRefused: the rollout of an offline pack came from a server, or is valid for too long.
            OutsidePlan: the rollout does not lie inside the plan of the channel.
            ReleaseMismatch: rollout and manifest disagree.
            ReleaseWithdrawn: the rollout names a release that is no longer listed.
            RollbackRefused: a role is older than the stored version, or the release is below the rollback floor.
            TooLarge: a file is longer than its limit.
            UntrustedMetadata: too few keys signed a delegated role, or another role lists one of the files.
            WrongChannel: the release is not made for the channel.
            OSError: the trust state cannot be written.
        """
        self._require_delegations()
        rollout = self._documents.read_rollout()
        manifest_target = self._documents.find_manifest(rollout)
        fleet = self._documents.read_fleet()
        times = self._signed_times()
        self._time_floor = raise_floor(self._time_floor, times.issued_at_s, times.floor_limits_s, self._request.clock)
        self._save_metadata(self._delegated_roles)
        if manifest_target is None:
            raise _release_withdrawn(rollout, self._request)
        manifest = self._documents.read_manifest(manifest_target)
        accepted = self._accept(manifest, rollout, fleet, self._documents.read_plan(), times.expires_at_s)
        fallback = find_covered_fallback(accepted, self._request, self.trust_state, self._read_manifest_of)
        if fallback is not None:
            self._save_trust_state(self.trust_state.with_release(fallback))
        return fallback or accepted

    def _read_manifest_of(self, rollout: Rollout) -> Manifest | None:
        target = self._documents.find_manifest(rollout)
        return None if target is None else self._documents.read_manifest(target)

    def verify_fleet(self) -> Fleet:
        """Return the verified fleet document, for a repository that has no rollout yet. Call `refresh` first.

        Raises:
            NoRollout: the repository has no fleet document yet.
            Refused: the document or its role is wrong, as in `verify_release`.
            Unavailable: the document or its role cannot be fetched, or has expired.
        """
        return self._documents.read_fleet()

    @property
    def expected_repository_id(self) -> str:
        """Id of the repository that this device was made for, or "" if neither root nor trust state says so."""
        if self._updater.bootstrap_version == 1:
            return repository_id_of(self._request.bootstrap_root)
        named = self._updater.root.unrecognized_fields.get(REPOSITORY_ID_FIELD, "")
        return self.trust_state.repository_id or (named if isinstance(named, str) else "")

    @property
    def snapshot_version(self) -> int:
        """Version of the verified snapshot. Call `refresh` first."""
        return self._updater.snapshot.version

    @property
    def _delegated_roles(self) -> tuple[str, str, str]:
        return rollout_role(self._request.family), release_role(self._request.family), FLEET_ROLE

    def _require_delegations(self) -> None:
        for role in self._delegated_roles:
            if find_delegation(self._updater, role) is None:
                raise family_unknown(self._updater, role, self._request.family)

    def _signed_times(self) -> SignedTimes:
        updater = self._updater
        rollout, release, fleet = (updater.verified_document(role) for role in self._delegated_roles)
        all_documents = (updater.root, updater.timestamp, updater.snapshot, updater.targets, rollout, release, fleet)
        return SignedTimes(
            issued_at_s=parse_time(updater.timestamp.unrecognized_fields.get(ISSUED_AT_FIELD)),
            floor_limits_s=tuple(_expiry_s(document) for document in (updater.root, updater.targets, release)),
            expires_at_s=min(_expiry_s(document) for document in all_documents),
        )

    def _accept(
        self, manifest: Manifest, rollout: Rollout, fleet: Fleet, plan: Plan | None, expires_at_s: int
    ) -> VerifiedRelease:
        request, family = self._request, self._request.family
        sightings, seen_s = self.trust_state.sightings.get(family, {}), 0
        if manifest.ramp or sightings:
            sightings, seen = update_sightings(
                sightings, rollout.manifest_digest, request.clock, is_offered=not rollout.halted
            )
            seen_s = seen.elapsed_s
        context = CheckContext(
            repository_id=self._repository_id,
            counter_epoch=self._read_counter_epoch(),
            checked_at_s=self._updater.time_s,
            expires_at_s=expires_at_s,
            timestamp_version=self._updater.timestamp.version,
            seen_s=seen_s,
        )
        accepted = accept(
            manifest,
            rollout,
            fleet,
            context,
            family=request.family,
            channel=request.channel,
            floor=self.trust_state.floor(request.family),
            known_releases=self.trust_state.known_releases.get(request.family, {}),
            agent_version=request.agent_version,
            plan=plan,
        )
        self._save_trust_state(self.trust_state.with_release(accepted).with_sightings(family, sightings))
        return accepted

    def _current_time(self, root: Root) -> int:
        stored = self.trust_state.roles
        if stored and not is_still_signed(self._updater, "timestamp", stored.get("timestamp"), root):
            # the timestamp keys were replaced: an attacker with the old ones may have raised the floor, so reset it
            reset = parse_time(root.unrecognized_fields.get(ISSUED_AT_FIELD)) or 0
            self._time_floor = TimeFloor(reset, self._request.clock.boot_id, self._request.clock.boot_elapsed_s)
        return current_time(self._request.clock, self._time_floor)

    def _read_repository_id(self) -> str:
        root = self._updater.root
        expected = self.trust_state.repository_id
        if self._updater.bootstrap_version == 1:
            expected = repository_id_of(self._request.bootstrap_root)
        found = root.unrecognized_fields.get(REPOSITORY_ID_FIELD, expected if root.version == 1 else "")
        if not isinstance(found, str) or not SHA256_HEX_PATTERN.fullmatch(found) or (expected and found != expected):
            raise UntrustedMetadata(f"root {root.version} names repository {found!r:.80}, expected {expected!r}")
        return found

    def _check_offline_pack(self) -> None:
        if self._is_trust_state_lost and is_file_url(self._request.metadata_url):
            raise TrustStateLost(
                "both copies of the trust state are lost, and the repository is not an online one",
                hint="run one check against the online repository, or restore the device directory from a backup",
            )
        for role in ("timestamp", "snapshot"):
            check_pack_role(role, self._updater.verified_document(role), self._updater.root, self._request.metadata_url)

    def _read_counter_epoch(self) -> int:
        delegation = find_delegation(self._updater, release_role(self._request.family))
        epoch = None if delegation is None else delegation.unrecognized_fields.get(COUNTER_EPOCH_FIELD)
        if isinstance(epoch, bool) or not isinstance(epoch, int) or epoch < 1:
            raise Malformed(
                f"delegation of {self._request.family!r}: {COUNTER_EPOCH_FIELD} is {epoch!r}, expected an integer of"
                " at least 1"
            )
        return epoch

    def _save_metadata(self, roles: Iterable[str]) -> None:
        """Check the versions of verified roles against the stored ones, then store them with the time floor."""
        versions = {role: role_version(self._updater, role) for role in roles}
        for role, found in versions.items():
            stored = self.trust_state.roles.get(role)
            if stored is None:
                continue
            if role == "root" or is_still_signed(self._updater, role, stored, self._updater.root):
                check_not_older(role, found, stored)
        self._save_trust_state(self.trust_state.with_metadata(self._repository_id, versions, self._time_floor))

    def _save_trust_state(self, state: TrustState) -> None:
        if not state.has_same_content(self.trust_state):
            state = self._store.save(state)
        self.trust_state = state


def _expiry_s(document: Signed) -> int:
    return int(document.expires.timestamp())


def _release_withdrawn(rollout: Rollout, request: CheckRequest) -> ReleaseWithdrawn:
    return ReleaseWithdrawn(
        f"the rollout of channel {request.channel!r} names release {rollout.version} of {request.family!r},"
        " which its release role does not list",
        hint="point the rollout at a listed release: packager rollout set",
    )
