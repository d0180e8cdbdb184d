"""How a repository begins.

Rules:
1. Names and thresholds are checked before anything is written; key files of an attempt that fails are taken back.
2. The first publication is empty but whole: every role is signed, so that each later one is an ordinary publication.
3. The first fleet document names one cohort, whose private half lies encrypted with the other keys.
"""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from securesystemslib.signer import Key, Signer
from tuf.api.metadata import Metadata, Root, Targets

from bundle import canonical
from bundle.fleet import Fleet
from bundle.frames import Secret
from bundle.trust.client import FLEET_ROLE
from keys.cohorts import key_path, new_epoch
from keys.errors import KeyExists
from keys.registry import Registry
from packager.errors import FamilyUnknown, RepositoryExists
from packager.repository import documents
from packager.repository.new_keys import make_role_keys
from packager.repository.staging import Staging

if TYPE_CHECKING:
    from packager.repository.repository import Repository

FIRST_ROLES: Final = (*documents.TOP_LEVEL, FLEET_ROLE)


def create(
    repository: "Repository", signers: Mapping[str, Sequence[Signer]], families: Sequence[str], *, classical: bool
) -> "Repository":
    """See `Repository.create`."""
    layout = repository.layout
    if layout.metadata.exists():
        raise RepositoryExists(f"{repository.root} holds a repository already")
    check_names(families)
    roles = all_roles(families)
    for role in roles:
        if not signers.get(role):
            raise FamilyUnknown(f"no signer is given for role {role!r}")
    now_s = int(time.time())
    keys: dict[str, list[Key]] = {role: [signer.public_key for signer in signers[role]] for role in roles}
    first_root = documents.new_root(keys, now_s, classical=classical)
    targets = documents.new_targets(now_s)
    for role in roles[len(documents.TOP_LEVEL) :]:
        documents.delegate(targets, role, keys[role], classical=classical)
    layout.metadata.mkdir(parents=True)
    staging = Staging(layout)
    staging.put_document("root", Metadata[Root](first_root))
    staging.put_document("targets", Metadata[Targets](targets))
    repository.sign([signer for role in roles for signer in signers[role]])
    repository.publish()
    return repository


def create_with_new_keys(
    repository: "Repository",
    key_dir: Path,
    passphrase: Secret | None,
    families: Sequence[str],
    cohort: str,
    *,
    classical: bool,
    insecure_plaintext: bool,
) -> "Repository":
    """See `Repository.create_with_new_keys`."""
    check_names([*families, cohort])
    if repository.layout.metadata.exists():
        raise RepositoryExists(f"{repository.root} holds a repository already")
    first_key = key_path(key_dir, cohort, 1)
    if first_key.exists():
        raise KeyExists(f"{first_key} is there already", remedy="keys are never written over; choose another folder")
    roles = all_roles(families)
    signers = make_role_keys(key_dir, roles, passphrase, classical=classical, insecure_plaintext=insecure_plaintext)
    create(repository, signers, families, classical=classical)
    first = new_epoch(key_dir, cohort, None, passphrase, insecure_plaintext=insecure_plaintext)
    repository.stage_fleet(Fleet(Registry(repository.registry_path).digest(), 0, (first,)))
    repository.sign([signer for group in signers.values() for signer in group])
    repository.publish()
    return repository


def all_roles(families: Sequence[str]) -> list[str]:
    """Every role of a repository with these families, top-level ones first."""
    return [*FIRST_ROLES, *(role for family in families for role in documents.family_roles(family))]


def check_names(names: Sequence[str]) -> None:
    """Raises FamilyUnknown for what is no name."""
    for name in names:
        if not canonical.NAME.fullmatch(name):
            raise FamilyUnknown(f"name {name!r}: expected lower-case letters, digits, '.', '_' and '-', at most 64")
