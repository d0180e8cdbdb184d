"""The attestations of a release that a repository lists: from its manifest and the record that was kept of its build.

Rules:
1. Of the keys at hand, those of the family's release role sign: the same people answer for the release and for what is
   said of it. Where none of them is at hand, all others do, and whoever verifies names them.
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
    """Write and sign. Raises ExtraMissing, WorkspaceRefused, and errors of signers."""
    data = Workspace(repository.root).find_build_record(manifest.family, manifest.counter)
    record = BuildRecord() if data is None else BuildRecord.parse(data)
    keys, _ = release_keys(repository, manifest.family)
    ids = {key.keyid for key in keys}
    of_the_role = [signer for signer in signers if signer.public_key.keyid in ids]
    return write_attestations(folder, manifest, record, of_the_role or signers, builder or DEFAULT_BUILDER)


def release_keys(repository: Repository, family: str) -> tuple[tuple[Key, ...], int]:
    """Keys and threshold of a family's release role. Raises FamilyUnknown."""
    repository.releases(family)  # says so where the family is unknown
    role = keys_of(StagedView(repository.layout).targets, release_role(family))
    return tuple(role.keys.values()), role.threshold
