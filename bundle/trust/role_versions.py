"""Versions of verified roles, and the rule that none is replaced by an older one.

This is step 4 of the theory of operation in bundle.trust.check.
"""

import hashlib
from typing import Final

from tuf.api.metadata import DelegatedRole, Root, Targets
from tuf.api.serialization.json import CanonicalJSONSerializer

from bundle.errors import NoRollout, RollbackRefused
from bundle.suggestion import suggest
from bundle.trust.public_keys import key_digest
from bundle.trust.role_names import rollout_role
from bundle.trust.trust_state import RoleVersion
from bundle.trust.updater import TrustedUpdater

MAX_SHOWN_CHARACTERS: Final = 200


def find_delegation(updater: TrustedUpdater, role: str) -> DelegatedRole | None:
    """Return the delegation of a role in the verified targets, or None if targets does not delegate to it.

    Args:
        updater: the client of the check, after its refresh.
        role: name of the role.
    """
    delegations = updater.targets.delegations
    return None if delegations is None or delegations.roles is None else delegations.roles.get(role)


def family_unknown(updater: TrustedUpdater, role: str, family: str) -> NoRollout:
    """Return the error of a role without a delegation; it names the families of the repository.

    Args:
        updater: the client of the check, after its refresh.
        role: name of the role.
        family: the family that the device follows.
    """
    delegations = updater.targets.delegations
    roles = sorted(delegations.roles or {}) if delegations is not None else []
    prefix = rollout_role("")
    families = [name.removeprefix(prefix) for name in roles if name.startswith(prefix)]
    known = ", ".join(families)[:MAX_SHOWN_CHARACTERS] or "none"
    return NoRollout(
        f"this repository has no role {role!r}; its families: {known}",
        hint=f"check `family`: found {family!r}{suggest(family, families)}",
    )


def channel_unknown(updater: TrustedUpdater, role: str, family: str, channel: str) -> NoRollout:
    """Return the error of a channel without a rollout; it names the channels of the family.

    Args:
        updater: the client of the check, which has loaded the role.
        role: name of the family's rollout role.
        family: the family that the device follows.
        channel: the channel that the device follows.
    """
    listed = updater.verified_document(role)
    names = sorted(listed.targets) if isinstance(listed, Targets) else []
    channels = [name.rpartition("/")[2].removesuffix(".json") for name in names]
    known = ", ".join(channels)[:MAX_SHOWN_CHARACTERS] or "none"
    return NoRollout(
        f"the repository has no rollout for channel {channel!r} of {family!r}; its channels: {known}",
        hint=f"check `channel`: found {channel!r}{suggest(channel, channels)}",
    )


def role_version(updater: TrustedUpdater, role: str) -> RoleVersion:
    """Return version, digest and signers of a role's verified document.

    Args:
        updater: the client of the check, which has loaded the role.
        role: name of the role.
    """
    document = updater.verified_document(role)
    signers = sorted(key_digest(key) for key in updater.signing_keys(role).values())
    digest = hashlib.sha256(CanonicalJSONSerializer().serialize(document)).hexdigest()
    return RoleVersion(document.version, digest, tuple(dict.fromkeys(signers)))


def is_still_signed(updater: TrustedUpdater, role: str, stored: RoleVersion | None, root: Root) -> bool:
    """Return whether enough of the role's current keys signed its stored document.

    Args:
        updater: the client of the check; for a delegated role after its refresh.
        role: name of the role.
        stored: the stored version of the role, or None if none is stored.
        root: the verified root, which lists the keys of the top-level roles.
    """
    keys, threshold = _current_keys(updater, role, root)
    return stored is not None and len(keys & set(stored.signers)) >= threshold


def check_not_older(role: str, found: RoleVersion, stored: RoleVersion) -> None:
    """Check a verified version of a role against the stored one.

    Args:
        role: name of the role, for the error.
        found: the verified version.
        stored: the stored version.

    Raises:
        RollbackRefused: the version is older than the stored one, or is the same with other content.
    """
    if found.version < stored.version:
        raise RollbackRefused(
            f"{role}: found version {found.version}, expected at least {stored.version}, the last accepted one"
        )
    if found.version == stored.version and found.digest != stored.digest:
        raise RollbackRefused(f"{role}: version {found.version} has other content than the one that was accepted")


def _current_keys(updater: TrustedUpdater, role: str, root: Root) -> tuple[set[str], int]:
    """Return the digests of the role's keys, and its threshold."""
    if role in root.roles:
        return {key_digest(root.keys[keyid]) for keyid in root.roles[role].keyids}, root.roles[role].threshold
    delegation, delegations = find_delegation(updater, role), updater.targets.delegations
    if delegation is None or delegations is None:
        return set(), 1
    return {key_digest(delegations.keys[keyid]) for keyid in delegation.keyids}, delegation.threshold
