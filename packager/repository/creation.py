"""How a repository begins.

Rules:
1. Names and thresholds are checked before anything is written; key files of an attempt that fails are taken back.
2. The first publication is empty but whole: every role is signed, so that each later one is an ordinary publication.
3. The first fleet document names one cohort, whose private half lies encrypted with the other keys.
4. Keys that live elsewhere are named by their public halves. Then the first publication waits for their signatures like
   any other one (packager.repository.detached_signing), and until then nothing is published.
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
from bundle.trust.role_names import FLEET_ROLE
from keys.cohorts import create_next_epoch, key_path
from keys.errors import KeyExists
from keys.registry import Registry
from keys.roles import default_threshold
from packager.errors import FamilyUnknown, RepositoryExists
from packager.repository import tuf_documents
from packager.repository.layout import check_names
from packager.repository.new_keys import make_role_keys
from packager.repository.repository import Repository
from packager.repository.staging import Staging

FIRST_ROLES: Final = (*tuf_documents.TOP_LEVEL, FLEET_ROLE)


def create_repository(
    root: Path, *, signers: Mapping[str, Sequence[Signer]], families: Sequence[str], classical: bool = False
) -> Repository:
    """Create a repository and publish its first, empty metadata.

    Args:
        root: its folder; must not contain a repository.
        signers: of every role: root, targets, snapshot, timestamp, fleet, release-<family>, rollout-<family>.
        families: may be empty.
        classical: leave ML-DSA out, for foreign clients.

    Raises:
        RepositoryExists: the folder contains a repository.
        ThresholdInvalid: a role has too few signers of a kind.
        FamilyUnknown: a family's name is malformed, or a role has no signers.
    """
    repository = Repository(root)
    if repository.layout.metadata.exists():
        raise RepositoryExists(f"{repository.root} holds a repository already")
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
    """Create key files of every role, the repository, and the first fleet document with one cohort.

    Args:
        root: its folder; must not contain a repository.
        key_dir: for the new key files.
        passphrase: encrypts them.
        families: may be empty.
        cohort: name of the first one.
        public: public halves of a role's keys that are kept elsewhere. No key file is made for that role, and the
            first publication is staged and waits for their signatures.
        classical: leave ML-DSA out, for foreign clients.
        insecure_plaintext: write the key files without encryption.

    Raises:
        RepositoryExists, ThresholdInvalid, FamilyUnknown: as `create_repository`.
        KeyExists: the cohort's key file exists.
        PlaintextKey: there is no passphrase, and `insecure_plaintext` is not set.
    """
    check_names([*families, cohort])
    repository = Repository(root)
    if repository.layout.metadata.exists():
        raise RepositoryExists(f"{repository.root} holds a repository already")
    first_key = key_path(key_dir, cohort, 1)
    if first_key.exists():
        raise KeyExists(f"{first_key} is there already", hint="keys are never written over; choose another folder")
    roles = all_roles(families)
    for role in public:
        if role not in roles:
            raise FamilyUnknown(f"there is no role {role!r}, found {', '.join(roles)}")
    for role, given in public.items():
        default_threshold(role, given, is_classical_only=classical)  # rule 1
    made = make_role_keys(
        key_dir,
        [role for role in roles if role not in public],
        passphrase,
        classical=classical,
        insecure_plaintext=insecure_plaintext,
    )
    signers = [signer for group in made.values() for signer in group]
    keys = {role: [signer.public_key for signer in group] for role, group in made.items()}
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
            raise FamilyUnknown(f"no signer is given for role {role!r}")
    now_s = int(time.time())
    first_root = tuf_documents.new_root(keys, now_s, classical=classical)
    targets = tuf_documents.new_targets(now_s)
    for role in roles[len(tuf_documents.TOP_LEVEL) :]:
        tuf_documents.delegate(targets, role, keys[role], classical=classical)
    repository.layout.metadata.mkdir(parents=True)
    staging = Staging(repository.layout)
    staging.put_document("root", Metadata[Root](first_root))
    staging.put_document("targets", Metadata[Targets](targets))


def all_roles(families: Sequence[str]) -> list[str]:
    """Every role of a repository with these families, top-level ones first."""
    return [*FIRST_ROLES, *(role for family in families for role in tuf_documents.family_roles(family))]
