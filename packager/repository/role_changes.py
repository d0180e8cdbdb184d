"""Changes of roles: keys added, removed, replaced; thresholds; counter epochs; families. Each is staged, then signed.

Rules:
1. A change of root, targets, snapshot or timestamp is a new root; it needs the threshold of the root before it and its
   own. A change of a family's or the fleet's role is a new `targets`.
2. A role's keys and threshold keep keys.roles' rules after every change. The threshold follows the keys unless given.
3. A document that the role's new keys have not signed is staged anew by the next `sign`, for those keys to sign.
4. Root versions are never left out or reused: each N.root.json stays forever.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from securesystemslib.signer import Key
from tuf.api.metadata import Metadata, Root, Targets

from bundle.trust.role_names import COUNTER_EPOCH_FIELD, release_role
from keys.errors import SignerNotInRole
from keys.roles import RoleKeys, check_threshold, collect_role_keys, default_threshold
from packager.errors import StagingInvalid
from packager.repository import tuf_documents
from packager.repository.layout import RepositoryLayout, lock_repository
from packager.repository.published import PublishedDocuments
from packager.repository.staging import Staging

ChangeKeys = Callable[[list[Key]], list[Key]]
TOP_LEVEL: Final = tuf_documents.TOP_LEVEL


@dataclass(frozen=True, slots=True)
class RoleChange:
    """What a role comes to: its name, and its keys and threshold as they will be."""

    role: str
    key_ids: tuple[str, ...]
    threshold: int

    def as_json(self) -> dict[str, object]:
        """For `--json`."""
        return {"role": self.role, "key_ids": list(self.key_ids), "threshold": self.threshold}


def add_keys(layout: RepositoryLayout, role: str, keys: Sequence[Key], threshold: int | None = None) -> RoleChange:
    """Stage further keys of a role. Raises ThresholdInvalid, StagingInvalid (no such role)."""
    return _stage_change(layout, role, lambda held: [*held, *keys], threshold)


def remove_keys(
    layout: RepositoryLayout, role: str, key_ids: Sequence[str], threshold: int | None = None
) -> RoleChange:
    """Stage that a role loses keys, named by id or the beginning of one. Raises also SignerNotInRole."""
    return _stage_change(layout, role, lambda held: _remove_keys(role, held, key_ids), threshold)


def replace_key(layout: RepositoryLayout, role: str, key_id: str, key: Key, threshold: int | None = None) -> RoleChange:
    """Stage that one key takes the place of another. Raises as `remove_keys`."""
    return _stage_change(layout, role, lambda held: [*_remove_keys(role, held, [key_id]), key], threshold)


def replace_keys(layout: RepositoryLayout, role: str, keys: Sequence[Key], threshold: int | None = None) -> RoleChange:
    """Stage all new keys of a role, as after a compromise. Raises as `add_keys`."""
    return _stage_change(layout, role, lambda _held: list(keys), threshold)


def set_threshold(layout: RepositoryLayout, role: str, threshold: int) -> RoleChange:
    """Stage another threshold. Raises ThresholdInvalid, StagingInvalid."""
    return _stage_change(layout, role, list, threshold)


def advance_counter_epoch(layout: RepositoryLayout, family: str) -> int:
    """Stage the next counter epoch of a family: outlives a huge counter that a stolen key signed. Returns it."""
    with lock_repository(layout):
        published, staging = PublishedDocuments(layout), Staging(layout)
        targets = next_targets(published, staging)
        delegated = tuf_documents.delegated_roles(targets).get(release_role(family))
        if delegated is None:
            raise StagingInvalid(f"family {family!r} is not delegated")
        epoch = int(delegated.unrecognized_fields.get(COUNTER_EPOCH_FIELD, 0)) + 1
        delegated.unrecognized_fields[COUNTER_EPOCH_FIELD] = epoch
        staging.put_document("targets", Metadata[Targets](targets))
        return epoch


def require_hybrid(layout: RepositoryLayout) -> tuple[RoleChange, ...]:
    """Stage that a classical repository keeps the hybrid rule from now on; every role must have ML-DSA keys already.

    Raises:
        ThresholdInvalid: a role lacks keys of one kind.
    """
    with lock_repository(layout):
        published, staging = PublishedDocuments(layout), Staging(layout)
        root, targets = next_root(published, staging), next_targets(published, staging)
        changes = []
        for role in (*TOP_LEVEL, *tuf_documents.delegated_roles(targets)):
            delegator: Root | Targets = root if role in TOP_LEVEL else targets
            listed = delegator.get_delegated_role(role)
            keys = [delegator.get_key(keyid) for keyid in listed.keyids]
            listed.threshold = default_threshold(role, keys)
            changes.append(RoleChange(role, tuple(listed.keyids), listed.threshold))
        root.unrecognized_fields.pop(tuf_documents.CLASSICAL_FIELD, None)
        staging.put_document("root", Metadata[Root](root))
        staging.put_document("targets", Metadata[Targets](targets))
        return tuple(changes)


def renew(layout: RepositoryLayout, roles: Sequence[str]) -> None:
    """Stage the same documents with new expiries. Raises StagingInvalid: no such role, or snapshot or timestamp."""
    with lock_repository(layout):
        published, staging = PublishedDocuments(layout), Staging(layout)
        now_s = int(time.time())
        for role in roles:
            if role == "root":
                staging.put_document("root", Metadata[Root](next_root(published, staging)))
            elif role == "targets":
                staging.put_document("targets", Metadata[Targets](next_targets(published, staging)))
            elif role in tuf_documents.delegated_roles(published.targets) and role in published.documents:
                held = published.role(role)
                renewed = tuf_documents.next_targets(held, role, held.targets, now_s)
                staging.put_document(role, Metadata[Targets](renewed))
            else:
                raise StagingInvalid(f"there is no role {role!r} to renew; snapshot and timestamp: `repo refresh`")


def remove_family(layout: RepositoryLayout, family: str) -> None:
    """Stage that a family is no longer delegated. Raises StagingInvalid."""
    with lock_repository(layout):
        published, staging = PublishedDocuments(layout), Staging(layout)
        targets = next_targets(published, staging)
        roles = tuf_documents.delegated_roles(targets)
        if release_role(family) not in roles:
            raise StagingInvalid(f"family {family!r} is not delegated")
        assert targets.delegations is not None
        assert targets.delegations.roles is not None
        for role in tuf_documents.family_roles(family):
            del targets.delegations.roles[role]
        tuf_documents.drop_unused_keys(targets)
        staging.put_document("targets", Metadata[Targets](targets))


def next_root(published: PublishedDocuments, staging: Staging) -> Root:
    """The staged root, unsigned, or a new one on top of the published."""
    staged = staging.documents.get("root")
    if staged is not None and staged.signed.version == published.root_version + 1:
        return Root.from_dict(staged.signed.to_dict())
    return tuf_documents.next_root(published.root, published.repository_id, int(time.time()))


def next_targets(published: PublishedDocuments, staging: Staging) -> Targets:
    """The staged `targets`, unsigned, or a new one on top of the published."""
    staged = staging.documents.get("targets")
    if staged is not None and staged.signed.version == published.targets.version + 1:
        return Targets.from_dict(staged.signed.to_dict())
    return tuf_documents.next_targets(published.targets, "targets", {}, int(time.time()))


def _stage_change(layout: RepositoryLayout, role: str, change: ChangeKeys, threshold: int | None) -> RoleChange:
    with lock_repository(layout):
        published, staging = PublishedDocuments(layout), Staging(layout)
        classical = tuf_documents.is_classical(published.root)
        if role in TOP_LEVEL:
            root = next_root(published, staging)
            keys = change([root.keys[keyid] for keyid in root.roles[role].keyids])
            counted = _checked_role_keys(role, keys, threshold, classical=classical)
            root.roles[role].keyids = [key.keyid for key in keys]
            root.roles[role].threshold = counted.threshold
            root.keys.update({key.keyid: key for key in keys})
            used = {keyid for listed in root.roles.values() for keyid in listed.keyids}
            root.keys = {keyid: key for keyid, key in root.keys.items() if keyid in used}
            staging.put_document("root", Metadata[Root](root))
        else:
            targets = next_targets(published, staging)
            delegated = tuf_documents.delegated_roles(targets).get(role)
            if delegated is None or targets.delegations is None:
                raise StagingInvalid(f"there is no role {role!r}", hint="`packager repo status` lists the roles")
            keys = change([targets.delegations.keys[keyid] for keyid in delegated.keyids])
            counted = _checked_role_keys(role, keys, threshold, classical=classical)
            delegated.keyids = [key.keyid for key in keys]
            delegated.threshold = counted.threshold
            targets.delegations.keys.update({key.keyid: key for key in keys})
            tuf_documents.drop_unused_keys(targets)
            staging.put_document("targets", Metadata[Targets](targets))
        return RoleChange(role, tuple(key.keyid for key in keys), counted.threshold)


def _checked_role_keys(role: str, keys: Sequence[Key], threshold: int | None, *, classical: bool) -> RoleKeys:
    wanted = default_threshold(role, keys, is_classical_only=classical) if threshold is None else threshold
    counted = collect_role_keys(role, keys, wanted)
    check_threshold(counted, is_classical_only=classical)
    return counted


def _remove_keys(role: str, keys: Sequence[Key], key_ids: Sequence[str]) -> list[Key]:
    for key_id in key_ids:
        matching = [key for key in keys if key.keyid.startswith(key_id)]
        if len(matching) != 1:
            raise SignerNotInRole(
                f"key {key_id[:20]!r} matches {len(matching)} keys of role {role!r}, expected one",
                hint="`packager repo status` shows each role's keys",
            )
    return [key for key in keys if not any(key.keyid.startswith(key_id) for key_id in key_ids)]
