"""Which keys a role has, and how many of them must sign.

Rules (docs/threat-model.md says why):
1. Keys are counted by public key, never by key id: one key under two ids would count twice.
2. With c classical and p ML-DSA keys the threshold t satisfies t > c and t > p: neither kind can sign alone, so that a
   break of one algorithm is not a break of the role.
3. For root and targets also t <= c + p - 1: one lost key must not be the end of the repository.
4. `classical` (for foreign clients without ML-DSA) drops rule 2, for the whole repository; rule 3 stays.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from securesystemslib.signer import Key

from bundle.trust.public_keys import key_digest
from keys.errors import ThresholdInvalid

POST_QUANTUM_KEY_TYPES: Final = ("ml-dsa",)
OFFLINE_ROLES: Final = ("root", "targets")
ONLINE_ROLES: Final = ("snapshot", "timestamp")


@dataclass(frozen=True, slots=True)
class RoleKeys:
    """The distinct public keys of a role (rule 1) and its threshold.

    Attributes:
        role: name.
        keys: by key id; a second id of the same public key is left out.
        threshold: as signed.
        duplicates: key ids that were left out.
    """

    role: str
    keys: Mapping[str, Key]
    threshold: int
    duplicates: tuple[str, ...]

    @property
    def classical_count(self) -> int:
        """How many keys are classical."""
        return len(self.keys) - self.post_quantum_count

    @property
    def post_quantum_count(self) -> int:
        """How many keys are ML-DSA."""
        return sum(is_post_quantum(key) for key in self.keys.values())


def is_post_quantum(key: Key) -> bool:
    """Is it ML-DSA?"""
    return key.keytype in POST_QUANTUM_KEY_TYPES


def collect_role_keys(role: str, keys: Sequence[Key], threshold: int) -> RoleKeys:
    """Count under rule 1."""
    distinct: dict[str, Key] = {}
    seen: set[str] = set()
    duplicates = []
    for key in keys:
        name = key_digest(key)
        if name in seen:
            duplicates.append(key.keyid)
            continue
        seen.add(name)
        distinct[key.keyid] = key
    return RoleKeys(role, distinct, threshold, tuple(duplicates))


def default_threshold(role: str, keys: Sequence[Key], *, is_classical_only: bool = False) -> int:
    """The smallest threshold that the rules allow; of classical-only roles a majority. Raises ThresholdInvalid."""
    counted = collect_role_keys(role, keys, 1)
    if is_classical_only:
        most = len(counted.keys) - 1 if role in OFFLINE_ROLES and len(counted.keys) > 1 else len(counted.keys)
        threshold = min(len(counted.keys) // 2 + 1, most)
    else:
        threshold = max(counted.classical_count, counted.post_quantum_count) + 1
    check_threshold(collect_role_keys(role, keys, threshold), is_classical_only=is_classical_only)
    return threshold


def check_threshold(role: RoleKeys, *, is_classical_only: bool = False) -> None:
    """Enforce the rules. Raises ThresholdInvalid, naming what is wrong."""
    wrong = threshold_problems(role, is_classical_only=is_classical_only)
    if wrong:
        raise ThresholdInvalid(
            f"role {role.role!r}: {wrong[0]}",
            hint=f"it has {role.classical_count} classical and {role.post_quantum_count} ML-DSA keys and threshold"
            f" {role.threshold}; see `packager keys --help`",
        )


def threshold_problems(role: RoleKeys, *, is_classical_only: bool = False) -> tuple[str, ...]:
    """Every broken rule, one line each; none if the role is sound."""
    out = []
    n, t = len(role.keys), role.threshold
    if role.duplicates:
        out.append(f"the same public key is listed under {len(role.duplicates) + 1} key ids")
    if not 1 <= t <= n:
        out.append(f"threshold {t} cannot be met by {n} distinct keys")
    if not is_classical_only and t <= role.classical_count:
        out.append(f"{role.classical_count} classical keys alone meet the threshold {t}")
    if not is_classical_only and t <= role.post_quantum_count:
        out.append(f"{role.post_quantum_count} ML-DSA keys alone meet the threshold {t}")
    if role.role in OFFLINE_ROLES and n > 1 and t > n - 1:
        out.append(f"threshold {t} of {n} keys: one lost key would be the end of the repository")
    if role.role in OFFLINE_ROLES and n < 2 and not is_classical_only:
        out.append(f"{n} key: one lost key would be the end of the repository")
    return tuple(out)


def remaining_signers_needed(role: RoleKeys) -> str:
    """What a forger still needs once one algorithm has fallen, for people."""
    return (
        f"if classical signatures fall: {max(role.threshold - role.classical_count, 0)} ML-DSA keys;"
        f" if ML-DSA falls: {max(role.threshold - role.post_quantum_count, 0)} classical keys"
    )
