"""The published documents, and what is staged on top of them.

Rules:
1. What is published is read by way of the timestamp and the snapshot, as a device reads it; a file that is not what
   they name is an error, not something to build on.
2. A staged document is the successor of the published one: its version is one higher.
3. Which keys count for a role is what the effective delegator says: the staged one where there is one.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from securesystemslib.signer import Key, Signer
from tuf.api.exceptions import LengthOrHashMismatchError, RepositoryError
from tuf.api.metadata import Metadata, Root, Snapshot, TargetFile, Targets, Timestamp, VerificationResult

from packager.errors import RepositoryDamaged, RepositoryMissing
from packager.repository.layout import RepositoryLayout
from packager.repository.tuf_documents import TOP_LEVEL, delegated_roles, target_path

Document = Metadata[Any]
TIMESTAMP_FILE: Final = "timestamp.json"


@dataclass(frozen=True, slots=True)
class RoleSignatures:
    """How far a role's staged document is signed.

    Attributes:
        role: name.
        version: of the document.
        signed: key ids that validly signed.
        missing: how many more are needed.
        unsigned: keys that may still sign, by id.
    """

    role: str
    version: int
    signed_key_ids: tuple[str, ...]
    missing_signatures: int
    unsigned_keys: Mapping[str, Key]


class PublishedDocuments:
    """The documents that devices see now. Raises RepositoryDamaged (rule 1)."""

    def __init__(self, layout: RepositoryLayout) -> None:
        self._layout = layout
        versions = [int(path.name.split(".")[0]) for path in layout.metadata.glob("*.root.json")]
        self.root_version = max(versions, default=0)
        self.documents: dict[str, Document] = {}
        self.files: dict[str, tuple[int, bytes]] = {}
        if not self.root_version or not (layout.metadata / TIMESTAMP_FILE).exists():
            self.timestamp_version = 0
            return
        self._load("root", self.root_version, layout.metadata / f"{self.root_version}.root.json")
        timestamp = self._load("timestamp", 0, layout.metadata / TIMESTAMP_FILE)
        assert isinstance(timestamp, Timestamp)
        self.timestamp_version = timestamp.version
        number = timestamp.snapshot_meta.version
        snapshot = self._load("snapshot", number, layout.metadata / f"{number}.snapshot.json")
        assert isinstance(snapshot, Snapshot)
        self._verify("snapshot", timestamp.snapshot_meta)
        for name, meta in sorted(snapshot.meta.items()):
            role = name.removesuffix(".json")
            self._load(role, meta.version, layout.metadata / f"{meta.version}.{name}")
            self._verify(role, meta)

    @property
    def repository_id(self) -> str:
        """SHA-256 of the first root's bytes, hexadecimal. Raises RepositoryDamaged."""
        return hashlib.sha256(self.first_root).hexdigest()

    @property
    def first_root(self) -> bytes:
        """The file of root 1. Raises RepositoryDamaged."""
        return read_document_bytes(self._layout.metadata / "1.root.json")

    @property
    def root(self) -> Root:
        """The newest root. Raises RepositoryMissing before the first publication."""
        signed = self._find_document("root").signed
        assert isinstance(signed, Root)
        return signed

    @property
    def targets(self) -> Targets:
        """The top-level targets."""
        return self.role("targets")

    def role(self, name: str) -> Targets:
        """A targets-type document. Raises RepositoryMissing before the first publication."""
        signed = self._find_document(name).signed
        assert isinstance(signed, Targets)
        return signed

    def target(self, target: TargetFile) -> bytes:
        """The content of a published target. Raises RepositoryDamaged."""
        path = self._layout.targets / target_path(target)
        try:
            data = path.read_bytes()
            target.verify_length_and_hashes(data)
        except (OSError, LengthOrHashMismatchError) as error:
            raise RepositoryDamaged(f"published target {path}: {error}") from error
        return data

    def _find_document(self, role: str) -> Document:
        if not self.documents:
            raise RepositoryMissing(
                "nothing is published yet",
                hint="`packager repo status` shows whose signatures the first publication waits for",
            )
        return self.documents[role]

    def _load(self, role: str, version: int, path: Path) -> object:
        data = read_document_bytes(path)
        document = parse_document(data, str(path))
        if version and document.signed.version != version:
            raise RepositoryDamaged(f"{path} is version {document.signed.version}")
        self.documents[role] = document
        self.files[role] = (document.signed.version, data)
        return document.signed

    def _verify(self, role: str, meta: Any) -> None:
        try:
            meta.verify_length_and_hashes(self.files[role][1])
        except LengthOrHashMismatchError as error:
            raise RepositoryDamaged(f"published {role}: {error}") from error


def effective_document(published: PublishedDocuments, staged: Mapping[str, Document], role: str) -> Document | None:
    """The staged document of a role, else the published one, else None."""
    return staged.get(role) or published.documents.get(role)


def delegator_of(published: PublishedDocuments, staged: Mapping[str, Document], role: str) -> Root | Targets:
    """Rule 3."""
    name = "root" if role in TOP_LEVEL else "targets"
    document = effective_document(published, staged, name)
    if document is None:
        raise RepositoryDamaged(f"there is no {name} document")
    signed = document.signed
    assert isinstance(signed, Root | Targets)
    return signed


def check_signatures(
    published: PublishedDocuments, staged: Mapping[str, Document], role: str, document: Document
) -> RoleSignatures:
    """How far a document is signed; a root must be signed by the root before it too."""
    payload = document.signed_bytes
    results = [_verification_result(delegator_of(published, staged, role), role, payload, document)]
    if role == "root":
        results = [_verification_result(document.signed, role, payload, document)]
        if "root" in published.documents and document.signed.version > published.root.version:
            results.append(_verification_result(published.root, role, payload, document))
    signed = {keyid for result in results for keyid in result.signed}
    unsigned = {keyid: key for result in results for keyid, key in result.unsigned.items() if keyid not in signed}
    missing = max(result.missing for result in results)
    return RoleSignatures(role, document.signed.version, tuple(sorted(signed)), missing, unsigned)


def sign_document(
    published: PublishedDocuments, staged: Mapping[str, Document], role: str, signers: Sequence[Signer]
) -> set[str]:
    """Sign a staged document with those signers that its role lists. Returns the key ids that were used."""
    document = staged[role]
    wanted = check_signatures(published, staged, role, document).unsigned_keys
    used = set()
    for signer in signers:
        keyid = signer.public_key.keyid
        if keyid in wanted:
            signature = signer.sign(document.signed_bytes)
            document.signatures[keyid] = signature
            used.add(keyid)
    return used


def read_document_bytes(path: Path) -> bytes:
    """A metadata file. Raises RepositoryDamaged."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise RepositoryDamaged(f"metadata file {path} cannot be read: {error.strerror}") from error


def parse_document(data: bytes, where: str) -> Document:
    """A metadata file's document. Raises RepositoryDamaged."""
    try:
        return Metadata.from_bytes(data)
    except RepositoryError as error:
        raise RepositoryDamaged(f"{where} is not TUF metadata") from error


def roles_below(targets: Targets) -> tuple[str, ...]:
    """Delegated roles, sorted."""
    return tuple(sorted(delegated_roles(targets)))


def _verification_result(delegator: Any, role: str, payload: bytes, document: Document) -> VerificationResult:
    result: VerificationResult = delegator.get_verification_result(role, payload, document.signatures)
    return result
