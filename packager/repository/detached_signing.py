"""Sign on other machines than the build machine: a request goes out, signature files come back.

    build machine             signer's machine                          build machine
    prepare_request      →    review_request, then sign_request    →    add_signatures, then publish
                    request file                              signature file

Theory of operation. The build machine may be under an attacker's control, so the signer trusts no statement of the
request. Its inputs are the bytes to be signed, the targets that these bytes name by digest, and the signing history: a
copy of each document that was signed on this machine last. For each document of the request:

1. Skip it if none of the keys may sign it. A key may sign for a role that lists it now, or that lists it in the
   request's own root or targets document, so that a new key can sign its role's next document.
2. Refuse it if it breaks a rule that every document keeps (packager.repository.document_rules), even if a person
   approved the summary.
3. Compare it with the previous one: the document in the signing history, else what the request claims is published; the
   summary then says FIRST TIME.
4. Refuse it if its version is not above the previous one and its content differs: that is a replayed or forked request.
   `replace` allows a corrected document of the same version; the summary then says REPLACES.
5. Summarize each difference (packager.repository.signing_summary).

A repository is new to the signer if the signing history has no document of it. Then a key that signed for another
repository here is refused unless `new_repository` is set: otherwise a forged request could escape step 3 by claiming to
be of another repository.

`sign_request` records the documents in the signing history before it returns the signatures, so that step 4 also covers
signatures that were never delivered. A signature file contains only signatures: `add_signatures` verifies each one
against the staged document.
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
    create_request,
    create_signature_file,
    first_root_of,
    parse_signatures,
    repository_identity_of,
)
from packager.repository.signing_summary import Line, Summary, document_summary, head_lines
from packager.repository.staging import SignReport, Staging


@dataclass(frozen=True, slots=True)
class SigningReview:
    """The documents that a signer is about to sign, and their summary.

    Attributes:
        roles: roles of the request whose documents these keys may sign, sorted.
        summary: the changes.
        digest: SHA-256 over all documents of the request, hexadecimal; equal on every machine for the same request.
    """

    roles: tuple[str, ...]
    summary: Summary
    digest: str


def prepare_request(layout: RepositoryLayout, now_s: int) -> SigningRequest:
    """Turn the staged changes into documents, and return a request for their signatures.

    Args:
        layout: the repository's paths.
        now_s: current time, in Unix seconds.

    Raises:
        NothingStaged: there are no staged changes.
        PublishConflict: another process holds the repository's lock.
        RepositoryDamaged: a published file is missing or damaged.
    """
    with lock_repository(layout):
        published, staging = PublishedDocuments(layout), Staging(layout)
        if staging.is_empty:
            raise NothingStaged("nothing is staged", hint="stage a release, a rollout or a key change first")
        staging.prepare(published, now_s)
        staging.save()
        return create_request(published, staging)


def request_summary(request: SigningRequest, now_s: int) -> Summary:
    """Summarize what the whole request changes against the published documents, for its author.

    Args:
        request: a request of this machine.
        now_s: current time, in Unix seconds.
    """
    lines: list[Line | str] = list(head_lines(request))
    for role, document in sorted(request.new_documents.items()):
        published = request.published_documents.get(role)
        summary = document_summary(role, document, published, request.new_contents, request.earlier_contents, now_s)
        lines += summary.lines
    return Summary.of(lines)


def review_request(
    request: SigningRequest,
    keys: Sequence[Key],
    history: Path,
    now_s: int,
    *,
    replace: bool = False,
    new_repository: bool = False,
) -> SigningReview:
    """Check a request, and recompute what the keys would sign; the steps are in the module's docstring.

    Args:
        request: a request of any origin.
        keys: the public keys of this signer.
        history: folder of the signing history; it need not exist.
        now_s: current time, in Unix seconds.
        replace: allow another document of the version that was signed last.
        new_repository: allow a repository that is new here, for keys that signed for another one.

    Raises:
        SignerNotInRole: the keys may sign no document of the request.
        SigningRequestReplayed: a version is not above the previous one, and the content differs.
        RepositoryUnknown: the repository is new here, and one of the keys signed for another one.
        Malformed, ThresholdInvalid: a document breaks a rule of packager.repository.document_rules, or a target is
            missing.
        DigestMismatch: a target is not of the listed digest.
        SigningHistoryDamaged: a file of the signing history cannot be read.
    """
    signed_before = SigningHistory(history, request.repository_identity)
    if not signed_before.has_signed_before and not new_repository:
        _check_known_repository(signed_before, keys)
    key_ids = {key.keyid for key in keys}
    is_classical = _is_classical(request, signed_before)
    roles: list[str] = []
    lines: list[Line | str] = list(head_lines(request))
    for role, document in sorted(request.new_documents.items()):
        if not key_ids & _keys_that_may_sign(request, role, signed_before):
            continue
        check_document_rules(role, document.signed, classical=is_classical)
        previous, is_from_history = _previous_document(request, role, signed_before)
        if _is_fork(role, document, previous, is_from_history=is_from_history, replace=replace):
            lines.append(
                f"{role}: REPLACES version {document.signed.version}, signed on this machine with other content"
            )
        if not is_from_history:
            lines.append(
                f"{role}: FIRST TIME on this machine: compared with what the request claims is published, unverified"
            )
        summary = document_summary(role, document, previous, request.new_contents, request.earlier_contents, now_s)
        lines += summary.lines
        roles.append(role)
    if not roles:
        raise SignerNotInRole(
            f"none of the {len(key_ids)} given keys may sign a document of this request",
            hint="use a key of the role; `packager repo status` lists them",
        )
    others = sorted(request.new_documents.keys() - set(roles))
    if others:
        lines.append(f"not for these keys: {', '.join(others)}")
    return SigningReview(tuple(roles), Summary.of(lines), request.digest)


def sign_request(request: SigningRequest, review: SigningReview, signers: Sequence[Signer], history: Path) -> bytes:
    """Sign the reviewed documents, and record them in the signing history.

    Args:
        request: the reviewed request.
        review: the result of `review_request` for it.
        signers: the signers of the reviewed keys.
        history: folder of the signing history.

    Returns:
        The signature file.

    Raises:
        TokenUnavailable, WrongPin, KeyServiceUnavailable: a key cannot sign.
        OSError: the signing history cannot be written.
    """
    signed_before = SigningHistory(history, request.repository_identity)
    signatures: list[RoleSignature] = []
    used: list[Key] = []
    for role in review.roles:
        allowed = _keys_that_may_sign(request, role, signed_before)
        for signer in signers:
            if signer.public_key.keyid in allowed:
                signatures.append(RoleSignature(role, signer.sign(request.new_documents[role].signed_bytes)))
                used.append(signer.public_key)
    for role in review.roles:
        signed_before.record_document(role, request.new_documents[role])
    signed_before.record_keys(used)
    return create_signature_file(request.repository_identity, signatures)


def add_signatures(
    layout: RepositoryLayout, files: Sequence[bytes], signers: Sequence[Signer], now_s: int
) -> SignReport:
    """Add signature files to the staged documents, then sign with the keys of this machine.

    Args:
        layout: the repository's paths.
        files: the content of each signature file.
        signers: signers of this machine, usually of snapshot and timestamp.
        now_s: current time, in Unix seconds.

    Raises:
        SignatureRefused: a signature is of another repository, of a document that is not staged, or invalid.
        NothingStaged: there are no staged changes.
        Malformed, TooLarge: a file is not a signature file.
        PublishConflict: another process holds the repository's lock.
    """
    with lock_repository(layout):
        published, staging = PublishedDocuments(layout), Staging(layout)
        if staging.is_empty:
            raise NothingStaged(
                "nothing is staged to which signatures could be added",
                hint="the changes were published or unstaged: check `packager repo status`",
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
            "the request is for a repository that is new on this machine,"
            f" and one of the keys signed here for repository {others[0][:16]}…",
            hint="if the key really is to sign for another repository too, pass --new-repository",
        )


def _add_signature_file(published: PublishedDocuments, staging: Staging, data: bytes, identity: str) -> None:
    repository, rows = parse_signatures(data)
    if repository != identity:
        raise SignatureRefused(
            f"the signature file is for repository {repository[:16]}…, expected {identity[:16]}…",
            hint="name the repository of the request with --repo",
        )
    for row in rows:
        role, keyid = row.role, row.signature.keyid
        document = staging.documents.get(role)
        if document is None:
            raise SignatureRefused(
                f"the signature file has a signature of {role}, but no {role} document is staged",
                hint="the signed request is outdated: run `packager repo prepare`, and sign the new request",
            )
        known = check_signatures(published, staging.documents, role, document)
        if keyid in known.signed_key_ids:
            continue
        key = known.unsigned_keys.get(keyid)
        if key is None:
            raise SignatureRefused(
                f"key {keyid[:20]} is not a key of {role}",
                hint="sign with a key of the role; `packager repo status` lists them",
            )
        try:
            key.verify_signature(row.signature, document.signed_bytes)
        except UnverifiedSignatureError as error:
            raise SignatureRefused(
                f"the signature of key {keyid[:20]} is not valid for the staged {role} version"
                f" {document.signed.version}",
                hint="the signed request is outdated: run `packager repo prepare`, and sign the new request",
            ) from error
        document.signatures[keyid] = row.signature


def _keys_that_may_sign(request: SigningRequest, role: str, history: SigningHistory) -> set[str]:
    # the role's current keys, and those that the request is to add: new keys sign their first document too
    name = "root" if role in tuf_documents.TOP_LEVEL else "targets"
    previous, _ = _previous_document(request, name, history)
    return {
        keyid
        for delegator in (previous, request.new_documents.get(name))
        if delegator is not None
        for keyid in _role_key_ids(delegator, role)
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
        f"the request has {role} version {new.signed.version}, but version {previous.signed.version}"
        f" {'was signed on this machine' if is_from_history else 'is published'} already, with other content",
        hint="ask for a new request (`packager repo prepare`), or sign a corrected document with --replace",
    )
