"""The status of a repository: keys, thresholds and expiries of its roles, and the missing signatures."""

from collections.abc import Collection
from dataclasses import asdict, dataclass
from typing import Final

from tuf.api.metadata import Root, Targets

from keys.roles import remaining_signers_needed, threshold_problems
from packager.repository import tuf_documents
from packager.repository.document_rules import keys_of
from packager.repository.published import PublishedDocuments, check_signatures
from packager.repository.staging import Staging

DUE_SHARE: Final = 0.25  # of a role's validity: a role with less left is due for renewal


@dataclass(frozen=True, slots=True)
class RoleKey:
    """One distinct public key of a role.

    Attributes:
        key_id, scheme: as the role lists the key.
        has_signed: the document has a valid signature of the key.
    """

    key_id: str
    scheme: str
    has_signed: bool


@dataclass(frozen=True, slots=True)
class RoleStatus:
    """The status of one published role.

    Attributes:
        name: name of the role.
        version: version of the published document; 0 if it was never signed.
        expires: when the published document expires, in ISO 8601; "" if it was never signed.
        days_left: days until then; negative if it has expired.
        is_due: it has expired, or has less than DUE_SHARE of its validity left.
        threshold: number of signatures that the role needs.
        classical, post_quantum: number of distinct classical and ML-DSA keys.
        keys: each distinct public key, and whether it signed the published document.
        signatures: number of valid signatures of the published document.
        problems: one line for each broken rule of keys.roles, and for missing signatures.
        still_needed: number of keys that an attacker must still steal after one algorithm is broken.
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
    """The signatures of one staged document.

    Attributes:
        name: name of the role.
        version: version of the document.
        signatures: number of valid signatures.
        missing: number of signatures that the threshold still needs.
        may_sign: the keys that may still sign.
    """

    name: str
    version: int
    signatures: int
    missing: int
    may_sign: tuple[RoleKey, ...]


@dataclass(frozen=True, slots=True)
class RepositoryStatus:
    """The status of a repository.

    Attributes:
        repository_id: id of the repository (`bundle.trust.repository_id`); "" before the first publication.
        timestamp_version: version of the published timestamp; 0 before the first publication.
        is_classical: the repository is exempt from the hybrid rule.
        roles: the published roles, top-level roles first.
        staged: the staged documents.
        staged_targets: names of the staged targets.
        withdrawn: names of the targets whose withdrawal is staged.
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
        """True if a role has expired or will soon, or if nothing is published yet."""
        return not self.roles or any(role.is_due for role in self.roles)

    @property
    def is_sound(self) -> bool:
        """True if every role keeps its rules and has its signatures; False if nothing is published."""
        return bool(self.roles) and not any(role.problems for role in self.roles)

    def as_json(self) -> dict[str, object]:
        """Return the JSON object for `--json`."""
        return {**asdict(self), "is_due": self.is_due, "is_sound": self.is_sound}


def repository_status(published: PublishedDocuments, staging: Staging, now_s: int) -> RepositoryStatus:
    """Return the status of a repository.

    Args:
        published: the published state, as devices see it now.
        staging: the staged changes.
        now_s: current time, in Unix seconds.
    """
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

    def list_keys(signed: Collection[str] = ()) -> tuple[RoleKey, ...]:
        return tuple(RoleKey(keyid, str(key.scheme), keyid in signed) for keyid, key in keys.keys.items())

    document = published.documents.get(role)
    problems = list(threshold_problems(keys, is_classical_only=classical))
    if document is None:
        problems.append("the role was never signed")
        return RoleStatus(
            name=role,
            version=0,
            expires="",
            days_left=0.0,
            is_due=True,
            threshold=keys.threshold,
            classical=keys.classical_count,
            post_quantum=keys.post_quantum_count,
            keys=list_keys(),
            signatures=0,
            problems=tuple(problems),
            still_needed="",
        )
    state = check_signatures(published, {}, role, document)
    if state.missing_signatures:
        problems.append(f"the published document lacks {state.missing_signatures} signatures")
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
        keys=list_keys(state.signed_key_ids),
        signatures=len(state.signed_key_ids),
        problems=tuple(problems),
        still_needed=remaining_signers_needed(keys),
    )


def _staged_role(published: PublishedDocuments, staging: Staging, role: str) -> StagedRole:
    state = check_signatures(published, staging.documents, role, staging.documents[role])
    may_sign = tuple(RoleKey(keyid, str(key.scheme), False) for keyid, key in sorted(state.unsigned_keys.items()))
    return StagedRole(role, state.version, len(state.signed_key_ids), state.missing_signatures, may_sign)
