"""Signing away from the build machine: who signs sees what it signs, whatever the build machine says."""

import base64
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Metadata, Targets

from bundle.errors import DigestMismatch, Malformed, Refused
from keys.errors import SignerNotInRole
from keys.passphrase import PASSPHRASE_VARIABLE
from packager.commands.root import main
from packager.errors import NothingStaged, PublishConflict, SignatureRefused, SigningRequestReplayed
from packager.repository.detached_signing import add_signatures, prepare_request, review_request, sign_request
from packager.repository.role_changes import replace_keys
from packager.repository.signing_request import SigningRequest, parse_request
from tests.support.metadata_publisher import FAMILY, NOW_S, PASSPHRASE, CheckClient, MetadataPublisher, make_rollout
from tests.support.repository_commands import check_command_output

ROLE = f"release-{FAMILY}"


def stage(shop: MetadataPublisher, version: str = "1.1.0", counter: int = 2) -> SigningRequest:
    manifest = shop.make_manifest(version, counter)
    shop.repository.stage_manifest(manifest)
    shop.repository.stage_rollout(make_rollout(manifest))
    return prepare_request(shop.repository.layout, NOW_S)


def online(shop: MetadataPublisher) -> list[Any]:
    return shop.signers_of("rollout-vision", "snapshot", "timestamp")


def test_two_people_sign_and_the_build_machine_publishes(shop: MetadataPublisher, device: CheckClient) -> None:
    request = parse_request(stage(shop).as_bytes())
    files = []
    for number, signer in enumerate(shop.signers_of(ROLE)):
        desk = shop.folder / f"desk-{number}"
        reviewed = review_request(request, [signer.public_key], desk, NOW_S)
        assert reviewed.roles == (ROLE,)
        files.append(sign_request(request, reviewed, [signer], desk))
    first = add_signatures(shop.repository.layout, files[:1], online(shop), NOW_S)
    assert not first.is_complete
    assert add_signatures(shop.repository.layout, files[1:], online(shop), NOW_S).is_complete
    shop.repository.publish()
    assert device.check(shop.published).manifest.version == "1.1.0"


def test_the_summary_says_what_changes_and_is_the_same_for_both(shop: MetadataPublisher) -> None:
    request = stage(shop)
    one, other = shop.signers_of(ROLE)
    first = review_request(request, [one.public_key], shop.folder / "a", NOW_S)
    second = review_request(request, [other.public_key], shop.folder / "b", NOW_S)
    assert first.digest == second.digest
    text = "\n".join(first.lines)
    assert "release-vision: version 2 -> 3" in text
    assert "new: bundles/vision/1.1.0.json: vision 1.1.0, counter 2, rollback floor 0, channels stable," in text
    assert "FIRST TIME" in text
    sign_request(request, first, [one], shop.folder / "a")
    shop.publish()
    again = review_request(stage(shop, "1.2.0", 3), [one.public_key], shop.folder / "a", NOW_S)
    assert "FIRST TIME" not in "\n".join(again.lines)
    assert "1.1.0" not in "\n".join(again.lines)


def tampered(request: SigningRequest, change: Callable[[Targets], object]) -> SigningRequest:
    document: Metadata[Targets] = Metadata.from_bytes(request.new_documents[ROLE].to_bytes())
    change(document.signed)
    return replace(request, new_documents={**request.new_documents, ROLE: document})


def test_a_build_machine_can_not_show_one_thing_and_have_another_signed(shop: MetadataPublisher) -> None:
    request = stage(shop)
    keys = [signer.public_key for signer in shop.signers_of(ROLE)]
    honest = review_request(request, keys, shop.folder / "desk", NOW_S)
    name = f"bundles/{FAMILY}/1.1.0.json"
    with pytest.raises(DigestMismatch):
        review_request(
            replace(request, new_contents={**request.new_contents, name: b"{}"}), keys, shop.folder / "desk", NOW_S
        )
    with pytest.raises(Malformed):
        review_request(replace(request, new_contents={}), keys, shop.folder / "desk", NOW_S)
    for change in (
        lambda t: t.targets.pop(f"bundles/{FAMILY}/1.0.0.json"),
        lambda t: t.unrecognized_fields.update({"x-new": 1}),
        lambda t: setattr(t, "version", 4),
        lambda t: setattr(t, "expires", t.expires.replace(year=2090)),
    ):
        assert review_request(tampered(request, change), keys, shop.folder / "desk", NOW_S).digest != honest.digest


def test_a_lie_about_what_is_published_does_not_reach_who_signed_before(shop: MetadataPublisher) -> None:
    one = shop.signers_of(ROLE)[0]
    desk = shop.folder / "desk"
    first = stage(shop)
    sign_request(first, review_request(first, [one.public_key], desk, NOW_S), [one], desk)
    shop.publish()
    honest = stage(shop, "1.2.0", 3)
    lie = replace(honest, published_documents={**honest.published_documents, ROLE: honest.new_documents[ROLE]})
    assert review_request(lie, [one.public_key], desk, NOW_S) == review_request(honest, [one.public_key], desk, NOW_S)
    assert "1.2.0" in "\n".join(review_request(lie, [one.public_key], desk, NOW_S).lines)


def test_a_replayed_or_forked_request_is_refused(shop: MetadataPublisher) -> None:
    one = shop.signers_of(ROLE)[0]
    desk = shop.folder / "desk"
    old = stage(shop)
    sign_request(old, review_request(old, [one.public_key], desk, NOW_S), [one], desk)
    sign_request(old, review_request(old, [one.public_key], desk, NOW_S), [one], desk)
    shop.repository.discard()
    fork = stage(shop, "1.9.0", 9)
    with pytest.raises(SigningRequestReplayed) as refused:
        review_request(fork, [one.public_key], desk, NOW_S)
    assert refused.value.reason == "signing-request-replayed"
    assert any(
        "REPLACES version 3" in line for line in review_request(fork, [one.public_key], desk, NOW_S, replace=True).lines
    )
    shop.publish()
    newer = stage(shop, "2.0.0", 10)
    sign_request(newer, review_request(newer, [one.public_key], desk, NOW_S), [one], desk)
    with pytest.raises(SigningRequestReplayed):
        review_request(old, [one.public_key], desk, NOW_S, replace=True)


def test_keys_that_may_not_sign_are_told(shop: MetadataPublisher) -> None:
    request = stage(shop)
    with pytest.raises(SignerNotInRole):
        review_request(request, [CryptoSigner.generate_ed25519().public_key], shop.folder / "desk", NOW_S)
    with pytest.raises(SignerNotInRole):
        review_request(request, [shop.signers_of("root")[0].public_key], shop.folder / "desk", NOW_S)


def test_signatures_of_something_else_are_not_merged(shop: MetadataPublisher) -> None:
    one = shop.signers_of(ROLE)[0]
    request = stage(shop)
    file = sign_request(
        request, review_request(request, [one.public_key], shop.folder / "a", NOW_S), [one], shop.folder / "a"
    )
    layout = shop.repository.layout
    value = json.loads(file)
    row = value["signatures"][0]
    stranger = CryptoSigner.generate_ed25519()
    wrong = {
        "repository": {**value, "repository": "0" * 64},
        "role": {**value, "signatures": [{**row, "role": "fleet"}]},
        "key": {**value, "signatures": [{**row, "key_id": stranger.public_key.keyid}]},
        "signature": {**value, "signatures": [{**row, "signature": "00" * 64}]},
    }
    for changed in wrong.values():
        with pytest.raises(SignatureRefused) as refused:
            add_signatures(layout, [json.dumps(changed).encode()], [], NOW_S)
        assert refused.value.reason == "signature-refused"
    shop.repository.stage_manifest(shop.make_manifest("1.2.0", 3))
    prepare_request(layout, NOW_S)
    with pytest.raises(SignatureRefused):
        add_signatures(layout, [file], [], NOW_S)


def test_requests_and_signature_files_are_read_strictly(shop: MetadataPublisher) -> None:
    data = stage(shop).as_bytes()
    value = json.loads(data)
    for changed in (
        {**value, "schema": "other"},
        {**value, "extra": 1},
        {**value, "new": {"../x": value["new"][ROLE]}},
        {**value, "new": {ROLE: "no base64!"}},
        {**value, "new": {ROLE: base64.b64encode(b"{}").decode()}},
    ):
        with pytest.raises(Refused):
            parse_request(json.dumps(changed).encode())
    for file in (b"", b"{}", data):
        with pytest.raises(Refused):
            add_signatures(shop.repository.layout, [file], [], NOW_S)
    shop.repository.discard()
    with pytest.raises(NothingStaged):
        prepare_request(shop.repository.layout, NOW_S)


def test_a_refresh_in_between_undoes_nobodys_signature(shop: MetadataPublisher, device: CheckClient) -> None:
    """A request may be out for days; the daily refresh goes on meanwhile."""
    request = stage(shop)
    files = []
    for number, signer in enumerate(shop.signers_of(ROLE)):
        desk = shop.folder / f"desk-{number}"
        files.append(sign_request(request, review_request(request, [signer.public_key], desk, NOW_S), [signer], desk))
        shop.repository.refresh(online(shop))
    assert add_signatures(shop.repository.layout, files, online(shop), NOW_S).is_complete
    shop.repository.refresh(online(shop))
    with pytest.raises(PublishConflict):
        shop.repository.publish()
    assert shop.repository.sign(online(shop)).is_complete
    shop.repository.publish()
    assert device.check(shop.published).manifest.version == "1.1.0"


def test_a_new_root_is_signed_by_old_and_new_keys_apart(shop: MetadataPublisher, device: CheckClient) -> None:
    device.check(shop.published)
    fresh = [*[CryptoSigner.generate_ed25519() for _ in range(2)], *[CryptoSigner.generate_mldsa() for _ in range(2)]]
    replace_keys(shop.repository.layout, "root", [signer.public_key for signer in fresh])
    request = prepare_request(shop.repository.layout, NOW_S)
    files = []
    for number, signer in enumerate([*shop.signers_of("root")[:3], *fresh[:3]]):
        desk = shop.folder / f"desk-{number}"
        reviewed = review_request(request, [signer.public_key], desk, NOW_S)
        assert sum("key removed" in line for line in reviewed.lines) == 4
        assert sum("key added" in line for line in reviewed.lines) == 4
        files.append(sign_request(request, reviewed, [signer], desk))
    assert add_signatures(shop.repository.layout, files, online(shop), NOW_S).is_complete
    shop.repository.publish()
    assert device.check(shop.published).manifest.version == "1.0.0"


def test_the_commands_sign_only_what_was_reviewed(
    shop: MetadataPublisher, device: CheckClient, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(PASSPHRASE_VARIABLE, PASSPHRASE.value.decode())
    monkeypatch.setenv("PACKAGER_REPO", os.fspath(shop.repository.root))
    manifest = shop.make_manifest("1.1.0", 2)
    shop.repository.stage_manifest(manifest)
    shop.repository.stage_rollout(make_rollout(manifest))

    def run(*words: str, status: int = 0) -> dict[str, Any]:
        code = main([*words, "--json"])
        out, err = capfd.readouterr()
        assert code == status, err
        found: dict[str, Any] = json.loads(out if status == 0 else err)
        check_command_output([*words[:2], "request"] if words[1] == "sign" and status == 0 else words, found)
        return found

    request = os.fspath(shop.folder / "request.json")
    assert run("repo", "prepare", "-o", request)["documents"].keys() == {ROLE, "rollout-vision"}
    signatures = []
    for algorithm in ("ed25519", "ml-dsa-65"):
        key = os.fspath(shop.keys / f"{ROLE}-{algorithm}-1.key")
        desk = ["--history", os.fspath(shop.folder / f"desk-{algorithm}")]
        shown = run("repo", "sign", request, "--key", key, *desk)
        assert shown["signatures"] is None
        out = os.fspath(shop.folder / f"{algorithm}.signatures")
        wrong = run("repo", "sign", request, "--key", key, *desk, "-o", out, "--expect", "0" * 64, status=2)
        assert wrong["error"]["reason"] == "invalid-usage"
        assert not Path(out).exists()
        run("repo", "sign", request, "--key", key, *desk, "-o", out, "--expect", shown["digest"])
        signatures.append(out)
    assert run("repo", "add-signatures", *signatures, "--keys", os.fspath(shop.keys))["complete"]
    run("repo", "publish")
    assert device.check(shop.published).manifest.version == "1.1.0"
