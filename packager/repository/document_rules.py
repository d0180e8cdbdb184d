"""The rules that every document of a role keeps; a signer checks them before it looks at what changes.

- Type: a document is of its role's type. Snapshot and timestamp are signed on the repository's machine, never by a
  request.
- Delegations: `targets` lists no files. It delegates `release-FAMILY`, `rollout-FAMILY` and `fleet` by name; each
  delegation is terminating and has exactly the path pattern of its kind. No other role delegates.
- Files: a delegated role lists only files of its own pattern, each by length and SHA-256 and with no other field.
- Key ids: a key's id is the digest of the key, and no key is listed under two ids, so that comparing ids compares keys.
- Thresholds: keys and thresholds keep the rules of keys.roles, unless the root says that the repository is classical.
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
from bundle.trust.role_names import is_plan_target
from keys.errors import ThresholdInvalid
from keys.roles import RoleKeys, collect_role_keys, threshold_problems
from packager.repository import tuf_documents

PATH_PATTERNS: Final = {"release": "bundles/{}/*", "rollout": "rollouts/{}/*", "fleet": "fleet/*"}


def check_document_rules(role: str, signed: Signed, *, classical: bool) -> None:
    """Check a document against all rules.

    Args:
        role: name of the role that is to sign it.
        signed: the signed part of the document.
        classical: the repository is exempt from the hybrid rule.

    Raises:
        Malformed: type, delegations, files or key ids break a rule.
        ThresholdInvalid: keys or threshold of a role break a rule.
    """
    if role == "root":
        if not isinstance(signed, Root):
            raise Malformed(f"{role}: found a document of type {signed.type!r}, expected 'root'")
        _check_keys(role, signed.keys)
        _check_thresholds(signed, tuf_documents.TOP_LEVEL, classical=classical)
        return
    if role in tuf_documents.TOP_LEVEL[2:]:
        raise Malformed(f"{role} is signed on the repository's machine only, never by request")
    if not isinstance(signed, Targets):
        raise Malformed(f"{role}: found a document of type {signed.type!r}, expected 'targets'")
    if role == "targets":
        _check_delegations(signed)
        _check_thresholds(signed, tuf_documents.delegated_roles(signed), classical=classical)
        return
    if signed.delegations is not None:
        raise Malformed(f"{role} has delegations, expected none: only targets may delegate")
    _check_files(role, signed)


def keys_of(delegator: Root | Targets, role: str) -> RoleKeys:
    """Return a role's distinct keys and its threshold.

    Args:
        delegator: the document that lists the role: root for top-level roles, else targets.
        role: name of the role.
    """
    listed = delegator.get_delegated_role(role)
    return collect_role_keys(role, [delegator.get_key(keyid) for keyid in listed.keyids], listed.threshold)


def pattern_of(role: str) -> str | None:
    """Return the path pattern of a delegated role; None if the name is not of a known kind."""
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
        raise Malformed(f"targets delegates to {name} without `terminating`, expected a terminating delegation")


def _check_files(role: str, signed: Targets) -> None:
    pattern = pattern_of(role)
    if pattern is None:
        raise Malformed(f"unknown role {role!r}, expected release-FAMILY, rollout-FAMILY or fleet")
    folder = pattern.removesuffix("*")
    for name, target in signed.targets.items():
        stem = name.removeprefix(folder).removesuffix(".json")
        is_plan = role.startswith("release-") and is_plan_target(name)
        pattern_of_stem = VERSION_PATTERN if role.startswith("release-") and not is_plan else NAME_PATTERN
        is_named = bool(pattern_of_stem.fullmatch(stem.removesuffix(".plan") if is_plan else stem))
        if not is_named or name != f"{folder}{stem}.json":
            raise Malformed(f"{role} lists {name!r}, expected only files of pattern {pattern}")
        if set(target.hashes) != {"sha256"} or target.unrecognized_fields:
            raise Malformed(f"{role} lists {name} with other fields, expected length and SHA-256 only")


def _check_keys(where: str, keys: Mapping[str, Key]) -> None:
    known: dict[str, str] = {}
    for keyid, key in keys.items():
        if keyid != _key_id(key):
            raise Malformed(f"{where}: key {keyid[:20]!r} has a wrong id, expected {_key_id(key)}")
        twin = known.setdefault(key_digest(key), keyid)
        if twin != keyid:
            raise Malformed(f"{where}: keys {twin[:20]} and {keyid[:20]} are the same public key")


def _key_id(key: Key) -> str:
    # the id that securesystemslib gives the key; python-tuf accepts any id
    text = encode_canonical({"keytype": key.keytype, "scheme": key.scheme, "keyval": key.keyval})
    return hashlib.sha256(str(text).encode()).hexdigest()


def _check_thresholds(delegator: Root | Targets, roles: Iterable[str], *, classical: bool) -> None:
    for role in roles:
        wrong = threshold_problems(keys_of(delegator, role), is_classical_only=classical)
        if wrong:
            raise ThresholdInvalid(
                f"role {role!r}: {wrong[0]}",
                hint="do not sign: `packager keys role` never stages such a change; find out where it comes from",
            )
