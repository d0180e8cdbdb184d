"""Create a repository: its first documents, and optionally the key files of all roles.

- Names and thresholds are checked before anything is written. If the creation fails, its new key files are deleted.
- The first publication lists no targets, but signs every role, so that each later publication is an ordinary one.
- The first fleet document lists one cohort; its private key is stored encrypted beside the other keys.
- A role's keys on other machines are given as public keys. Then the first publication waits for their signatures
  (packager.repository.detached_signing), and nothing is published until they are added.
"""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Final

from securesystemslib.signer import Key, Signer
from tuf.api.metadata import Metadata, Root, Targets

from bundle.fleet import Fleet
from bundle.frames import Secret
from bundle.private_folder import check_private_folder
from bundle.trust.role_names import FLEET_ROLE
from keys.cohorts import create_next_epoch, key_path
from keys.errors import KeyExists
from keys.registry import Registry
from keys.roles import default_threshold
from packager.errors import FamilyUnknown, RepositoryExists
from packager.repository import tuf_documents
from packager.repository.layout import check_names
from packager.repository.new_keys import create_role_keys
from packager.repository.repository import Repository
from packager.repository.staging import Staging

FIRST_ROLES: Final = (*tuf_documents.TOP_LEVEL, FLEET_ROLE)


def create_repository(
    root: Path, *, signers: Mapping[str, Sequence[Signer]], families: Sequence[str], classical: bool = False
) -> Repository:
    """Create a repository and publish its first, empty metadata.

    Args:
        root: the repository's folder; it must not contain a repository.
        signers: the signers of each role: root, targets, snapshot, timestamp, fleet, release-FAMILY, rollout-FAMILY.
        families: the families to delegate; may be empty.
        classical: allow roles without ML-DSA keys, for TUF clients that do not know ML-DSA.

    Raises:
        RepositoryExists: the folder contains a repository.
        ThresholdInvalid: a role has too few signers of a kind.
        FamilyUnknown: a family's name is malformed, or a role has no signers.
    """
    repository = Repository(root)
    if repository.layout.metadata.exists():
        raise RepositoryExists(f"{repository.root} contains a repository already", hint="choose another folder")
    check_names(families)
    keys = {role: [signer.public_key for signer in group] for role, group in signers.items()}
    _stage_first_documents(repository, keys, families, classical=classical)
    repository.sign([signer for role in all_roles(families) for signer in signers[role]])
    repository.publish()
    return repository


def create_repository_with_new_keys(
    root: Path,
    key_dir: Path,
    passphrase: Secret | None,
    families: Sequence[str],
    cohort: str = "default",
    *,
    public: Mapping[str, Sequence[Key]] = MappingProxyType({}),
    classical: bool = False,
    insecure_plaintext: bool = False,
) -> Repository:
    """Create the key files of all roles, the repository, and the first fleet document with one cohort.

    Args:
        root: the repository's folder; it must not contain a repository.
        key_dir: folder for the new key files.
        passphrase: encrypts the key files; None only with `insecure_plaintext`.
        families: the families to delegate; may be empty.
        cohort: name of the first cohort.
        public: role → public keys that are kept on other machines. No key file is created for that role, and the first
            publication stays staged until their signatures are added.
        classical: allow roles without ML-DSA keys, for TUF clients that do not know ML-DSA.
        insecure_plaintext: write the key files without encryption.

    Raises:
        RepositoryExists: the folder contains a repository.
        ThresholdInvalid: a role of `public` has too few keys of a kind.
        FamilyUnknown: a family's or the cohort's name is malformed, or `public` names an unknown role.
        KeyExists: a key file exists.
        FolderUnsafe: other users could replace the keys or the repository.
        PlaintextKey: there is no passphrase, and `insecure_plaintext` is not set.
    """
    check_names([*families, cohort])
    repository = Repository(root)
    if repository.layout.metadata.exists():
        raise RepositoryExists(f"{repository.root} contains a repository already", hint="choose another folder")
    for folder in (root, key_dir):
        check_private_folder(folder)
    first_key = key_path(key_dir, cohort, 1)
    if first_key.exists():
        raise KeyExists(f"{first_key} exists already", hint="choose another folder; keys are never overwritten")
    roles = all_roles(families)
    for role in public:
        if role not in roles:
            raise FamilyUnknown(f"there is no role {role!r}, expected one of {', '.join(roles)}")
    for role, role_keys in public.items():
        default_threshold(role, role_keys, is_classical_only=classical)  # raises before any key file is created
    new_signers = create_role_keys(
        key_dir,
        [role for role in roles if role not in public],
        passphrase,
        classical=classical,
        insecure_plaintext=insecure_plaintext,
    )
    signers = [signer for group in new_signers.values() for signer in group]
    keys = {role: [signer.public_key for signer in group] for role, group in new_signers.items()}
    _stage_first_documents(repository, {**keys, **public}, families, classical=classical)
    if not public:
        repository.sign(signers)
        repository.publish()
    first = create_next_epoch(key_dir, cohort, None, passphrase, insecure_plaintext=insecure_plaintext)
    repository.stage_fleet(Fleet(Registry(repository.registry_path).digest(), 0, (first,)))
    if repository.sign(signers).is_complete:
        repository.publish()
    return repository


def _stage_first_documents(
    repository: Repository, keys: Mapping[str, Sequence[Key]], families: Sequence[str], *, classical: bool
) -> None:
    roles = all_roles(families)
    for role in roles:
        if not keys.get(role):
            raise FamilyUnknown(f"role {role!r} has no signers")
    now_s = int(time.time())
    first_root = tuf_documents.new_root(keys, now_s, classical=classical)
    targets = tuf_documents.new_targets(now_s)
    for role in roles[len(tuf_documents.TOP_LEVEL) :]:
        tuf_documents.delegate(targets, role, keys[role], classical=classical)
    repository.layout.create()
    staging = Staging(repository.layout)
    staging.put_document("root", Metadata[Root](first_root))
    staging.put_document("targets", Metadata[Targets](targets))


def all_roles(families: Sequence[str]) -> list[str]:
    """List every role of a repository with these families, top-level roles first."""
    return [*FIRST_ROLES, *(role for family in families for role in tuf_documents.family_roles(family))]
