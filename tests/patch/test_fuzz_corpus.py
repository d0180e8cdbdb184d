"""The fuzzer's corpus applies, and hundreds of changed patches are refused.

`make torture` runs many more.
"""

from tests.support.memory_bundles import apply_to_memory
from torture import fuzz_patch


def test_the_corpus_applies() -> None:
    base, _ = fuzz_patch.sides()
    patches = sorted(fuzz_patch.CORPUS.glob("*.patch"))
    assert len(patches) >= 9
    for path in patches:
        assert apply_to_memory(path.read_bytes(), base) == fuzz_patch.target_of(path)


def test_changed_patches_with_good_checksums_are_refused_or_harmless() -> None:
    outcome = fuzz_patch.fuzz(600, seed=1)
    assert sum(outcome.values()) == 600
    assert len(outcome) >= 5
