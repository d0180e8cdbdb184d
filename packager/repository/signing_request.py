"""The signing request, which goes to the signers, and the signature file, which comes back.

- A request is not trusted. It contains the documents to be signed, the published ones, and the targets that both name
  by digest; the signer recomputes from them what changes (packager.repository.detached_signing).
- A repository's identity is the SHA-256 of the signed part of its first root. It is the same before and after root is
  signed, so that the first ceremony and all later requests have the same identity.
- Both files are parsed strictly, and each document must have a canonical form, so that the signed bytes are those that
  the summary shows.
"""

import base64
import binascii
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from securesystemslib.exceptions import FormatError
from securesystemslib.signer import Signature
from tuf.api.metadata import Metadata, Root, Targets
from tuf.api.serialization import SerializationError

from bundle import strict_json
from bundle.errors import Malformed
from bundle.strict_json import JSON, SHA256_HEX_PATTERN, StrictObject
from bundle.trust.trust_state import ROLE_NAME_PATTERN
from packager.errors import RepositoryDamaged
from packager.repository import tuf_documents
from packager.repository.published import Document, PublishedDocuments, parse_document
from packager.repository.staging import LAST_ROLES, Staging

REQUEST_FORMAT: Final = "airweights.signing-request/1"
SIGNATURES_FORMAT: Final = "airweights.signatures/1"
MAX_REQUEST_BYTES: Final = 64 * 1024 * 1024
MAX_BLOCK_CHARACTERS: Final = 8 * 1024 * 1024
MAX_ROLES: Final = 4096
MAX_TARGETS: Final = 16384
MAX_SIGNATURE_CHARACTERS: Final = 16384


@dataclass(frozen=True, slots=True)
class SigningRequest:
    """The content of a signing request, unverified.

    Attributes:
        first_root: bytes of root 1's file; before the first publication, without signatures.
        new_documents: role → document to be signed.
        published_documents: role → document that devices see now, as the request claims.
        new_contents: target name → bytes, for each target that the new documents list.
        earlier_contents: target name → published bytes, for each target that changes.
    """

    first_root: bytes
    new_documents: Mapping[str, Document]
    published_documents: Mapping[str, Document]
    new_contents: Mapping[str, bytes]
    earlier_contents: Mapping[str, bytes]

    @property
    def repository_identity(self) -> str:
        """SHA-256 of the signed part of the first root, hexadecimal."""
        return repository_identity_of(self.first_root)

    @property
    def digest(self) -> str:
        """SHA-256 over the identity and all documents to be signed, hexadecimal; equal on every machine."""
        lines = [
            self.repository_identity,
            *(f"{role} {content_digest(self.new_documents[role])}" for role in sorted(self.new_documents)),
        ]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    def as_bytes(self) -> bytes:
        """Return the content of the request file."""
        return strict_json.encode(
            {
                "schema": REQUEST_FORMAT,
                "first_root": _pack_block(self.first_root),
                "new": {
                    role: _pack_block(tuf_documents.serialize(document))
                    for role, document in self.new_documents.items()
                },
                "published": {
                    role: _pack_block(tuf_documents.serialize(document))
                    for role, document in self.published_documents.items()
                },
                "contents": {name: _pack_block(data) for name, data in self.new_contents.items()},
                "earlier": {name: _pack_block(data) for name, data in self.earlier_contents.items()},
            }
        )


@dataclass(frozen=True, slots=True)
class RoleSignature:
    """One signature of a signature file, and the role whose document it signs."""

    role: str
    signature: Signature


def create_request(published: PublishedDocuments, staging: Staging) -> SigningRequest:
    """Create the request for the staged documents.

    Args:
        published: the published state, as devices see it now.
        staging: the staged changes, prepared (`Staging.prepare`).

    Raises:
        RepositoryDamaged: a published target is missing or damaged, or there is no root.
    """
    new = {role: Metadata(document.signed) for role, document in staging.documents.items() if role not in LAST_ROLES}
    current = {role: document for role, document in published.documents.items() if role not in LAST_ROLES}
    return SigningRequest(first_root_of(published, staging), new, current, *_collect_contents(published, staging, new))


def first_root_of(published: PublishedDocuments, staging: Staging) -> bytes:
    """Return the bytes of root 1: the published file, or the staged document without signatures.

    Args:
        published: the published state, as devices see it now.
        staging: the staged changes.

    Raises:
        RepositoryDamaged: there is neither.
    """
    if published.root_version:
        return published.first_root
    staged = staging.documents.get("root")
    if staged is None:
        raise RepositoryDamaged(
            "no root is published, and none is staged", hint="create the repository again with `packager repo init`"
        )
    return tuf_documents.serialize(Metadata(staged.signed))


def repository_identity_of(first_root: bytes) -> str:
    """Return a repository's identity: the SHA-256 of its first root's signed part, hexadecimal.

    Raises:
        RepositoryDamaged: the bytes are not TUF metadata.
    """
    return content_digest(parse_document(first_root, "the first root"))


def content_digest(document: Document) -> str:
    """Return the SHA-256 of a document's signed part, hexadecimal."""
    return hashlib.sha256(document.signed_bytes).hexdigest()


def parse_request(data: bytes) -> SigningRequest:
    """Parse a request file.

    Raises:
        Malformed: the data is not a signing request, or a document has no canonical form.
        TooLarge: the data has more than MAX_REQUEST_BYTES.
    """
    fields = StrictObject(
        strict_json.decode(data, what="signing request", max_bytes=MAX_REQUEST_BYTES), "signing request"
    )
    if fields.text("schema") != REQUEST_FORMAT:
        raise Malformed(
            f"signing request.schema: expected {REQUEST_FORMAT!r}",
            hint="give a file that `packager repo prepare` wrote",
        )
    out = SigningRequest(
        _unpack_block(fields, "first_root"),
        {role: _parse_block(block, role) for role, block in _unpack_blocks(fields, "new", MAX_ROLES).items()},
        {role: _parse_block(block, role) for role, block in _unpack_blocks(fields, "published", MAX_ROLES).items()},
        _unpack_blocks(fields, "contents", MAX_TARGETS),
        _unpack_blocks(fields, "earlier", MAX_TARGETS),
    )
    fields.reject_unknown()
    for role in (*out.new_documents, *out.published_documents):
        if not ROLE_NAME_PATTERN.fullmatch(role):
            raise Malformed(f"signing request: malformed role name {role[:80]!r}")
    first = _parse_block(out.first_root, "the first root").signed
    if not isinstance(first, Root) or first.version != 1:
        raise Malformed("signing request.first_root: expected a root document of version 1")
    return out


def create_signature_file(identity: str, signatures: Sequence[RoleSignature]) -> bytes:
    """Return the content of a signature file.

    Args:
        identity: the repository's identity.
        signatures: the signatures with their roles.
    """
    rows: list[JSON] = [
        {"role": row.role, "key_id": row.signature.keyid, "signature": row.signature.signature} for row in signatures
    ]
    return strict_json.encode({"schema": SIGNATURES_FORMAT, "repository": identity, "signatures": rows})


def parse_signatures(data: bytes) -> tuple[str, tuple[RoleSignature, ...]]:
    """Parse a signature file; return the repository's identity and the unverified signatures.

    Raises:
        Malformed: the data is not a signature file.
        TooLarge: the data has more than MAX_REQUEST_BYTES.
    """
    fields = StrictObject(
        strict_json.decode(data, what="signature file", max_bytes=MAX_REQUEST_BYTES), "signature file"
    )
    if fields.text("schema") != SIGNATURES_FORMAT:
        raise Malformed(
            f"signature file.schema: expected {SIGNATURES_FORMAT!r}",
            hint="give a file that `packager repo sign REQUEST -o FILE` wrote",
        )
    repository = fields.text("repository", SHA256_HEX_PATTERN)
    rows = []
    for row in fields.objects("signatures", max_items=MAX_ROLES):
        role, keyid = row.text("role", ROLE_NAME_PATTERN), row.text("key_id", max_length=256)
        rows.append(RoleSignature(role, Signature(keyid, row.text("signature", max_length=MAX_SIGNATURE_CHARACTERS))))
        row.reject_unknown()
    fields.reject_unknown()
    return repository, tuple(rows)


def _collect_contents(
    published: PublishedDocuments, staging: Staging, new: Mapping[str, Document]
) -> tuple[dict[str, bytes], dict[str, bytes]]:
    # include every listed target, not only new ones: a signer may have missed releases that others signed
    contents, earlier = {}, {}
    for role, document in new.items():
        if not isinstance(document.signed, Targets):
            continue
        listed = published.role(role).targets if role in published.documents else {}
        for name, target in document.signed.targets.items():
            contents[name] = staging.targets[name] if name in staging.targets else published.target(target)
            if name in listed and listed[name] != target:
                earlier[name] = published.target(listed[name])
    return contents, earlier


def _parse_block(data: bytes, where: str) -> Document:
    try:
        document = parse_document(data, where)
        document.signed_bytes  # noqa: B018  # raises if there is no canonical form, for example for floats
    except (RepositoryDamaged, SerializationError, FormatError, ValueError, TypeError) as error:
        raise Malformed(f"signing request: {where[:80]} is not TUF metadata") from error
    return document


def _pack_block(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _unpack_block(fields: StrictObject, name: str) -> bytes:
    try:
        return base64.b64decode(fields.text(name, max_length=MAX_BLOCK_CHARACTERS), validate=True)
    except (binascii.Error, ValueError) as error:
        raise Malformed(f"{fields.where}.{name[:80]}: not base64") from error


def _unpack_blocks(fields: StrictObject, name: str, max_items: int) -> dict[str, bytes]:
    rows = fields.object(name)
    names = rows.remaining_names()
    if len(names) > max_items:
        raise Malformed(f"{rows.where}: found {len(names)} entries, at most {max_items} are allowed")
    return {entry: _unpack_block(rows, entry) for entry in names}
