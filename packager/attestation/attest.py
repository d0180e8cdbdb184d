"""Write the attestations of a release that a repository lists, from its manifest and its build record.

The given keys that belong to the family's release role sign, so that the same people answer for the release and its
attestations. If none of them does, all given keys sign, and the verifier must name them.
"""

from collections.abc import Sequence
from pathlib import Path

from securesystemslib.signer import Key, Signer

from bundle.manifest import Manifest
from bundle.trust.role_names import release_role
from packager.attestation.attestation_files import AttestationReport, write_attestations
from packager.attestation.build_record import BuildRecord
from packager.attestation.provenance import DEFAULT_BUILDER
from packager.repository.document_rules import keys_of
from packager.repository.repository import Repository
from packager.repository.staged_view import StagedView
from packager.repository.workspace import Workspace


def write_release_attestations(
    repository: Repository, manifest: Manifest, signers: Sequence[Signer], folder: Path, builder: str | None = None
) -> AttestationReport:
    """Write and sign the attestations of a listed release.

    Args:
        repository: the repository that lists the release.
        manifest: the release's manifest.
        signers: the given keys; those of the family's release role sign, else all of them.
        folder: folder for the files.
        builder: URI of the build's operator; None for the default.

    Raises:
        ExtraMissing: the extra `provenance` is not installed.
        WorkspaceDamaged: the build record is damaged.
        FamilyUnknown: the family is not delegated.
        TokenUnavailable, WrongPin, KeyServiceUnavailable: a key cannot sign.
    """
    data = Workspace(repository.root).find_build_record(manifest.family, manifest.counter)
    record = BuildRecord() if data is None else BuildRecord.parse(data)
    keys, _ = release_keys(repository, manifest.family)
    ids = {key.keyid for key in keys}
    role_signers = [signer for signer in signers if signer.public_key.keyid in ids]
    return write_attestations(folder, manifest, record, role_signers or signers, builder or DEFAULT_BUILDER)


def release_keys(repository: Repository, family: str) -> tuple[tuple[Key, ...], int]:
    """Return the keys and the threshold of a family's release role.

    Args:
        repository: the repository of the family.
        family: a delegated family.

    Raises:
        FamilyUnknown: the family is not delegated.
    """
    repository.releases(family)  # raises FamilyUnknown
    role = keys_of(StagedView(repository.layout).targets, release_role(family))
    return tuple(role.keys.values()), role.threshold
