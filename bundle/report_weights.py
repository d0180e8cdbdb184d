"""The weight of each reason of a device report (docs/format.md section 15).

Rules:
1. The table is total: it has a row for each reason that a device can have, and a test compares both.
2. A reason counts only if the blobs had their signed digests and the device had what it needs: disk, memory, clock,
   key, network. So nothing that a mirror, a proxy or a full disk causes counts.
3. Reasons of the rows "patching" count only in the state `patching`: elsewhere, unsigned bytes can cause them.
   Reasons of the row "counts" count in COUNTING_STATES.
4. A neutral reason is reported, and is neither a failure nor a success of the release.
5. A silent reason is not reported. The device's vital says where the device stands (bundle.vital).
6. A reason without a row, from a newer agent, is neutral.

Pure: standard library only.
"""

from enum import StrEnum
from typing import Final

PATCHING: Final = "patching"
COUNTING_STATES: Final = (PATCHING, "probing", "swapping", "probation", "rolling-back")

# row name, then reasons of errors (docs/errors.md), or reasons of outcomes that no error caused
_ROWS: Final = """
counts    endpoint-refuses
counts    golden-mismatch too-much-memory too-slow memory-leak nan-output probe-crashed probe-timeout
counts    provider-unused provider-unstable
counts    candidate-malformed probation-failed shadow-failed model-does-not-load contract-mismatch
counts    model-process-crashed inference-failed operator-rollback crash-loop patcher-crashed
patching  malformed too-large not-authentic patch-refused patch-version-unsupported
patching  patch-feature-unsupported patch-truncated patch-corrupt patch-range-invalid patch-limit-exceeded
patching  patch-target-mismatch
neutral   runtime-missing provider-missing plain-not-allowed untried inconclusive bundle-quarantined
neutral   no-variant store-damaged wrong-base adapter-incompatible
neutral   below-rollback-floor
silent    interrupted invalid refused unavailable unfit bug
silent    invalid-usage file-not-regular text-encoding-unsupported folder-unsafe memory-exhausted os-failure
silent    digest-mismatch archive-malformed archive-mismatch archive-too-large archive-truncated
silent    download-failed not-found access-denied unexpected-not-modified metadata-expired no-rollout check-in-progress
silent    trust-state-lost untrusted-metadata another-repository rollback-refused release-mismatch counter-reused
silent    wrong-channel outside-plan release-withdrawn agent-too-old offline-pack-refused enrollment-refused
silent    probe-inconclusive probation-inconclusive bench-failed illegal-transition
silent    config-invalid identity-invalid not-initialized already-initialized already-enrolled adapter-missing
silent    nothing-to-benchmark nothing-to-roll-back request-invalid inputs-rejected file-unknown program-missing
silent    export-not-in-memory export-folder-foreign
silent    not-allowed lend-limit-reached release-replaced control-peer-refused cohort-key-mismatch
silent    tpm-unavailable tpm-policy-mismatch device-token-unavailable no-space out-of-memory metered-limit-exceeded
silent    rollback-floor-unproven no-patch-path envelope-missing not-enrolled nothing-served not-eligible device-locked
silent    updates-paused daemon-not-running journal-unreadable journal-damaged server-too-slow connection-failed
silent    mqtt-missing collector-silent
silent    proxy-failed proxy-auth-required repository-auth-required tls-failed redirect-refused repository-not-reached
silent    shard-malformed shard-too-large shard-mismatch shard-unsorted shard-truncated
silent    token-realm-refused not-faster
silent    agent-stopping worker-crashed worker-failed worker-timeout address-unavailable drain-timeout jail-unavailable
silent    key-commitment-mismatch no-model-loaded update-interrupted journal-too-new identity-copied
"""


class Weight(StrEnum):
    """The weight of a reason: what it says about a release."""

    COUNTS = "counts"
    NEUTRAL = "neutral"
    SILENT = "silent"


_ROW_OF_REASON: Final[dict[str, str]] = {
    reason: row for row, *reasons in (line.split() for line in _ROWS.split("\n") if line) for reason in reasons
}
WEIGHTS: Final[dict[str, Weight]] = {
    "": Weight.NEUTRAL,
    **{reason: Weight.COUNTS if row == PATCHING else Weight(row) for reason, row in _ROW_OF_REASON.items()},
}


def weigh_reason(reason: str, state: str) -> Weight:
    """Return what a reason says about the release of an attempt that ended in a state.

    Args:
        reason: reason of the error that ended the attempt, or of the outcome.
        state: the last state in which the attempt worked, such as "probing".
    """
    weight = WEIGHTS.get(reason, Weight.NEUTRAL)
    if weight is not Weight.COUNTS:
        return weight
    is_counted = state == PATCHING if _ROW_OF_REASON[reason] == PATCHING else state in COUNTING_STATES
    return Weight.COUNTS if is_counted else Weight.SILENT
