"""The rules for a role's keys and its threshold of signatures (reasons: docs/threat-model.md).

Let c be the number of classical keys (Ed25519, ECDSA), p the number of ML-DSA keys, and t the threshold.

- Distinct keys: keys are counted by public key, not by key id, since one key under two ids would count twice.
- Hybrid rule: t > c and t > p. Neither kind of key can sign alone, so that a broken algorithm does not break the role.
- Spare key: for root and targets also t <= c + p - 1, so that one lost key does not end the repository.
- A classical-only repository (for TUF clients without ML-DSA) is exempt from the hybrid rule, not from the others.
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
    """The distinct public keys of a role, and its threshold.

    Attributes:
        role: name of the role.
        keys: public keys by key id; a second id of the same public key is omitted.
        threshold: number of signatures that the role needs.
        duplicates: the key ids that were omitted.
    """

    role: str
    keys: Mapping[str, Key]
    threshold: int
    duplicates: tuple[str, ...]

    @property
    def classical_count(self) -> int:
        """Number of distinct keys that are not ML-DSA."""
        return len(self.keys) - self.post_quantum_count

    @property
    def post_quantum_count(self) -> int:
        """Number of distinct ML-DSA keys."""
        return sum(is_post_quantum(key) for key in self.keys.values())


def is_post_quantum(key: Key) -> bool:
    """Return whether this is an ML-DSA key."""
    return key.keytype in POST_QUANTUM_KEY_TYPES


def collect_role_keys(role: str, keys: Sequence[Key], threshold: int) -> RoleKeys:
    """Collect the distinct public keys of a role.

    Args:
        role: name of the role.
        keys: its keys as listed; of several ids of one public key the first counts.
        threshold: its number of signatures.
    """
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
    """Return the smallest threshold that the rules allow; a majority for classical-only roles.

    Args:
        role: name of the role.
        keys: public keys of the role.
        is_classical_only: the repository has no ML-DSA keys.

    Raises:
        ThresholdInvalid: no threshold satisfies the rules with these keys.
    """
    counted = collect_role_keys(role, keys, 1)
    if is_classical_only:
        most = len(counted.keys) - 1 if role in OFFLINE_ROLES and len(counted.keys) > 1 else len(counted.keys)
        threshold = min(len(counted.keys) // 2 + 1, most)
    else:
        threshold = max(counted.classical_count, counted.post_quantum_count) + 1
    check_threshold(collect_role_keys(role, keys, threshold), is_classical_only=is_classical_only)
    return threshold


def check_threshold(role: RoleKeys, *, is_classical_only: bool = False) -> None:
    """Check that a role's keys and threshold satisfy the rules.

    Args:
        role: keys and threshold.
        is_classical_only: the repository has no ML-DSA keys.

    Raises:
        ThresholdInvalid: a rule is broken; the message names the first one.
    """
    wrong = threshold_problems(role, is_classical_only=is_classical_only)
    if wrong:
        raise ThresholdInvalid(
            f"role {role.role!r}: {wrong[0]}",
            hint=f"the role has {role.classical_count} classical keys, {role.post_quantum_count} ML-DSA keys and"
            f" threshold {role.threshold}: add keys of the other kind, or choose another threshold",
        )


def threshold_problems(role: RoleKeys, *, is_classical_only: bool = False) -> tuple[str, ...]:
    """Return one line for each broken rule; an empty tuple if the role is sound.

    Args:
        role: keys and threshold.
        is_classical_only: the repository has no ML-DSA keys.
    """
    out = []
    n, t = len(role.keys), role.threshold
    if role.duplicates:
        out.append(f"the same public key is listed under {len(role.duplicates) + 1} key ids")
    if not 1 <= t <= n:
        out.append(f"threshold {t} cannot be met by {n} distinct keys")
    if not is_classical_only and t <= role.classical_count:
        out.append(f"its classical keys alone ({role.classical_count}) meet the threshold {t}")
    if not is_classical_only and t <= role.post_quantum_count:
        out.append(f"its ML-DSA keys alone ({role.post_quantum_count}) meet the threshold {t}")
    if role.role in OFFLINE_ROLES and n > 1 and t > n - 1:
        out.append(f"threshold {t} of {n} keys: losing one key would end the repository")
    if role.role in OFFLINE_ROLES and n < 2 and not is_classical_only:
        out.append(f"only {n} key: losing it would end the repository")
    return tuple(out)


def remaining_signers_needed(role: RoleKeys) -> str:
    """Describe how many keys an attacker must still steal after one algorithm is broken."""
    post_quantum = max(role.threshold - role.classical_count, 0)
    classical = max(role.threshold - role.post_quantum_count, 0)
    return (
        f"if classical signatures are broken, an attacker still needs {_count_keys(post_quantum, 'ML-DSA')};"
        f" if ML-DSA is broken, {_count_keys(classical, 'classical')}"
    )


def _count_keys(number: int, kind: str) -> str:
    return f"{number} {kind} key{'' if number == 1 else 's'}"
