"""Signing away from the build machine: a request goes out, signatures come back.

    prepare (build machine)  →  request file  →  sign (where a key lives)  →  signature file  →  merge  →  publish

Rules:
1. A signer believes nothing that the request says about itself. What would change is computed from the bytes that will
   be signed, the files that they name by digest, and this signer's own copy of what it signed last.
2. What no honest request asks for is not signed at all (packager.repository.document_rules), whoever looked at it.
3. A key signs only documents of roles that list it, or are to list it. The first document of a role that is signed in a
   place is compared with what the request says is published, and the summary says so.
4. A document whose version is not above the one that was signed last, for other content, is refused: a replayed or
   forked request. To sign a corrected document of the same version has to be said, and the summary says so too.
5. What is signed is remembered before the signatures are given out.
6. A signature file holds signatures and nothing to believe: `merge` verifies each against the staged document.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from securesystemslib.exceptions import UnverifiedSignatureError
from securesystemslib.signer import Key, Signer
from tuf.api.metadata import Root, Targets

from keys.errors import SignerNotInRole
from packager.errors import NothingStaged, RepositoryUnknown, SignatureRefused, SigningRequestReplayed
from packager.repository import tuf_documents
from packager.repository.document_rules import check_document_rules
from packager.repository.layout import RepositoryLayout, lock_repository
from packager.repository.published import Document, PublishedDocuments, check_signatures
from packager.repository.signing_history import SigningHistory
from packager.repository.signing_request import (
    RoleSignature,
    SigningRequest,
    first_root_of,
    make_request,
    make_signature_file,
    parse_signatures,
    repository_identity_of,
)
from packager.repository.signing_summary import document_summary, head_lines
from packager.repository.staging import SignReport, Staging


@dataclass(frozen=True, slots=True)
class SigningReview:
    """What a signer is about to sign.

    Attributes:
        roles: that these keys may sign in the request.
        lines: the summary, recomputed.
        digest: of the documents to be signed, all roles; the same on every machine that holds the same request.
    """

    roles: tuple[str, ...]
    lines: tuple[str, ...]
    digest: str


def prepare_request(layout: RepositoryLayout, now_s: int) -> SigningRequest:
    """Make the staged changes into documents and a request for their signatures. Raises NothingStaged."""
    with lock_repository(layout):
        published, staging = PublishedDocuments(layout), Staging(layout)
        if staging.is_empty:
            raise NothingStaged("there is nothing to sign", hint="stage a release, a rollout or keys first")
        staging.prepare(published, now_s)
        staging.save()
        return make_request(published, staging)


def request_summary(request: SigningRequest, now_s: int) -> tuple[str, ...]:
    """What the whole request changes against what is published, for the one who made it."""
    lines = list(head_lines(request))
    for role, document in sorted(request.new_documents.items()):
        lines += document_summary(
            role, document, request.published_documents.get(role), request.new_contents, request.earlier_contents, now_s
        )
    return tuple(lines)


def review_request(
    request: SigningRequest,
    keys: Sequence[Key],
    history: Path,
    now_s: int,
    *,
    replace: bool = False,
    new_repository: bool = False,
) -> SigningReview:
    """Recompute what the keys would sign (rules 1 to 4).

    Args:
        request: from anywhere.
        keys: public halves of the keys at hand.
        memory: folder with the signer's own copies of what was signed last.
        now_s: Unix seconds.
        replace: allow another document of the version that was signed last.
        new_repository: allow a repository that is new here, for keys that signed for another one.

    Raises:
        SignerNotInRole: no document for these keys. RequestReplayed: rule 4.
        RepositoryUnfamiliar: packager.repository.signing_history rule 2.
        MalformedRefused, ThresholdInvalid: rule 2. DigestMismatchRefused: a file is not the one that is listed.
    """
    own = SigningHistory(history, request.repository_identity)
    if not own.has_signed_before and not new_repository:
        _check_known_repository(own, keys)
    held = {key.keyid for key in keys}
    is_classical = _is_classical(request, own)
    roles, lines = [], list(head_lines(request))
    for role, document in sorted(request.new_documents.items()):
        if not held & _keys_that_may_sign(request, role, own):
            continue
        check_document_rules(role, document.signed, classical=is_classical)
        before, is_own = _previous_document(request, role, own)
        if _is_fork(role, document, before, is_from_history=is_own, replace=replace):
            lines.append(
                f"{role}: REPLACES version {document.signed.version}, which was signed here with other content"
            )
        if not is_own:
            lines.append(f"{role}: FIRST TIME here: compared with what the request says is published")
        lines += document_summary(role, document, before, request.new_contents, request.earlier_contents, now_s)
        roles.append(role)
    if not roles:
        raise SignerNotInRole(
            "none of the keys may sign a document of this request",
            hint="`packager repo status` shows which keys each role has",
        )
    return SigningReview(tuple(roles), tuple(lines), request.digest)


def sign_request(request: SigningRequest, review: SigningReview, signers: Sequence[Signer], history: Path) -> bytes:
    """Sign what was reviewed, and remember it. Returns the signature file. Raises errors of tokens, OSError."""
    own = SigningHistory(history, request.repository_identity)
    made: list[RoleSignature] = []
    used: list[Key] = []
    for role in review.roles:
        may = _keys_that_may_sign(request, role, own)
        for signer in signers:
            if signer.public_key.keyid in may:
                made.append(RoleSignature(role, signer.sign(request.new_documents[role].signed_bytes)))
                used.append(signer.public_key)
    for role in review.roles:
        own.record_document(role, request.new_documents[role])
    own.record_keys(used)
    return make_signature_file(request.repository_identity, made)


def add_signatures(
    layout: RepositoryLayout, files: Sequence[bytes], signers: Sequence[Signer], now_s: int
) -> SignReport:
    """Add signatures from elsewhere to the staged documents (rule 6), and those of the signers at hand.

    Raises:
        SignatureRefused: of another repository, for a document that is not staged, or that does not verify.
        NothingStaged, MalformedRefused, TooLargeRefused.
    """
    with lock_repository(layout):
        published, staging = PublishedDocuments(layout), Staging(layout)
        if staging.is_empty:
            raise NothingStaged(
                "nothing is staged that signatures could belong to", hint="was it published, or discarded?"
            )
        identity = repository_identity_of(first_root_of(published, staging))
        for data in files:
            _add_signature_file(published, staging, data, identity)
        staging.prepare(published, now_s)
        report = staging.sign(published, signers, now_s)
        staging.save()
        return report


def _check_known_repository(history: SigningHistory, keys: Sequence[Key]) -> None:
    others = history.other_repositories(keys)
    if others:
        raise RepositoryUnknown(
            f"the request is of a repository that is new here, and a key at hand signed here for {others[0][:16]}…",
            hint="--new-repository, if this key is really to sign for another repository too",
        )


def _add_signature_file(published: PublishedDocuments, staging: Staging, data: bytes, identity: str) -> None:
    repository, rows = parse_signatures(data)
    if repository != identity:
        raise SignatureRefused(
            "the signature file is of another repository", hint="which one: `packager repo status --repo`"
        )
    for row in rows:
        role, keyid = row.role, row.signature.keyid
        document = staging.documents.get(role)
        if document is None:
            raise SignatureRefused(
                f"a signature for {role}, which is not staged", hint="it signed another request: prepare anew"
            )
        known = check_signatures(published, staging.documents, role, document)
        if keyid in known.signed_key_ids:
            continue
        key = known.unsigned_keys.get(keyid)
        if key is None:
            raise SignatureRefused(
                f"key {keyid[:20]} is none of {role}", hint="`packager repo status` shows which keys each role has"
            )
        try:
            key.verify_signature(row.signature, document.signed_bytes)
        except UnverifiedSignatureError as error:
            raise SignatureRefused(
                f"the signature of key {keyid[:20]} is not over the staged {role} {document.signed.version}",
                hint="it signed another request: prepare, sign and merge again",
            ) from error
        document.signatures[keyid] = row.signature


def _keys_that_may_sign(request: SigningRequest, role: str, history: SigningHistory) -> set[str]:
    # the keys that the role has, and those that it is to get: new keys sign their first document too
    name = "root" if role in tuf_documents.TOP_LEVEL else "targets"
    delegator, _ = _previous_document(request, name, history)
    return {
        keyid
        for held in (delegator, request.new_documents.get(name))
        if held is not None
        for keyid in _role_key_ids(held, role)
    }


def _is_classical(request: SigningRequest, history: SigningHistory) -> bool:
    root = request.new_documents.get("root") or _previous_document(request, "root", history)[0]
    return root is not None and isinstance(root.signed, Root) and tuf_documents.is_classical(root.signed)


def _role_key_ids(delegator: Document, role: str) -> set[str]:
    signed = delegator.signed
    if not isinstance(signed, Root | Targets):
        return set()
    try:
        return set(signed.get_delegated_role(role).keyids)
    except ValueError:
        return set()


def _previous_document(request: SigningRequest, role: str, history: SigningHistory) -> tuple[Document | None, bool]:
    last = history.last_document(role)
    return (request.published_documents.get(role), False) if last is None else (last, True)


def _is_fork(role: str, new: Document, previous: Document | None, *, is_from_history: bool, replace: bool) -> bool:
    if previous is None or new.signed.version > previous.signed.version or new.signed_bytes == previous.signed_bytes:
        return False
    if replace and is_from_history and new.signed.version == previous.signed.version:
        return True
    raise SigningRequestReplayed(
        f"{role} {new.signed.version} is to be signed,"
        f" and {previous.signed.version} {'was signed here' if is_from_history else 'is published'} "
        "already, with other content",
        hint="an old request? Else prepare anew; --replace signs a corrected document of the same version",
    )
