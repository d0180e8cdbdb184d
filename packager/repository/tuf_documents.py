"""Create TUF documents with their versions, issue times and expiries.

- Every document has `x-issued-at`. A device's time floor follows that of the timestamp.
- Validity by role: root 1 year, targets 6 months, release and fleet 3 months, rollout and snapshot 7 days, timestamp
  1 day.
- `targets` only delegates: `release-FAMILY` (terminating, with its counter epoch), `rollout-FAMILY` and `fleet`.
- Snapshot and timestamp list length and SHA-256 of each document, so that devices refuse a mix of two publications.
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
    """Return the key of EXPIRY_DAYS for a role: the role, or the part of its name before the family."""
    return role if role in EXPIRY_DAYS else role.partition("-")[0]


def family_roles(family: str) -> tuple[str, str]:
    """Return the release role and the rollout role of a family."""
    return release_role(family), rollout_role(family)


def expiry(role: str, now_s: int) -> datetime:
    """Return when a document that is issued now expires.

    Args:
        role: name of the role.
        now_s: current time, in Unix seconds.
    """
    return datetime.fromtimestamp(now_s + EXPIRY_DAYS[kind_of(role)] * DAY_S, UTC)


def issue_fields(now_s: int) -> dict[str, Any]:
    """Return the field with the issue time, for `unrecognized_fields`."""
    return {ISSUED_AT_FIELD: format_time(now_s)}


def new_root(keys: Mapping[str, Sequence[Key]], now_s: int, *, classical: bool) -> Root:
    """Create the first root of a repository.

    Args:
        keys: the public keys of each of the four top-level roles.
        now_s: current time, in Unix seconds.
        classical: exempt the repository from the hybrid rule, for TUF clients that do not know ML-DSA.

    Raises:
        ThresholdInvalid: a role has too few keys of a kind.
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
    """Copy a root with the next version and a new expiry, for the caller to change.

    Args:
        root: the published root.
        repository_id: id of the repository (`bundle.trust.repository_id`).
        now_s: current time, in Unix seconds.
    """
    copied = Root.from_dict(root.to_dict())
    copied.version += 1
    copied.expires = expiry("root", now_s)
    copied.unrecognized_fields.update({**issue_fields(now_s), REPOSITORY_ID_FIELD: repository_id})
    return copied


def new_targets(now_s: int) -> Targets:
    """Create a `targets` document of version 1 without delegations."""
    return Targets(
        version=1,
        expires=expiry("targets", now_s),
        targets={},
        delegations=Delegations({}, {}),
        unrecognized_fields=issue_fields(now_s),
    )


def delegate(targets: Targets, role: str, keys: Sequence[Key], *, classical: bool, epoch: int = FIRST_EPOCH) -> None:
    """Add the delegation of a role, or replace its keys.

    Args:
        targets: the document to change.
        role: `release-FAMILY`, `rollout-FAMILY` or `fleet`.
        keys: the role's public keys.
        classical: the repository is exempt from the hybrid rule.
        epoch: counter epoch of a release role.

    Raises:
        ThresholdInvalid: the role has too few keys of a kind.
    """
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
    """Remove the keys that no delegated role lists."""
    assert targets.delegations is not None
    used = {keyid for delegated in (targets.delegations.roles or {}).values() for keyid in delegated.keyids}
    targets.delegations.keys = {keyid: key for keyid, key in targets.delegations.keys.items() if keyid in used}


def empty_role(role: str, now_s: int) -> Targets:
    """Create the first document of a delegated role, without targets.

    Args:
        role: name of the role.
        now_s: current time, in Unix seconds.
    """
    return Targets(version=1, expires=expiry(role, now_s), targets={}, unrecognized_fields=issue_fields(now_s))


def next_targets(previous: Targets, role: str, targets: Mapping[str, TargetFile], now_s: int) -> Targets:
    """Copy a document of type targets with the next version, a new expiry and other targets.

    Args:
        previous: the published document.
        role: name of the role.
        targets: target name → length and digest.
        now_s: current time, in Unix seconds.
    """
    copied = Targets.from_dict(previous.to_dict())
    copied.version += 1
    copied.expires = expiry(role, now_s)
    copied.unrecognized_fields.update(issue_fields(now_s))
    copied.targets = dict(targets)
    return copied


def new_snapshot(version: int, files: Mapping[str, tuple[int, bytes]], now_s: int) -> Snapshot:
    """Create a snapshot of the given documents.

    Args:
        version: version of the snapshot.
        files: role → (version, bytes of the file), for each document that the snapshot lists.
        now_s: current time, in Unix seconds.
    """
    return Snapshot(
        version=version,
        expires=expiry("snapshot", now_s),
        meta={f"{role}.json": meta_file(number, data) for role, (number, data) in sorted(files.items())},
        unrecognized_fields=issue_fields(now_s),
    )


def new_timestamp(version: int, snapshot: tuple[int, bytes], now_s: int) -> Timestamp:
    """Create a timestamp of the given snapshot.

    Args:
        version: version of the timestamp.
        snapshot: version and file bytes of the snapshot.
        now_s: current time, in Unix seconds.
    """
    return Timestamp(
        version=version,
        expires=expiry("timestamp", now_s),
        snapshot_meta=meta_file(*snapshot),
        unrecognized_fields=issue_fields(now_s),
    )


def meta_file(version: int, data: bytes) -> MetaFile:
    """Return the entry of a document in snapshot or timestamp: version, length, SHA-256.

    Args:
        version: version of the document.
        data: bytes of its file.
    """
    return MetaFile(version, len(data), {"sha256": hashlib.sha256(data).hexdigest()})


def target_file(name: str, data: bytes) -> TargetFile:
    """Return the entry of a target in its role's document: length and SHA-256.

    Args:
        name: name of the target.
        data: its content.
    """
    return TargetFile(len(data), {"sha256": hashlib.sha256(data).hexdigest()}, name)


def target_path(target: TargetFile) -> str:
    """Return a target's path below `targets/`: its name, with the digest before the last part."""
    folder, _, name = target.path.rpartition("/")
    return f"{folder}/{target.hashes['sha256']}.{name}"


def is_classical(root: Root) -> bool:
    """Return whether the repository is exempt from the hybrid rule."""
    return root.unrecognized_fields.get(CLASSICAL_FIELD) is True


def families_of(targets: Targets) -> tuple[str, ...]:
    """List the families with a release role, sorted."""
    roles: Iterable[str] = () if targets.delegations is None else targets.delegations.roles or ()
    return tuple(sorted(role.removeprefix("release-") for role in roles if role.startswith("release-")))


def delegated_roles(targets: Targets) -> dict[str, DelegatedRole]:
    """Return role name → delegation, for each delegated role."""
    return {} if targets.delegations is None else dict(targets.delegations.roles or {})


def serialize(document: Metadata[Any]) -> bytes:
    """Return the bytes of a document's file."""
    return document.to_bytes()


def _role(role: str, keys: Sequence[Key], *, classical: bool) -> Role:
    threshold = default_threshold(role, keys, is_classical_only=classical)
    return Role([key.keyid for key in keys], threshold)
