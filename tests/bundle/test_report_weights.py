"""Each reason that a device can have is weighed, and nothing that a mirror or a full disk causes counts."""

import pytest

from bundle.report_weights import COUNTING_STATES, WEIGHTS, Weight, weigh_reason
from tests.support.device_reports import make_report
from tools.generate_docs.error_page import written_errors

DEVICE_PACKAGES = ("bundle", "device_agent")
OUTCOME_REASONS = {"", "untried", "inconclusive", "interrupted"}  # that no error has
KINDS = {"invalid", "refused", "unavailable", "unfit", "bug"}
REASONS = {error.reason for error in written_errors() if error.__module__.split(".")[0] in DEVICE_PACKAGES}


def test_the_table_has_a_row_for_each_reason_of_a_device_and_no_other() -> None:
    assert set(WEIGHTS) == REASONS | OUTCOME_REASONS | KINDS


@pytest.mark.parametrize("reason", sorted(WEIGHTS))
def test_nothing_counts_before_the_blobs_had_their_signed_digests(reason: str) -> None:
    for state in ("checking", "fetching", "staged", "committing"):
        assert weigh_reason(reason, state) is not Weight.COUNTS


def test_what_a_mirror_a_proxy_or_the_device_itself_causes_never_counts() -> None:
    caused_elsewhere = (
        *("digest-mismatch", "download-failed", "not-found", "metadata-expired", "untrusted-metadata", "tls-failed"),
        *("no-space", "out-of-memory", "memory-exhausted", "os-failure", "worker-timeout", "envelope-missing"),
        *("key-commitment-mismatch", "cohort-key-mismatch", "tpm-unavailable", "bundle-quarantined", "store-damaged"),
    )
    for reason in caused_elsewhere:
        for state in COUNTING_STATES:
            assert weigh_reason(reason, state) is not Weight.COUNTS, (reason, state)


def test_a_document_that_the_check_before_the_swap_refuses_does_not_count_but_a_patch_does() -> None:
    assert weigh_reason("malformed", "probing") is Weight.SILENT
    assert weigh_reason("malformed", "patching") is Weight.COUNTS
    assert weigh_reason("patch-corrupt", "patching") is Weight.COUNTS


@pytest.mark.parametrize("reason", ["golden-mismatch", "probation-failed", "crash-loop", "nan-output"])
def test_a_failure_of_the_model_counts(reason: str) -> None:
    assert make_report(outcome="unfit", reason=reason, state="probing").is_failure


def test_an_update_and_an_unknown_reason_do_not_count() -> None:
    assert not make_report().is_failure
    assert not make_report(reason="untried").is_failure
    assert not make_report(outcome="unfit", reason="reason-of-tomorrow", state="probing").is_failure
