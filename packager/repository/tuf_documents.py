"""TUF documents: made, versioned, dated.

Rules:
1. Every document carries `x-issued-at`; the timestamp's is what a device's time floor follows.
2. Expiry by role: root 1 year, targets 6 months, release and fleet 3 months, rollout and snapshot 7 days, timestamp
   1 day.
3. `targets` only delegates: `release-<family>` (terminating, with its counter epoch), `rollout-<family>`, `fleet`.
4. Snapshot and timestamp name length and SHA-256 of what they list, so that a mixed set is refused.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

from securesystemslib.signer import Key
from tuf.api.metadata import (
    DelegatedRole,
    Delegations,
    Metadata,
    MetaFile,
    Role,
    Root,
    Snapshot,
    TargetFile,
    Targets,
    Timestamp,
)

from bundle.trust.clock import ISSUED_AT_FIELD, format_time
from bundle.trust.role_names import (
    COUNTER_EPOCH_FIELD,
    PACK_MAX_DAYS_FIELD,
    REPOSITORY_ID_FIELD,
    release_role,
    rollout_role,
)
from keys.roles import default_threshold

DAY_S: Final = 86_400
EXPIRY_DAYS: Final = {
    "root": 365,
    "targets": 182,
    "release": 91,
    "fleet": 91,
    "rollout": 7,
    "snapshot": 7,
    "timestamp": 1,
}
MAX_PACK_DAYS: Final = 90
CLASSICAL_FIELD: Final = "x-classical"
TOP_LEVEL: Final = ("root", "targets", "snapshot", "timestamp")
FIRST_EPOCH: Final = 1


def kind_of(role: str) -> str:
    """The key of EXPIRY_DAYS for a role's name."""
    return role if role in EXPIRY_DAYS else role.partition("-")[0]


def family_roles(family: str) -> tuple[str, str]:
    """The two roles of a family."""
    return release_role(family), rollout_role(family)


def expiry(role: str, now_s: int) -> datetime:
    """Rule 2."""
    return datetime.fromtimestamp(now_s + EXPIRY_DAYS[kind_of(role)] * DAY_S, UTC)


def issue_fields(now_s: int) -> dict[str, Any]:
    """Rule 1."""
    return {ISSUED_AT_FIELD: format_time(now_s)}


def new_root(keys: Mapping[str, Sequence[Key]], now_s: int, *, classical: bool) -> Root:
    """The first root.

    Args:
        keys: of the four top-level roles.
        now_s: Unix seconds.
        classical: without ML-DSA, for foreign clients.

    Raises:
        ThresholdInvalid.
    """
    fields: dict[str, Any] = {**issue_fields(now_s), PACK_MAX_DAYS_FIELD: MAX_PACK_DAYS}
    if classical:
        fields[CLASSICAL_FIELD] = True
    return Root(
        version=1,
        expires=expiry("root", now_s),
        keys={key.keyid: key for role in TOP_LEVEL for key in keys[role]},
        roles={role: _role(role, keys[role], classical=classical) for role in TOP_LEVEL},
        consistent_snapshot=True,
        unrecognized_fields=fields,
    )


def next_root(root: Root, repository_id: str, now_s: int) -> Root:
    """The same root, one version on; to be changed by the caller."""
    copied = Root.from_dict(root.to_dict())
    copied.version += 1
    copied.expires = expiry("root", now_s)
    copied.unrecognized_fields.update({**issue_fields(now_s), REPOSITORY_ID_FIELD: repository_id})
    return copied


def new_targets(now_s: int) -> Targets:
    """An empty `targets`."""
    return Targets(
        version=1,
        expires=expiry("targets", now_s),
        targets={},
        delegations=Delegations({}, {}),
        unrecognized_fields=issue_fields(now_s),
    )


def delegate(targets: Targets, role: str, keys: Sequence[Key], *, classical: bool, epoch: int = FIRST_EPOCH) -> None:
    """Add a role, or replace its keys (rule 3). Raises ThresholdInvalid."""
    threshold = default_threshold(role, keys, is_classical_only=classical)
    assert targets.delegations is not None
    assert targets.delegations.roles is not None
    kind, _, family = role.partition("-")
    path = {"release": f"bundles/{family}/*", "rollout": f"rollouts/{family}/*", "fleet": "fleet/*"}[kind]
    fields: dict[str, Any] = {COUNTER_EPOCH_FIELD: epoch} if kind == "release" else {}
    targets.delegations.roles[role] = DelegatedRole(
        role,
        [key.keyid for key in keys],
        threshold,
        terminating=True,
        paths=[path],
        unrecognized_fields=fields,
    )
    targets.delegations.keys.update({key.keyid: key for key in keys})
    drop_unused_keys(targets)


def drop_unused_keys(targets: Targets) -> None:
    """Leave only keys that a delegated role lists."""
    assert targets.delegations is not None
    used = {keyid for delegated in (targets.delegations.roles or {}).values() for keyid in delegated.keyids}
    targets.delegations.keys = {keyid: key for keyid, key in targets.delegations.keys.items() if keyid in used}


def empty_role(role: str, now_s: int) -> Targets:
    """The first document of a delegated role."""
    return Targets(version=1, expires=expiry(role, now_s), targets={}, unrecognized_fields=issue_fields(now_s))


def next_targets(previous: Targets, role: str, targets: Mapping[str, TargetFile], now_s: int) -> Targets:
    """A targets-type document one version on, with another list of targets."""
    copied = Targets.from_dict(previous.to_dict())
    copied.version += 1
    copied.expires = expiry(role, now_s)
    copied.unrecognized_fields.update(issue_fields(now_s))
    copied.targets = dict(targets)
    return copied


def new_snapshot(version: int, files: Mapping[str, tuple[int, bytes]], now_s: int) -> Snapshot:
    """A snapshot (rule 4). `files`: role → (version, bytes of its file)."""
    return Snapshot(
        version=version,
        expires=expiry("snapshot", now_s),
        meta={f"{role}.json": meta_file(number, data) for role, (number, data) in sorted(files.items())},
        unrecognized_fields=issue_fields(now_s),
    )


def new_timestamp(version: int, snapshot: tuple[int, bytes], now_s: int) -> Timestamp:
    """A timestamp (rule 4)."""
    return Timestamp(
        version=version,
        expires=expiry("timestamp", now_s),
        snapshot_meta=meta_file(*snapshot),
        unrecognized_fields=issue_fields(now_s),
    )


def meta_file(version: int, data: bytes) -> MetaFile:
    """How snapshot and timestamp name a file."""
    return MetaFile(version, len(data), {"sha256": hashlib.sha256(data).hexdigest()})


def target_file(name: str, data: bytes) -> TargetFile:
    """How a role lists a target."""
    return TargetFile(len(data), {"sha256": hashlib.sha256(data).hexdigest()}, name)


def target_path(target: TargetFile) -> str:
    """Where a target lies below `targets/`: its name with the digest before the last part."""
    folder, _, name = target.path.rpartition("/")
    return f"{folder}/{target.hashes['sha256']}.{name}"


def is_classical(root: Root) -> bool:
    """Was the repository made without ML-DSA?"""
    return root.unrecognized_fields.get(CLASSICAL_FIELD) is True


def families_of(targets: Targets) -> tuple[str, ...]:
    """Sorted families that have a release role."""
    roles: Iterable[str] = () if targets.delegations is None else targets.delegations.roles or ()
    return tuple(sorted(role.removeprefix("release-") for role in roles if role.startswith("release-")))


def delegated_roles(targets: Targets) -> dict[str, DelegatedRole]:
    """Every delegated role by name."""
    return {} if targets.delegations is None else dict(targets.delegations.roles or {})


def serialize(document: Metadata[Any]) -> bytes:
    """The file of a document."""
    return document.to_bytes()


def _role(role: str, keys: Sequence[Key], *, classical: bool) -> Role:
    threshold = default_threshold(role, keys, is_classical_only=classical)
    return Role([key.keyid for key in keys], threshold)
