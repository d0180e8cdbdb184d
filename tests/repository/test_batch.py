"""A signed batch enrolls all its devices at once, and only if the enrollment key signed it."""

import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from securesystemslib.signer import CryptoSigner

from bundle import strict_json
from bundle.enrollment import EnrollmentRequest, parse_enrollment
from bundle.envelope import derive_public_key, generate_private_key
from bundle.errors import EnrollmentRefused, Malformed, Refused, TooLarge
from keys.enrollment_batch import SIGNATURE_LABEL, parse_batch, sign_batch
from keys.errors import DuplicateRequest
from keys.key_files import generate_key_file
from keys.passphrase import PASSPHRASE_VARIABLE
from keys.registry import Registry
from packager.commands.root import main
from tests.support.envelope_files import cohort_envelope_of
from tests.support.metadata_publisher import PASSPHRASE, MetadataPublisher
from tests.support.repository_commands import check_command_output

FACTORY = CryptoSigner.generate_mldsa()


def make_requests(*labels: str) -> list[bytes]:
    """Make requests of one device, one for each label."""
    signing = Ed25519PrivateKey.generate()
    public = derive_public_key(generate_private_key())
    return [
        EnrollmentRequest(label, public, signing.public_key().public_bytes_raw()).encode(signing) for label in labels
    ]


def make_request(label: str) -> bytes:
    return make_requests(label)[0]


def as_windows_saves_it(data: bytes) -> bytes:
    return b"\xef\xbb\xbf" + data.replace(b"\n", b"\r\n") + b"\r\n" * (not data.endswith(b"\n"))


REQUESTS = [make_request(f"cam-{n}") for n in range(3)]


def test_a_list_comes_back_whole() -> None:
    parsed = parse_batch(sign_batch(REQUESTS, FACTORY), [FACTORY.public_key])
    assert [entry.label for entry in parsed] == ["cam-0", "cam-1", "cam-2"]


def test_a_list_that_was_changed_or_signed_by_another_is_refused() -> None:
    data = sign_batch(REQUESTS, FACTORY)
    with pytest.raises(EnrollmentRefused):
        parse_batch(data, [CryptoSigner.generate_mldsa().public_key])
    for place in range(0, len(data), 251):
        with pytest.raises(Refused):
            parse_batch(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :], [FACTORY.public_key])
    lines = data.splitlines(keepends=True)
    for changed in (b"", b"x", data[:-1], b"".join(lines[:2] + lines[3:]), b"".join([*lines[:4], lines[1], lines[4]])):
        with pytest.raises(Refused):
            parse_batch(changed, [FACTORY.public_key])
    with pytest.raises(Malformed):
        sign_batch([b"{}"], FACTORY)


def test_a_request_that_cannot_be_signed_is_named() -> None:
    with pytest.raises(Malformed, match=r"^bad\.json: enrollment request"):
        sign_batch([REQUESTS[0], b"{}"], FACTORY, ["good.json", "bad.json"])
    with pytest.raises(EnrollmentRefused, match=r"^request 2: .* the signature is not valid"):
        sign_batch([REQUESTS[0], REQUESTS[1].replace(b"cam-1", b"cam-7")], FACTORY)
    with pytest.raises(TooLarge, match=r"^bad\.json: "):
        sign_batch([b" " * 20_000], FACTORY, ["bad.json"])


@pytest.mark.parametrize(
    ("requests", "message"),
    [
        ([*REQUESTS, make_request("cam-1")], "b.json and d.json have the same label 'cam-1'"),
        ([*REQUESTS, REQUESTS[0]], "a.json and d.json are requests of one device, [0-9a-f]{16}…"),
        (make_requests("cam-1", "cam-2"), "a.json and b.json are requests of one device"),
        ([make_request("cam-1") for _ in range(4)], "a.json and b.json have the same label 'cam-1'; 2 further"),
    ],
)
def test_a_batch_with_duplicates_is_not_signed(requests: list[bytes], message: str) -> None:
    with pytest.raises(DuplicateRequest, match=message):
        sign_batch(requests, FACTORY, [f"{letter}.json" for letter in "abcd"[: len(requests)]])
    with pytest.raises(DuplicateRequest, match=re.sub("([a-d]).json", r"request \\d", message)):
        sign_batch(requests, FACTORY)


def test_a_batch_with_duplicates_that_another_program_signed_is_refused() -> None:
    lines = sign_batch(REQUESTS, FACTORY).splitlines(keepends=True)[:-1]
    body = b"".join([lines[0].replace(b"3", b"4"), *lines[1:], lines[2]])
    signature = FACTORY.sign(SIGNATURE_LABEL + hashlib.sha256(body).digest())
    last = strict_json.encode({"key_id": signature.keyid, "signature": signature.signature})
    with pytest.raises(DuplicateRequest, match="request 2 and request 4 are requests of one device"):
        parse_batch(body + last + b"\n", [FACTORY.public_key])


def test_the_commands_admit_a_list_once_and_refuse_a_stolen_label(
    publisher: MetadataPublisher, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(PASSPHRASE_VARIABLE, PASSPHRASE.value.decode())
    key = tmp_path / "factory" / "enrollment.key"
    generate_key_file(key, "ml-dsa-65", PASSPHRASE)

    def run(*words: str, status: int = 0) -> dict[str, Any]:
        code = main([*words, "--json"])
        out, err = capfd.readouterr()
        assert code == status, err
        found: dict[str, Any] = json.loads(out if status == 0 else err)
        check_command_output(words, found)
        return found

    def signed(name: str, requests: list[bytes], status: int = 0) -> str:
        files = []
        for number, data in enumerate(requests):
            file = tmp_path / f"{name}-{number}.json"
            file.write_bytes(as_windows_saves_it(data))
            files.append(os.fspath(file))
        out = tmp_path / f"{name}.list"
        result = run("device", "sign-batch", *files, "--key", os.fspath(key), "-o", os.fspath(out), status=status)
        if status:
            assert result["error"]["reason"] == "duplicate-request"
            assert f"{files[0]} and {files[1]} have the same label" in result["error"]["message"]
            assert "relabel" in result["error"]["hint"]
            assert not out.exists()
        else:
            assert result["devices"] == len(requests)
            out.write_bytes(as_windows_saves_it(out.read_bytes()))
        return os.fspath(out)

    def enroll(name: str, status: int = 0) -> dict[str, Any]:
        words = [
            "device",
            "enroll-batch",
            name,
            "--enrollment-key",
            os.fspath(key),
            "--keys",
            os.fspath(publisher.keys),
        ]
        return run(*words, "--repo", os.fspath(publisher.repository.root), status=status)

    first = signed("first", REQUESTS)
    assert (enroll(first)["new"], enroll(first)["new"]) == (3, 0)
    assert publisher.repository.fleet().devices == 3
    (cohort,) = publisher.repository.fleet().cohorts
    for request in REQUESTS:
        public = parse_enrollment(request).x_wing_public
        assert cohort_envelope_of(publisher.published, cohort, public) is not None
    stolen = signed("stolen", [make_request("cam-9"), make_request("cam-1")])
    assert enroll(stolen, status=3)["error"]["reason"] == "enrollment-refused"
    signed("equal", [make_request("localhost"), make_request("localhost")], status=3)
    utf16 = tmp_path / "utf16.list"
    utf16.write_bytes(Path(first).read_text("utf-8-sig").encode("utf-16"))
    assert enroll(os.fspath(utf16), status=2)["error"]["reason"] == "text-encoding-unsupported"
    assert len(Registry(publisher.repository.registry_path)) == 3
