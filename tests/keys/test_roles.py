"""The hybrid rule: neither kind of key meets a threshold alone, counted by public key."""

from itertools import product

import pytest
from securesystemslib.signer import CryptoSigner, Key, SSlibKey

from keys.errors import ThresholdInvalid
from keys.roles import check_threshold, collect_role_keys, default_threshold, threshold_problems

CLASSICAL: list[Key] = [CryptoSigner.generate_ed25519().public_key for _ in range(4)]
POST_QUANTUM: list[Key] = [CryptoSigner.generate_mldsa().public_key for _ in range(4)]
HARDWARE: Key = CryptoSigner.generate_ecdsa().public_key


def copy_with_other_id(key: Key) -> Key:
    return SSlibKey("f" * 64, key.keytype, key.scheme, dict(key.keyval))


def test_the_designs_roles_have_the_designs_thresholds() -> None:
    assert default_threshold("root", [*CLASSICAL[:2], *POST_QUANTUM[:2]]) == 3
    assert default_threshold("targets", [CLASSICAL[0], HARDWARE, *POST_QUANTUM[:2]]) == 3
    assert default_threshold("timestamp", [CLASSICAL[0], POST_QUANTUM[0]]) == 2


@pytest.mark.parametrize(("classical", "post_quantum", "threshold"), list(product(range(4), range(4), range(1, 8))))
@pytest.mark.parametrize("role", ["root", "snapshot"])
def test_a_threshold_is_sound_exactly_if_no_kind_meets_it_alone(
    role: str, classical: int, post_quantum: int, threshold: int
) -> None:
    keys = collect_role_keys(role, [*CLASSICAL[:classical], *POST_QUANTUM[:post_quantum]], threshold)
    n = classical + post_quantum
    sound = classical < threshold <= n and threshold > post_quantum and (role != "root" or threshold <= n - 1)
    assert (not threshold_problems(keys)) == sound


def test_one_key_under_two_ids_counts_once() -> None:
    twice = [CLASSICAL[0], POST_QUANTUM[0], copy_with_other_id(POST_QUANTUM[0])]
    counted = collect_role_keys("snapshot", twice, 2)
    assert (counted.classical_count, counted.post_quantum_count) == (1, 1)
    with pytest.raises(ThresholdInvalid) as error:
        check_threshold(counted)
    assert "the same public key is listed under 2 key ids" in error.value.message
    assert error.value.reason == "threshold-invalid"


def test_a_role_of_one_kind_is_refused_unless_the_repository_is_classical() -> None:
    with pytest.raises(ThresholdInvalid):
        default_threshold("timestamp", CLASSICAL[:2])
    with pytest.raises(ThresholdInvalid):
        default_threshold("root", [CLASSICAL[0], POST_QUANTUM[0]])
    assert default_threshold("root", CLASSICAL[:3], is_classical_only=True) == 2
    assert default_threshold("timestamp", CLASSICAL[:1], is_classical_only=True) == 1
