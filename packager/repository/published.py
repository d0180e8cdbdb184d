"""Read and verify the published documents, and count the signatures of staged ones.

Theory of operation. A new publication must build on exactly what devices see, so `PublishedDocuments` reads it as a
device does: `timestamp.json` names the snapshot's version and digest, the snapshot names those of every other document,
and a document names its targets by digest. A file that is missing or does not match is RepositoryDamaged; nothing is
built on it.

A staged document's version is one above the published one. Its signatures are counted with the keys of its delegator:
root for the top-level roles, targets for all others; the staged delegator if there is one, else the published one. So a
key that the same publication adds can sign already, and a removed one no longer counts. A new root needs two
thresholds: its own, and that of the root before it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from securesystemslib.signer import Key, Signer
from tuf.api.exceptions import LengthOrHashMismatchError, RepositoryError
from tuf.api.metadata import Metadata, Root, Snapshot, TargetFile, Targets, Timestamp, VerificationResult

from bundle.trust.repository_id import repository_id_of
from packager.errors import RepositoryDamaged, RepositoryMissing
from packager.repository.layout import RepositoryLayout
from packager.repository.tuf_documents import TOP_LEVEL, delegated_roles, target_path

Document = Metadata[Any]
TIMESTAMP_FILE: Final = "timestamp.json"


@dataclass(frozen=True, slots=True)
class RoleSignatures:
    """The valid and the missing signatures of a document.

    Attributes:
        role: name of the role.
        version: version of the document.
        signed_key_ids: ids of the keys with a valid signature, sorted.
        missing_signatures: number of signatures that the threshold still needs.
        unsigned_keys: key id → public key, for each key that may still sign.
    """

    role: str
    version: int
    signed_key_ids: tuple[str, ...]
    missing_signatures: int
    unsigned_keys: Mapping[str, Key]


class PublishedDocuments:
    """The documents that devices see now, read at construction; empty before the first publication.

    Attributes:
        root_version: the newest root's version; 0 if there is none.
        timestamp_version: the timestamp's version; 0 if there is none.
        documents: role → document.
        files: role → (version, bytes of the file).

    Raises:
        RepositoryDamaged: a file is missing, is not TUF metadata, or is not the one that timestamp and snapshot list.
    """

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
        """The repository id (`bundle.trust.repository_id`).

        Raises:
            RepositoryDamaged: `1.root.json` is missing.
        """
        return repository_id_of(self.first_root)

    @property
    def first_root(self) -> bytes:
        """Bytes of `1.root.json`. Raises RepositoryDamaged if it is missing."""
        return read_document_bytes(self._layout.metadata / "1.root.json")

    @property
    def root(self) -> Root:
        """The newest root. Raises RepositoryMissing before the first publication."""
        signed = self._find_document("root").signed
        assert isinstance(signed, Root)
        return signed

    @property
    def targets(self) -> Targets:
        """The top-level targets document. Raises RepositoryMissing before the first publication."""
        return self.role("targets")

    def role(self, name: str) -> Targets:
        """Return a document of type targets: `targets` or a delegated role.

        Raises:
            RepositoryMissing: nothing is published yet.
            KeyError: the role was never signed.
        """
        signed = self._find_document(name).signed
        assert isinstance(signed, Targets)
        return signed

    def target(self, target: TargetFile) -> bytes:
        """Read a published target.

        Raises:
            RepositoryDamaged: its file is missing, or not of the listed length and digest.
        """
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
                hint="see which signatures the first publication still needs: `packager repo status`",
            )
        return self.documents[role]

    def _load(self, role: str, version: int, path: Path) -> object:
        data = read_document_bytes(path)
        document = parse_document(data, str(path))
        if version and document.signed.version != version:
            raise RepositoryDamaged(f"{path} has version {document.signed.version}, expected {version}")
        self.documents[role] = document
        self.files[role] = (document.signed.version, data)
        return document.signed

    def _verify(self, role: str, meta: Any) -> None:
        try:
            meta.verify_length_and_hashes(self.files[role][1])
        except LengthOrHashMismatchError as error:
            raise RepositoryDamaged(f"published {role}: {error}") from error


def effective_document(published: PublishedDocuments, staged: Mapping[str, Document], role: str) -> Document | None:
    """Return the staged document of a role, else the published one, else None.

    Args:
        published: the published state, as devices see it now.
        staged: role → staged document.
        role: name of the role.
    """
    return staged.get(role) or published.documents.get(role)


def delegator_of(published: PublishedDocuments, staged: Mapping[str, Document], role: str) -> Root | Targets:
    """Return the document whose keys count for a role: root or targets, staged if there is a staged one.

    Args:
        published: the published state, as devices see it now.
        staged: role → staged document.
        role: name of the role.

    Raises:
        RepositoryDamaged: there is no such document.
    """
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
    """Count the valid and the missing signatures of a document.

    A new root also needs the threshold of the published root.

    Args:
        published: the published state, as devices see it now.
        staged: role → staged document, whose keys take precedence.
        role: name of the role.
        document: the document to count.
    """
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
    """Sign a staged document with those signers that may still sign it.

    Args:
        published: the published state, as devices see it now.
        staged: role → staged document; the document of `role` gets the signatures.
        role: name of the role.
        signers: any signers; those that the role does not list are skipped.

    Returns:
        The ids of the keys that signed.
    """
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
    """Read a metadata file.

    Raises:
        RepositoryDamaged: it cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise RepositoryDamaged(f"cannot read metadata file {path}: {error.strerror}") from error


def parse_document(data: bytes, where: str) -> Document:
    """Parse a metadata file.

    Args:
        data: the file's bytes.
        where: the file's name, for the error message.

    Raises:
        RepositoryDamaged: the data is not TUF metadata.
    """
    try:
        return Metadata.from_bytes(data)
    except RepositoryError as error:
        raise RepositoryDamaged(f"{where} is not TUF metadata") from error


def roles_below(targets: Targets) -> tuple[str, ...]:
    """List the delegated roles, sorted by name."""
    return tuple(sorted(delegated_roles(targets)))


def _verification_result(delegator: Any, role: str, payload: bytes, document: Document) -> VerificationResult:
    result: VerificationResult = delegator.get_verification_result(role, payload, document.signatures)
    return result
