"""One check: from a repository's URL to a `VerifiedRelease`, or to an error that says why not.

Rules, in this order:
1. One check at a time on a cache (a lock).
2. TUF's own walk: root, timestamp, snapshot, targets, each signed by its threshold and unexpired at our time.
3. Our memory: no role is older than remembered, or the same version with other content, while what is remembered still
   verifies under the role's current keys; root's version binds always.
4. The rollout comes from `rollout-<family>`, the manifest that it names from `release-<family>`, the fleet document
   from `fleet`. Targets itself lists nothing.
5. What verified is remembered, whatever becomes of the release; the floor rises only with an accepted one.
6. Acceptance (bundle.acceptance).
7. Metadata of an offline pack is believed only from a `file:` URL, and never longer than root allows.
"""

import fcntl
import hashlib
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tuf.api.metadata import DelegatedRole, Root, TargetFile, Targets
from tuf.api.serialization.json import CanonicalJSONSerializer

from bundle.acceptance import CheckContext, VerifiedRelease, accept
from bundle.errors import (
    CheckInProgress,
    Malformed,
    NoRollout,
    OfflinePackRefused,
    ReleaseWithdrawn,
    RollbackRefused,
    TrustStateLost,
    UntrustedMetadata,
)
from bundle.fleet import FLEET_TARGET, MAX_FLEET_BYTES, Fleet, parse_fleet
from bundle.manifest import MAX_MANIFEST_BYTES, Manifest, parse_manifest
from bundle.rollout import MAX_ROLLOUT_BYTES, Rollout, parse_rollout
from bundle.strict_json import SHA256_HEX_PATTERN
from bundle.trust.clock import ISSUED_AT_FIELD, ClockFacts, TimeFloor, current_time, parse_time, raise_floor
from bundle.trust.public_keys import key_digest
from bundle.trust.role_names import (
    COUNTER_EPOCH_FIELD,
    FLEET_ROLE,
    PACK_FIELD,
    PACK_MAX_DAYS_FIELD,
    REPOSITORY_ID_FIELD,
    release_role,
    release_target,
    rollout_role,
    rollout_target,
)
from bundle.trust.trust_state import RoleVersion, TrustState, TrustStateStore
from bundle.trust.updater import Fetch, TrustedUpdater, translate_errors

DAY_S: Final = 86_400


@dataclass(frozen=True, slots=True)
class CheckRequest:
    """What a check needs to know.

    Attributes:
        cache_dir: for tuf's cache; not trusted.
        bootstrap_root: bytes of the shipped root.
        metadata_url, targets_url: bases.
        family, channel: what to check for.
        clock: what is known of time.
        agent_version: dotted numbers.
        rebuilt: what other stores of the device still know, for what the slots know nothing of.
    """

    cache_dir: Path
    bootstrap_root: bytes
    metadata_url: str
    targets_url: str
    family: str
    channel: str
    clock: ClockFacts
    agent_version: str
    rebuilt_state: TrustState = field(default_factory=TrustState)


def check(request: CheckRequest, fetch: Fetch, store: TrustStateStore) -> VerifiedRelease:
    """Run all rules.

    Raises:
        Refused, Unavailable: see bundle.errors; each cause has its class.
        OSError: the cache or the slots cannot be written.
    """
    with _lock_cache(request.cache_dir):
        session = TrustSession(request, fetch, store)
        session.refresh()
        return session.verify_release()


class TrustSession:
    """The steps of one check, for the publisher who needs them singly. Not to be used twice."""

    def __init__(self, request: CheckRequest, fetch: Fetch, store: TrustStateStore) -> None:
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
        )
        self._repository_id = ""
        self._time_floor = self.trust_state.time_floor

    def refresh(self) -> None:
        """Rules 2, 3 and 7 for the top-level roles; remembers them."""
        with translate_errors(self._updater):
            self._updater.refresh()
        self._repository_id = self._read_repository_id()
        self._check_pack()
        targets = self._updater.targets
        if targets.targets:
            raise UntrustedMetadata("targets lists files itself, expected delegations only")
        versions = {role: self._role_version(role) for role in ("root", "timestamp", "snapshot", "targets")}
        self._save_metadata(versions)

    def verify_release(self) -> VerifiedRelease:
        """Rules 4 to 6."""
        request = self._request
        roles = (rollout_role(request.family), release_role(request.family), FLEET_ROLE)
        for role in roles:
            if self._find_delegation(role) is None:
                raise NoRollout(
                    f"this repository has no role {role!r}", hint=f"is {request.family!r} the right family?"
                )
        rollout = self._read_rollout()
        self._check_pack_validity(rollout_role(request.family))
        target = self._find_target(release_role(request.family), release_target(request.family, rollout.version))
        fleet = self._read_fleet()
        documents = [self._updater.verified_document(role) for role in roles]
        online = [self._updater.root, self._updater.timestamp, self._updater.snapshot, self._updater.targets]
        expires_at_s = min(int(document.expires.timestamp()) for document in [*online, *documents])
        self._time_floor = raise_floor(
            self._time_floor,
            parse_time(self._updater.timestamp.unrecognized_fields.get(ISSUED_AT_FIELD)),
            [int(d.expires.timestamp()) for d in (self._updater.root, self._updater.targets, documents[1])],
            request.clock,
        )
        self._save_metadata({role: self._role_version(role) for role in roles})
        if target is None:
            raise ReleaseWithdrawn(
                f"the rollout of channel {request.channel!r} names release {rollout.version} of {request.family!r},"
                " which its release role does not list",
                hint="point the rollout at a release that is listed",
            )
        manifest = self._read_manifest(target)
        facts = CheckContext(
            repository_id=self._repository_id,
            counter_epoch=self._read_counter_epoch(),
            checked_at_s=self._updater.time_s,
            expires_at_s=expires_at_s,
            timestamp_version=self._updater.timestamp.version,
        )
        accepted = accept(
            manifest,
            rollout,
            fleet,
            facts,
            family=request.family,
            channel=request.channel,
            floor=self.trust_state.floor(request.family),
            known_releases=self.trust_state.known_releases.get(request.family, {}),
            agent_version=request.agent_version,
        )
        self._save_trust_state(self.trust_state.with_release(accepted))
        return accepted

    def verify_fleet(self) -> Fleet:
        """The verified fleet document, for a repository that has no rollout yet."""
        return self._read_fleet()

    def _current_time(self, root: Root) -> int:
        if self.trust_state.roles and not self._is_still_signed("timestamp", root):
            reset = parse_time(root.unrecognized_fields.get(ISSUED_AT_FIELD)) or 0
            self._time_floor = TimeFloor(reset, self._request.clock.boot_id, self._request.clock.boot_elapsed_s)
        return current_time(self._request.clock, self._time_floor)

    def _read_repository_id(self) -> str:
        root = self._updater.root
        first = self.trust_state.repository_id
        if self._updater.bootstrap_version == 1:
            first = hashlib.sha256(self._request.bootstrap_root).hexdigest()
        claimed = root.unrecognized_fields.get(REPOSITORY_ID_FIELD, first if root.version == 1 else "")
        if not isinstance(claimed, str) or not SHA256_HEX_PATTERN.fullmatch(claimed) or (first and claimed != first):
            raise UntrustedMetadata(f"root {root.version} names repository {claimed!r:.80}, expected {first!r}")
        return claimed

    def _check_pack(self) -> None:
        is_local = self._request.metadata_url.startswith("file:")
        if self._is_trust_state_lost and is_local:
            raise TrustStateLost(
                "both trust memory slots are lost, and this is not an online repository",
                hint="check online once, or let the operator restore the device",
            )
        self._check_pack_validity("timestamp")
        self._check_pack_validity("snapshot")

    def _check_pack_validity(self, role: str) -> None:
        document = self._updater.verified_document(role)
        if PACK_FIELD not in document.unrecognized_fields:
            return
        if not self._request.metadata_url.startswith("file:"):
            raise OfflinePackRefused(f"{role} of an offline pack was offered by {self._request.metadata_url}")
        issued = parse_time(document.unrecognized_fields.get(ISSUED_AT_FIELD))
        limit = self._updater.root.unrecognized_fields.get(PACK_MAX_DAYS_FIELD, 0)
        expires = int(document.expires.timestamp())
        if issued is None or not isinstance(limit, int) or expires - issued > limit * DAY_S:
            raise OfflinePackRefused(f"{role} of the pack is valid for more than the {limit} days that root allows")

    def _read_rollout(self) -> Rollout:
        request = self._request
        target = self._find_target(rollout_role(request.family), rollout_target(request.family, request.channel))
        if target is None:
            raise NoRollout(f"there is no rollout for channel {request.channel!r} of {request.family!r}")
        return parse_rollout(
            self._read_target(target, f"{request.family}.{request.channel}.rollout.json", MAX_ROLLOUT_BYTES)
        )

    def _read_manifest(self, target: TargetFile) -> Manifest:
        return parse_manifest(self._read_target(target, f"{self._request.family}.manifest.json", MAX_MANIFEST_BYTES))

    def _read_fleet(self) -> Fleet:
        target = self._find_target(FLEET_ROLE, FLEET_TARGET)
        if target is None:
            raise NoRollout("the repository has no fleet document yet")
        return parse_fleet(self._read_target(target, "fleet.json", MAX_FLEET_BYTES))

    def _find_target(self, role: str, name: str) -> TargetFile | None:
        with translate_errors(self._updater):
            found = self._updater.get_targetinfo(name)
            self._updater.load_delegated(role)
        listed = self._updater.verified_document(role)
        assert isinstance(listed, Targets)
        if found is not None and listed.targets.get(name) != found:
            raise UntrustedMetadata(f"{name!r} is listed by another role than {role!r}")
        return found

    def _read_target(self, target: TargetFile, name: str, max_bytes: int) -> bytes:
        return self._updater.read_target(target, self._request.cache_dir / "documents" / name, max_bytes)

    def _find_delegation(self, role: str) -> DelegatedRole | None:
        delegations = self._updater.targets.delegations
        return None if delegations is None or delegations.roles is None else delegations.roles.get(role)

    def _read_counter_epoch(self) -> int:
        delegation = self._find_delegation(release_role(self._request.family))
        epoch = None if delegation is None else delegation.unrecognized_fields.get(COUNTER_EPOCH_FIELD)
        if isinstance(epoch, bool) or not isinstance(epoch, int) or epoch < 1:
            raise Malformed(
                f"delegation of {self._request.family!r}: {COUNTER_EPOCH_FIELD} is {epoch!r}, expected 1 up"
            )
        return epoch

    def _role_version(self, role: str) -> RoleVersion:
        document = self._updater.verified_document(role)
        signers = sorted(key_digest(key) for key in self._updater.signing_keys(role).values())
        digest = hashlib.sha256(CanonicalJSONSerializer().serialize(document)).hexdigest()
        return RoleVersion(document.version, digest, tuple(dict.fromkeys(signers)))

    def _is_still_signed(self, role: str, root: Root | None = None) -> bool:
        remembered = self.trust_state.roles.get(role)
        keys, threshold = self._current_keys(role, root or self._updater.root)
        return remembered is not None and len(keys & set(remembered.signers)) >= threshold

    def _current_keys(self, role: str, root: Root) -> tuple[set[str], int]:
        if role in root.roles:
            return {key_digest(root.keys[keyid]) for keyid in root.roles[role].keyids}, root.roles[role].threshold
        delegation, delegations = self._find_delegation(role), self._updater.targets.delegations
        if delegation is None or delegations is None:
            return set(), 1
        return {key_digest(delegations.keys[keyid]) for keyid in delegation.keyids}, delegation.threshold

    def _save_metadata(self, versions: Mapping[str, RoleVersion]) -> None:
        for role, version in versions.items():
            remembered = self.trust_state.roles.get(role)
            if remembered is None or (role != "root" and not self._is_still_signed(role)):
                continue
            if version.version < remembered.version:
                raise RollbackRefused(f"{role} {version.version} offered, {remembered.version} already accepted")
            if version.version == remembered.version and version.digest != remembered.digest:
                raise RollbackRefused(f"{role} {version.version} offered with other content than was accepted")
        self._save_trust_state(self.trust_state.with_metadata(self._repository_id, versions, self._time_floor))

    def _save_trust_state(self, state: TrustState) -> None:
        if not state.has_same_content(self.trust_state):
            state = self._store.save(state)
        self.trust_state = state


@contextmanager
def _lock_cache(cache_dir: Path) -> Iterator[None]:
    cache_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    descriptor = os.open(cache_dir / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise CheckInProgress(f"another check holds {cache_dir / 'lock'}") from error
        yield
    finally:
        os.close(descriptor)
