"""Envelopes open only for one recipient and one context."""

from dataclasses import replace

import pytest

from bundle import envelope
from bundle.envelope import COHORT_KEY_PURPOSE, CONTENT_KEY_PURPOSE, EnvelopeContext
from bundle.errors import KeyCommitmentMismatch, Malformed, NotAuthentic, Refused
from bundle.frames import Secret

CONTEXT = EnvelopeContext(CONTENT_KEY_PURPOSE, "ab" * 32, "default", 3, "kws", 7)
SECRET = Secret(bytes(range(32)))
PRIVATE = envelope.generate_private_key()
SEALED = envelope.seal(SECRET, envelope.derive_public_key(PRIVATE), CONTEXT)


def test_what_is_sealed_opens_for_its_recipient() -> None:
    assert envelope.open_envelope(SEALED, PRIVATE, CONTEXT) == SECRET
    assert len(SEALED) == 8 + envelope.ENCAPSULATION_BYTES + 32 + 16


@pytest.mark.parametrize(
    "change",
    [
        {"purpose": COHORT_KEY_PURPOSE},
        {"repository": "cd" * 32},
        {"cohort": "other"},
        {"epoch": 4},
        {"family": "kwt"},
        {"counter": 8},
    ],
)
def test_an_envelope_moved_to_another_place_does_not_open(change: dict[str, str | int]) -> None:
    with pytest.raises(NotAuthentic):
        envelope.open_envelope(SEALED, PRIVATE, replace(CONTEXT, **change))  # type: ignore[arg-type]


def test_another_device_can_not_use_it() -> None:
    with pytest.raises(NotAuthentic):
        envelope.open_envelope(SEALED, envelope.generate_private_key(), CONTEXT)


@pytest.mark.parametrize("position", [0, 7, 8, 700, 8 + envelope.ENCAPSULATION_BYTES, len(SEALED) - 1])
def test_a_flipped_byte_is_refused(position: int) -> None:
    damaged = bytearray(SEALED)
    damaged[position] ^= 1
    with pytest.raises(Refused):
        envelope.open_envelope(bytes(damaged), PRIVATE, CONTEXT)


@pytest.mark.parametrize("length", [0, 7, 8, 100, len(SEALED) - 1])
def test_a_cut_envelope_is_refused(length: int) -> None:
    with pytest.raises(Refused):
        envelope.open_envelope(SEALED[:length], PRIVATE, CONTEXT)


def test_a_key_that_the_manifest_does_not_commit_to_is_refused_before_use() -> None:
    envelope.check_commitment(SECRET, envelope.compute_commitment(SECRET))
    with pytest.raises(KeyCommitmentMismatch):
        envelope.check_commitment(Secret(bytes(32)), envelope.compute_commitment(SECRET))
    with pytest.raises(KeyCommitmentMismatch):
        envelope.check_commitment(Secret(b""), envelope.compute_commitment(Secret(b"")))


def test_names_depend_on_epoch_and_recipient_and_show_neither() -> None:
    public = envelope.derive_public_key(PRIVATE)
    names = {envelope.envelope_name(public, 1), envelope.envelope_name(public, 2)}
    assert len(names) == 2
    assert all(len(name) == 64 and public.hex()[:16] not in name for name in names)


def test_a_recipient_key_of_wrong_size_is_refused() -> None:
    with pytest.raises(Malformed, match="found 3 bytes, expected 1216"):
        envelope.seal(SECRET, b"abc", CONTEXT)
