"""Signing away from the build machine: a request goes out, signatures come back.

    prepare (build machine)  →  request file  →  sign (where a key lives)  →  signature file  →  merge  →  publish

Rules:
1. A request carries the documents to be signed, the target files that they name, and what is published now. It is no
   authority: a signer recomputes the summary (packager.repository.summary) from these bytes and compares with its own
   copy of what it signed last, where it has one.
2. A key signs only documents of roles that list it, or are to list it. The first document of a role that is signed in a
   place is compared with what the request says is published, and the summary says so.
3. A document whose version is not above the one that was signed last, for other content, is refused: a replayed or
   forked request. To sign a corrected document of the same version has to be said, and the summary says so too.
4. A signature file holds signatures and nothing to believe: `merge` verifies each against the staged document.
"""

import base64
import binascii
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from securesystemslib.exceptions import UnverifiedSignatureError
from securesystemslib.signer import Key, Signature, Signer
from tuf.api.metadata import Metadata, Root, Targets

from bundle import canonical
from bundle.canonical import JSON, SHA256_HEX, Fields
from bundle.errors import MalformedRefused
from bundle.trust.memory import ROLE
from keys.errors import SignerNotInRole
from packager.errors import NothingStaged, RequestReplayed, SignatureRefused
from packager.repository import documents
from packager.repository.chain import Document, Published, parse_document, verification
from packager.repository.layout import Layout, locked, write_file
from packager.repository.staging import LAST, SignReport, Staging
from packager.repository.summary import digest, summary

REQUEST: Final = "airweights.signing-request/1"
SIGNATURES: Final = "airweights.signatures/1"
MAX_REQUEST_BYTES: Final = 64 * 1024 * 1024
MAX_BLOCK_CHARACTERS: Final = 8 * 1024 * 1024
MAX_ROLES: Final = 4096
MAX_TARGETS: Final = 16384


@dataclass(frozen=True, slots=True)
class Request:
    """What is to be signed.

    Attributes:
        repository_id: whose documents these are.
        new: role → document to be signed.
        published: role → document that devices see now.
        contents: target name → bytes of every target that the new documents list.
    """

    repository_id: str
    new: Mapping[str, Document]
    published: Mapping[str, Document]
    contents: Mapping[str, bytes]

    def as_bytes(self) -> bytes:
        """The request file."""
        return canonical.encode(
            {
                "schema": REQUEST,
                "repository_id": self.repository_id,
                "new": {role: _pack(documents.serialise(document)) for role, document in self.new.items()},
                "published": {role: _pack(documents.serialise(document)) for role, document in self.published.items()},
                "contents": {name: _pack(data) for name, data in self.contents.items()},
            }
        )


@dataclass(frozen=True, slots=True)
class Review:
    """What a signer is about to sign.

    Attributes:
        roles: that this key may sign in the request.
        lines: the summary, recomputed.
        digest: of the lines; the same on every machine that saw the same things.
    """

    roles: tuple[str, ...]
    lines: tuple[str, ...]
    digest: str


def prepare(layout: Layout, now_s: int) -> Request:
    """Make the staged changes into documents and a request for their signatures. Raises NothingStaged."""
    with locked(layout):
        published, staging = Published(layout), Staging(layout)
        if staging.is_empty:
            raise NothingStaged("there is nothing to sign", remedy="stage a release, a rollout or keys first")
        staging.prepare(published, now_s)
        staging.save()
        new = {role: Metadata(document.signed) for role, document in staging.documents.items() if role not in LAST}
        held = {role: document for role, document in published.documents.items() if role not in LAST}
        return Request(published.repository_id, new, held, _contents(published, staging, new))


def parse_request(data: bytes) -> Request:
    """Read a request file. Raises MalformedRefused, TooLargeRefused."""
    fields = Fields(canonical.decode(data, what="signing request", max_bytes=MAX_REQUEST_BYTES), "signing request")
    if fields.text("schema") != REQUEST:
        raise MalformedRefused(f"signing request.schema: expected {REQUEST!r}")
    out = Request(
        fields.text("repository_id", SHA256_HEX),
        {role: parse_document(block, role) for role, block in _blocks(fields, "new", MAX_ROLES).items()},
        {role: parse_document(block, role) for role, block in _blocks(fields, "published", MAX_ROLES).items()},
        _blocks(fields, "contents", MAX_TARGETS),
    )
    fields.end()
    for role in (*out.new, *out.published):
        if not ROLE.fullmatch(role):
            raise MalformedRefused(f"signing request: {role[:80]!r} is no role's name")
    return out


def review(request: Request, keys: Sequence[Key], memory: Path, *, replace: bool = False) -> Review:
    """Recompute what the keys would sign (rules 1 to 3).

    Args:
        request: from anywhere.
        keys: public halves of the keys at hand.
        memory: folder with the signer's own copies of what was signed last.
        replace: allow another document of the version that was signed last.

    Raises:
        SignerNotInRole: no document for these keys. RequestReplayed: rule 3. What `summary` raises.
    """
    held = {key.keyid for key in keys}
    roles, lines = [], [f"repository {request.repository_id}"]
    for role, document in sorted(request.new.items()):
        if not held & _may_sign(request, role, memory):
            continue
        before, is_own = _before(request, role, memory)
        if _is_fork(role, document, before, is_own=is_own, replace=replace):
            lines.append(
                f"{role}: REPLACES version {document.signed.version}, which was signed here with other content"
            )
        if not is_own:
            lines.append(f"{role}: FIRST TIME here: compared with what the request says is published")
        lines += summary(role, document, before, request.contents)
        roles.append(role)
    if not roles:
        raise SignerNotInRole(
            "none of the keys may sign a document of this request", remedy="`packager repo status` shows which may"
        )
    return Review(tuple(roles), tuple(lines), digest(tuple(lines)))


def sign_request(request: Request, reviewed: Review, signers: Sequence[Signer], memory: Path) -> bytes:
    """Sign what was reviewed, and remember it. Returns the signature file. Raises errors of tokens, OSError."""
    made: list[JSON] = []
    for role in reviewed.roles:
        document = request.new[role]
        may = _may_sign(request, role, memory)
        for signer in signers:
            if signer.public_key.keyid in may:
                signature = signer.sign(document.signed_bytes)
                made.append({"role": role, "key_id": signature.keyid, "signature": signature.signature})
    for role in reviewed.roles:
        write_file(_own_copy(memory, request.repository_id, role), documents.serialise(request.new[role]))
    return canonical.encode({"schema": SIGNATURES, "repository_id": request.repository_id, "signatures": made})


def merge(layout: Layout, files: Sequence[bytes], signers: Sequence[Signer], now_s: int) -> SignReport:
    """Add signatures from elsewhere to the staged documents (rule 4), and those of the signers at hand.

    Raises:
        SignatureRefused: of another repository, for a document that is not staged, or that does not verify.
        MalformedRefused, TooLargeRefused.
    """
    with locked(layout):
        published, staging = Published(layout), Staging(layout)
        for data in files:
            _merge_one(published, staging, data)
        staging.prepare(published, now_s)
        report = staging.sign(published, signers, now_s)
        staging.save()
        return report


def _contents(published: Published, staging: Staging, new: Mapping[str, Document]) -> dict[str, bytes]:
    # all that is listed, not only what is new: a signer may have missed releases that others signed
    out = {}
    for document in new.values():
        if isinstance(document.signed, Targets):
            for name, target in document.signed.targets.items():
                out[name] = staging.targets[name] if name in staging.targets else published.target(target)
    return out


def _merge_one(published: Published, staging: Staging, data: bytes) -> None:
    fields = Fields(canonical.decode(data, what="signature file", max_bytes=MAX_REQUEST_BYTES), "signature file")
    if fields.text("schema") != SIGNATURES:
        raise MalformedRefused(f"signature file.schema: expected {SIGNATURES!r}")
    if fields.text("repository_id", SHA256_HEX) != published.repository_id:
        raise SignatureRefused("the signature file is of another repository")
    for row in fields.objects("signatures", max_items=MAX_ROLES):
        role, keyid = row.text("role", ROLE), row.text("key_id", max_length=256)
        signature = Signature(keyid, row.text("signature", max_length=16384))
        row.end()
        document = staging.documents.get(role)
        if document is None:
            raise SignatureRefused(f"a signature for {role}, which is not staged", remedy="prepare anew")
        known = verification(published, staging.documents, role, document)
        if keyid in known.signed:
            continue
        key = known.unsigned.get(keyid)
        if key is None:
            raise SignatureRefused(f"key {keyid[:20]} is none of {role}")
        try:
            key.verify_signature(signature, document.signed_bytes)
        except UnverifiedSignatureError as error:
            raise SignatureRefused(
                f"the signature of key {keyid[:20]} is not over the staged {role} {document.signed.version}",
                remedy="it signed another request: prepare, sign and merge again",
            ) from error
        document.signatures[keyid] = signature
    fields.end()


def _may_sign(request: Request, role: str, memory: Path) -> set[str]:
    # the keys that the role has, and those that it is to get: new keys sign their first document too
    name = "root" if role in documents.TOP_LEVEL else "targets"
    delegator, _ = _before(request, name, memory)
    return {keyid for held in (delegator, request.new.get(name)) if held is not None for keyid in _keyids(held, role)}


def _keyids(delegator: Document, role: str) -> set[str]:
    signed = delegator.signed
    assert isinstance(signed, Root | Targets)
    try:
        return set(signed.get_delegated_role(role).keyids)
    except ValueError:
        return set()


def _before(request: Request, role: str, memory: Path) -> tuple[Document | None, bool]:
    own = _own_copy(memory, request.repository_id, role)
    if own.exists():
        return parse_document(own.read_bytes(), str(own)), True
    return request.published.get(role), False


def _is_fork(role: str, new: Document, before: Document | None, *, is_own: bool, replace: bool) -> bool:
    if before is None or new.signed.version > before.signed.version or new.signed_bytes == before.signed_bytes:
        return False
    if replace and is_own and new.signed.version == before.signed.version:
        return True
    raise RequestReplayed(
        f"{role} {new.signed.version} is to be signed,"
        f" and {before.signed.version} {'was signed here' if is_own else 'is published'} already, with other content",
        remedy="an old request? Else prepare anew; --replace signs a corrected document of the same version",
    )


def _own_copy(memory: Path, repository_id: str, role: str) -> Path:
    return memory / repository_id / f"{role}.json"


def _pack(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _blocks(fields: Fields, name: str, max_items: int) -> dict[str, bytes]:
    rows = fields.object(name)
    names = rows.names()
    if len(names) > max_items:
        raise MalformedRefused(f"{rows.where}: found {len(names)} entries, at most {max_items} are allowed")
    out = {}
    for entry in names:
        try:
            out[entry] = base64.b64decode(rows.text(entry, max_length=MAX_BLOCK_CHARACTERS), validate=True)
        except binascii.Error as error:
            raise MalformedRefused(f"{rows.where}.{entry[:80]}: not base64") from error
    return out
