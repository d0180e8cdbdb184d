"""What a document of a role may say at all, whoever wrote it: asked by a signer before it looks at what changes.

Rules:
1. A document is of its role's type. Snapshot and timestamp are made where the repository is, and signed nowhere else.
2. `targets` lists no file; it delegates `release-F`, `rollout-F` and `fleet` by name, each terminating and with exactly
   the one path pattern of its kind. Nothing else delegates.
3. A delegated role lists only files of its own pattern, each named by length and SHA-256, and nothing beside them.
4. A key stands under the id that follows from it, and under no second one: who compares ids compares keys.
5. Keys and thresholds keep keys.roles' rules, unless the repository says that it is classical.
"""

import hashlib
from collections.abc import Iterable, Mapping
from typing import Final

from securesystemslib.formats import encode_canonical
from securesystemslib.signer import Key
from tuf.api.metadata import DelegatedRole, Root, Signed, Targets

from bundle.errors import Malformed
from bundle.strict_json import NAME_PATTERN, VERSION_PATTERN
from bundle.trust.public_keys import key_digest
from keys.errors import ThresholdInvalid
from keys.roles import RoleKeys, collect_role_keys, threshold_problems
from packager.repository import tuf_documents

PATH_PATTERNS: Final = {"release": "bundles/{}/*", "rollout": "rollouts/{}/*", "fleet": "fleet/*"}


def check_document_rules(role: str, signed: Signed, *, classical: bool) -> None:
    """All rules.

    Args:
        role: whose document it is to be.
        signed: the document.
        classical: is the repository one without ML-DSA?

    Raises:
        MalformedRefused: rules 1 to 4. ThresholdInvalid: rule 5.
    """
    if role == "root":
        if not isinstance(signed, Root):
            raise Malformed(f"{role}: found a document of type {signed.type!r}, expected 'root'")
        _check_keys(role, signed.keys)
        _check_thresholds(signed, tuf_documents.TOP_LEVEL, classical=classical)
        return
    if role in tuf_documents.TOP_LEVEL[2:]:
        raise Malformed(f"{role} is made and signed where the repository is, never by request")
    if not isinstance(signed, Targets):
        raise Malformed(f"{role}: found a document of type {signed.type!r}, expected 'targets'")
    if role == "targets":
        _check_delegations(signed)
        _check_thresholds(signed, tuf_documents.delegated_roles(signed), classical=classical)
        return
    if signed.delegations is not None:
        raise Malformed(f"{role} delegates, which only targets may")
    _check_files(role, signed)


def keys_of(delegator: Root | Targets, role: str) -> RoleKeys:
    """A role's keys and threshold as its delegator lists them."""
    listed = delegator.get_delegated_role(role)
    return collect_role_keys(role, [delegator.get_key(keyid) for keyid in listed.keyids], listed.threshold)


def pattern_of(role: str) -> str | None:
    """The path pattern of a delegated role, or None for a name that is none of ours."""
    kind, _, family = role.partition("-")
    if kind not in PATH_PATTERNS or (role != "fleet" if kind == "fleet" else not NAME_PATTERN.fullmatch(family)):
        return None
    return PATH_PATTERNS[kind].format(family)


def _check_delegations(targets: Targets) -> None:
    if targets.targets:
        raise Malformed("targets lists files itself, expected delegations only")
    delegations = targets.delegations
    if delegations is None:
        return
    if delegations.roles is None:
        raise Malformed("targets delegates to hash bins, expected roles by name")
    if delegations.unrecognized_fields:
        raise Malformed(f"targets.delegations: unknown fields {sorted(delegations.unrecognized_fields)!r}")
    for name, role in delegations.roles.items():
        _check_delegation(name, role)
    _check_keys("targets", delegations.keys)


def _check_delegation(name: str, role: DelegatedRole) -> None:
    pattern = pattern_of(name)
    if pattern is None:
        raise Malformed(f"targets delegates to {name!r}, expected release-FAMILY, rollout-FAMILY or fleet")
    if role.paths != [pattern] or role.path_hash_prefixes is not None:
        found = role.paths if role.paths is not None else "hash prefixes"
        raise Malformed(f"targets delegates {found!r} to {name}, expected {[pattern]!r}")
    if not role.terminating:
        raise Malformed(f"targets delegates to {name} without an end, expected a terminating delegation")


def _check_files(role: str, signed: Targets) -> None:
    pattern = pattern_of(role)
    if pattern is None:
        raise Malformed(f"{role!r} is no role of a repository, expected release-FAMILY, rollout-FAMILY or fleet")
    folder = pattern.removesuffix("*")
    for name, target in signed.targets.items():
        stem = name.removeprefix(folder).removesuffix(".json")
        is_named = bool((VERSION_PATTERN if role.startswith("release-") else NAME_PATTERN).fullmatch(stem))
        if not is_named or name != f"{folder}{stem}.json":
            raise Malformed(f"{role} lists {name!r}, which is none of {pattern}")
        if set(target.hashes) != {"sha256"} or target.unrecognized_fields:
            raise Malformed(f"{role} lists {name} otherwise than by length and SHA-256 alone")


def _check_keys(where: str, keys: Mapping[str, Key]) -> None:
    known: dict[str, str] = {}
    for keyid, key in keys.items():
        if keyid != _key_id(key):
            raise Malformed(f"{where}: key {keyid[:20]!r} has the id of another key, its own is {_key_id(key)}")
        twin = known.setdefault(key_digest(key), keyid)
        if twin != keyid:
            raise Malformed(f"{where}: keys {twin[:20]} and {keyid[:20]} are the same public key")


def _key_id(key: Key) -> str:
    # as securesystemslib makes it; python-tuf takes any
    text = encode_canonical({"keytype": key.keytype, "scheme": key.scheme, "keyval": key.keyval})
    return hashlib.sha256(str(text).encode()).hexdigest()


def _check_thresholds(delegator: Root | Targets, roles: Iterable[str], *, classical: bool) -> None:
    for role in roles:
        wrong = threshold_problems(keys_of(delegator, role), is_classical_only=classical)
        if wrong:
            raise ThresholdInvalid(
                f"role {role!r}: {wrong[0]}",
                hint="`packager keys role` stages only what is sound: who made this?",
            )
