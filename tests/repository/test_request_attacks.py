"""What a malicious build machine requests is refused or shown to the signers, never hidden."""

import copy
import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from securesystemslib.formats import encode_canonical
from securesystemslib.signer import CryptoSigner, Key, Signer
from tuf.api.metadata import DelegatedRole, Delegations, Metadata, Root, SuccinctRoles, TargetFile, Targets

from bundle.envelope import derive_public_key, generate_private_key
from bundle.errors import AirweightsError, DigestMismatch, Malformed
from bundle.fleet import Fleet
from keys.errors import SignerNotInRole, ThresholdInvalid
from packager.errors import RepositoryUnknown, SigningHistoryDamaged, SigningRequestReplayed
from packager.repository.detached_signing import prepare_request, request_summary, review_request, sign_request
from packager.repository.devices import rotate_cohort_key
from packager.repository.published import Document
from packager.repository.role_changes import renew, replace_key
from packager.repository.signing_history import SigningHistory
from packager.repository.signing_request import SigningRequest, parse_request
from packager.repository.tuf_documents import target_file
from tests.support.metadata_publisher import (
    FAMILY,
    NOW_S,
    PASSPHRASE,
    MetadataPublisher,
    build_publisher,
    copy_publisher,
    make_rollout,
)

RELEASE, ROLLOUT = f"release-{FAMILY}", f"rollout-{FAMILY}"
NAME = f"bundles/{FAMILY}/1.1.0.json"
CHANNEL_FILE = f"rollouts/{FAMILY}/stable.json"
Change = Callable[[Any], object]


def prepare_honest_request(publisher: MetadataPublisher, version: str = "1.1.0", counter: int = 2) -> SigningRequest:
    """Return an honest signing request: a release, its rollout and renewed offline roles."""
    manifest = publisher.make_manifest(version, counter)
    publisher.repository.stage_manifest(manifest)
    publisher.repository.stage_rollout(make_rollout(manifest))
    renew(publisher.repository.layout, ["root", "targets", "fleet"])
    return prepare_request(publisher.repository.layout, NOW_S)


def tamper(request: SigningRequest, role: str, change: Change) -> SigningRequest:
    """Return the request with one changed document, as signers receive it."""
    document: Document = Metadata.from_bytes(request.new_documents[role].to_bytes())
    change(document.signed)
    return parse_request(replace(request, new_documents={**request.new_documents, role: document}).as_bytes())


def delegated(targets: Targets, name: str = RELEASE) -> DelegatedRole:
    assert targets.delegations is not None
    assert targets.delegations.roles is not None
    return targets.delegations.roles[name]


def delegations(signed: Targets) -> Delegations:
    assert signed.delegations is not None
    return signed.delegations


def add_key(signed: Any, role: str, key: Key, keyid: str | None = None) -> None:
    holder = signed if isinstance(signed, Root) else delegations(signed)
    name = keyid or key.keyid
    holder.keys[name] = Key.from_dict(name, key.to_dict())
    signed.get_delegated_role(role).keyids.append(name)


def new_delegation(targets: Targets, name: str, path: str) -> None:
    roles = delegations(targets).roles
    assert roles is not None
    roles[name] = DelegatedRole(name, list(delegated(targets).keyids), 2, terminating=True, paths=[path])


def hash_bins(targets: Targets) -> None:
    delegations_before = delegations(targets)
    targets.delegations = Delegations(
        delegations_before.keys, succinct_roles=SuccinctRoles(list(delegations_before.keys)[:2], 2, 8, "bin")
    )


def steal_key_id(signed: Any, role: str) -> None:
    """List another public key under the id of a known key."""
    holder = signed if isinstance(signed, Root) else delegations(signed)
    known = signed.get_delegated_role(role).keyids[0]
    holder.keys[known] = Key.from_dict(known, CryptoSigner.generate_ed25519().public_key.to_dict())


def same_key_twice(signed: Any, role: str) -> None:
    holder = signed if isinstance(signed, Root) else delegations(signed)
    key = holder.keys[signed.get_delegated_role(role).keyids[0]]
    again = copy.deepcopy(key.to_dict())
    again["keyval"]["x"] = "1"
    own_id = hashlib.sha256(str(encode_canonical(again)).encode()).hexdigest()
    add_key(signed, role, Key.from_dict(own_id, again))


def drop_mldsa_keys(root: Root) -> None:
    root.unrecognized_fields["x-classical"] = True
    root.roles["root"].threshold = 2


def list_file(signed: Targets, name: str, data: bytes = b"{}") -> None:
    signed.targets[name] = target_file(name, data)


UNKNOWN_KEY = CryptoSigner.generate_ed25519().public_key
REFUSED: dict[str, tuple[str, Change, type[AirweightsError], str]] = {
    # targets: who may sign what
    "an-added-delegation-of-another-kind": (
        "targets",
        lambda t: new_delegation(t, "backdoor", "bundles/vision/*"),
        Malformed,
        "'backdoor'",
    ),
    "a-widened-path-pattern": (
        "targets",
        lambda t: setattr(delegated(t), "paths", ["bundles/*/*"]),
        Malformed,
        "'bundles/*/*'",
    ),
    "a-second-path-pattern": (
        "targets",
        lambda t: setattr(delegated(t), "paths", ["bundles/vision/*", "rollouts/vision/*"]),
        Malformed,
        "rollouts/vision/*",
    ),
    "a-delegation-of-another-familys-paths": (
        "targets",
        lambda t: new_delegation(t, "release-speech", "bundles/vision/*"),
        Malformed,
        "release-speech",
    ),
    "a-delegation-that-does-not-end": (
        "targets",
        lambda t: setattr(delegated(t), "terminating", False),
        Malformed,
        "terminating",
    ),
    "hash-bins": ("targets", hash_bins, Malformed, "hash bins"),
    "a-file-in-targets": ("targets", lambda t: list_file(t, NAME), Malformed, "lists files itself"),
    "an-unknown-field-of-delegations": (
        "targets",
        lambda t: delegations(t).unrecognized_fields.update({"x": 1}),
        Malformed,
        "['x']",
    ),
    "a-lowered-threshold": (
        "targets",
        lambda t: setattr(delegated(t), "threshold", 1),
        ThresholdInvalid,
        "meet the threshold 1",
    ),
    "a-key-under-anothers-id": (
        "targets",
        lambda t: steal_key_id(t, RELEASE),
        Malformed,
        "has a wrong id",
    ),
    "a-key-added-so-that-one-kind-suffices": (
        "targets",
        lambda t: add_key(t, RELEASE, UNKNOWN_KEY),
        ThresholdInvalid,
        "classical keys alone (2)",
    ),
    "a-key-listed-twice": ("targets", lambda t: same_key_twice(t, RELEASE), Malformed, "the same public key"),
    # root
    "a-lowered-root-threshold": (
        "root",
        lambda r: setattr(r.roles["root"], "threshold", 1),
        ThresholdInvalid,
        "meet the threshold 1",
    ),
    "a-root-threshold-that-one-lost-key-ends": (
        "root",
        lambda r: setattr(r.roles["targets"], "threshold", 4),
        ThresholdInvalid,
        "losing one key",
    ),
    "a-key-under-anothers-id-in-root": (
        "root",
        lambda r: steal_key_id(r, "root"),
        Malformed,
        "has a wrong id",
    ),
    # a family
    "another-familys-file": (
        RELEASE,
        lambda t: list_file(t, "bundles/speech/1.1.0.json"),
        Malformed,
        "only files of pattern bundles/vision/*",
    ),
    "a-file-of-another-kind": (
        RELEASE,
        lambda t: list_file(t, CHANNEL_FILE),
        Malformed,
        "only files of pattern bundles/vision",
    ),
    "a-name-that-draws-on-the-terminal": (
        RELEASE,
        lambda t: list_file(t, f"bundles/{FAMILY}/1.1.0\x1b[2K\n.json"),
        Malformed,
        "\\x1b[2K\\n",
    ),
    "a-delegation-below-a-release-role": (
        RELEASE,
        lambda t: setattr(t, "delegations", Delegations({}, {})),
        Malformed,
        "only targets may delegate",
    ),
    "custom-fields-of-a-file": (
        RELEASE,
        lambda t: t.targets[NAME].unrecognized_fields.update({"custom": {}}),
        Malformed,
        "length and SHA-256 only",
    ),
    "a-second-digest": (
        RELEASE,
        lambda t: t.targets[NAME].hashes.update({"sha512": "0" * 128}),
        Malformed,
        "length and SHA-256 only",
    ),
    "a-digest-of-something-else": (
        RELEASE,
        lambda t: t.targets.update({NAME: TargetFile(2, {"sha256": "0" * 64}, NAME)}),
        DigestMismatch,
        NAME,
    ),
    "a-length-of-something-else": (
        RELEASE,
        lambda t: setattr(t.targets[NAME], "length", 7),
        DigestMismatch,
        NAME,
    ),
    "a-file-whose-content-is-kept-back": (
        RELEASE,
        lambda t: list_file(t, f"bundles/{FAMILY}/6.6.6.json"),
        Malformed,
        "the request does not contain it",
    ),
    "an-older-version": (
        RELEASE,
        lambda t: setattr(t, "version", 1),
        SigningRequestReplayed,
        "version 2 is published already",
    ),
}

SHOWN: dict[str, tuple[str, Change, str]] = {
    "a-later-expiry": (RELEASE, lambda t: setattr(t, "expires", t.expires.replace(year=2090)), "VALID FOR"),
    "an-expiry-in-the-past": (
        RELEASE,
        lambda t: setattr(t, "expires", t.expires.replace(year=2020)),
        "EXPIRED on 2020",
    ),
    "a-withdrawn-release": (RELEASE, lambda t: t.targets.pop(f"bundles/{FAMILY}/1.0.0.json"), "is no longer listed"),
    "an-unknown-field": (
        RELEASE,
        lambda t: t.unrecognized_fields.update({"x-new": "a\nb"}),
        "field x-new: None -> 'a\\nb'",
    ),
    "a-jump-of-version": (RELEASE, lambda t: setattr(t, "version", 2**40), f"version 2 -> {2**40}"),
    "another-specification": (RELEASE, lambda t: setattr(t, "spec_version", "1.0.9"), "field spec_version"),
    "a-counter-epoch": (
        "targets",
        lambda t: delegated(t).unrecognized_fields.update({"x-counter-epoch": 9}),
        "'x-counter-epoch': 9",
    ),
    "a-new-family": (
        "targets",
        lambda t: new_delegation(t, "release-speech", "bundles/speech/*"),
        "release-speech: threshold none -> 2",
    ),
    "a-delegation-taken-away": ("targets", lambda t: setattr(delegations(t), "roles", {}), f"{RELEASE} removed"),
    "delegations-in-another-order": (
        "targets",
        lambda t: setattr(t.delegations, "roles", dict(reversed(t.delegations.roles.items()))),
        "another order",
    ),
    "packs-without-a-limit": ("root", lambda r: r.unrecognized_fields.update({"x-pack-max-days": 9999}), "-> 9999"),
    "a-repository-that-calls-itself-classical": ("root", drop_mldsa_keys, "UNSOUND: its classical keys alone (2)"),
    "without-consistent-snapshots": ("root", lambda r: setattr(r, "consistent_snapshot", False), "consistent_snapshot"),
}


def history(publisher: MetadataPublisher) -> Path:
    return publisher.folder / "history"


def public_keys(signers: list[Signer]) -> list[Key]:
    return [signer.public_key for signer in signers]


@pytest.fixture(scope="module")
def shared_request(
    pristine_publisher: MetadataPublisher, tmp_path_factory: pytest.TempPathFactory
) -> tuple[MetadataPublisher, SigningRequest]:
    """Return a publisher and its honest request; tests must not change either."""
    publisher = copy_publisher(pristine_publisher, tmp_path_factory.mktemp("request") / "publisher")
    return publisher, prepare_honest_request(publisher)


@pytest.mark.parametrize("attack", REFUSED)
def test_what_no_honest_request_asks_for_is_not_signed(
    shared_request: tuple[MetadataPublisher, SigningRequest], attack: str
) -> None:
    role, change, error, words = REFUSED[attack]
    publisher, request = shared_request[0], tamper(shared_request[1], role, change)
    with pytest.raises(error) as refused:
        review_request(request, public_keys(publisher.signers_of(role)), history(publisher), NOW_S)
    assert words in refused.value.message
    assert refused.value.message.isprintable()


@pytest.mark.parametrize("attack", SHOWN)
def test_what_differs_is_shown_and_has_another_digest(
    shared_request: tuple[MetadataPublisher, SigningRequest], attack: str
) -> None:
    role, change, words = SHOWN[attack]
    publisher, request = shared_request
    changed = tamper(request, role, change)
    keys = public_keys(publisher.signers_of(role))
    before = review_request(request, keys, history(publisher), NOW_S)
    after = review_request(changed, keys, history(publisher), NOW_S)
    for changed_lines, lines in (
        (after.summary.raw, before.summary.raw),
        (after.summary.plain, before.summary.plain),
    ):
        assert any(words in line for line in changed_lines), changed_lines
        assert not any(words in line for line in lines)
    assert before.digest != after.digest
    assert all(line.isprintable() for line in (*after.summary.raw, *after.summary.plain))


def test_a_repository_that_only_claims_to_be_another_finds_no_signature(
    publisher: MetadataPublisher, tmp_path: Path
) -> None:
    """Without a memory to compare with, an old counter or a withdrawn release would pass as news."""
    keys = publisher.signers_of(RELEASE)
    first = prepare_honest_request(publisher)
    sign_request(first, review_request(first, public_keys(keys), history(publisher), NOW_S), keys, history(publisher))
    other = build_publisher(tmp_path / "other")
    claimed = replace(first, first_root=(other.published / "metadata" / "1.root.json").read_bytes())
    with pytest.raises(RepositoryUnknown) as refused:
        review_request(claimed, public_keys(keys), history(publisher), NOW_S)
    assert "--new-repository" in str(refused.value.hint)
    result = review_request(claimed, public_keys(keys), history(publisher), NOW_S, new_repository=True)
    assert any("FIRST TIME" in line for line in result.summary.raw)
    # a key that never signed here is free to begin
    other_signers = other.signers_of(RELEASE)
    there = prepare_honest_request(other)
    assert review_request(there, public_keys(other_signers), history(publisher), NOW_S).roles == (RELEASE,)


def test_a_rollout_that_goes_back_is_shown_as_a_downgrade(publisher: MetadataPublisher) -> None:
    keys = publisher.signers_of(ROLLOUT)
    first = prepare_honest_request(publisher)
    sign_request(first, review_request(first, public_keys(keys), history(publisher), NOW_S), keys, history(publisher))
    publisher.publish()
    old = publisher.repository.manifest(FAMILY, "1.0.0")
    assert old is not None
    publisher.repository.stage_rollout(make_rollout(old))
    request = prepare_request(publisher.repository.layout, NOW_S)
    text = "\n".join(review_request(request, public_keys(keys), history(publisher), NOW_S).summary.raw)
    assert f"DOWNGRADE: {CHANNEL_FILE}: counter 2 -> 1" in text
    assert f"before: {CHANNEL_FILE}: vision stable runs 1.1.0, counter 2" in text
    # the server keeps back what was before, or gives something else: that is said, not believed
    for earlier in ({}, {CHANNEL_FILE: request.new_contents[CHANNEL_FILE]}):
        lines = review_request(
            replace(request, earlier_contents=earlier), public_keys(keys), history(publisher), NOW_S
        ).summary.raw
        assert f"{ROLLOUT}: before: {CHANNEL_FILE}: content not in the request" in lines


def test_a_cohort_that_goes_back_or_changes_its_key_is_shown(publisher: MetadataPublisher) -> None:
    signers = publisher.signers_of("fleet")
    epoch = rotate_cohort_key(publisher.repository, "default", publisher.folder / "cohorts-2", PASSPHRASE).epoch
    assert epoch == 2
    publisher.publish()
    now = publisher.repository.fleet()
    (cohort,) = now.cohorts
    honest_request = tamper_with_fleet(publisher, replace(now, devices=1))
    sign_request(
        honest_request,
        review_request(honest_request, public_keys(signers), history(publisher), NOW_S),
        signers,
        history(publisher),
    )
    for change, words in (
        (replace(cohort, epoch=1), "DOWNGRADE: cohort default: epoch 2 -> 1"),
        (
            replace(cohort, public_key=derive_public_key(generate_private_key())),
            "COHORT default HAS ANOTHER KEY in the same epoch 2",
        ),
    ):
        lines = request_summary(tamper_with_fleet(publisher, replace(now, cohorts=(change,))), NOW_S)
        assert f"fleet: {words}" in lines.raw
    emptied = request_summary(tamper_with_fleet(publisher, replace(now, cohorts=())), NOW_S)
    assert "fleet: cohort default is no longer listed" in emptied.raw
    assert "fleet: cohort default is no longer listed" in emptied.plain


def tamper_with_fleet(publisher: MetadataPublisher, fleet: Fleet) -> SigningRequest:
    """Return a request for a fleet document that was not staged."""
    renew(publisher.repository.layout, ["fleet"])
    request = prepare_request(publisher.repository.layout, NOW_S)
    earlier = {"fleet/fleet.json": request.new_contents["fleet/fleet.json"]}
    changed = tamper(request, "fleet", lambda t: list_file(t, "fleet/fleet.json", fleet.as_bytes()))
    return replace(changed, new_contents={"fleet/fleet.json": fleet.as_bytes()}, earlier_contents=earlier)


def test_a_release_below_one_that_is_listed_is_shown(publisher: MetadataPublisher) -> None:
    publisher.release("3.0.0", 9)
    request = prepare_honest_request(publisher, "3.1.0", 10)
    low = publisher.make_manifest("3.1.0", 4).as_bytes()
    name = f"bundles/{FAMILY}/3.1.0.json"
    changed = tamper(request, RELEASE, lambda t: list_file(t, name, low))
    changed = replace(changed, new_contents={**changed.new_contents, name: low})
    lines = review_request(changed, public_keys(publisher.signers_of(RELEASE)), history(publisher), NOW_S).summary.raw
    assert f"{RELEASE}: COUNTER 4 of {name} is not above the counters of all earlier releases" in lines


def test_a_manifest_under_another_name_is_refused(publisher: MetadataPublisher) -> None:
    request = prepare_honest_request(publisher)
    other = publisher.make_manifest("6.6.6", 666).as_bytes()
    changed = tamper(request, RELEASE, lambda t: list_file(t, NAME, other))
    changed = replace(changed, new_contents={**changed.new_contents, NAME: other})
    with pytest.raises(Malformed) as refused:
        review_request(changed, public_keys(publisher.signers_of(RELEASE)), history(publisher), NOW_S)
    assert "is the manifest of vision 6.6.6" in refused.value.message


@pytest.mark.parametrize("role", ["snapshot", "timestamp"])
def test_snapshot_and_timestamp_are_not_signed_by_request(publisher: MetadataPublisher, role: str) -> None:
    request = prepare_honest_request(publisher)
    online: Document = Metadata.from_bytes(publisher.repository_document(role))
    shared_request = replace(request, new_documents={**request.new_documents, role: online})
    with pytest.raises(Malformed) as refused:
        review_request(shared_request, public_keys(publisher.signers_of(role)), history(publisher), NOW_S)
    assert "never by request" in refused.value.message


def test_a_document_of_another_role_does_not_pass_for_this_one(publisher: MetadataPublisher) -> None:
    request = prepare_honest_request(publisher)
    for role, other in (("targets", RELEASE), (RELEASE, ROLLOUT), (RELEASE, "root"), ("root", "targets")):
        shared_request = replace(request, new_documents={**request.new_documents, role: request.new_documents[other]})
        with pytest.raises(Malformed):
            review_request(shared_request, public_keys(publisher.signers_of(role)), history(publisher), NOW_S)


def test_a_new_keys_public_half_is_named(publisher: MetadataPublisher) -> None:
    fresh = CryptoSigner.generate_ed25519().public_key
    old = publisher.signers_of(RELEASE)[0].public_key
    replace_key(publisher.repository.layout, RELEASE, old.keyid, fresh)
    request = prepare_request(publisher.repository.layout, NOW_S)
    text = "\n".join(
        review_request(request, public_keys(publisher.signers_of("targets")), history(publisher), NOW_S).summary.raw
    )
    assert f"key added: ed25519 key {fresh.keyid} (public key SHA-256 " in text
    assert f"key removed: ed25519 key {old.keyid}" in text
    assert "if classical signatures are broken, an attacker still needs 1 ML-DSA key;" in text
    assert "\n".join(request_summary(request, NOW_S).raw).count("key added") == 1


def test_a_damaged_memory_is_said_and_not_taken_for_none(publisher: MetadataPublisher) -> None:
    keys = publisher.signers_of(RELEASE)
    request = prepare_honest_request(publisher)
    sign_request(
        request, review_request(request, public_keys(keys), history(publisher), NOW_S), keys, history(publisher)
    )
    (path,) = history(publisher).rglob(f"{RELEASE}.json")
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(SigningHistoryDamaged) as refused:
        review_request(request, public_keys(keys), history(publisher), NOW_S)
    assert refused.value.reason == "signing-history-damaged"
    assert str(path) in refused.value.message
    (known,) = history(publisher).rglob("keys.json")
    known.write_text("{")
    with pytest.raises(SigningHistoryDamaged):
        SigningHistory(history(publisher), "0" * 64).other_repositories(public_keys(keys))


def test_a_key_gains_no_say_by_being_put_into_the_request(publisher: MetadataPublisher) -> None:
    """The engineer's key listed for root in the request: asked to sign it, and her summary says what it is."""
    (engineer, *_) = publisher.signers_of(RELEASE)
    request = tamper(prepare_honest_request(publisher), "root", lambda r: add_key(r, "root", engineer.public_key))
    with pytest.raises(ThresholdInvalid):
        review_request(request, [engineer.public_key], history(publisher), NOW_S)
    with pytest.raises(SignerNotInRole):
        review_request(
            replace(request, new_documents={"targets": request.new_documents["targets"]}),
            [engineer.public_key],
            history(publisher),
            NOW_S,
        )
