"""Signers on another machine review what they sign, independent of the build machine's description."""

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

from bundle.contract import Contract, TensorSpec
from bundle.errors import DigestMismatch, Malformed, Refused
from bundle.variant import Quantization
from keys.errors import SignerNotInRole
from keys.passphrase import PASSPHRASE_VARIABLE
from packager.commands.root import main
from packager.errors import NothingStaged, PublishConflict, SignatureRefused, SigningRequestReplayed
from packager.repository.detached_signing import (
    add_signatures,
    prepare_request,
    request_summary,
    review_request,
    sign_request,
)
from packager.repository.release_review import review_manifest
from packager.repository.role_changes import replace_keys
from packager.repository.signing_request import SigningRequest, parse_request
from tests.support.metadata_publisher import FAMILY, NOW_S, PASSPHRASE, CheckClient, MetadataPublisher, make_rollout
from tests.support.repository_commands import check_command_output

ROLE = f"release-{FAMILY}"


def stage_release(publisher: MetadataPublisher, version: str = "1.1.0", counter: int = 2) -> SigningRequest:
    manifest = publisher.make_manifest(version, counter)
    publisher.repository.stage_manifest(manifest)
    publisher.repository.stage_rollout(make_rollout(manifest))
    return prepare_request(publisher.repository.layout, NOW_S)


def online_signers(publisher: MetadataPublisher) -> list[Any]:
    return publisher.signers_of("rollout-vision", "snapshot", "timestamp")


def test_two_people_sign_and_the_build_machine_publishes(publisher: MetadataPublisher, device: CheckClient) -> None:
    request = parse_request(stage_release(publisher).as_bytes())
    files = []
    for number, signer in enumerate(publisher.signers_of(ROLE)):
        history = publisher.folder / f"history-{number}"
        reviewed = review_request(request, [signer.public_key], history, NOW_S)
        assert reviewed.roles == (ROLE,)
        files.append(sign_request(request, reviewed, [signer], history))
    first = add_signatures(publisher.repository.layout, files[:1], online_signers(publisher), NOW_S)
    assert not first.is_complete
    assert add_signatures(publisher.repository.layout, files[1:], online_signers(publisher), NOW_S).is_complete
    publisher.repository.publish()
    assert device.check(publisher.published).manifest.version == "1.1.0"


def test_the_summary_says_what_changes_and_is_the_same_for_both(publisher: MetadataPublisher) -> None:
    request = stage_release(publisher)
    one, other = publisher.signers_of(ROLE)
    first = review_request(request, [one.public_key], publisher.folder / "a", NOW_S)
    second = review_request(request, [other.public_key], publisher.folder / "b", NOW_S)
    assert first.digest == second.digest
    text = "\n".join(first.summary.raw)
    assert "release-vision: version 2 -> 3" in text
    assert "new: bundles/vision/1.1.0.json: vision 1.1.0, counter 2, rollback floor 0, channels stable," in text
    assert "FIRST TIME" in text
    sign_request(request, first, [one], publisher.folder / "a")
    publisher.publish()
    again = review_request(stage_release(publisher, "1.2.0", 3), [one.public_key], publisher.folder / "a", NOW_S)
    assert "FIRST TIME" not in "\n".join(again.summary.raw)
    assert "1.1.0" not in "\n".join(again.summary.raw)


def test_a_person_reads_names_sizes_and_what_changes_for_whom(publisher: MetadataPublisher) -> None:
    manifest = publisher.make_manifest("1.1.0", 2, min_counter=1)
    figures = Quantization("int8-static", verdict="pass", relative_rms_ppm=12_300, top1_agreement_ppm=990_000)
    (name, variant), *_ = manifest.variants
    facts = (("commit", "0123abc"), ("source_sha256", "5" * 64))
    variant = replace(variant, quantization=figures, provenance=facts)
    manifest = replace(manifest, variants=((name, variant),))
    publisher.repository.stage_manifest(manifest)
    publisher.repository.stage_rollout(replace(make_rollout(manifest), percent_bp=1250, cohorts=("default",)))
    summary = request_summary(prepare_request(publisher.repository.layout, NOW_S), NOW_S)
    text = "\n".join(summary.plain)
    for words in (
        "release vision 1.1.0, counter 2, after 1.0.0",
        "ROLLBACK FLOOR 0 -> 1",
        "fp32     int8-static",
        "0.0123  0.9900  pass",
        "commit: 0123abc",
        f"source model SHA-256: {'5' * 64}",
        "against 1.0.0: fp32: files changed: model.onnx",
        "channel vision stable runs 1.0.0 -> 1.1.0, for 12.5 % of the devices in cohorts default"
        " (before: 100 % of the devices in all cohorts)",
    ):
        assert words in text, text
    assert "x-issued-at" not in text
    assert "x-issued-at" in "\n".join(summary.raw)
    assert len(text) < len("\n".join(summary.raw)) * 3


def test_every_change_of_a_variant_has_a_line(publisher: MetadataPublisher) -> None:
    before, after = publisher.make_manifest("1.0.0", 1), publisher.make_manifest("1.1.0", 2)
    (name, variant), *_ = after.variants
    tensor = TensorSpec("z", "float32", (2,))
    changes = {
        "at_rest: sealed -> plain": replace(variant, at_rest="plain"),
        "health: probation_window_s 300 -> 5": replace(variant, health=replace(variant.health, probation_window_s=5)),
        "INPUTS OR OUTPUTS changed": replace(
            variant, models=(replace(variant.models[0], contract=Contract((), (tensor,))),)
        ),
        "ran on every architecture": replace(variant, requires=replace(variant.requires, cpu_features=("vnni",))),
        "runtime: options {} -> {'threads': '1'}": replace(
            variant, runtime=replace(variant.runtime, options=(("threads", "1"),))
        ),
    }
    for words, changed in changes.items():
        lines = list(review_manifest(replace(after, variants=((name, changed),)), {"1.0.0": before}))
        assert any(words in line for line in lines), (words, lines)


def tamper(request: SigningRequest, change: Callable[[Targets], object]) -> SigningRequest:
    document: Metadata[Targets] = Metadata.from_bytes(request.new_documents[ROLE].to_bytes())
    change(document.signed)
    return replace(request, new_documents={**request.new_documents, ROLE: document})


def test_a_build_machine_can_not_show_one_thing_and_have_another_signed(publisher: MetadataPublisher) -> None:
    request = stage_release(publisher)
    keys = [signer.public_key for signer in publisher.signers_of(ROLE)]
    honest = review_request(request, keys, publisher.folder / "history", NOW_S)
    name = f"bundles/{FAMILY}/1.1.0.json"
    with pytest.raises(DigestMismatch):
        review_request(
            replace(request, new_contents={**request.new_contents, name: b"{}"}),
            keys,
            publisher.folder / "history",
            NOW_S,
        )
    with pytest.raises(Malformed):
        review_request(replace(request, new_contents={}), keys, publisher.folder / "history", NOW_S)
    for change in (
        lambda t: t.targets.pop(f"bundles/{FAMILY}/1.0.0.json"),
        lambda t: t.unrecognized_fields.update({"x-new": 1}),
        lambda t: setattr(t, "version", 4),
        lambda t: setattr(t, "expires", t.expires.replace(year=2090)),
    ):
        assert (
            review_request(tamper(request, change), keys, publisher.folder / "history", NOW_S).digest != honest.digest
        )


def test_a_lie_about_what_is_published_does_not_reach_who_signed_before(publisher: MetadataPublisher) -> None:
    one = publisher.signers_of(ROLE)[0]
    history = publisher.folder / "history"
    first = stage_release(publisher)
    sign_request(first, review_request(first, [one.public_key], history, NOW_S), [one], history)
    publisher.publish()
    honest = stage_release(publisher, "1.2.0", 3)
    lie = replace(honest, published_documents={**honest.published_documents, ROLE: honest.new_documents[ROLE]})
    assert review_request(lie, [one.public_key], history, NOW_S) == review_request(
        honest, [one.public_key], history, NOW_S
    )
    assert "1.2.0" in "\n".join(review_request(lie, [one.public_key], history, NOW_S).summary.raw)


def test_a_replayed_or_forked_request_is_refused(publisher: MetadataPublisher) -> None:
    one = publisher.signers_of(ROLE)[0]
    history = publisher.folder / "history"
    old = stage_release(publisher)
    sign_request(old, review_request(old, [one.public_key], history, NOW_S), [one], history)
    sign_request(old, review_request(old, [one.public_key], history, NOW_S), [one], history)
    publisher.repository.discard()
    fork = stage_release(publisher, "1.9.0", 9)
    with pytest.raises(SigningRequestReplayed) as refused:
        review_request(fork, [one.public_key], history, NOW_S)
    assert refused.value.reason == "signing-request-replayed"
    assert any(
        "REPLACES version 3" in line
        for line in review_request(fork, [one.public_key], history, NOW_S, replace=True).summary.raw
    )
    publisher.publish()
    newer = stage_release(publisher, "2.0.0", 10)
    sign_request(newer, review_request(newer, [one.public_key], history, NOW_S), [one], history)
    with pytest.raises(SigningRequestReplayed):
        review_request(old, [one.public_key], history, NOW_S, replace=True)


def test_keys_that_may_not_sign_are_told(publisher: MetadataPublisher) -> None:
    request = stage_release(publisher)
    with pytest.raises(SignerNotInRole):
        review_request(request, [CryptoSigner.generate_ed25519().public_key], publisher.folder / "history", NOW_S)
    with pytest.raises(SignerNotInRole):
        review_request(request, [publisher.signers_of("root")[0].public_key], publisher.folder / "history", NOW_S)


def test_signatures_of_something_else_are_not_merged(publisher: MetadataPublisher) -> None:
    one = publisher.signers_of(ROLE)[0]
    request = stage_release(publisher)
    file = sign_request(
        request, review_request(request, [one.public_key], publisher.folder / "a", NOW_S), [one], publisher.folder / "a"
    )
    layout = publisher.repository.layout
    value = json.loads(file)
    row = value["signatures"][0]
    unknown_signer = CryptoSigner.generate_ed25519()
    wrong = {
        "repository": {**value, "repository": "0" * 64},
        "role": {**value, "signatures": [{**row, "role": "fleet"}]},
        "key": {**value, "signatures": [{**row, "key_id": unknown_signer.public_key.keyid}]},
        "signature": {**value, "signatures": [{**row, "signature": "00" * 64}]},
    }
    for changed in wrong.values():
        with pytest.raises(SignatureRefused) as refused:
            add_signatures(layout, [json.dumps(changed).encode()], [], NOW_S)
        assert refused.value.reason == "signature-refused"
    publisher.repository.stage_manifest(publisher.make_manifest("1.2.0", 3))
    prepare_request(layout, NOW_S)
    with pytest.raises(SignatureRefused):
        add_signatures(layout, [file], [], NOW_S)


def test_requests_and_signature_files_are_read_strictly(publisher: MetadataPublisher) -> None:
    data = stage_release(publisher).as_bytes()
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
            add_signatures(publisher.repository.layout, [file], [], NOW_S)
    publisher.repository.discard()
    with pytest.raises(NothingStaged):
        prepare_request(publisher.repository.layout, NOW_S)


def test_a_refresh_in_between_undoes_nobodys_signature(publisher: MetadataPublisher, device: CheckClient) -> None:
    """A request may be out for days; the daily refresh goes on meanwhile."""
    request = stage_release(publisher)
    files = []
    for number, signer in enumerate(publisher.signers_of(ROLE)):
        history = publisher.folder / f"history-{number}"
        files.append(
            sign_request(request, review_request(request, [signer.public_key], history, NOW_S), [signer], history)
        )
        publisher.repository.refresh(online_signers(publisher))
    assert add_signatures(publisher.repository.layout, files, online_signers(publisher), NOW_S).is_complete
    publisher.repository.refresh(online_signers(publisher))
    with pytest.raises(PublishConflict):
        publisher.repository.publish()
    assert publisher.repository.sign(online_signers(publisher)).is_complete
    publisher.repository.publish()
    assert device.check(publisher.published).manifest.version == "1.1.0"


def test_a_new_root_is_signed_by_old_and_new_keys_apart(publisher: MetadataPublisher, device: CheckClient) -> None:
    device.check(publisher.published)
    fresh = [*[CryptoSigner.generate_ed25519() for _ in range(2)], *[CryptoSigner.generate_mldsa() for _ in range(2)]]
    replace_keys(publisher.repository.layout, "root", [signer.public_key for signer in fresh])
    request = prepare_request(publisher.repository.layout, NOW_S)
    files = []
    for number, signer in enumerate([*publisher.signers_of("root")[:3], *fresh[:3]]):
        history = publisher.folder / f"history-{number}"
        reviewed = review_request(request, [signer.public_key], history, NOW_S)
        assert sum("key removed" in line for line in reviewed.summary.raw) == 4
        assert sum("key added" in line for line in reviewed.summary.raw) == 4
        files.append(sign_request(request, reviewed, [signer], history))
    assert add_signatures(publisher.repository.layout, files, online_signers(publisher), NOW_S).is_complete
    publisher.repository.publish()
    assert device.check(publisher.published).manifest.version == "1.0.0"


def test_the_commands_sign_only_what_was_reviewed(
    publisher: MetadataPublisher,
    device: CheckClient,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(PASSPHRASE_VARIABLE, PASSPHRASE.value.decode())
    monkeypatch.setenv("PACKAGER_REPO", os.fspath(publisher.repository.root))
    manifest = publisher.make_manifest("1.1.0", 2)
    publisher.repository.stage_manifest(manifest)
    publisher.repository.stage_rollout(make_rollout(manifest))

    def run(*words: str, status: int = 0) -> dict[str, Any]:
        code = main([*words, "--json"])
        out, err = capfd.readouterr()
        assert code == status, err
        found: dict[str, Any] = json.loads(out if status == 0 else err)
        check_command_output([*words[:2], "request"] if words[1] == "sign" and status == 0 else words, found)
        return found

    request = os.fspath(publisher.folder / "request.json")
    assert run("repo", "prepare", "-o", request)["documents"].keys() == {ROLE, "rollout-vision"}
    signatures = []
    for algorithm in ("ed25519", "ml-dsa-65"):
        key = os.fspath(publisher.keys / f"{ROLE}-{algorithm}-1.key")
        history = ["--history", os.fspath(publisher.folder / f"history-{algorithm}")]
        shown = run("repo", "sign", request, "--key", key, *history)
        assert shown["signatures"] is None
        out = os.fspath(publisher.folder / f"{algorithm}.signatures")
        wrong = run("repo", "sign", request, "--key", key, *history, "-o", out, "--expect", "0" * 64, status=2)
        assert wrong["error"]["reason"] == "invalid-usage"
        assert not Path(out).exists()
        run("repo", "sign", request, "--key", key, *history, "-o", out, "--expect", shown["digest"])
        signatures.append(out)
    assert run("repo", "add-signatures", *signatures, "--keys", os.fspath(publisher.keys))["complete"]
    run("repo", "publish")
    assert device.check(publisher.published).manifest.version == "1.1.0"
