"""A label in the registry belongs to its keys permanently, and a person confirms the fingerprint."""

import hashlib
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from bundle import strict_json
from bundle.enrollment import EnrollmentRequest, parse_enrollment
from bundle.envelope import (
    COHORT_KEY_PURPOSE,
    EnvelopeContext,
    derive_public_key,
    envelope_name,
    generate_private_key,
    open_envelope,
)
from bundle.errors import EnrollmentRefused, Malformed, NotAuthentic, Refused, TooLarge
from bundle.fleet import Cohort
from bundle.frames import Secret
from keys.cohorts import seal_epoch
from keys.errors import DeviceUnknown, FingerprintMismatch, RegistryDamaged
from keys.registry import Registry

REPOSITORY = "a" * 64


class DeviceKeys:
    """The keys and the enrollment request of a device."""

    def __init__(self, label: str) -> None:
        self.private = generate_private_key()
        self.signing = Ed25519PrivateKey.generate()
        self.request = EnrollmentRequest(
            label, derive_public_key(self.private), self.signing.public_key().public_bytes_raw(), (("class", "camera"),)
        )

    @property
    def request_file(self) -> bytes:
        return self.request.encode(self.signing)


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(tmp_path / "registry.jsonl")


def test_a_request_comes_back_whole_and_proves_its_keys() -> None:
    device = DeviceKeys("cam-1")
    parsed = parse_enrollment(device.request_file)
    assert parsed == device.request
    assert len(parsed.fingerprint.split()) == 10


def test_any_flipped_byte_of_a_request_is_refused() -> None:
    data = DeviceKeys("cam-1").request_file
    for place in range(0, len(data), 5):
        changed = data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]
        with pytest.raises(Refused):
            parse_enrollment(changed)


def test_a_request_with_anothers_keys_or_id_is_refused() -> None:
    device, other = DeviceKeys("cam-1"), DeviceKeys("cam-2")
    fields = strict_json.decode(device.request_file, what="request", max_bytes=10**6)
    assert isinstance(fields, dict)
    for changed in ({"x_wing_public": other.request.x_wing_public.hex()}, {"device_id": other.request.device_id}):
        with pytest.raises(EnrollmentRefused):
            parse_enrollment(strict_json.encode({**fields, **changed}))
    with pytest.raises(EnrollmentRefused) as refused:
        parse_enrollment(strict_json.encode({**fields, "label": "cam-9"}))
    assert "signature is not valid" in refused.value.message
    with pytest.raises(Malformed):
        parse_enrollment(strict_json.encode({**fields, "extra": 1}))
    with pytest.raises(TooLarge):
        parse_enrollment(b" " * 100_000)
    with pytest.raises(ValueError, match="another signing key"):
        device.request.encode(other.signing)


def test_a_device_is_admitted_with_its_fingerprint_only(registry: Registry) -> None:
    device = DeviceKeys("cam-1")
    request = parse_enrollment(device.request_file)
    with pytest.raises(FingerprintMismatch) as mismatch:
        registry.enroll(request, "default", "0000 " * 10)
    assert request.fingerprint in mismatch.value.message
    assert len(registry) == 0
    admitted = registry.enroll(request, "default", request.fingerprint.upper().replace(" ", ""))
    assert admitted.attributes == (("class", "camera"),)
    assert registry.find("cam-1") == registry.find(admitted.device_id) == admitted


def test_the_same_request_again_changes_nothing_and_the_label_is_taken(registry: Registry) -> None:
    device = DeviceKeys("cam-1")
    first = registry.enroll(device.request, "default", device.request.fingerprint)
    digest = registry.digest()
    assert registry.enroll(device.request, "default", device.request.fingerprint) == first
    assert registry.digest() == digest
    impostor = DeviceKeys("cam-1")
    with pytest.raises(EnrollmentRefused) as refused:
        registry.enroll(impostor.request, "default", impostor.request.fingerprint)
    assert refused.value.reason == "enrollment-refused"
    assert registry.digest() == digest


def test_a_revoked_device_stays_known_and_out(registry: Registry) -> None:
    device = DeviceKeys("cam-1")
    registry.enroll(device.request, "default", device.request.fingerprint)
    registry.revoke("cam-1")
    assert registry.members("default") == ()
    with pytest.raises(EnrollmentRefused):
        registry.enroll(device.request, "default", device.request.fingerprint)
    with pytest.raises(DeviceUnknown):
        registry.revoke("cam-2")


def test_the_registry_file_is_read_strictly(registry: Registry) -> None:
    for label in ("cam-1", "cam-2", "cam-3"):
        request = DeviceKeys(label).request
        registry.enroll(request, "default", request.fingerprint)
    registry.save()
    again = Registry(registry.path)
    assert list(again.devices()) == list(registry.devices())
    assert again.digest() == registry.digest()
    lines = registry.path.read_bytes().splitlines(keepends=True)
    for damaged in (lines[::-1], [*lines, lines[-1]], [lines[0], b"{}\n"], [lines[0].replace(b"cam", b"dog", 1), b"x"]):
        registry.path.write_bytes(b"".join(damaged))
        with pytest.raises(RegistryDamaged):
            Registry(registry.path)
    registry.path.write_bytes(b"\xef\xbb\xbf" + b"".join(lines).replace(b"\n", b"\r\n"))
    assert Registry(registry.path).digest() == hashlib.sha256(b"".join(lines)).hexdigest()


def test_a_cohort_key_opens_for_its_device_epoch_and_repository_only() -> None:
    devices = [DeviceKeys(f"cam-{n}") for n in range(3)]
    cohort_key = generate_private_key()
    cohort = Cohort("default", 3, derive_public_key(cohort_key))
    put: dict[str, bytes] = {}
    made = seal_epoch(cohort_key, cohort, REPOSITORY, [d.request.x_wing_public for d in devices], put.__setitem__)
    assert made == len(put) == 3
    first, second = devices[0], devices[1]
    name = envelope_name(first.request.x_wing_public, 3)
    right = EnvelopeContext(COHORT_KEY_PURPOSE, REPOSITORY, "default", 3)
    assert open_envelope(put[name], first.private, right) == cohort_key
    for context in (
        EnvelopeContext(COHORT_KEY_PURPOSE, "b" * 64, "default", 3),
        EnvelopeContext(COHORT_KEY_PURPOSE, REPOSITORY, "other", 3),
        EnvelopeContext(COHORT_KEY_PURPOSE, REPOSITORY, "default", 4),
        EnvelopeContext("content", REPOSITORY, "default", 3),
    ):
        with pytest.raises(NotAuthentic):
            open_envelope(put[name], first.private, context)
    with pytest.raises(NotAuthentic):
        open_envelope(put[name], second.private, right)


def test_an_epoch_is_the_same_in_parallel() -> None:
    from keys import cohorts

    cohort_key = generate_private_key()
    cohort = Cohort("default", 1, derive_public_key(cohort_key))
    public = DeviceKeys("cam").request.x_wing_public
    devices = [public] * cohorts.MIN_PARALLEL_DEVICES
    done: list[tuple[int, int]] = []
    count = seal_epoch(
        cohort_key,
        cohort,
        REPOSITORY,
        devices,
        lambda _n, _d: None,
        workers=2,
        progress=lambda a, b: done.append((a, b)),
    )
    assert count == len(devices)
    assert done[-1] == (count, count)
    assert "Secret" in repr(Secret(b"x"))
