"""What a repository's operator needs to know: keys, thresholds, expiries, what waits for whose signature."""

from collections.abc import Collection
from dataclasses import asdict, dataclass
from typing import Final

from tuf.api.metadata import Root, Targets

from keys.roles import remaining_signers_needed, threshold_problems
from packager.repository import tuf_documents
from packager.repository.document_rules import keys_of
from packager.repository.published import PublishedDocuments, check_signatures
from packager.repository.staging import Staging

DUE_SHARE: Final = 0.25  # of a role's life: from then on it is time to renew


@dataclass(frozen=True, slots=True)
class RoleKey:
    """A key of a role.

    Attributes:
        key_id, scheme: as the role lists it.
        has_signed: the document in question.
    """

    key_id: str
    scheme: str
    has_signed: bool


@dataclass(frozen=True, slots=True)
class RoleStatus:
    """One published role.

    Attributes:
        name, version, expires: of the published document.
        days_left: until it expires; negative when it has.
        is_due: is it time to renew it?
        threshold, classical, post_quantum: how many keys of each kind there are, by public key.
        keys: of each distinct public key its id and scheme, and whether it signed the published document.
        signatures: valid ones.
        problems: broken rules of keys.roles, one line each.
        still_needed: what a forger still needs once one algorithm has fallen.
    """

    name: str
    version: int
    expires: str
    days_left: float
    is_due: bool
    threshold: int
    classical: int
    post_quantum: int
    keys: tuple[RoleKey, ...]
    signatures: int
    problems: tuple[str, ...]
    still_needed: str


@dataclass(frozen=True, slots=True)
class StagedRole:
    """One staged document; `may_sign` are the keys whose signatures it still takes."""

    name: str
    version: int
    signatures: int
    missing: int
    may_sign: tuple[RoleKey, ...]


@dataclass(frozen=True, slots=True)
class RepositoryStatus:
    """The whole repository.

    Attributes:
        repository_id: as envelopes bind it; "" before the first publication.
        timestamp_version: of the publication that is out.
        is_classical: made without ML-DSA?
        roles: published ones, from root down.
        staged: documents that are being signed.
        staged_targets: names of files that wait.
        withdrawn: names that wait to be taken out.
    """

    repository_id: str
    timestamp_version: int
    is_classical: bool
    roles: tuple[RoleStatus, ...]
    staged: tuple[StagedRole, ...]
    staged_targets: tuple[str, ...]
    withdrawn: tuple[str, ...]

    @property
    def is_due(self) -> bool:
        """Is any role expired, or soon to be? Also while nothing is published."""
        return not self.roles or any(role.is_due for role in self.roles)

    @property
    def is_sound(self) -> bool:
        """Does every role keep the threshold rules, and carry its signatures? Not while nothing is published."""
        return bool(self.roles) and not any(role.problems for role in self.roles)

    def as_json(self) -> dict[str, object]:
        """For `--json`."""
        return {**asdict(self), "is_due": self.is_due, "is_sound": self.is_sound}


def repository_status(published: PublishedDocuments, staging: Staging, now_s: int) -> RepositoryStatus:
    """Look at everything once."""
    is_published = bool(published.documents)
    is_classical = is_published and tuf_documents.is_classical(published.root)
    delegated = sorted(tuf_documents.delegated_roles(published.targets)) if is_published else []
    order = [*tuf_documents.TOP_LEVEL, *delegated] if is_published else []
    return RepositoryStatus(
        repository_id=published.repository_id if is_published else "",
        timestamp_version=published.timestamp_version,
        is_classical=is_classical,
        roles=tuple(_role_status(published, role, now_s, classical=is_classical) for role in order),
        staged=tuple(_staged_role(published, staging, role) for role in sorted(staging.documents)),
        staged_targets=tuple(sorted(staging.targets)),
        withdrawn=tuple(sorted(staging.withdrawn)),
    )


def _role_status(published: PublishedDocuments, role: str, now_s: int, *, classical: bool) -> RoleStatus:
    delegator: Root | Targets = published.root if role in tuf_documents.TOP_LEVEL else published.targets
    keys = keys_of(delegator, role)

    def listed(signed: Collection[str] = ()) -> tuple[RoleKey, ...]:
        return tuple(RoleKey(keyid, str(key.scheme), keyid in signed) for keyid, key in keys.keys.items())

    document = published.documents.get(role)
    wrong = list(threshold_problems(keys, is_classical_only=classical))
    if document is None:
        wrong.append("it was never signed")
        return RoleStatus(
            role,
            0,
            "",
            0.0,
            True,
            keys.threshold,
            keys.classical_count,
            keys.post_quantum_count,
            listed(),
            0,
            tuple(wrong),
            "",
        )
    state = check_signatures(published, {}, role, document)
    if state.missing_signatures:
        wrong.append(f"its document lacks {state.missing_signatures} signatures")
    left_s = document.signed.expires.timestamp() - now_s
    life_s = tuf_documents.EXPIRY_DAYS[tuf_documents.kind_of(role)] * tuf_documents.DAY_S
    return RoleStatus(
        name=role,
        version=document.signed.version,
        expires=document.signed.expires.strftime("%Y-%m-%dT%H:%M:%SZ"),
        days_left=round(left_s / tuf_documents.DAY_S, 2),
        is_due=left_s < life_s * DUE_SHARE,
        threshold=keys.threshold,
        classical=keys.classical_count,
        post_quantum=keys.post_quantum_count,
        keys=listed(state.signed_key_ids),
        signatures=len(state.signed_key_ids),
        problems=tuple(wrong),
        still_needed=remaining_signers_needed(keys),
    )


def _staged_role(published: PublishedDocuments, staging: Staging, role: str) -> StagedRole:
    state = check_signatures(published, staging.documents, role, staging.documents[role])
    may_sign = tuple(RoleKey(keyid, str(key.scheme), False) for keyid, key in sorted(state.unsigned_keys.items()))
    return StagedRole(role, state.version, len(state.signed_key_ids), state.missing_signatures, may_sign)
