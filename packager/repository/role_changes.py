"""Stage changes of roles: keys, thresholds, counter epochs, families.

- A change of root, targets, snapshot or timestamp is a new root. It needs its own threshold and that of the root before
  it. A change of a family's or the fleet's role is a new `targets`.
- After each change, keys and threshold keep the rules of keys.roles. The threshold follows the keys unless it is given.
- If a role's published document lacks signatures of its new keys, the next `sign` stages a new one for them to sign.
- Root versions are never skipped or reused: each N.root.json stays forever.
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
    """A role after a staged change.

    Attributes:
        role: name of the role.
        key_ids: ids of its keys.
        threshold: number of signatures that it needs.
    """

    role: str
    key_ids: tuple[str, ...]
    threshold: int

    def as_json(self) -> dict[str, object]:
        """Return the JSON object for `--json`."""
        return {"role": self.role, "key_ids": list(self.key_ids), "threshold": self.threshold}


def add_keys(layout: RepositoryLayout, role: str, keys: Sequence[Key], threshold: int | None = None) -> RoleChange:
    """Stage the addition of keys to a role.

    Args:
        layout: the repository's paths.
        role: name of the role.
        keys: the public keys to add.
        threshold: the role's new threshold; None for the smallest that the rules allow.

    Raises:
        StagingInvalid: there is no such role.
        ThresholdInvalid: keys and threshold would break a rule of keys.roles.
    """
    return _stage_change(layout, role, lambda current: [*current, *keys], threshold)


def remove_keys(
    layout: RepositoryLayout, role: str, key_ids: Sequence[str], threshold: int | None = None
) -> RoleChange:
    """Stage the removal of keys from a role.

    Args:
        layout: the repository's paths.
        role: name of the role.
        key_ids: ids of the keys to remove, or unique prefixes of them.
        threshold: the role's new threshold; None for the smallest that the rules allow.

    Raises:
        StagingInvalid: there is no such role.
        SignerNotInRole: a prefix matches no key of the role, or several.
        ThresholdInvalid: keys and threshold would break a rule of keys.roles.
    """
    return _stage_change(layout, role, lambda current: _remove_keys(role, current, key_ids), threshold)


def replace_key(layout: RepositoryLayout, role: str, key_id: str, key: Key, threshold: int | None = None) -> RoleChange:
    """Stage the replacement of one key of a role.

    Args:
        layout: the repository's paths.
        role: name of the role.
        key_id: id of the key to remove, or a unique prefix of it.
        key: the public key to add.
        threshold: the role's new threshold; None for the smallest that the rules allow.

    Raises:
        StagingInvalid: there is no such role.
        SignerNotInRole: the prefix matches no key of the role, or several.
        ThresholdInvalid: keys and threshold would break a rule of keys.roles.
    """
    return _stage_change(layout, role, lambda current: [*_remove_keys(role, current, [key_id]), key], threshold)


def replace_keys(layout: RepositoryLayout, role: str, keys: Sequence[Key], threshold: int | None = None) -> RoleChange:
    """Stage the replacement of all keys of a role, for example after a compromise.

    Args:
        layout: the repository's paths.
        role: name of the role.
        keys: the role's new public keys.
        threshold: the role's new threshold; None for the smallest that the rules allow.

    Raises:
        StagingInvalid: there is no such role.
        ThresholdInvalid: keys and threshold would break a rule of keys.roles.
    """
    return _stage_change(layout, role, lambda _current: list(keys), threshold)


def set_threshold(layout: RepositoryLayout, role: str, threshold: int) -> RoleChange:
    """Stage another threshold of a role.

    Args:
        layout: the repository's paths.
        role: name of the role.
        threshold: number of signatures that the role is to need.

    Raises:
        StagingInvalid: there is no such role.
        ThresholdInvalid: keys and threshold would break a rule of keys.roles.
    """
    return _stage_change(layout, role, list, threshold)


def advance_counter_epoch(layout: RepositoryLayout, family: str) -> int:
    """Stage the next counter epoch of a family, and return its number.

    The rollback floor compares counter epochs before counters. So a new epoch allows small counters again after a
    stolen key signed a huge one.

    Args:
        layout: the repository's paths.
        family: a delegated family.

    Raises:
        StagingInvalid: the family is not delegated.
    """
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
    """Stage the end of a classical repository's exemption from the hybrid rule.

    Every role must have ML-DSA keys already; the thresholds are set to the smallest that the rules allow.

    Args:
        layout: the repository's paths.

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
    """Stage documents with the same content and new expiries.

    Args:
        layout: the repository's paths.
        roles: names of the roles; not snapshot and timestamp, which `Repository.refresh` renews.

    Raises:
        StagingInvalid: there is no such role, or it is snapshot or timestamp.
    """
    with lock_repository(layout):
        published, staging = PublishedDocuments(layout), Staging(layout)
        now_s = int(time.time())
        for role in roles:
            if role == "root":
                staging.put_document("root", Metadata[Root](next_root(published, staging)))
            elif role == "targets":
                staging.put_document("targets", Metadata[Targets](next_targets(published, staging)))
            elif role in tuf_documents.delegated_roles(published.targets) and role in published.documents:
                current = published.role(role)
                renewed = tuf_documents.next_targets(current, role, current.targets, now_s)
                staging.put_document(role, Metadata[Targets](renewed))
            else:
                raise StagingInvalid(
                    f"there is no role {role!r} to renew",
                    hint="take a role from `packager repo status`; renew snapshot and timestamp with"
                    " `packager repo refresh`",
                )


def remove_family(layout: RepositoryLayout, family: str) -> None:
    """Stage the end of a family's delegation.

    Args:
        layout: the repository's paths.
        family: a delegated family.

    Raises:
        StagingInvalid: the family is not delegated.
    """
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
    """Return a copy of the staged root without signatures, or a successor of the published root.

    Args:
        published: the published state, as devices see it now.
        staging: the staged changes.
    """
    staged = staging.documents.get("root")
    if staged is not None and staged.signed.version == published.root_version + 1:
        return Root.from_dict(staged.signed.to_dict())
    return tuf_documents.next_root(published.root, published.repository_id, int(time.time()))


def next_targets(published: PublishedDocuments, staging: Staging) -> Targets:
    """Return a copy of the staged `targets` without signatures, or a successor of the published one.

    Args:
        published: the published state, as devices see it now.
        staging: the staged changes.
    """
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
                raise StagingInvalid(f"there is no role {role!r}", hint="take a role from `packager repo status`")
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
                f"key id {key_id[:20]!r} matches {len(matching)} keys of role {role!r}, expected one",
                hint="take the key id from `packager repo status`",
            )
    return [key for key in keys if not any(key.keyid.startswith(key_id) for key_id in key_ids)]
